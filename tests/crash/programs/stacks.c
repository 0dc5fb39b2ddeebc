/* SPDX-License-Identifier: Apache-2.0 */
/* A program that dies with a stack that is hard to walk: stacks MODE. Functions are named for what they are on the way to it. */
#define _GNU_SOURCE
#include <alloca.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
#ifdef __GLIBC__
#include <ucontext.h>
#endif

#ifdef __clang__
#define FUNCTION __attribute__((noinline, visibility("hidden")))
#else
#define FUNCTION __attribute__((noinline, noclone, visibility("hidden")))
#endif

static volatile int sink;
static volatile int *volatile nowhere = (volatile int *)16;

/* The frame stays: what comes behind a call makes it no tail call. */
#define CALL(call) do { call; sink++; } while (0)

FUNCTION void die(void) { *nowhere = 1; sink++; }

/* Signals */
FUNCTION void handler(int number) { (void)number; CALL(die()); }

FUNCTION void interrupted(int number) { CALL(raise(number)); }

FUNCTION void on_signal(int number, int flags)
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
    sigaction(number, &action, NULL);
}

FUNCTION void another_stack(void)
{
    stack_t stack = {.ss_sp = malloc(65536), .ss_size = 65536};
    sigaltstack(&stack, NULL);
}

FUNCTION void in_handler(void) { on_signal(SIGUSR1, 0); CALL(interrupted(SIGUSR1)); }

FUNCTION void on_another_stack(void) { another_stack(); on_signal(SIGUSR1, SA_ONSTACK); CALL(interrupted(SIGUSR1)); }

FUNCTION void fault_handler(int number) { (void)number; CALL(abort()); }

FUNCTION void after_fault(void) { signal(SIGSEGV, fault_handler); CALL(die()); }

FUNCTION void outer_handler(int number) { (void)number; on_signal(SIGUSR2, 0); CALL(interrupted(SIGUSR2)); }

FUNCTION void two_handlers(void) { signal(SIGUSR1, outer_handler); CALL(interrupted(SIGUSR1)); }

FUNCTION void in_system_call(void)
{
    struct itimerval soon = {.it_value = {.tv_usec = 1000}};
    on_signal(SIGALRM, 0);
    setitimer(ITIMER_REAL, &soon, NULL);
    for (;;)
        CALL(pause());
}

/* Recursion */
FUNCTION void endless(int depth) { volatile char room[64]; room[depth & 63] = 1; if (nowhere) CALL(endless(depth + 1)); sink += room[0]; }

FUNCTION void overflow(void) { CALL(endless(0)); }

FUNCTION void overflow_handled(void)
{
    another_stack();
    struct sigaction action = {.sa_handler = fault_handler, .sa_flags = SA_ONSTACK};
    sigaction(SIGSEGV, &action, NULL);
    CALL(endless(0));
}

FUNCTION void down(int depth) { if (depth) CALL(down(depth - 1)); else CALL(die()); }

FUNCTION void deep(void) { CALL(down(5000)); }

/* Jumps to where no code is */
FUNCTION void call(void *address) { CALL(((void (*)(void))address)()); }

FUNCTION void to_zero(void) { CALL(call(NULL)); }

FUNCTION void to_nowhere(void) { CALL(call((void *)0x1230)); }

FUNCTION void to_data(void) { CALL(call((void *)&sink)); }

FUNCTION void to_stack(void) { int here; CALL(call(&here)); }

FUNCTION void returns_to_nowhere(void)
{
    void **top = __builtin_frame_address(0);
    top[1] = (void *)0x1230;
    sink++;
}

FUNCTION void smashed(void) { CALL(returns_to_nowhere()); }

/* What compilers make */
FUNCTION __attribute__((noreturn)) void never_returns(void) { die(); abort(); }

FUNCTION void last_call(void) { never_returns(); }

FUNCTION void tail(int depth) { if (depth) { tail(depth - 1); return; } die(); }

FUNCTION void tail_call(void) { CALL(tail(3)); }

FUNCTION void aligned(int size)
{
    volatile char room[64] __attribute__((aligned(64)));
    volatile char *more = alloca(size);
    more[0] = room[1] = 1;
    CALL(die());
    sink += more[0] + room[1];
}

FUNCTION void aligned_stack(void) { CALL(aligned(100 + sink)); }

FUNCTION void large(void) { volatile char room[300000]; room[0] = 1; CALL(die()); sink += room[0]; }

/* The vDSO, and the procedure linkage table */
FUNCTION void vdso(void) { CALL(clock_gettime(CLOCK_MONOTONIC, (void *)16)); }

FUNCTION void lookup_fails(void *page) { mprotect(page, 4096, PROT_NONE); CALL(time(NULL)); CALL(getppid()); }

extern char _GLOBAL_OFFSET_TABLE_[] __attribute__((visibility("hidden")));

FUNCTION void linkage(void) { CALL(lookup_fails((void *)((uintptr_t)_GLOBAL_OFFSET_TABLE_ & ~(uintptr_t)4095))); }

/* Code that no table knows */
FUNCTION void *made(const char *code, size_t size)
{
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memcpy(page, code, size);
}

FUNCTION void through(void *code, void (*argument)(void)) { CALL(((void (*)(void (*)(void)))code)(argument)); }

/* push %rbp; mov %rsp,%rbp; sub $32,%rsp; call *%rdi; leave; ret */
FUNCTION void made_framed(void) { CALL(through(made("\x55\x48\x89\xe5\x48\x83\xec\x20\xff\xd7\xc9\xc3", 12), die)); }

/* sub $40,%rsp; call *%rdi; add $40,%rsp; ret */
FUNCTION void made_frameless(void) { CALL(through(made("\x48\x83\xec\x28\xff\xd7\x48\x83\xc4\x28\xc3", 11), die)); }

/* mov %eax,16 */
FUNCTION void made_leaf(void) { CALL(through(made("\x89\x04\x25\x10\0\0\0\xc3", 8), die)); }

/* Coroutines */
#ifdef __GLIBC__
static ucontext_t home, away;

FUNCTION void coroutine(void) { CALL(die()); }

FUNCTION void contexts(void)
{
    getcontext(&away);
    away.uc_stack = (stack_t){.ss_sp = malloc(65536), .ss_size = 65536};
    away.uc_link = &home;
    makecontext(&away, coroutine, 0);
    CALL(swapcontext(&home, &away));
}
#endif

#ifndef NO_CFI
static char other_stack[65536] __attribute__((aligned(16)));

FUNCTION void on_other_stack(void) { CALL(die()); }

/* A frame that says by its table where the stack is that it came from. */
FUNCTION __attribute__((naked)) void switches(void *stack, void (*function)(void))
{
    __asm__("push %rbp\n.cfi_adjust_cfa_offset 8\n.cfi_rel_offset %rbp, 0\n"
            "mov %rsp, %rbp\n.cfi_def_cfa_register %rbp\n"
            "mov %rdi, %rsp\ncall *%rsi\nmov %rbp, %rsp\npop %rbp\n.cfi_def_cfa %rsp, 8\nret");
}

FUNCTION void switched(void) { CALL(switches(other_stack + sizeof other_stack, on_other_stack)); }
#endif

static const struct {
    const char *name;
    void (*run)(void);
} modes[] = {
    {"plain", die}, {"handler", in_handler}, {"altstack", on_another_stack}, {"fault", after_fault},
    {"handlers", two_handlers}, {"system-call", in_system_call}, {"overflow", overflow},
    {"overflow-handled", overflow_handled}, {"deep", deep}, {"zero", to_zero}, {"nowhere", to_nowhere},
    {"data", to_data}, {"stack", to_stack}, {"smashed", smashed}, {"noreturn", last_call}, {"tail", tail_call},
    {"aligned", aligned_stack}, {"large", large}, {"vdso", vdso}, {"linkage", linkage}, {"made-framed", made_framed},
    {"made-frameless", made_frameless}, {"made-leaf", made_leaf},
#ifndef NO_CFI
    {"switched", switched},
#endif
#ifdef __GLIBC__
    {"contexts", contexts},
#endif
};

FUNCTION void run(const char *mode)
{
    for (size_t index = 0; index < sizeof modes / sizeof *modes; index++)
        if (!strcmp(modes[index].name, mode))
            CALL(modes[index].run());
}

FUNCTION void *thread(void *mode) { CALL(run(mode)); return NULL; }

/* The mode runs in a thread of its own, beside the first one, or in the first one if `+` is before it. */
int main(int count, char **arguments)
{
    pthread_t other;

    if (count != 2)
        return 2;
    if (arguments[1][0] == '+')
        CALL(run(arguments[1] + 1));
    else if (!pthread_create(&other, NULL, thread, arguments[1]))
        pthread_join(other, NULL);
    return 3;
}
