/* SPDX-License-Identifier: Apache-2.0 */
/* Errors that leave a message, or that are of a kind to be told from others: errors MODE */
#define _GNU_SOURCE
#include <assert.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define OWN __attribute__((noinline, noipa))

volatile int sink;
static const char constant[] = "constant";

OWN void asserted(int n) { assert(n < 0 && "the shelf is full"); }
OWN void freed_twice(int n)
{
    char *volatile first = malloc(2000 + (size_t)n), *volatile keep = malloc(16);
    free(first);
    sink = keep != NULL;
    free(first);
    sink = n;
}
OWN void freed_wild(int n) { char *volatile inside = malloc(64); free(inside + 16); sink = n; }
OWN void smashed(int n) { char buffer[16]; memset(buffer, n, 16 + (size_t)n * 8); sink = buffer[n]; }
OWN void gave_up(int n) { sink = n; abort(); }
OWN void followed_null(int n) { *(volatile int *)16 = n; sink = n; }
OWN void called_null(int n) { ((void (*)(int))0)(n); sink = n; }
OWN void called_garbage(int n) { ((void (*)(int))0x123456789000)(n); sink = n; }
OWN void used_garbage(int n) { *(volatile int *)0x4141414141414141 = n; sink = n; }
OWN void wrote_constant(int n) { *(volatile char *)constant = (char)n; sink = n; }
OWN void divided(int n) { volatile int zero = 0; sink = n / zero; }
OWN void trapped(int n) { if (n) __builtin_trap(); }
OWN int endless(int n) { volatile char room[200]; room[n & 127] = (char)n; return endless(n + 1) + room[n & 63] + sink; }
OWN int ping(int n);
OWN int pong(int n) { volatile char room[100]; room[n & 63] = (char)n; return ping(n + 1) + room[n & 63] + sink; }
OWN int ping(int n) { volatile char room[600]; room[n & 63] = (char)n; return pong(n + 1) + room[n & 63] + sink; }
static void *in_thread(void *unused) { sink = endless(1); return unused; }
OWN void full_in_thread(int n)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, in_thread, NULL) == 0)
        pthread_join(thread, NULL);
    sink = n;
}
OWN void cut_file(int n)
{
    char name[] = "/tmp/coresnap-cut-XXXXXX";
    int fd = mkstemp(name);
    if (fd < 0 || unlink(name) || ftruncate(fd, 4096))
        _exit(4);
    volatile char *cut = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
    if (ftruncate(fd, 0))
        _exit(4);
    sink = cut[n];
}
OWN void sent(int n)
{
    pid_t victim = getpid();
    if (fork() == 0) {
        kill(victim, SIGSEGV);
        _exit(0);
    }
    while (sink < n)
        pause();
}
/* Handlers that send another signal, or the same again; the last one has not asked what the first one was of. */
static void handler(int number, siginfo_t *info, void *context)
{
    sink = info != context;
    signal(number, SIG_DFL);
    raise(number);
}
static void last_words(int number, siginfo_t *info, void *context) { sink = number; sink = info != context; abort(); }
static void plain_handler(int number) { sink = number; abort(); }
static void handle(int number, void (*by)(int, siginfo_t *, void *))
{
    static char room[64 << 10];
    stack_t stack = {.ss_sp = room, .ss_size = sizeof room};
    struct sigaction action = {.sa_sigaction = by, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigaltstack(&stack, NULL);
    sigaction(number, &action, NULL);
}
OWN void handled(int n) { handle(SIGSEGV, handler); followed_null(n); sink = n; }
OWN void handled_by_abort(int n) { handle(SIGSEGV, last_words); followed_null(n); sink = n; }
OWN void handled_plainly(int n) { signal(SIGSEGV, plain_handler); followed_null(n); sink = n; }
OWN void handled_division(int n) { handle(SIGFPE, last_words); divided(n); sink = n; }
OWN void handled_overflow(int n) { handle(SIGSEGV, last_words); sink = endless(n); }
OWN int deeper(int n) { return (n > 1 ? deeper(n - 1) : (followed_null(1), 0)) + sink; }

static const struct {
    const char *name;
    void (*run)(int);
} modes[] = {
    {"asserted", asserted}, {"freed-twice", freed_twice}, {"freed-wild", freed_wild}, {"smashed", smashed},
    {"gave-up", gave_up}, {"followed-null", followed_null}, {"called-null", called_null},
    {"called-garbage", called_garbage}, {"used-garbage", used_garbage}, {"wrote-constant", wrote_constant},
    {"divided", divided}, {"trapped", trapped}, {"full-in-thread", full_in_thread}, {"cut-file", cut_file},
    {"sent", sent}, {"handled", handled}, {"handled-by-abort", handled_by_abort}, {"handled-plainly", handled_plainly},
    {"handled-division", handled_division}, {"handled-overflow", handled_overflow},
};

OWN int work(const char *mode, int n)
{
    if (!strcmp(mode, "endless"))
        return endless(n) + sink;
    if (!strcmp(mode, "ping-pong"))
        return ping(n) + sink;
    if (!strcmp(mode, "pong-ping"))
        return pong(n) + sink;
    if (!strncmp(mode, "deeper", 6))
        return deeper(atoi(mode + 6)) + sink;
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
        if (!strcmp(mode, modes[i].name))
            modes[i].run(n);
    return sink;
}

int main(int argc, char **argv)
{
    int result = work(argc > 1 ? argv[1] : "", argc);
    fprintf(stderr, "usage: errors MODE\n");
    return result + 2;
}
