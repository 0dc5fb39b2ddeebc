// SPDX-License-Identifier: Apache-2.0
// A coroutine of C++20 that dies after it has been resumed.
#include <coroutine>
#include <cstdio>

volatile int sink;

struct Task {
    struct promise_type {
        Task get_return_object() { return {std::coroutine_handle<promise_type>::from_promise(*this)}; }
        std::suspend_always initial_suspend() noexcept { return {}; }
        std::suspend_always final_suspend() noexcept { return {}; }
        void return_void() {}
        void unhandled_exception() {}
    };
    std::coroutine_handle<promise_type> handle;
};

__attribute__((noinline)) int die(int n)
{
    *reinterpret_cast<volatile int *>(8) = n;
    return n + sink;
}

Task task(int n)
{
    co_await std::suspend_always{};
    sink = die(n);
}

__attribute__((noinline)) int resumes(Task &task)
{
    task.handle.resume();
    task.handle.resume();
    return sink;
}

int main(int argc, char **)
{
    std::printf("{\"functions\": [\"die\", \"resumes\", \"main\"]}\n");
    std::fflush(stdout);
    Task made = task(argc);
    return resumes(made) + sink;
}
