# SPDX-License-Identifier: Apache-2.0
"""What the fuzzer mutates: cores of real crashes, the files of their modules, debug files and assets; and where to hit each."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from coresnap.ground import elf
from coresnap.ground.elf_file import ElfFile
from tests.crash import build, crash
from tests.fixtures import cores
from tests.support.site import Site

_STACK_BYTES = 2048
_WORDS = (
    0,
    1,
    2,
    4,
    7,
    0x7F,
    0x80,
    0xFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    2**63 - 1,
    2**63,
    2**64 - 8,
    2**64 - 1,
)
#: Most of what is hit is one of these.
_TABLES = (".eh_frame", ".eh_frame_hdr", ".symtab", ".dynsym", ".strtab", ".dynstr", ".gnu_debugdata", ".gnu_debuglink")
_CORPUS = Path(__file__).parent / "programs"


@dataclass
class Target:
    """Bytes that are mutated: `spots` are where they have structure, `where` the file that is read, the core apart."""

    kind: str
    data: bytes
    spots: list[range]
    where: Path | None = None
    #: Words that lead somewhere, to be put where addresses stand.
    words: list[int] = field(default_factory=list)


@dataclass
class Material:
    """A crash, whole: its core is the first of the targets."""

    name: str
    targets: list[Target]
    exe: str


def mutate(data: bytearray, target: Target, chance: random.Random) -> None:
    """Change a few bytes or words, mostly where there is structure; now and then cut what follows."""
    words = (*_WORDS, *target.words)
    for _ in range(chance.choice((1, 1, 2, 3, 8, 40))):
        spot = chance.choice(target.spots) if chance.random() < 0.9 else range(len(data))
        at = min(chance.choice(spot), len(data) - 1)
        kind = chance.randrange(6)
        if kind == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at] = chance.randrange(256)
        elif kind == 2:
            start = chance.choice(spot)
            data[at : at + 16] = data[start : start + 16].ljust(16, b"\0")[: len(data) - at]
        else:
            size, layout = ((8, "<Q"), (4, "<I"), (2, "<H"))[kind - 3]
            at -= at % size
            if at + size <= len(data):
                struct.pack_into(layout, data, at, chance.choice(words) & (1 << 8 * size) - 1)
    if chance.random() < 0.1:
        del data[chance.randrange(len(data)) :]


def gather(directory: Path) -> list[Material]:
    """Have programs die below a directory, in which their files stay."""
    makers: list[Callable[[Path], Material]] = [_threads, _handler, _debuglink, _deleted, _small]
    if shutil.which("g++"):
        makers.append(_cxx)
    result = []
    for number, make in enumerate(makers):
        place = directory / str(number)
        place.mkdir(parents=True)
        result.append(make(place))
    return result


def _threads(place: Path) -> Material:
    program = Path(shutil.copy(build("crash"), place / "program"))
    return _die("threads", place, program, "segv", "3")


def _handler(place: Path) -> Material:
    program = _compile(place, "gcc", "-O2", "-g", "-w", "-pthread", source="deaths.c")
    return _die("handler", place, program, "nested")


def _cxx(place: Path) -> Material:
    program = _compile(place, "g++", "-O2", "-g", "-w", "-pthread", "-std=c++20", source="deaths.cc")
    return _die("C++", place, program, "uncaught")


def _debuglink(place: Path) -> Material:
    """A stripped program, whose debug file lies beside it: its checksum is put right after each mutation."""
    program = _compile(place, "gcc", "-O2", "-g", "-w", "-pthread", source="deaths.c")
    debug = place / "program.debug"
    commands: list[list[str | Path]] = [
        ["objcopy", "--only-keep-debug", program, debug],
        ["strip", program],
        ["objcopy", f"--add-gnu-debuglink={debug}", program],
    ]
    for argv in commands:
        subprocess.run(argv, check=True)
    material = _die("debuglink", place, program, "aligned_alloca")
    material.targets.append(_file("debug file", debug))
    return material


def _deleted(place: Path) -> Material:
    program = _compile(place, "gcc", "-O2", "-w", "-pthread", source="deaths.c")
    material = _die("deleted", place, program, "deleted", asset=True)
    material.targets = [target for target in material.targets if target.kind != "module"]
    return material


def _small(place: Path) -> Material:
    data = cores.small()
    return Material("made by hand", [Target("core", data, core_spots(data))], "/usr/bin/program")


def _compile(place: Path, *argv: str, source: str) -> Path:
    program = place / "program"
    subprocess.run([*argv, "-o", program, _CORPUS / source], check=True)
    return program


def _die(name: str, place: Path, program: Path, *arguments: str, asset: bool = False) -> Material:
    # Always at the same addresses, so that a round can be repeated.
    silent = ["/bin/sh", "-c", 'exec setarch -R "$@" 2> /dev/null', "sh"]
    with crash([*silent, program, *arguments]) as dead:
        data, exe = dead.core.read_bytes(), dead.exe
        targets = [Target("core", data, core_spots(data)), _stacks(data)]
        if asset:
            site = Site(place / "site")
            site.archive(dead.core, *dead.core_pattern()).check_returncode()
            [(_stage, dump)] = site.dumps()
            tar = (dump / "assets.tar").read_bytes()
            targets.append(
                Target("asset", tar, [range(at, at + 512) for at in range(0, len(tar), 512)], place / "asset")
            )
    if program.exists():
        targets.append(_file("module", program))
    return Material(name, targets, exe)


def core_spots(data: bytes) -> list[range]:
    """Return where a core's structure is: its headers, each kind of note, the heads of its modules."""
    header = elf.read_core(lambda count, offset: data[offset : offset + count])
    notes = data[header.notes_offset : header.notes_end]
    spots = [range(64), range(64, 64 + 56 * header.segments_count)]
    for _name, kind, at, size_bytes in elf.iter_notes(notes):
        if kind in (1, 3, 6, cores.NT_SIGINFO, cores.NT_FILE):
            spots.append(range(header.notes_offset + at - 20, header.notes_offset + at + min(size_bytes, 400)))
    at = data.find(b"\x7fELF", 64)
    while at >= 0:
        spots.append(range(at, min(at + 1024, len(data))))
        at = data.find(b"\x7fELF", at + 1)
    return spots


def _stacks(data: bytes) -> Target:
    """Return the stacks, and the registers that lead to them; rsp is the 20th, rip the 17th of pr_reg at 112 of PRSTATUS."""

    def read_at(count: int, offset: int) -> bytes:
        return data[offset : offset + count]

    header = elf.read_core(read_at)
    segments = [one for one in elf.segments(read_at, header) if one.type == elf.PT_LOAD]
    spots, words = [], []
    notes = data[header.notes_offset : header.notes_end]
    for _name, kind, at, _size in elf.iter_notes(notes):
        if kind != 1:
            continue
        registers = header.notes_offset + at + 112
        spots.append(range(registers, registers + 27 * 8))
        (rip,), (rsp,) = (struct.unpack_from("<Q", data, registers + 8 * number) for number in (16, 19))
        words += [rip, rsp, rsp - 8, rsp + 8, rsp + 128]
        for segment in segments:
            if segment.vaddr <= rsp < segment.vaddr + segment.filesz:
                start = segment.offset + rsp - segment.vaddr
                end = min(start + _STACK_BYTES, segment.offset + segment.filesz)
                spots.append(range(start, end))
                words += [word for (word,) in struct.iter_unpack("<Q", data[start : start + (end - start) // 8 * 8])][
                    :64
                ]
    return Target("stack", data, spots, None, words)


def _file(kind: str, path: Path) -> Target:
    """Return an ELF file, to be hit in its headers and its tables."""
    data = path.read_bytes()
    file = ElfFile(partial(_pread, data), path.name)
    sections = file.sections()
    spots = [range(64), range(64, 64 + 56 * len(file.segments))]
    (at,) = struct.unpack_from("<Q", data, 40)
    spots.append(range(at, at + 64 * len(sections)))
    for section in sections:
        if section.name in _TABLES or section.name.startswith(".note"):
            spots += [range(section.offset, section.offset + max(1, min(section.size_bytes, 4096)))] * 2
    return Target(kind, data, [spot for spot in spots if spot and spot.stop <= len(data)], path)


def _pread(data: bytes, count: int, offset: int) -> bytes:
    return data[offset : offset + count]
