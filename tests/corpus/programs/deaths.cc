// SPDX-License-Identifier: Apache-2.0
// Ways of C++ to die: deaths MODE. Says the functions it is in, as deaths.c does, by their names without parameters.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#define FIRM __attribute__((noinline))

volatile int sink;

static void say(const char *functions)
{
    std::printf("{\"functions\": [%s]}\n", functions);
    std::fflush(stdout);
}

namespace shop {

struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

FIRM int die(int n)
{
    *reinterpret_cast<volatile int *>(8) = n;
    return n + sink;
}

template <typename Key, typename Value> class Store {
  public:
    FIRM Value get(const Key &key)
    {
        Value value = values_[key];
        return value + static_cast<Value>(die(static_cast<int>(value))) + sink;
    }

  private:
    std::map<Key, Value> values_;
};

class Base {
  public:
    Base() { sink = 1; }
    virtual ~Base() = default;
    virtual int work(int n) = 0;
    FIRM int start(int n) { return work(n) + sink; }
};

class Derived : public Base {
  public:
    FIRM int work(int n) override { return die(n) + sink; }
};

class Pure {
  public:
    FIRM Pure() { sink = start(1); }  // what it calls is not there yet
    virtual ~Pure() = default;
    virtual int work(int n) = 0;
    FIRM int start(int n) { return work(n) + sink; }
};

class Half : public Pure {
  public:
    int work(int n) override { return n; }
};

struct Guard {
    FIRM ~Guard() { sink = die(1); }
};

struct Thrower {
    FIRM ~Thrower() noexcept(false) { throw Error("the second one"); }
};

FIRM int throws(int n)
{
    if (n)
        throw Error("no stock of " + std::to_string(n));
    return sink;
}

FIRM int guarded(int n)
{
    Guard guard;
    return throws(n) + sink;
}

FIRM int not_to_throw(int n) noexcept { return throws(n) + sink; }

FIRM int operator+(const Error &error, const std::string &text) { return die(static_cast<int>(text.size()) + error.what()[0]); }

inline int inner(int n) { return *reinterpret_cast<volatile int *>(8) + n; }
inline int outer(int n) { return inner(n + 1) * 2; }

}  // namespace shop

using namespace shop;

static FIRM int uncaught(int n) { say("\"shop::throws\", \"uncaught\", \"main\""); return throws(n) + sink; }
static FIRM int in_noexcept(int n) { say("\"shop::not_to_throw\", \"in_noexcept\", \"main\""); return not_to_throw(n) + sink; }
static FIRM int in_cleanup(int n)
{
    say("\"shop::die\", \"shop::guarded\", \"in_cleanup\", \"main\"");
    try {
        return guarded(n) + sink;
    } catch (const Error &) {
        return 3;
    }
}
static FIRM int in_catch(int n)
{
    say("\"shop::die\", \"in_catch\", \"main\"");
    try {
        return throws(n) + sink;
    } catch (const Error &error) {
        return die(n) + sink;
    }
}
static FIRM int rethrown(int n)
{
    say("\"rethrown\", \"main\"");
    try {
        return throws(n) + sink;
    } catch (const Error &) {
        throw;
    }
}
static FIRM int twice(int n)
{
    say("\"twice\", \"main\"");
    Thrower thrower;
    return throws(n) + sink;
}
static FIRM int foreign(int n) { say("\"foreign\", \"main\""); if (n) throw n; return sink; }
static FIRM int vector_at(int n) { say("\"vector_at\", \"main\""); return std::vector<int>(3).at(static_cast<size_t>(n) + 10) + sink; }
static FIRM int templates(int n)
{
    say("\"shop::die\", \"templates\", \"main\"");
    return static_cast<int>(Store<std::string, long>().get(std::to_string(n))) + sink;
}
static FIRM int virtual_call(int n)
{
    say("\"shop::die\", \"shop::Derived::work\", \"shop::Base::start\", \"virtual_call\", \"main\"");
    std::unique_ptr<Base> base = std::make_unique<Derived>();
    return base->start(n) + sink;
}
static FIRM int pure_virtual(int n) { say("\"shop::Pure::start\", \"shop::Pure::Pure\", \"pure_virtual\", \"main\""); Half half; return n + sink; }
static FIRM int lambda(int n)
{
    say("\"shop::die\", \"lambda\", \"main\"");
    std::function<int(int)> function = [n](int more) { return die(n + more) + sink; };
    return function(n) + sink;
}
static FIRM int sorted(int n)
{
    say("\"sorted\", \"main\"");
    std::vector<int> values = {5, 3, n, 1, 9};
    std::sort(values.begin(), values.end(), [](int a, int b) { return die(a) < b; });
    return values[0] + sink;
}
static FIRM int inlined(int n) { say("\"inlined\", \"main\""); return outer(n) + sink; }
static FIRM int operators(int n) { say("\"shop::die\", \"operators\", \"main\""); return (Error("a") + std::string("b")) + n; }
static FIRM int in_thread(int n)
{
    say("\"shop::die\"");
    std::thread thread([n] { sink = die(n); });
    thread.join();
    return sink;
}
static FIRM int thread_throws(int n)
{
    say("\"shop::throws\"");
    std::thread thread(throws, n);
    thread.join();
    return sink;
}
struct AtExit {
    FIRM ~AtExit() { if (sink == 77) sink = die(1); }
} at_exit;
static FIRM int static_destructor(int n) { say("\"shop::die\""); sink = 77; return n; }

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*function)(int);
    } modes[] = {
#define MODE(name) {#name, name}
        MODE(uncaught), MODE(in_noexcept), MODE(in_cleanup), MODE(in_catch), MODE(rethrown), MODE(twice), MODE(foreign),
        MODE(vector_at), MODE(templates), MODE(virtual_call), MODE(pure_virtual), MODE(lambda), MODE(sorted),
        MODE(inlined), MODE(operators), MODE(in_thread), MODE(thread_throws), MODE(static_destructor),
    };
    for (const auto &mode : modes)
        if (argc > 1 && !std::strcmp(argv[1], mode.name))
            return mode.function(argc) + sink;
    return 2;
}
