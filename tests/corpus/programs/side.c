/* SPDX-License-Identifier: Apache-2.0 */
/* A library whose functions die. */
volatile int side_sink;

__attribute__((noinline, used)) int side_end(int n) { *(volatile int *)8 = n; return n + side_sink; }
int side_call(int n) { return side_end(n) + side_sink; }

#ifdef IFUNC
/* It dies while the dynamic linker looks for it. */
static int chosen(int n) { return n; }
__attribute__((used)) static int (*choose(void))(int)
{
    *(volatile int *)8 = 1;
    return side_sink ? chosen : chosen;
}
int side_lazy(int n) __attribute__((ifunc("choose")));
#endif
