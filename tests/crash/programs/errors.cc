// SPDX-License-Identifier: Apache-2.0
// Exceptions that nobody catches, and other ways to std::terminate: errors MODE
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#define OWN __attribute__((noinline, noipa))

volatile int sink;

namespace shop {
struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};
struct Empty : Error {
    explicit Empty(int shelf) : Error("shelf " + std::to_string(shelf) + " is empty"), shelf_(shelf) {}
    int shelf_;
};
struct Plain {
    int number;
};
struct Two : Plain, std::runtime_error {
    Two() : std::runtime_error("of two bases") { number = 1; }
};
}  // namespace shop

OWN void own(int n) { if (n) throw shop::Empty(n); }
OWN void plain(int n) { if (n) throw shop::Plain{n}; }
OWN void two(int n) { if (n) throw shop::Two(); }
OWN void number(int n) { if (n) throw n; }
OWN void text(int n) { if (n) throw "text"; }
OWN void range(int n) { sink = std::vector<int>(3).at(static_cast<size_t>(n) + 10); }
OWN void memory(int n) { sink = *new (std::nothrow) int(n); sink = *static_cast<char *>(operator new(static_cast<size_t>(-1) / 4 * (n ? 1 : 0))); }
OWN void in_noexcept(int n) noexcept { own(n); sink = n; }
OWN void again(int n)
{
    try {
        own(n);
    } catch (const shop::Error &) {
        throw;
    }
}
OWN void kept(int n)
{
    std::exception_ptr kept;
    try {
        own(n);
    } catch (...) {
        kept = std::current_exception();
    }
    std::rethrow_exception(kept);
}
OWN void joinable(int n) { std::thread thread([n] { sink = n; for (;;) { } }); }
/* A handler whose frame has a pointer to the header of an exception that is over. */
static const char *header;
[[noreturn]] OWN void remembers()
{
    const char *volatile remembered = header;
    sink = remembered != nullptr;
    abort();
}
OWN void handled(int n)
{
    try {
        own(n);
    } catch (const shop::Error &error) {
        header = reinterpret_cast<const char *>(&error) - 32;
    }
    std::set_terminate(remembers);
    joinable(n);
}

OWN int work(const char *mode, int n)
{
    static const struct {
        const char *name;
        void (*run)(int);
    } modes[] = {{"own", own}, {"plain", plain}, {"two", two}, {"number", number}, {"text", text}, {"range", range},
                 {"memory", memory}, {"noexcept", in_noexcept}, {"again", again}, {"kept", kept}, {"joinable", joinable},
                 {"handled", handled}};
    for (const auto &one : modes)
        if (!std::strcmp(mode, one.name))
            one.run(n);
    return sink;
}

int main(int argc, char **argv) { return work(argc > 1 ? argv[1] : "", argc) + 2; }
