/* SPDX-License-Identifier: Apache-2.0 */
/* A program that dies of a real signal at a known place, and says before where that is: one JSON object on standard output.
 *
 *   crash MODE [THREADS [MIB [FILL]]]
 *
 * MODE is segv (a write to a free address), null, an address as 0x..., bus, ill, fpe, abort, caught (a SIGSEGV that a
 * handler survives, then abort) or headless (segv, after the first thread has ended). THREADS threads run, worker-0 and on;
 * the second of them dies, or the only one. MIB of memory are taken, FILL percent (44) of its pages touched, in runs.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#define STORE "movb $1, (%0)"
#define TRAP "ud2"
#define DIVIDE "idivl %0"
#elif defined(__aarch64__)
#define STORE "strb wzr, [%0]"
#define TRAP "udf #0"
#else
#error "the deadly instructions of this architecture are not known"
#endif

/* Where each instruction is that a thread dies of. */
#define PLACE __attribute__((visibility("hidden")))
extern const char store_here[] PLACE, trap_here[] PLACE, divide_here[] PLACE;
#define IN_STORE "\"store\", \"die\", \"run\""
#define DEADLY static void __attribute__((noinline, noclone))

static const char *mode;
static int threads;
static pthread_barrier_t ready;
static pthread_t first;
static sigjmp_buf after;

DEADLY store(volatile char *address) { __asm__ volatile("store_here: " STORE : : "r"(address) : "memory"); }
DEADLY trap(void) { __asm__ volatile("trap_here: " TRAP); }
#ifdef DIVIDE
DEADLY divide(int by) { int high = 0, low = 1; __asm__ volatile("divide_here: " DIVIDE : : "r"(by), "a"(low), "d"(high)); }
#endif

static int is(const char *name) { return !strcmp(mode, name); }

static void survive(int number) { siglongjmp(after, number); }

/* `functions`, innermost first, are those in which it dies. */
static void say(int number, int code, const char *instruction, const volatile void *address, const char *functions)
{
    char name[16];

    pthread_getname_np(pthread_self(), name, sizeof name);
    printf("{\"pid\": %d, \"tid\": %ld, \"name\": \"%s\", \"threads\": %d, \"signal\": %d, \"code\": %d, ", getpid(),
           syscall(SYS_gettid), name, threads, number, code);
    printf(address ? "\"address\": \"%#lx\", " : "\"address\": null, ", (unsigned long)(uintptr_t)address);
    printf(instruction ? "\"instruction\": \"%#lx\", " : "\"instruction\": null, ", (unsigned long)(uintptr_t)instruction);
    printf("\"functions\": [%s]}\n", functions);
    fflush(stdout);
}

static void __attribute__((noinline)) die(void)
{
    char *mapped = mmap(NULL, 1 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    volatile char *address = mapped + 0x1230;

    if (is("null"))
        address = (char *)16;
    else if (!strncmp(mode, "0x", 2))
        address = (char *)(uintptr_t)strtoull(mode, NULL, 16);
    if (is("abort") || is("caught")) {
        say(SIGABRT, SI_TKILL, NULL, NULL, "\"die\", \"run\"");
        signal(SIGSEGV, survive);
        if (is("caught") && !sigsetjmp(after, 1))
            store((char *)16);
        abort();
    } else if (is("ill")) {
        say(SIGILL, ILL_ILLOPN, trap_here, trap_here, "\"trap\", \"die\", \"run\"");
        trap();
#ifdef DIVIDE
    } else if (is("fpe")) {
        say(SIGFPE, FPE_INTDIV, divide_here, divide_here, "\"divide\", \"die\", \"run\"");
        divide(0);
#endif
    } else if (is("bus")) {
        int fd = memfd_create("cut", MFD_CLOEXEC);
        if (ftruncate(fd, 4096))
            _exit(4);
        address = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (ftruncate(fd, 0))
            _exit(4);
        say(SIGBUS, BUS_ADRERR, store_here, address, IN_STORE);
        store(address);
    } else {
        say(SIGSEGV, SEGV_MAPERR, store_here, address, IN_STORE);
        munmap(mapped, 1 << 20); /* nothing maps memory any more: the address stays free */
        store(address);
    }
}

static void *__attribute__((noinline)) run(void *argument)
{
    int index = (int)(intptr_t)argument;
    char name[16];

    snprintf(name, sizeof name, "worker-%d", index);
    pthread_setname_np(pthread_self(), name);
    pthread_barrier_wait(&ready);
    if (is("headless")) {
        if (index == 0)
            pthread_exit(NULL);
        if (index == 1)
            pthread_join(first, NULL);
    }
    if (index == (threads > 1)) {
        die();
        _exit(5); /* it was survived */
    }
    while (pause())
        ;
    return NULL;
}

static int known(void)
{
    static const char *const modes[] = {"segv", "null", "bus", "ill", "abort", "caught", "headless"};

    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
        if (is(modes[i]))
            return 1;
#ifdef DIVIDE
    if (is("fpe"))
        return 1;
#endif
    return !strncmp(mode, "0x", 2);
}

static void take(size_t mib, int fill)
{
    char *memory = mmap(NULL, mib << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED)
        exit(3);
    for (size_t page = 0; page < mib << 8; page++)
        if (page % 25 < (size_t)fill / 4)
            memset(memory + (page << 12), (int)(page % 255) + 1, 4096);
}

int main(int argc, char **argv)
{
    mode = argc > 1 ? argv[1] : "segv";
    threads = argc > 2 ? atoi(argv[2]) : 4;
    int mib = argc > 3 ? atoi(argv[3]) : 0, fill = argc > 4 ? atoi(argv[4]) : 44;

    if (!known() || threads < 1 || mib < 0 || fill < 0 || fill > 100) {
        fprintf(stderr, "usage: crash segv|null|0xADDRESS|bus|ill|fpe|abort|caught|headless [THREADS [MIB [FILL]]]\n");
        return 2;
    }
    if (mib)
        take((size_t)mib, fill);
    pthread_barrier_init(&ready, NULL, (unsigned)threads);
    first = pthread_self();
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 64 << 10);
    for (int index = 1; index < threads; index++) {
        pthread_t thread;
        if ((errno = pthread_create(&thread, &small, run, (void *)(intptr_t)index))) {
            perror("crash: pthread_create");
            return 3;
        }
    }
    run(NULL);
    return 0;
}
