# SPDX-License-Identifier: Apache-2.0
"""Stacks of real crashes, held against gdb's, frame by frame, and against what the program does on its way to its death."""

from __future__ import annotations

import bisect
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from coresnap.ground import elf
from coresnap.ground.elf_file import ElfFile, Pread
from coresnap.snapshot.core import Core, open_core
from coresnap.snapshot.images import Images
from coresnap.snapshot.modules import Modules, list_modules
from coresnap.snapshot.stacks import End, Found, Stack
from coresnap.snapshot.unwind.unwinder import Unwinder
from coresnap.snapshot.unwind.walk import Limits
from tests.corpus.cases import CASES
from tests.corpus.crashes import CannotBuild, crashed
from tests.crash import build, crash
from tests.support import gdb_stacks

_NO_CFI = ("-g0", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables", "-DNO_CFI")
#: Where gdb finds all frames, and no others.
_AS_GDB = (
    *(
        "plain",
        "handler",
        "altstack",
        "fault",
        "handlers",
        "system-call",
        "zero",
        "nowhere",
        "data",
        "stack",
        "noreturn",
    ),
    *("tail", "aligned", "large", "vdso", "linkage", "made-leaf", "switched"),
)
#: How the thread came to where it died, innermost first, where gdb is lost or has more than there is.
_CHAINS = {
    "smashed": ["?", "run", "thread"],
    "made-framed": ["die", "?", "through", "made_framed", "run", "thread"],
    "made-frameless": ["die", "?", "through", "made_frameless", "run", "thread"],
    "contexts": ["die", "coroutine"],
}


@contextmanager
def opened(path: Path) -> Iterator[Core]:
    """Open a core."""
    with path.open("rb") as file:
        yield open_core(file.fileno())


def unwound(path: Path, limits: Limits | None = None) -> dict[int, Stack]:
    """Return the stacks of a core by thread."""
    with opened(path) as core:
        images = Images(core, _kept(core))
        unwinder = Unwinder(core, list_modules(core), images, limits)
        found = {thread.tid: unwinder.stack(thread) for thread in core.notes.threads}
        images.close()
    return found


def _kept(core: Core) -> dict[int, Pread]:
    """Return what archive keeps of files that have no build-id to be known by: all of them, here."""
    kept: dict[int, Pread] = {}
    for module in list_modules(core).listed:
        if not module.build_id and Path(module.path).is_file():
            kept[module.start] = partial(_part, Path(module.path).read_bytes())
    return kept


def _part(data: bytes, count: int, offset: int) -> bytes:
    return data[offset : offset + count]


def addresses(stacks: dict[int, Stack]) -> dict[int, list[int]]:
    """Return the program counters by thread."""
    return {tid: [frame.address for frame in stack.frames] for tid, stack in stacks.items()}


@dataclass(frozen=True)
class Died:
    """A program that died: its core, its file, and the thread that did it."""

    core: Path
    exe: Path
    tid: int

    def names(self, stack: Stack) -> list[str]:
        """Return the program's own functions of a stack by nm, `?` for what is in no module; the libraries' are left out."""
        symbols = []
        listing = subprocess.run(["nm", self.exe], capture_output=True, text=True, check=True).stdout
        for line in listing.splitlines():
            parts = line.split()
            if len(parts) == 3 and parts[1] in "tT":
                symbols.append((int(parts[0], 16), parts[2]))
        symbols.sort()
        with opened(self.core) as core:
            modules = list_modules(core)
        return [name for frame in stack.frames if (name := self._name(frame.lookup, modules, symbols))]

    def _name(self, address: int, modules: Modules, symbols: list[tuple[int, str]]) -> str:
        module = modules.find(address)
        if module is None:
            return "?"
        if module.path != str(self.exe):
            return ""
        index = bisect.bisect_right(symbols, (address - module.bias, "\x7f")) - 1
        return symbols[index][1].partition(".")[0]


def die(directory: Path, mode: str, *flags: str, compiler: str = "gcc") -> Died:
    """Have stacks.c die. Skips the test where the compiler is not there."""
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    exe = build("stacks", *flags, compiler=compiler)
    core = directory / "core"
    with crash([exe, mode]) as crashed:
        shutil.copyfile(crashed.core, core)
        return Died(core, exe, crashed.tid)


@pytest.mark.parametrize("mode", ["segv", "abort", "caught", "ill", "fpe"])
@pytest.mark.parametrize("origin", ["auto", "gdb"])
def test_stacks_are_gdbs(tmp_path: Path, mode: str, origin: str) -> None:
    core = tmp_path / "core"
    with crash([build("crash"), mode, "5"], origin=origin) as crashed:
        shutil.copyfile(crashed.core, core)
        theirs = gdb_stacks.stacks(core, crashed.exe)
    ours = unwound(core)
    assert addresses(ours) == theirs
    assert {stack.end for stack in ours.values()} == {End.BOTTOM}
    for stack in ours.values():
        assert stack.frames[0].found is Found.REGISTERS
        assert {frame.found for frame in stack.frames[1:]} == {Found.CFI}


@pytest.mark.parametrize("mode", _AS_GDB)
def test_hard_stacks_are_gdbs(tmp_path: Path, mode: str) -> None:
    died = die(tmp_path, mode)
    ours = unwound(died.core)
    assert addresses(ours) == gdb_stacks.stacks(died.core, died.exe)
    assert {stack.end for stack in ours.values()} == {End.BOTTOM}


@pytest.mark.parametrize(
    ("compiler", "flags"),
    [
        ("gcc", ("-O0",)),
        ("gcc", ("-O3", "-fno-plt", "-g0")),
        ("gcc", ("-O2", "-fno-asynchronous-unwind-tables")),
        ("gcc", ("-O2", "-Wl,--no-eh-frame-hdr")),
        ("gcc", ("-O2", "-static")),
        ("gcc", ("-O2", "-Wl,--build-id=none")),
        ("clang", ("-O2",)),
    ],
    ids=lambda value: value if isinstance(value, str) else "".join(value),
)
@pytest.mark.parametrize("mode", ["handlers", "noreturn", "aligned", "zero"])
def test_tables_of_all_kinds(tmp_path: Path, mode: str, compiler: str, flags: tuple[str, ...]) -> None:
    """.eh_frame with an index and without, .debug_frame alone, in files with and without a build-id."""
    died = die(tmp_path, mode, *flags, compiler=compiler)
    ours = unwound(died.core)
    assert addresses(ours) == gdb_stacks.stacks(died.core, died.exe)


@pytest.mark.parametrize("mode", _CHAINS)
def test_where_gdb_is_lost(tmp_path: Path, mode: str) -> None:
    died = die(tmp_path, mode)
    stack = unwound(died.core)[died.tid]
    assert died.names(stack) == _CHAINS[mode]
    assert stack.end is End.BOTTOM


@pytest.mark.parametrize(
    ("mode", "chain"),
    [
        ("plain", ["die", "run", "thread"]),
        (
            "handlers",
            ["die", "handler", "interrupted", "outer_handler", "interrupted", "two_handlers", "run", "thread"],
        ),
        ("altstack", ["die", "handler", "interrupted", "on_another_stack", "run", "thread"]),
        ("zero", ["?", "call", "to_zero", "run", "thread"]),
        ("noreturn", ["die", "never_returns", "last_call", "run", "thread"]),
        ("vdso", ["vdso", "run", "thread"]),
    ],
)
@pytest.mark.parametrize("flags", [("-O0",), ("-O1", "-fno-omit-frame-pointer"), ("-O2",)], ids="".join)
def test_without_any_table(tmp_path: Path, mode: str, chain: list[str], flags: tuple[str, ...]) -> None:
    """By frame pointers where there are some, else by a scan; each such frame is marked as guessed."""
    died = die(tmp_path, mode, *flags, *_NO_CFI)
    stack = unwound(died.core)[died.tid]
    assert died.names(stack) == chain
    guessed = [frame.found for frame in stack.frames if frame.guessed]
    assert guessed
    assert (Found.FRAME_POINTER in guessed) == (flags != ("-O2",))


@pytest.mark.parametrize("mode", ["handler", "altstack", "noreturn", "overflow-handled"])
@pytest.mark.parametrize("flags", [("-O2",), ("-O2", "-static")], ids="".join)
def test_musl(tmp_path: Path, mode: str, flags: tuple[str, ...]) -> None:
    """Its library has no tables at all, and what its handlers return to neither."""
    died = die(tmp_path, mode, *flags, compiler="musl-gcc")
    names = died.names(unwound(died.core)[died.tid])
    wanted = {
        "handler": ["die", "handler", "interrupted", "in_handler", "run", "thread"],
        "altstack": ["die", "handler", "interrupted", "on_another_stack", "run", "thread"],
        "noreturn": ["die", "never_returns", "last_call", "run", "thread"],
        "overflow-handled": ["fault_handler", "endless", "overflow_handled", "run", "thread"],
    }[mode]
    assert [name for index, name in enumerate(names) if name in wanted and names[index - 1 : index] != [name]] == wanted


def test_tables_without_code(tmp_path: Path) -> None:
    """archive keeps the tables of a file without a build-id, not its code: what a handler returns to cannot be read."""
    died = die(tmp_path, "handlers", "-O2", "-static", compiler="musl-gcc")
    data = died.exe.read_bytes()
    segments = ElfFile(partial(_part, data), "file").segments
    code = [range(one.offset, one.offset + one.filesz) for one in segments if one.flags & elf.PF_X]

    def kept(count: int, offset: int) -> bytes:
        return b"" if any(offset in one for one in code) else data[offset : offset + count]

    with opened(died.core) as core:
        listed = list_modules(core)
        [main] = [module for module in listed.listed if module.path == str(died.exe)]
        images = Images(core, {main.start: kept})
        stack = Unwinder(core, listed, images).stack(core.notes.threads[0])
        images.close()
    known = ["die", "handler", "outer_handler", "two_handlers", "run", "thread"]
    assert [name for name in died.names(stack) if name in known] == known
    assert [frame.found for frame in stack.frames].count(Found.SIGNAL) == 2


@pytest.mark.parametrize("mode", ["overflow", "overflow-handled", "deep"])
def test_recursion_without_end_keeps_both_ends(tmp_path: Path, mode: str) -> None:
    died = die(tmp_path, mode)
    limits = Limits(innermost=100, outermost=50)
    stack = unwound(died.core, limits)[died.tid]
    theirs = gdb_stacks.stacks(died.core, died.exe, frames_max=300000)[died.tid]
    assert len(stack.frames) == 150
    assert stack.omitted == len(theirs) - 150
    assert [frame.address for frame in stack.frames] == [*theirs[:100], *theirs[-50:]]
    assert (stack.omitted_at, stack.end) == (100, End.BOTTOM)
    assert died.names(stack)[-2:] == ["run", "thread"]


def test_limits_end_a_walk(tmp_path: Path) -> None:
    died = die(tmp_path, "deep")
    stack = unwound(died.core, Limits(innermost=10, outermost=10, walked=1000))[died.tid]
    assert (stack.end, len(stack.frames)) == (End.FRAMES, 20)
    assert 1000 <= stack.omitted + 20 <= 6000
    late = unwound(died.core, Limits(seconds=-1))
    assert {(one.end, len(one.frames)) for one in late.values()} == {(End.TIME, 1)}


def test_a_core_without_the_stack(tmp_path: Path) -> None:
    """The memory of the thread that died is cut off."""
    died = die(tmp_path, "plain")
    whole = unwound(died.core)[died.tid]
    stack_pointer = whole.frames[0].registers["rsp"]
    data = died.core.read_bytes()

    def pread(count: int, offset: int) -> bytes:
        return data[offset : offset + count]

    segments = elf.segments(pread, elf.read_core(pread))
    [offset] = [one.offset for one in segments if one.vaddr <= stack_pointer < one.vaddr + one.filesz]
    with died.core.open("r+b") as file:
        file.truncate(offset)
    stack = unwound(died.core)[died.tid]
    assert (len(stack.frames), stack.end) == (1, End.NO_STACK)


def test_what_a_coroutine_returns_to_is_looked_up_as_it_is(tmp_path: Path) -> None:
    """Nothing has called it: before it another function ends."""
    died = die(tmp_path, "contexts")
    stack = unwound(died.core)[died.tid]
    assert stack.end == End.BOTTOM
    assert stack.frames[-1].lookup == stack.frames[-1].address
    assert stack.frames[-2].lookup == stack.frames[-2].address - 1


def test_registers_of_callers_are_gdbs(tmp_path: Path) -> None:
    """Those that calls leave as they were; all of them in a frame that a signal interrupted."""
    died = die(tmp_path, "handlers", "-O2")
    stack = unwound(died.core)[died.tid]
    theirs = gdb_stacks.registers(died.core, died.exe)[died.tid]
    assert len(theirs) == len(stack.frames)
    for number, (frame, known) in enumerate(zip(stack.frames, theirs, strict=True)):
        assert {name: known[name] for name in frame.registers if name in known} == {
            name: value for name, value in frame.registers.items() if name in known
        }, number
        assert len(frame.registers) == {Found.REGISTERS: 27, Found.SIGNAL: 17}.get(frame.found, 8)


@pytest.mark.parametrize("name", ["go/nil", "go-stripped/nil"])
def test_go(name: str) -> None:
    """Go's handlers have a stack of their own, and return to code of Go's own, which says nothing of signals in its table."""
    [case] = [case for case in CASES if case.name == name]
    try:
        died = crashed(case)
    except CannotBuild as error:
        pytest.skip(str(error))
    stack = unwound(died.core)[died.tid]
    found = [frame.found for frame in stack.frames]
    assert len(found) > 10
    if name == "go/nil":
        assert Found.SIGNAL in found[3:8]
        assert not any(frame.guessed for frame in stack.frames)
    else:
        assert found.count(Found.FRAME_POINTER) > 5
        assert Found.SIGNAL in found[3:8]
