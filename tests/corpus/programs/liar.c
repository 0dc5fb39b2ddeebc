/* SPDX-License-Identifier: Apache-2.0 */
/* Functions whose unwind tables lie: liar round|far|zero. Each dies in the function of that name. */
#include <stdio.h>
#include <string.h>

int round_(void), far_(void), zero_(void);

/* round: its caller is itself, at the same place of the stack. far: its frame is where nothing is. zero: it has no caller. */
__asm__(".text\n"
        ".type round_, @function\nround_: .cfi_startproc\n"
        "lea 1f(%rip), %rax; push %rax; .cfi_def_cfa %rsp, 0; .cfi_offset %rip, 0\n"
        "nop; 1: movl $1, 8; nop\n .cfi_endproc\n.size round_, . - round_\n"
        ".type far_, @function\nfar_: .cfi_startproc\n"
        ".cfi_def_cfa %rsp, 0x700000000000\n movl $1, 8; ret\n .cfi_endproc\n.size far_, . - far_\n"
        ".type zero_, @function\nzero_: .cfi_startproc\n"
        ".cfi_undefined %rip\n movl $1, 8; ret\n .cfi_endproc\n.size zero_, . - zero_\n");

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";
    printf("{\"functions\": [\"%s_\"]}\n", mode);
    fflush(stdout);
    return !strcmp(mode, "round") ? round_() : !strcmp(mode, "far") ? far_() : zero_();
}
