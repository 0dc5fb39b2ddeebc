/* SPDX-License-Identifier: Apache-2.0 */
/* A program that dies of a real signal at a known place, and says before where that is: one JSON object on standard output.
 *
 *   crash MODE [THREADS [MIB]]
 *
 * MODE is segv, null, abort, fpe, ill or caught (a SIGSEGV that a handler survives, then abort). THREADS named threads run,
 * and the second of them dies, or the main one if there is only one. MIB of memory are taken, 44% of its pages touched.
 */
#define _GNU_SOURCE
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

static const char *mode;
static int threads;
static pthread_barrier_t ready;
static sigjmp_buf after;

static void survive(int number) { siglongjmp(after, number); }

static void __attribute__((noinline)) die(int index)
{
    char *mapped = mmap(NULL, 1 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    volatile char *address = !strcmp(mode, "null") ? (char *)16 : mapped + 0x1230;
    volatile int zero = 0;

    printf("{\"pid\": %d, \"tid\": %ld, \"threads\": %d, \"name\": \"worker-%d\", \"address\": \"%#lx\", \"code\": %d}\n",
           getpid(), syscall(SYS_gettid), threads, index,
           (unsigned long)(uintptr_t)address, 1 /* SEGV_MAPERR, FPE_INTDIV, ... */);
    fflush(stdout);
    munmap(mapped, 1 << 20); /* nothing maps memory any more: the address stays free */
    if (!strcmp(mode, "caught")) {
        signal(SIGSEGV, survive);
        if (!sigsetjmp(after, 1))
            *address = 1;
        abort();
    }
    if (!strcmp(mode, "abort"))
        abort();
    if (!strcmp(mode, "fpe"))
        exit(1 / zero);
    if (!strcmp(mode, "ill"))
        __builtin_trap();
    *address = 1;
}

static void *run(void *argument)
{
    int index = (int)(intptr_t)argument;
    char name[16];

    snprintf(name, sizeof name, "worker-%d", index);
    pthread_setname_np(pthread_self(), name);
    pthread_barrier_wait(&ready);
    if (index == (threads > 1))
        die(index);
    while (pause())
        ;
    return NULL;
}

int main(int argc, char **argv)
{
    mode = argc > 1 ? argv[1] : "segv";
    threads = argc > 2 ? atoi(argv[2]) : 4;
    size_t mib = argc > 3 ? (size_t)atoi(argv[3]) : 0;
    if (threads < 1)
        return 2;
    if (mib) {
        char *memory = mmap(NULL, mib << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        for (size_t page = 0; page < mib << 8; page++)
            if (page % 25 < 11)
                memset(memory + (page << 12), (int)(page % 255) + 1, 4096);
    }
    pthread_barrier_init(&ready, NULL, (unsigned)threads);
    for (int index = 1; index < threads; index++) {
        pthread_t thread;
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setstacksize(&attributes, 64 << 10);
        if (pthread_create(&thread, &attributes, run, (void *)(intptr_t)index))
            return 3;
    }
    run((void *)0);
    return 0;
}
