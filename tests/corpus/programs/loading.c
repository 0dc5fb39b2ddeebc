/* SPDX-License-Identifier: Apache-2.0 */
/* Dies before main, or on its first call of a library's function: loading lazy|constructor. */
#include <stdio.h>
#include <string.h>

int side_lazy(int);
volatile int sink;

__attribute__((constructor)) void early(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "constructor")) {
        printf("{\"functions\": [\"early\"]}\n");
        fflush(stdout);
        *(volatile int *)8 = argc;
    }
}

__attribute__((noinline)) int calls_lazily(int n) { return side_lazy(n) + sink; }

int main(int argc, char **argv)
{
    (void)argv;
    printf("{\"functions\": [\"calls_lazily\", \"main\"]}\n");
    fflush(stdout);
    return calls_lazily(argc) + sink;
}
