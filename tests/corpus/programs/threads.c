/* SPDX-License-Identifier: Apache-2.0 */
/* Many threads, each in a system call of its own kind, or in one kind: threads COUNT. The first thread dies. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define FIRM __attribute__((noinline))

static pthread_mutex_t held = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t never = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t ready;
static sem_t nothing;
static int ends[2], listening;
volatile int sink;

FIRM int in_pause(void) { return pause() + sink; }
FIRM int in_poll(void) { return poll(NULL, 0, -1) + sink; }
FIRM int in_read(void) { char c; return (int)read(ends[0], &c, 1) + sink; }
FIRM int in_select(void) { return select(0, NULL, NULL, NULL, NULL) + sink; }
FIRM int in_sleep(void) { struct timespec long_ = {10000, 0}; return nanosleep(&long_, NULL) + sink; }
FIRM int in_epoll(void) { struct epoll_event event; return epoll_wait(epoll_create1(0), &event, 1, -1) + sink; }
FIRM int in_accept(void) { return accept(listening, NULL, NULL) + sink; }
FIRM int in_mutex(void) { return pthread_mutex_lock(&held) + sink; }
FIRM int in_semaphore(void) { return sem_wait(&nothing) + sink; }
FIRM int in_sigwait(void) { sigset_t set; int got; sigemptyset(&set); sigaddset(&set, SIGUSR1); return sigwait(&set, &got) + sink; }
FIRM int in_futex(void) { static int word; return (int)syscall(SYS_futex, &word, 0, 0, NULL, NULL, 0) + sink; }
FIRM int in_condition(void)
{
    static pthread_mutex_t own = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&own);
    return pthread_cond_wait(&never, &own) + sink;
}
FIRM int in_loop(void)
{
    for (;;)
        sink++;
    return sink;
}
FIRM void on_usr2(int n) { sink = n + in_pause(); }
FIRM int in_handler(void) { signal(SIGUSR2, on_usr2); return raise(SIGUSR2) + sink; }

static int (*const waits[])(void) = {in_pause, in_poll, in_read, in_select, in_sleep, in_epoll, in_accept,
    in_mutex, in_semaphore, in_sigwait, in_futex, in_condition, in_handler, in_loop};

FIRM int waiting(int index, int depth)
{
    int result = depth ? waiting(index, depth - 1) : waits[index]();
    return result + sink;
}

static void *run(void *argument)
{
    int index = (int)(intptr_t)argument;
    char name[16];

    snprintf(name, sizeof name, "thread-%d", index);
    pthread_setname_np(pthread_self(), name);
    pthread_barrier_wait(&ready);
    /* One loops, however many there are. */
    int kinds = sizeof waits / sizeof *waits;
    return (void *)(intptr_t)waiting(index == kinds - 1 ? index : index % (kinds - 1), index % 5);
}

int main(int argc, char **argv)
{
    int count = argc > 1 ? atoi(argv[1]) : 14;
    pthread_attr_t small;

    if (pipe(ends) || (listening = socket(AF_UNIX, SOCK_STREAM, 0)) < 0 || bind(listening, (struct sockaddr *)&(struct sockaddr){AF_UNIX, ""}, 2) || listen(listening, 1))
        return 3;
    pthread_mutex_lock(&held);
    sem_init(&nothing, 0, 0);
    pthread_barrier_init(&ready, NULL, (unsigned)count + 1);
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 64 << 10);
    for (int index = 0; index < count; index++) {
        pthread_t thread;
        if ((errno = pthread_create(&thread, &small, run, (void *)(intptr_t)index))) {
            perror("threads: pthread_create");
            return 3;
        }
    }
    pthread_barrier_wait(&ready);
    printf("{\"functions\": [\"main\"]}\n");
    fflush(stdout);
    *(volatile int *)8 = 1;
    return sink;
}
