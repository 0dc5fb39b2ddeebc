# SPDX-License-Identifier: Apache-2.0
"""What is kept of mapped files: enough to unwind and to name, within its bounds, and never more than there is."""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from coresnap.capture import modules
from coresnap.capture.modules import BLOCK_BYTES, keep
from coresnap.capture.reach import Pinned
from coresnap.ground.elf_file import ElfFile
from tests.crash import build

_ROOM = 32 << 20
_WANTED = (".eh_frame_hdr", ".eh_frame", ".dynsym", ".dynstr", ".symtab", ".strtab", ".note.gnu.build-id", ".shstrtab")


class _Kept:
    """What keep() has given, by the modules' starts."""

    def __init__(self, pinned: list[Pinned], most_bytes: int = _ROOM) -> None:
        self.whole: set[int] = set()
        self.pieces: dict[int, dict[int, bytes]] = defaultdict(dict)
        for start, offset, data in keep(pinned, most_bytes):
            assert len(data) <= BLOCK_BYTES
            if offset < 0:
                self.whole.add(start)
            else:
                self.pieces[start][offset] = data
        for file in pinned:
            file.close()

    def size_bytes(self) -> int:
        return sum(len(data) for pieces in self.pieces.values() for data in pieces.values())

    def read(self, start: int, count: int, offset: int) -> bytes:
        """Read byte by byte: slowly, and plainly."""
        data = bytearray()
        for at in range(offset, offset + count):
            inside = [
                piece[at - begin] for begin, piece in self.pieces[start].items() if begin <= at < begin + len(piece)
            ]
            if not inside:
                break
            data.append(inside[0])
        return bytes(data)

    def file(self, start: int) -> ElfFile:
        return ElfFile(lambda count, offset: self.read(start, count, offset), "kept")


def _pin(path: Path, start: int = 0x400000) -> Pinned:
    return Pinned(start, os.open(path, os.O_PATH), None)


def test_what_unwinding_and_naming_want_is_kept() -> None:
    """And the code is not: of its section nothing but what lies beside something else."""
    program = build("crash")
    kept = _Kept([_pin(program)])
    assert kept.whole == {0x400000}
    whole, file = (
        ElfFile(lambda count, offset: program.read_bytes()[offset : offset + count], "whole"),
        kept.file(0x400000),
    )
    assert file.build_id() == whole.build_id() != ""
    assert file.sections() == whole.sections()
    assert file.segments == whole.segments or len(file.segments) == len(whole.segments)
    for name in _WANTED:
        section = whole.section(name)
        assert section is not None
        assert file.contents(section, _ROOM) == whole.contents(section, _ROOM)
    text = whole.section(".text")
    assert text is not None
    assert kept.read(0x400000, text.size_bytes, text.offset) != whole.contents(text, _ROOM)
    assert kept.size_bytes() < program.stat().st_size // 2


def test_unwind_tables_are_found_without_section_headers(tmp_path: Path) -> None:
    program = Path(shutil.copy(build("crash"), tmp_path))
    whole = ElfFile(lambda count, offset: build("crash").read_bytes()[offset : offset + count], "whole")
    with program.open("r+b") as file:
        file.seek(40)
        file.write(bytes(8))  # e_shoff
        file.seek(60)
        file.write(bytes(4))
    kept = _Kept([_pin(program)])
    assert kept.whole == {0x400000}
    for name in (".eh_frame_hdr", ".eh_frame", ".note.gnu.build-id", ".dynamic"):
        section = whole.section(name)
        assert section is not None
        assert kept.file(0x400000).contents(section, _ROOM) == whole.contents(section, _ROOM)


def test_a_stripped_program_with_a_small_symbol_table_inside(tmp_path: Path) -> None:
    """.gnu_debugdata, as Fedora's programs have it, and the name of the separate debug file."""
    program, small = tmp_path / "program", tmp_path / "small.xz"
    small.write_bytes(b"\xfd7zXZ" + bytes(range(256)) * 8)
    subprocess.run(["strip", "-o", program, build("crash")], check=True)
    debug = ["--add-section", f".gnu_debugdata={small}", f"--add-gnu-debuglink={build('crash')}"]
    subprocess.run(["objcopy", *debug, program], check=True)
    file = _Kept([_pin(program)]).file(0x400000)
    section = file.section(".gnu_debugdata")
    assert section is not None
    assert file.contents(section, _ROOM) == small.read_bytes()
    link = file.debuglink()
    assert link is not None
    assert link[0] == "crash"


@pytest.mark.parametrize("build_id", [True, False])
def test_a_file_that_is_reached_is_kept_where_it_could_not_be_known_again(tmp_path: Path, build_id: bool) -> None:
    program = tmp_path / "program"
    without = [] if build_id else ["--remove-section", ".note.gnu.build-id"]
    subprocess.run(["objcopy", *without, build("crash"), program], check=True)
    file = _pin(program)
    file.reached = (program.stat().st_dev, program.stat().st_ino)
    kept = _Kept([file])
    assert kept.whole == {0x400000}
    assert (kept.pieces == {}) is build_id


def test_what_is_no_elf_file(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"#!/bin/sh\n" * 1000)
    (tmp_path / "short").write_bytes(b"\x7fELF\x02\x01")
    (tmp_path / "empty").write_bytes(b"")
    os.mkfifo(tmp_path / "fifo")
    paths = [tmp_path / "text", tmp_path / "short", tmp_path / "empty", tmp_path / "fifo", tmp_path, Path("/dev/zero")]
    kept = _Kept([_pin(path, number) for number, path in enumerate(paths)])
    assert kept.pieces == {}
    assert kept.whole == set(range(len(paths))), "there is nothing of them to be missed"


def test_the_room_goes_to_unwind_tables_first(tmp_path: Path) -> None:
    """Of ten programs, with room for less than half of what is wanted of them, all can be unwound."""
    paths = [Path(shutil.copy(build("crash"), tmp_path / str(number))) for number in range(10)]
    everything = _Kept([_pin(path, number) for number, path in enumerate(paths)])
    room = everything.size_bytes() * 6 // 10
    kept = _Kept([_pin(path, number) for number, path in enumerate(paths)], room)
    assert kept.size_bytes() <= room
    assert len(kept.whole) < len(paths) == len(everything.whole)
    for number in range(len(paths)):
        section = kept.file(number).section(".eh_frame")
        assert section is not None
        kept.file(number).contents(section, _ROOM)


def test_a_huge_sparse_file_claims_everything(tmp_path: Path) -> None:
    """64 GB, 65535 sections of 4 GB each: what is no more than a claim costs neither room nor time."""
    program = tmp_path / "program"
    data = bytearray(build("crash").read_bytes())
    struct.pack_into("<Q", data, 40, 1 << 30)
    struct.pack_into("<HHH", data, 58, 64, 65535, 1)
    program.write_bytes(data)
    header = struct.pack("<IIQQQQIIQQ", 1, 2, 0, 0, 4 << 30, 4 << 30, 0, 0, 1, 24)
    with program.open("r+b") as file:
        file.truncate(64 << 30)
        file.seek(1 << 30)
        file.write(header * 65535)
        file.seek(4 << 30)
        file.write(b"\0.symtab\0")
    kept = _Kept([_pin(program), _pin(build("crash"), 1)])
    assert kept.whole == {1}
    assert kept.size_bytes() <= _ROOM


def test_a_file_that_ends_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = Path(shutil.copy(build("crash"), tmp_path))
    section = ElfFile(lambda count, offset: program.read_bytes()[offset : offset + count], "").section(".symtab")
    assert section is not None
    real_pread = modules._pread

    def cutting_pread(fd: int, count: int, offset: int) -> bytes:
        if offset == section.offset:
            os.truncate(program, section.offset + 100)
        return real_pread(fd, count, offset)

    monkeypatch.setattr(modules, "_pread", cutting_pread)
    kept = _Kept([_pin(program)])
    assert kept.whole == set()
    assert len(kept.read(0x400000, section.size_bytes, section.offset)) == 100


def test_no_file_is_begun_once_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "_SECONDS", 0)
    kept = _Kept([_pin(build("crash"))])
    assert (kept.pieces, kept.whole) == ({}, set())


def test_no_descriptor_is_left() -> None:
    before = set(os.listdir("/proc/self/fd"))
    _Kept([_pin(build("crash"), 1), _pin(Path("/dev/zero"), 2), _pin(Path("/etc/passwd"), 3)])
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("seed", range(4))
def test_damaged_headers(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    original = build("crash").read_bytes()
    for number in range(50):
        data = bytearray(original)
        for _ in range(chance.randrange(1, 20)):
            at = chance.choice([chance.randrange(16, 1024), len(data) - chance.randrange(1, 2400)])
            data[at : at + 8] = chance.choice([b"\xff" * 8, bytes(8), chance.randbytes(8)])
        (tmp_path / str(number)).write_bytes(data)
        assert _Kept([_pin(tmp_path / str(number))]).size_bytes() <= len(original) + (64 << 10)
