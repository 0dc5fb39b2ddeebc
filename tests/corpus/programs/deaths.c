/* SPDX-License-Identifier: Apache-2.0 */
/* Ways to die: deaths MODE [NUMBER]. Before its death the program says in which functions it is, innermost first: one JSON
 * object on standard output, {"functions": ["leaf", "middle", ..., "main"]}, of those alone that the compiler cannot drop.
 */
#define _GNU_SOURCE
#include <alloca.h>
#include <assert.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <libgen.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#ifdef __GLIBC__
#include <ucontext.h>
#endif

#ifdef __clang__
#define FIRM __attribute__((noinline))
#else
#define FIRM __attribute__((noinline, noipa))
#endif

typedef int leaf_fn(int);

static int number;
static const char *self;
volatile int sink;

static void say(const char *functions)
{
    printf("{\"functions\": [%s]}\n", functions);
    fflush(stdout);
}

/* Nothing that calls is the last thing that a function does: what is below stays on the stack. */
FIRM int middle(leaf_fn *leaf, int depth)
{
    int result = depth > 1 ? middle(leaf, depth - 1) : leaf(depth);
    return result + sink;
}

#define IN(leaf) say("\"" #leaf "\", \"middle\", \"middle\", \"middle\", \"main\"")

FIRM int null_leaf(int n) { IN(null_leaf); *(volatile int *)8 = n; return n; }
FIRM int trap_leaf(int n) { IN(trap_leaf); if (n) __builtin_trap(); return n; }
FIRM int abort_leaf(int n) { IN(abort_leaf); if (n) abort(); return n; }
FIRM int assert_leaf(int n) { IN(assert_leaf); assert(n == 0); return n; }
FIRM int divide_leaf(int n) { IN(divide_leaf); volatile int zero = 0; return n / zero + sink; }
FIRM int raise_leaf(int n) { IN(raise_leaf); return raise(SIGQUIT) + n; }
FIRM int strlen_leaf(int n) { IN(strlen_leaf); return (int)strlen((char *)(intptr_t)(16 * n)) + sink; }
FIRM int vdso_leaf(int n) { IN(vdso_leaf); return (int)time((time_t *)(intptr_t)(16 * n)) + sink; }

FIRM int memcpy_leaf(int n)
{
    static char from[1 << 20];
    IN(memcpy_leaf);
    memcpy((char *)(intptr_t)(4096 * n), from, (size_t)number + sizeof from);
    return sink;
}

FIRM int bus_leaf(int n)
{
    char name[] = "/tmp/corpus-XXXXXX";
    int fd = mkstemp(name);
    unlink(name);
    if (fd < 0 || ftruncate(fd, 4096))
        _exit(4);
    volatile char *cut = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (ftruncate(fd, 0))
        _exit(4);
    IN(bus_leaf);
    return cut[n] + sink;
}

/* One byte too many: the canary is hit, the return address is not. */
FIRM int smash_leaf(int n)
{
    char buffer[24];
    IN(smash_leaf);
    memset(buffer, n + 'A', (size_t)(number ? number : 25));
    return buffer[n] + sink;
}

FIRM int call_leaf(void (*target)(void)) { target(); return sink; }
FIRM int jump_null(int n)
{
    say("\"call_leaf\", \"jump_null\", \"middle\", \"middle\", \"middle\", \"main\"");
    return call_leaf((void (*)(void))0) + n;
}
FIRM int jump_wild(int n)
{
    say("\"call_leaf\", \"jump_wild\", \"middle\", \"middle\", \"middle\", \"main\"");
    return call_leaf((void (*)(void))0x123456789000) + n;
}
FIRM int jump_noncanonical(int n)
{
    say("\"call_leaf\", \"jump_noncanonical\", \"middle\", \"middle\", \"middle\", \"main\"");
    return call_leaf((void (*)(void))0x4141414141414141) + n;
}
FIRM int jump_data(int n)
{
    static char data[64] = "data, not code";
    say("\"call_leaf\", \"jump_data\", \"middle\", \"middle\", \"middle\", \"main\"");
    return call_leaf((void (*)(void))(uintptr_t)data) + n;
}

/* The call is the last instruction of the function: its return address is in the next one. */
FIRM __attribute__((noreturn)) void never(int n)
{
    *(volatile int *)8 = n;
    abort();
}
FIRM __attribute__((noreturn)) int noreturn_leaf(int n)
{
    say("\"never\", \"noreturn_leaf\", \"middle\", \"middle\", \"middle\", \"main\"");
    never(n);
}

FIRM int tail_end(int n) { *(volatile int *)8 = n; return n; }
FIRM int tail_middle(int n) { sink = n; return tail_end(n + 1); }
FIRM int tail_leaf(int n)
{
    say("\"tail_end\", \"middle\", \"middle\", \"middle\", \"main\"");
    return tail_middle(n + 1);
}

/* A part of it is put away from it, as it is hardly ever run. */
FIRM __attribute__((cold, noreturn)) void complain(int n) { printf("%d\n", n); abort(); }
FIRM int cold_leaf(int n)
{
    say("\"complain\", \"cold_leaf\", \"middle\", \"middle\", \"middle\", \"main\"");
    if (__builtin_expect(n != 77, 0)) {
        sink = n;
        complain(n);
    }
    return n * sink;
}

/* What stands on the stack before its frame is of a size that is not known beforehand, or aligned beyond the ABI's. */
FIRM int fill(char *bytes, int n) { memset(bytes, n, 64); *(volatile int *)8 = bytes[5]; return n; }
FIRM int alloca_leaf(int n)
{
    say("\"fill\", \"alloca_leaf\", \"middle\", \"middle\", \"middle\", \"main\"");
    char *bytes = alloca((size_t)(100 * n + number));
    return fill(bytes, n) + bytes[1];
}
FIRM int aligned_leaf(int n)
{
    _Alignas(256) char bytes[256];
    say("\"fill\", \"aligned_leaf\", \"middle\", \"middle\", \"middle\", \"main\"");
    return fill(bytes, n) + bytes[1];
}
FIRM int aligned_alloca_leaf(int n)
{
    _Alignas(64) char bytes[64];
    say("\"fill\", \"aligned_alloca_leaf\", \"middle\", \"middle\", \"middle\", \"main\"");
    char *more = alloca((size_t)(100 * n + number));
    return fill(more, n) + fill(bytes, n) + bytes[1];
}
FIRM int many(int a, int b, int c, int d, int e, int f, int g, int h, int i, int j, char *where)
{
    *(volatile int *)(where + 8) = a + b + c + d + e + f + g + h + i + j;
    return j;
}
FIRM int pushed_leaf(int n)
{
    say("\"many\", \"pushed_leaf\", \"middle\", \"middle\", \"middle\", \"main\"");
    return many(n, 1, 2, 3, 4, 5, n, n, n, n, NULL) + many(n, 1, 2, 3, 4, 5, n, n, n, 1, NULL);
}

/* Handlers: on the stack itself, on one of their own, one in another. */
FIRM void on_usr1(int n) { *(volatile int *)8 = n; sink = n; }
FIRM void on_segv(int n) { sink = n; abort(); }
FIRM void on_usr2(int n) { raise(SIGUSR1); sink = n; }
static void handle(int n, void (*handler)(int), int flags)
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
    sigaction(n, &action, NULL);
}
static void other_stack(void)
{
    stack_t stack = {.ss_size = 64 << 10};
    stack.ss_sp = mmap(NULL, stack.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    sigaltstack(&stack, NULL);
}
FIRM int handler_leaf(int n)
{
    say("\"on_usr1\", \"handler_leaf\", \"middle\", \"middle\", \"middle\", \"main\"");
    handle(SIGUSR1, on_usr1, 0);
    return raise(SIGUSR1) + n;
}
FIRM int nested_leaf(int n)
{
    say("\"on_usr1\", \"on_usr2\", \"nested_leaf\", \"middle\", \"middle\", \"middle\", \"main\"");
    other_stack();
    handle(SIGUSR1, on_usr1, 0);
    handle(SIGUSR2, on_usr2, SA_ONSTACK);
    return raise(SIGUSR2) + n;
}
FIRM int altstack_leaf(int n)
{
    say("\"on_segv\", \"altstack_leaf\", \"middle\", \"middle\", \"middle\", \"main\"");
    other_stack();
    handle(SIGSEGV, on_segv, SA_ONSTACK);
    *(volatile int *)8 = n;
    return n + sink;
}
/* The signal comes at a function's first instruction, where pc - 1 is another function's. */
FIRM int handled_jump(int n)
{
    say("\"on_segv\", \"call_leaf\", \"handled_jump\", \"middle\", \"middle\", \"middle\", \"main\"");
    handle(SIGSEGV, on_segv, 0);
    return call_leaf((void (*)(void))0) + n;
}

FIRM int recurse(int depth)
{
    volatile char room[1024];
    room[0] = (char)depth;
    if (number && depth == number)
        *(volatile int *)8 = depth;
    return recurse(depth + 1) + room[0];
}
FIRM int deep_leaf(int n) { say("\"recurse\", \"recurse\", \"recurse\""); return recurse(n) + sink; }
FIRM int overflow_leaf(int n)
{
    other_stack();
    handle(SIGSEGV, on_segv, SA_ONSTACK);
    return deep_leaf(n) + sink;
}
FIRM void *deep_thread(void *argument) { return (void *)(intptr_t)(deep_leaf(1) + (argument != NULL)); }
FIRM int overflow_thread(int n)
{
    pthread_attr_t small;
    pthread_t thread;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 32 << 10);
    pthread_create(&thread, &small, deep_thread, NULL);
    return pthread_join(thread, NULL) + n;
}

FIRM int compare(const void *one, const void *other)
{
    if (number++ > 3)
        *(volatile int *)8 = 1;
    return *(const int *)one - *(const int *)other;
}
FIRM int qsort_leaf(int n)
{
    int numbers[] = {5, 3, 9, 1, 4, n, 2, 8};
    say("\"compare\", \"qsort_leaf\", \"middle\", \"middle\", \"middle\", \"main\"");
    qsort(numbers, 8, sizeof *numbers, compare);
    return numbers[0] + sink;
}

/* Code without a file, with a frame pointer and without: both call a function and do not return. */
static int in_anonymous_code(const unsigned char *code, size_t size, leaf_fn *leaf, int n)
{
    unsigned char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(page + 64, code, size);
    return ((int (*)(int, leaf_fn *))(uintptr_t)(page + 64))(n, leaf) + sink;
}
FIRM int anonymous_end(int n) { *(volatile int *)8 = n; return n; }
FIRM int jit_framed(int n)
{ /* push rbp; mov rbp, rsp; sub rsp, 32; call *rsi; leave; ret */
    static const unsigned char code[] = {0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 0x20, 0xff, 0xd6, 0xc9, 0xc3};
    say("\"anonymous_end\", \"jit_framed\", \"middle\", \"middle\", \"middle\", \"main\"");
    return in_anonymous_code(code, sizeof code, anonymous_end, n) + sink;
}
FIRM int jit_frameless(int n)
{ /* sub rsp, 40; call *rsi; add rsp, 40; ret */
    static const unsigned char code[] = {0x48, 0x83, 0xec, 0x28, 0xff, 0xd6, 0x48, 0x83, 0xc4, 0x28, 0xc3};
    say("\"anonymous_end\", \"jit_frameless\", \"middle\", \"middle\", \"middle\", \"main\"");
    return in_anonymous_code(code, sizeof code, anonymous_end, n) + sink;
}
FIRM int jit_leaf(int n)
{ /* mov [8], edi */
    static const unsigned char code[] = {0x89, 0x3c, 0x25, 8, 0, 0, 0, 0xc3};
    say("\"jit_leaf\", \"middle\", \"middle\", \"middle\", \"main\"");
    return in_anonymous_code(code, sizeof code, anonymous_end, n) + sink;
}

/* Assembly that tells no unwinder anything. */
int bare_framed(int, leaf_fn *), bare_frameless(int, leaf_fn *);
__asm__(".text\n.type bare_framed, @function\nbare_framed: push %rbp; mov %rsp, %rbp; sub $32, %rsp; call *%rsi; leave; ret\n"
        ".size bare_framed, . - bare_framed\n"
        ".type bare_frameless, @function\nbare_frameless: sub $40, %rsp; call *%rsi; add $40, %rsp; ret\n"
        ".size bare_frameless, . - bare_frameless\n");
FIRM int asm_framed(int n)
{
    say("\"anonymous_end\", \"bare_framed\", \"asm_framed\", \"middle\", \"middle\", \"middle\", \"main\"");
    return bare_framed(n, anonymous_end) + sink;
}
FIRM int asm_frameless(int n)
{
    say("\"anonymous_end\", \"bare_frameless\", \"asm_frameless\", \"middle\", \"middle\", \"middle\", \"main\"");
    return bare_frameless(n, anonymous_end) + sink;
}

#ifdef __GLIBC__
static ucontext_t outside, inside;
FIRM int null_end(int n) { *(volatile int *)8 = n; return n; }
FIRM void coroutine_body(int n)
{
    say("\"null_end\", \"coroutine_body\"");
    swapcontext(&inside, &outside);
    null_end(n);
    sink = n;
}
FIRM int coroutine_leaf(int n)
{
    size_t size = 64 << 10;
    getcontext(&inside);
    inside.uc_stack.ss_sp = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    inside.uc_stack.ss_size = size;
    inside.uc_link = &outside;
    makecontext(&inside, (void (*)(void))coroutine_body, 1, n);
    swapcontext(&outside, &inside);
    swapcontext(&outside, &inside);
    return sink;
}
#endif

FIRM void at_exit(void) { say("\"at_exit\""); *(volatile int *)8 = 1; sink = 2; }
FIRM int exit_leaf(int n) { atexit(at_exit); exit(n); }

/* Its file is deleted, or replaced by one of another build. */
FIRM int deleted_leaf(int n)
{
    char other[4096];
    strcat(strcpy(other, self), ".other");
    if (number ? rename(other, self) : unlink(self))
        _exit(4);
    return null_leaf(n) + sink;
}

FIRM void cleanup(void *argument) { *(volatile int *)8 = argument != NULL; sink = 3; }
FIRM void *cancelled(void *argument)
{
    pthread_cleanup_push(cleanup, argument);
    pthread_testcancel();
    for (;;)
        pause();
    pthread_cleanup_pop(0);
    return NULL;
}
FIRM int cancel_leaf(int n)
{
    pthread_t thread;
    say("\"cleanup\", \"cancelled\"");
    pthread_create(&thread, NULL, cancelled, NULL);
    pthread_cancel(thread);
    return pthread_join(thread, NULL) + n;
}

/* It dies in the procedure linkage table, whose words cannot be read. */
#ifdef PLT
extern char _GLOBAL_OFFSET_TABLE_[] __attribute__((visibility("hidden")));
FIRM int plt_leaf(int n)
{
    IN(plt_leaf);
    mprotect((void *)((uintptr_t)_GLOBAL_OFFSET_TABLE_ & ~4095ul), 4096, PROT_NONE);
    return getppid() + n;
}
#endif

FIRM int side_leaf(int n)
{
    char path[4096], *directory = dirname(strdup(self));
    snprintf(path, sizeof path, "%s/libside.so", directory);
    void *library = dlopen(path, RTLD_LAZY);
    if (!library)
        _exit(4);
    leaf_fn *side = (leaf_fn *)(uintptr_t)dlsym(library, "side_call");
    say("\"side_end\", \"side_call\", \"side_leaf\", \"middle\", \"middle\", \"middle\", \"main\"");
    if (number)
        unlink(path);
    return side(n) + sink;
}

static const struct {
    const char *name;
    leaf_fn *leaf;
} modes[] = {
#define MODE(name) {#name, name##_leaf}
    MODE(null), MODE(trap), MODE(abort), MODE(assert), MODE(divide), MODE(raise), MODE(strlen), MODE(vdso), MODE(memcpy),
    MODE(bus), MODE(smash), MODE(noreturn), MODE(tail), MODE(cold), MODE(alloca), MODE(aligned), MODE(aligned_alloca),
    MODE(pushed), MODE(handler), MODE(nested), MODE(altstack), MODE(deep), MODE(overflow), MODE(qsort), MODE(jit),
    MODE(exit), MODE(deleted), MODE(cancel), MODE(side),
    {"jump_null", jump_null}, {"jump_wild", jump_wild}, {"jump_noncanonical", jump_noncanonical},
    {"jump_data", jump_data}, {"handled_jump", handled_jump}, {"overflow_thread", overflow_thread},
    {"jit_framed", jit_framed}, {"jit_frameless", jit_frameless}, {"asm_framed", asm_framed},
    {"asm_frameless", asm_frameless},
#ifdef __GLIBC__
    MODE(coroutine),
#endif
#ifdef PLT
    MODE(plt),
#endif
};

int main(int argc, char **argv)
{
    self = argv[0];
    number = argc > 2 ? atoi(argv[2]) : 0;
    for (size_t i = 0; argc > 1 && i < sizeof modes / sizeof *modes; i++)
        if (!strcmp(argv[1], modes[i].name))
            return middle(modes[i].leaf, 3) + sink;
    fprintf(stderr, "usage: deaths MODE [NUMBER]\n");
    return 2;
}
