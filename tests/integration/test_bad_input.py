# SPDX-License-Identifier: Apache-2.0
"""Real crashes whose cores, modules and debug files lie: a partial report that says what is missing, or status 65 and a line."""

from __future__ import annotations

import json
import os
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coresnap.ground.elf_file import ElfFile
from tests.crash import REPOSITORY, crash

_PROGRAM = [sys.executable, "-I", str(REPOSITORY / "coresnap" / "take_snapshot.py")]
_SOURCES = REPOSITORY / "tests" / "corpus" / "programs"
_MEMORY_BYTES, _SECONDS = 256 << 20, 10
_PT_LOAD, _PT_NOTE = 1, 4


def _build(directory: Path, source: str, *options: str) -> Path:
    program = directory / "program"
    subprocess.run(["gcc", "-O1", "-w", "-pthread", *options, "-o", program, _SOURCES / source], check=True)
    return program


def _core(directory: Path, program: Path, *arguments: str) -> Path:
    with crash([program, *arguments]) as dead:
        return Path(shutil.copy(dead.core, directory / "core"))


def _run(core: Path) -> subprocess.CompletedProcess[str]:
    def limits() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))

    argv: list[str | Path] = [*_PROGRAM, "-o", "-", "--core", core]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_SECONDS, preexec_fn=limits)


def _report(core: Path) -> dict[str, Any]:
    done = _run(core)
    assert (done.returncode, done.stderr) == (0, "")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def _stack(report: dict[str, Any]) -> tuple[list[str], str]:
    """Return the names of the frames of the thread that died, and why there are no more."""
    tid = report["mainThread"]
    [note] = [note for note in report["annotations"]["stacks"] if tid in note["threads"]]
    return [frame.get("funcName", "") for frame in report["threads"][tid]["stack"]], note["end"]


@pytest.mark.parametrize(
    ("mode", "end"), [("round", "cycle"), ("far", "the core does not have the stack"), ("zero", "bottom")]
)
def test_unwind_tables_that_lie(tmp_path: Path, mode: str, end: str) -> None:
    names, why = _stack(_report(_core(tmp_path, _build(tmp_path, "liar.c"), mode)))
    assert names[0] == f"{mode}_"
    assert why == end
    assert len(names) <= 2


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    directory = tmp_path_factory.mktemp("whole")
    program = _build(directory, "deaths.c", "-g")
    return program, _core(directory, program, "null").read_bytes()


_Lie = Callable[[bytearray], None]


def _segments(data: bytes | bytearray) -> list[tuple[int, tuple[int, ...]]]:
    """Return where each program header stands, and its fields: type, flags, offset, vaddr, paddr, filesz, memsz, align."""
    (count,) = struct.unpack_from("<H", data, 56)
    return [(at, struct.unpack_from("<IIQQQQQQ", data, at)) for at in range(64, 64 + 56 * count, 56)]


def _no_notes(data: bytearray) -> None:
    for at, (kind, *_rest) in _segments(data):
        if kind == _PT_NOTE:
            struct.pack_into("<I", data, at, 0)


def _empty_notes(data: bytearray) -> None:
    for at, (kind, *_rest) in _segments(data):
        if kind == _PT_NOTE:
            struct.pack_into("<Q", data, at + 32, 0)


def _absurd_count(data: bytearray) -> None:
    struct.pack_into("<H", data, 56, 0xFFFE)


def _extended_count(data: bytearray) -> None:
    """As many as four bytes can say, in the first section header, which is put at the end."""
    struct.pack_into("<Q", data, 40, len(data))
    struct.pack_into("<H", data, 56, 0xFFFF)
    data += struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, 0xFFFFFFFF, 0, 0)


def _overlapping(data: bytearray) -> None:
    """Every segment claims to have all memory from the lowest on, as large as the largest file."""
    loads = [(at, fields) for at, fields in _segments(data) if fields[0] == _PT_LOAD]
    for number, (at, _fields) in enumerate(loads):
        struct.pack_into("<QQ", data, at + 8, 64 * number, 0x400000 + 16 * number)
        struct.pack_into("<QQ", data, at + 32, 1 << 47, 1 << 47)


def _no_memory(data: bytearray) -> None:
    for at, (kind, *_rest) in _segments(data):
        if kind == _PT_LOAD:
            struct.pack_into("<Q", data, at + 32, 0)


@pytest.mark.parametrize("lie", [_no_notes, _empty_notes])
def test_without_notes_there_is_a_line(whole: tuple[Path, bytes], tmp_path: Path, lie: _Lie) -> None:
    data = bytearray(whole[1])
    lie(data)
    (tmp_path / "core").write_bytes(data)
    done = _run(tmp_path / "core")
    assert (done.returncode, done.stdout) == (65, "")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("lie", [_absurd_count, _extended_count, _overlapping, _no_memory])
def test_headers_that_lie(whole: tuple[Path, bytes], tmp_path: Path, lie: _Lie) -> None:
    data = bytearray(whole[1])
    lie(data)
    (tmp_path / "core").write_bytes(data)
    report = _report(tmp_path / "core")
    assert report["attributes"]["signal.name"] == "SIGSEGV"
    assert report["threads"][report["mainThread"]]["stack"]
    told = " ".join(report["annotations"].get("missing", []))
    assert ("segments lie over others" in told) is (lie is _overlapping)
    if lie in (_absurd_count, _extended_count):
        assert _stack(report) == _stack(_report(whole[0].parent / "core"))


def test_of_a_truncated_core_everything_is_told_that_it_has(whole: tuple[Path, bytes], tmp_path: Path) -> None:
    _program, data = whole
    last = max(fields[2] for _at, fields in _segments(data) if fields[0] == _PT_LOAD and fields[5])
    (tmp_path / "core").write_bytes(data[:last])
    report = _report(tmp_path / "core")
    assert any("truncated" in line or "bytes" in line for line in report["annotations"]["missing"])
    (tmp_path / "core").write_bytes(data[: last // 8])
    names, end = _stack(_report(tmp_path / "core"))
    assert names[0] == "null_leaf"
    assert end == "the core does not have the stack"


def test_debug_files_of_another_build_name_nothing(tmp_path: Path) -> None:
    program = _build(tmp_path, "deaths.c", "-g")
    debug = tmp_path / "program.debug"
    subprocess.run(["objcopy", "--only-keep-debug", program, debug], check=True)
    subprocess.run(["strip", program], check=True)
    subprocess.run(["objcopy", f"--add-gnu-debuglink={debug}", program], check=True)
    core = _core(tmp_path, program, "null")
    assert _stack(_report(core))[0][:2] == ["null_leaf", "middle"]
    with debug.open("ab") as file:
        file.write(b"another")
    names, _end = _stack(_report(core))
    assert names[:4] == [""] * 4
    assert names[-2].startswith("__libc_start")


def test_an_executable_of_another_build_is_not_believed(tmp_path: Path) -> None:
    program = _build(tmp_path, "deaths.c")
    core = _core(tmp_path, program, "null")
    assert "middle" in _stack(_report(core))[0]
    program.unlink()
    _build(tmp_path, "deaths.c", "-O0", "-DANOTHER")
    report = _report(core)
    assert "middle" not in _stack(report)[0]
    [module] = [module for module in report["modules"] if module["path"] == str(program)]
    assert module["missing"] == "its file is of another build"
    program.unlink()
    [module] = [module for module in _report(core)["modules"] if module["path"] == str(program)]
    assert module["missing"] == "its file is not there"


@pytest.mark.parametrize("section", [".symtab", ".strtab", ".eh_frame"])
def test_a_table_of_4_gb_by_its_own_claim(tmp_path: Path, section: str) -> None:
    """And of a file that is as large as that, full of nothing."""
    program = _build(tmp_path, "deaths.c")
    core = _core(tmp_path, program, "null")
    data = bytearray(program.read_bytes())
    (table,), (count, names_at) = struct.unpack_from("<Q", data, 40), struct.unpack_from("<HH", data, 60)
    (names,) = struct.unpack_from("<Q", data, table + 64 * names_at + 24)
    for at in range(table, table + 64 * count, 64):
        (name,) = struct.unpack_from("<I", data, at)
        if data[names + name :].startswith(section.encode() + b"\0"):
            struct.pack_into("<Q", data, at + 32, 4 << 30)
    program.write_bytes(data)
    os.truncate(program, 5 << 30)
    found, _end = _stack(_report(core))
    assert found[:2] == ["null_leaf", "middle"]
    assert len(found) >= 5


def test_a_damaged_unwind_table_is_told_though_frames_are_guessed(tmp_path: Path) -> None:
    program = _build(tmp_path, "deaths.c")
    core = _core(tmp_path, program, "null")
    with program.open("r+b") as file:
        section = ElfFile(lambda count, at: os.pread(file.fileno(), count, at), "program").section(".eh_frame")
        assert section
        os.pwrite(file.fileno(), b"\xff" * section.size_bytes, section.offset)
    report = _report(core)
    assert any(
        line.startswith(f"unwind tables: {program}: the record at ") for line in report["annotations"]["missing"]
    )
    assert any(frame.get("guessed_frame") for frame in report["threads"][report["mainThread"]]["stack"])
