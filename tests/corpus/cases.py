# SPDX-License-Identifier: Apache-2.0
"""The table of cases: what is compiled, how, what it dies of, and in which function."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

Argv = tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """A program that dies. {program}, {directory} and {source} stand in commands for what is built, and from what.

    `compiler` lacks the source and `-o`; none: an interpreter runs the source. `side` is the command of a library beside it.
    `after` are commands on what was built. `place` is where it runs: as it was built, in a copy that it may delete (`copy`),
    below another root (`jail`), on a file system that only it has (`mount`). `top` is the function that the innermost frame
    is in, empty where that depends on the C library.
    """

    name: str
    source: str
    compiler: Argv
    arguments: Argv = ()
    top: str = ""
    side: Argv = ()
    after: tuple[Argv, ...] = ()
    place: str = ""
    quick: bool = False

    @property
    def needs(self) -> list[str]:
        """Return the programs without which it cannot be built."""
        commands = [self.compiler, self.side, *self.after]
        return sorted({command[0] for command in commands if command and "{" not in command[0]})


#: The modes of deaths.c, and the function that the innermost frame of each is in, where that is not the C library's.
_MODES = {
    **{mode: f"{mode}_leaf" for mode in ("null", "trap", "divide", "bus", "jit")},
    **{"abort": "", "assert": "", "raise": "", "strlen": "", "vdso": "", "memcpy": "", "smash": "", "cold": ""},
    **{"noreturn": "never", "tail": "tail_end", "alloca": "fill", "aligned": "fill", "aligned_alloca": "fill"},
    **{
        "pushed": "many",
        "handler": "on_usr1",
        "nested": "on_usr1",
        "altstack": "",
        "handled_jump": "",
        "qsort": "compare",
    },
    **{"jump_null": "", "jump_wild": "", "jump_noncanonical": "call_leaf", "jump_data": ""},
    **{"overflow_thread": "recurse", "exit": "at_exit", "cancel": "cleanup", "coroutine": "null_end"},
    **{f"{kind}_{way}": "anonymous_end" for kind in ("jit", "asm") for way in ("framed", "frameless")},
}
#: What a mode needs to die at all.
_MORE: dict[str, Argv] = {"smash": ("-fstack-protector-all",)}
_GCC: Argv = ("gcc", "-O2", "-g", "-w", "-pthread")
_GXX: Argv = ("g++", "-O2", "-g", "-w", "-pthread", "-std=c++20")
_STRIP: tuple[Argv, ...] = (("strip", "{program}"),)
_NO_CFI: Argv = ("-fno-asynchronous-unwind-tables", "-fno-unwind-tables")
_SIDE: Argv = ("gcc", "-shared", "-fPIC", "-O2", "-g", "-w")
_BESIDE: Argv = ("-L{directory}", "-lside", "-Wl,-rpath,$ORIGIN")

#: How C is compiled: by name, the command and what is done afterwards.
_WAYS: dict[str, tuple[Argv, tuple[Argv, ...]]] = {
    "gcc-O0": (("gcc", "-O0", "-g", "-w", "-pthread"), ()),
    "gcc-O1": (("gcc", "-O1", "-g", "-w", "-pthread"), ()),
    "gcc-O3": (("gcc", "-O3", "-g", "-w", "-pthread"), ()),
    "gcc-Os": (("gcc", "-Os", "-g", "-w", "-pthread"), ()),
    "gcc-fp": ((*_GCC, "-fno-omit-frame-pointer"), ()),
    "gcc-no-fp": (("gcc", "-O0", "-g", "-w", "-pthread", "-fomit-frame-pointer"), ()),
    "gcc-no-pie": ((*_GCC, "-no-pie"), ()),
    "gcc-static": ((*_GCC, "-static"), ()),
    "gcc-static-pie": ((*_GCC, "-static-pie"), ()),
    "gcc-stripped": ((*_GCC,), _STRIP),
    "gcc-static-stripped": ((*_GCC, "-static"), _STRIP),
    "gcc-cet": ((*_GCC, "-fcf-protection=full"), ()),
    "gcc-lto": ((*_GCC, "-flto"), ()),
    "gcc-protected": ((*_GCC, "-fstack-protector-strong", "-fstack-clash-protection", "-D_FORTIFY_SOURCE=2"), ()),
    "gcc-gold": ((*_GCC, "-fuse-ld=gold"), ()),
    "gcc-large": ((*_GCC, "-mcmodel=large"), ()),
    "gcc-no-hdr": ((*_GCC, "-Wl,--no-eh-frame-hdr"), ()),
    "gcc-no-build-id": ((*_GCC, "-Wl,--build-id=none"), ()),
    "gcc-debug-frame": ((*_GCC, *_NO_CFI), ()),
    "gcc-no-cfi-fp": (("gcc", "-O2", "-w", *_NO_CFI, "-fno-omit-frame-pointer"), ()),
    "gcc-no-cfi": (("gcc", "-O2", "-w", *_NO_CFI), ()),
    "gcc-no-cfi-fp-stripped": (("gcc", "-O2", "-w", *_NO_CFI, "-fno-omit-frame-pointer"), _STRIP),
    "clang-O0": (("clang", "-O0", "-g", "-w", "-pthread"), ()),
    "clang-O2": (("clang", "-O2", "-g", "-w", "-pthread"), ()),
    "clang-O3-fp": (("clang", "-O3", "-g", "-w", "-pthread", "-fno-omit-frame-pointer"), ()),
    "musl": (("musl-gcc", "-O2", "-g", "-w"), ()),
    "musl-static": (("musl-gcc", "-O2", "-g", "-w", "-static"), ()),
    "musl-static-stripped": (("musl-gcc", "-O2", "-w", "-static"), _STRIP),
}
#: What is tried in each of these ways.
_SELECTED = (
    *("null", "abort", "smash", "strlen", "jump_null", "noreturn", "tail", "cold", "aligned_alloca", "pushed"),
    *("handler", "nested", "altstack", "qsort", "coroutine"),
)
#: musl has no swapcontext; clang's buffer ends some bytes before the canary there.
_NOT = {
    ("musl", "coroutine"),
    ("musl-static", "coroutine"),
    ("musl-static-stripped", "coroutine"),
    ("clang-O3-fp", "smash"),
}
_DEBUGLINK: tuple[Argv, ...] = (
    ("objcopy", "--only-keep-debug", "{program}", "{program}.debug"),
    ("strip", "{program}"),
    ("objcopy", "--add-gnu-debuglink={program}.debug", "{program}"),
)
#: .gnu_debugdata: the symbols that .dynsym lacks, in an ELF file of their own, by xz. GDB's manual, "MiniDebugInfo".
_MINI: tuple[Argv, ...] = (
    ("objcopy", "--only-keep-debug", "{program}", "{program}.mini"),
    ("strip", "-g", "{program}.mini"),
    ("xz", "-k", "{program}.mini"),
    ("strip", "{program}"),
    ("objcopy", "--add-section", ".gnu_debugdata={program}.mini.xz", "{program}"),
)
_QUICK = frozenset({"null", "jump_null", "altstack", "aligned_alloca", "noreturn", "vdso", "smash"})


def _in_c() -> Iterator[Case]:
    for mode, top in _MODES.items():
        yield Case(f"gcc-O2/{mode}", "deaths.c", (*_GCC, *_MORE.get(mode, ())), (mode,), top, quick=mode in _QUICK)
    for way, (compiler, after) in _WAYS.items():
        for mode in _SELECTED:
            if (way, mode) in _NOT:
                continue
            top = "" if "stripped" in way else _MODES[mode]
            yield Case(f"{way}/{mode}", "deaths.c", (*compiler, *_MORE.get(mode, ())), (mode,), top, after=after)
    lazy: Argv = ("-DPLT", "-Wl,-z,lazy")
    yield Case("plt/pie", "deaths.c", (*_GCC, *lazy), ("plt",))
    yield Case("plt/no-pie", "deaths.c", (*_GCC, *lazy, "-no-pie"), ("plt",), quick=True)
    yield Case("plt/cet", "deaths.c", (*_GCC, *lazy, "-fcf-protection=full", "-Wl,-z,ibtplt"), ("plt",))
    yield Case("plt/gold", "deaths.c", (*_GCC, *lazy, "-fuse-ld=gold"), ("plt",))
    yield Case("plt/stripped", "deaths.c", (*_GCC, *lazy), ("plt",), after=_STRIP)
    yield Case("gcc-O2/smash-far", "deaths.c", (*_GCC, "-fstack-protector-all"), ("smash", "2000"))
    yield Case("gcc-O2/smash-unprotected", "deaths.c", (*_GCC, "-fno-stack-protector"), ("smash", "600"))
    yield Case("gcc-O2/deep", "deaths.c", _GCC, ("deep", "5000"), "recurse")
    yield Case("gcc-O2/overflow", "deaths.c", _GCC, ("overflow",))
    yield Case("gcc-O0/overflow", "deaths.c", ("gcc", "-O0", "-g", "-w"), ("deep",), "recurse")


def _of_files() -> Iterator[Case]:
    """Programs whose files are not as they were built, or are gone."""
    yield Case("debuglink/null", "deaths.c", _GCC, ("null",), "null_leaf", after=_DEBUGLINK, quick=True)
    yield Case("debuglink/qsort", "deaths.c", _GCC, ("qsort",), "compare", after=_DEBUGLINK)
    yield Case("debugdata/null", "deaths.c", _GCC, ("null",), "null_leaf", after=_MINI)
    yield Case("debugdata/handler", "deaths.c", _GCC, ("handler",), "on_usr1", after=_MINI)
    yield Case("compressed-debug/null", "deaths.c", (*_GCC, "-gz=zlib"), ("null",), "null_leaf")
    yield Case("deleted/deleted", "deaths.c", _GCC, ("deleted",), "null_leaf", place="copy", quick=True)
    yield Case("deleted/stripped", "deaths.c", _GCC, ("deleted",), after=_STRIP, place="copy")
    other: Argv = ("gcc", "-O0", "-w", "-o", "{program}.other", "{source}")
    yield Case("deleted/replaced", "deaths.c", _GCC, ("deleted", "1"), "null_leaf", after=(other,), place="copy")
    yield Case("deleted/library", "deaths.c", _GCC, ("side", "1"), "side_end", side=_SIDE, place="copy", quick=True)
    yield Case("jail/null", "deaths.c", _GCC, ("null",), "null_leaf", place="jail", quick=True)
    yield Case("jail/abort", "deaths.c", _GCC, ("abort",), place="jail")
    yield Case("mount/null", "deaths.c", _GCC, ("null",), "null_leaf", place="mount")
    yield Case("mount/qsort-fp", "deaths.c", (*_GCC, "-fno-omit-frame-pointer"), ("qsort",), "compare", place="mount")
    yield Case("library/side", "deaths.c", _GCC, ("side",), "side_end", side=_SIDE)
    bare = (*_SIDE, "-Wl,--no-eh-frame-hdr", "-Wl,--build-id=none")
    yield Case("library/bare", "deaths.c", _GCC, ("side",), "side_end", side=bare)
    yield Case("library/no-cfi", "deaths.c", _GCC, ("side",), "side_end", side=(*_SIDE, *_NO_CFI))
    lazy = (*_GCC, *_BESIDE, "-Wl,-z,lazy")
    side = (*_SIDE, "-DIFUNC")
    yield Case("loading/lazy", "loading.c", lazy, (), side=side, quick=True)
    yield Case("loading/now", "loading.c", (*_GCC, *_BESIDE, "-Wl,-z,now"), (), side=side)
    yield Case("loading/constructor", "loading.c", lazy, ("constructor",), "early", side=side)


def _of_threads() -> Iterator[Case]:
    yield Case("threads/kinds", "threads.c", _GCC, ("14",), "main", quick=True)
    yield Case("threads/kinds-stripped", "threads.c", _GCC, ("14",), after=_STRIP)
    yield Case("threads/kinds-static", "threads.c", (*_GCC, "-static"), ("14",), "main")
    yield Case("threads/kinds-musl", "threads.c", ("musl-gcc", "-O2", "-g", "-w"), ("14",), "main")
    yield Case("threads/1500", "threads.c", _GCC, ("1500",), "main")


def _in_cxx() -> Iterator[Case]:
    of_others = (
        "uncaught",
        "in_noexcept",
        "rethrown",
        "twice",
        "foreign",
        "vector_at",
        "pure_virtual",
        "thread_throws",
    )
    in_die = (
        *("in_cleanup", "in_catch", "templates", "virtual_call", "lambda", "sorted", "operators", "in_thread"),
        "static_destructor",
    )
    modes = {**dict.fromkeys(of_others, ""), **dict.fromkeys(in_die, "die"), "inlined": "inlined"}
    for mode, top in modes.items():
        place = f"shop::{top}" if top == "die" else top
        yield Case(f"g++-O2/{mode}", "deaths.cc", _GXX, (mode,), place, quick=mode in ("in_noexcept", "templates"))
        plain: Argv = ("g++", "-O0", "-g", "-w", "-pthread", "-std=c++20")
        yield Case(f"g++-O0/{mode}", "deaths.cc", plain, (mode,), "shop::inner" if mode == "inlined" else place)
        yield Case(f"g++-O3-stripped/{mode}", "deaths.cc", (*_GXX, "-O3"), (mode,), after=_STRIP)
        yield Case(f"clang++/{mode}", "deaths.cc", ("clang++", *_GXX[1:]), (mode,), place)
    for mode in ("uncaught", "in_cleanup", "templates", "thread_throws"):
        yield Case(f"g++-static/{mode}", "deaths.cc", (*_GXX, "-static"), (mode,))
    yield Case("g++-O2/coroutine", "coroutine.cc", _GXX, (), "die")
    yield Case("g++-O0/coroutine", "coroutine.cc", ("g++", "-O0", "-g", "-std=c++20"), (), "die")


def _in_others() -> Iterator[Case]:
    rust: Argv = ("rustc", "-g", "-C", "panic=abort", "--edition=2021")
    for mode in ("null", "panic", "bounds", "abort", "thread", "overflow"):
        yield Case(f"rust-O/{mode}", "deaths.rs", (*rust, "-O"), (mode,), quick=mode == "bounds")
        yield Case(f"rust/{mode}", "deaths.rs", rust, (mode,))
    for mode in ("nil", "panic", "bounds"):
        yield Case(f"go/{mode}", "deaths.go", ("go", "build"), (mode,))
        yield Case(f"go-stripped/{mode}", "deaths.go", ("go", "build", "-ldflags=-s -w"), (mode,))
    for mode in ("null", "abort", "thread"):
        yield Case(f"python/{mode}", "deaths.py", (), (mode,), quick=mode == "thread")


CASES = (*_in_c(), *_of_files(), *_of_threads(), *_in_cxx(), *_in_others())
