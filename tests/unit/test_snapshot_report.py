# SPDX-License-Identifier: Apache-2.0
"""What the report is put together of: stacks that are made by hand, memory, the environment, and the room for all of it."""

from __future__ import annotations

import base64
import json
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from coresnap.snapshot.core import open_core
from coresnap.snapshot.frames import Called, Place
from coresnap.snapshot.modules import Module
from coresnap.snapshot.notes import Thread
from coresnap.snapshot.report import HEAD_BYTES, Options, build, fingerprint_of
from coresnap.snapshot.stacks import End, Found, Frame, Stack
from tests.crash import build as compiled
from tests.crash import crash
from tests.fixtures import cores
from tests.fixtures.cores import Load
from tests.unit.test_snapshot import VALIDATOR
from tests.unit.test_snapshot_program import run

_UUID = "11111111-2222-4333-8444-555555555555"
_AT = cores.BASE + 0x1000


class _Name(NamedTuple):
    function: str
    symbol: str


class _Names:
    """Calls every address by its number."""

    def find(self, wanted: Iterable[tuple[Module, int]]) -> None:
        self.asked = list(wanted)

    def name(self, _module: Module, address: int) -> Called | None:
        return _Name(f"f{address - _AT}(int)", f"f{address - _AT}") if address - _AT < 5000 else None


def _frames(count: int, found: Found = Found.CFI) -> list[Frame]:
    return [Frame(_AT + n, _AT + n, found if n else Found.REGISTERS, {"rsp": 8 * n}) for n in range(count)]


def _built(
    stacks: list[Stack], *, places: dict[int, list[Place]] | None = None, asset: bytes = b"", **options: Any
) -> dict[str, Any]:
    """Return the report of a core with these stacks, whose threads are numbered from 1 on."""
    notes = cores.prstatus(1, [0] * 16 + [_AT]) + cores.prpsinfo(1) + cores.siginfo(11, 1, 0x10)
    notes += cores.files((cores.BASE, cores.BASE + 0x3000, 0, b"/opt/app"))
    notes += b"".join(cores.prstatus(tid, [tid] * 27) for tid in range(2, len(stacks) + 1))
    fd = os.memfd_create("core")
    try:
        os.pwrite(fd, cores.core(notes, [Load(cores.BASE, cores.image(b"b" * 20))]), 0)
        data = build(
            open_core(fd),
            {"proc/environ": asset} if asset else {},
            uuid=_UUID,
            executable="",
            more={"coresnap.object": _UUID},
            missing=[],
            options=Options(**options),
            stack=lambda thread: stacks[thread.tid - 1],
            names=_Names(),
            places=lambda _module, address: (places or {}).get(address - _AT, []),
        )
    finally:
        os.close(fd)
    assert len(data) <= options.get("max_bytes", 1 << 26)
    report: dict[str, Any] = json.loads(data)
    VALIDATOR.validate(report)
    assert fingerprint_of(data[:HEAD_BYTES]) == report["fingerprint"]
    return report


def _notes(report: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = report["annotations"]["stacks"]
    return found


def test_how_each_frame_was_found_and_why_the_stack_ends() -> None:
    guessed = [
        Frame(_AT + n, _AT + n, found, {}) for n, found in enumerate((Found.REGISTERS, Found.SCAN, Found.FRAME_POINTER))
    ]
    stacks = [Stack(_frames(3), End.BOTTOM), Stack(guessed, End.BAD_TABLE, "at 5"), Stack(_frames(3), End.BOTTOM)]
    report = _built(stacks)
    assert _notes(report) == [
        {"end": "bottom", "found": ["registers", "cfi", "cfi"], "threads": ["1", "3"]},
        {
            "end": str(End.BAD_TABLE),
            "detail": "at 5",
            "found": ["registers", "scan", "frame-pointer"],
            "threads": ["2"],
        },
    ]
    assert [frame.get("guessed_frame", False) for frame in report["threads"]["2"]["stack"]] == [False, True, True]
    first = report["threads"]["1"]["stack"]
    assert [frame["funcName"] for frame in first] == ["f0(int)", "f1(int)", "f2(int)"]
    assert [frame.get("faulted") for frame in first] == [True, None, None]
    assert {frame["library"] for frame in first} == {"/opt/app"}


def test_inlined_calls_and_their_places() -> None:
    places = {
        0: [Place("inner", "/src/a.h", 3, 7), Place("", "/src/a.c", 10, 0)],
        1: [Place("", "/src/a.c", 20, 1)],
        2: [Place("", "", 0, 0)],
    }
    report = _built([Stack(_frames(3), End.BOTTOM)], places=places)
    stack = report["threads"]["1"]["stack"]
    told = [(one["funcName"], one.get("sourceCode"), one.get("line"), one.get("column")) for one in stack]
    assert told == [
        ("inner", "0", 3, 7),
        ("f0(int)", "1", 10, None),
        ("f1(int)", "1", 20, 1),
        ("f2(int)", None, None, None),
    ]
    assert report["sourceCode"] == {"0": {"path": "/src/a.h"}, "1": {"path": "/src/a.c"}}
    assert stack[0]["address"] == stack[1]["address"]
    assert "registers" in stack[0]
    assert "registers" not in stack[1]
    assert [frame["registers"] for frame in stack[2:]] == [{"rsp": "8"}, {"rsp": "16"}], (
        "of its callers, those that are known"
    )
    assert _notes(report)[0]["found"] == ["inlined", "registers", "cfi", "cfi"]


def test_registers_of_callers_are_those_of_the_thread_that_crashed() -> None:
    report = _built([Stack(_frames(50), End.BOTTOM), Stack(_frames(3), End.BOTTOM)])
    first, second = (report["threads"][tid]["stack"] for tid in ("1", "2"))
    assert [int(frame["registers"]["rsp"]) for frame in first[1:33]] == [8 * n for n in range(1, 33)]
    assert not any("registers" in frame for frame in [*first[33:], *second[1:]])


def test_all_names_are_asked_for_at_once() -> None:
    """Whoever knows them passes through a table once then."""
    names = _Names()
    fd = os.memfd_create("core")
    os.pwrite(fd, cores.small(), 0)

    def stack(thread: Thread) -> Stack:
        return Stack(_frames(3 if thread.tid == 78 else 5), End.BOTTOM)

    more = {"coresnap.object": _UUID}
    build(open_core(fd), {}, uuid=_UUID, executable="", more=more, missing=[], stack=stack, names=names)
    os.close(fd)
    assert sorted(address - _AT for _module, address in names.asked) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("max_bytes", [4096, 8192, 1 << 16, 1 << 20])
def test_a_deep_stack_is_cut_to_the_room(max_bytes: int) -> None:
    """Its innermost frames are those that stay; how many do not is said."""
    report = _built([Stack(_frames(1000), End.BOTTOM)], max_bytes=max_bytes)
    stack = report["threads"]["1"]["stack"]
    assert [frame["funcName"] for frame in stack] == [f"f{n}(int)" for n in range(len(stack))]
    assert len(stack) >= 4
    assert len(stack[0]["registers"]) == 27
    for note in _notes(report):
        assert note.get("left_out", 0) == 1000 - len(stack)
        assert note.get("left_out_at", len(stack)) == len(stack)
    if max_bytes == 1 << 20:
        assert len(stack) == 1000


def test_what_the_unwinder_left_out_is_said() -> None:
    report = _built([Stack(_frames(10), End.BOTTOM, "", 5000, 6)])
    assert (_notes(report)[0]["left_out"], _notes(report)[0]["left_out_at"]) == (5000, 6)


@pytest.mark.parametrize("max_bytes", [4096, 6000, 10000, 30000])
def test_sources_take_room_as_well(max_bytes: int) -> None:
    places = {n: [Place("", f"/src/{'x' * 500}/{n}.c", 1, 1)] for n in range(40)}
    stacks = [Stack(_frames(20), End.BOTTOM), *(Stack(_frames(40)[20 - n :], End.BOTTOM) for n in range(9))]
    report = _built(stacks, places=places, max_bytes=max_bytes)
    refers = {
        frame["sourceCode"] for thread in report["threads"].values() for frame in thread["stack"] if "line" in frame
    }
    assert refers == set(report["sourceCode"])


def test_1500_threads_with_much_memory_around_their_stacks(tmp_path: Path) -> None:
    """The memory has a bound of its own, whatever is asked for, and comes after everything else."""
    with crash([compiled("crash"), "segv", "1500"]) as crashed:
        for stack_bytes in (0, 1024, 1 << 20):
            out = tmp_path / f"out{stack_bytes}"
            done = run("-o", out, "--stack-bytes", str(stack_bytes), "--core", crashed.core)
            assert (done.returncode, done.stderr) == (0, b"")
            report = json.loads(out.read_bytes())
            assert len(report["threads"]) == 1500
            missing = [line for line in report["annotations"].get("missing", []) if line.startswith("memory")]
            if stack_bytes == 1 << 20:
                assert len(missing) == 1
                assert 7 << 20 < out.stat().st_size < 16 << 20
            else:
                assert missing == []
                assert out.stat().st_size < 6 << 20
                assert len(report["memory"]) == (1500 if stack_bytes else 0)
        core = open_core(os.open(crashed.core, os.O_RDONLY))
        (pointer,) = {thread.registers()["rsp"] for thread in core.notes.threads[:1]}
        region = json.loads((tmp_path / "out1024").read_bytes())["memory"][0]
    assert (int(region["start"]), region["size"]) == (pointer - 128, 1024)
    assert base64.b64decode(region["data"]) == core.memory.read(pointer - 128, 1024)


def test_memory_of_a_stack_that_was_full() -> None:
    """Its pointer is below what there is of it."""
    registers = [0] * 19 + [0x7000_0000_0FF8]
    notes = cores.prstatus(1, registers)
    fd = os.memfd_create("core")
    os.pwrite(fd, cores.core(notes, [Load(0x7000_0000_1000, b"s" * 4096)]), 0)
    core = open_core(fd)
    data = build(core, {}, uuid=_UUID, executable="", more={"coresnap.object": _UUID}, missing=[], options=Options(64))
    os.close(fd)
    (region,) = json.loads(data)["memory"]
    assert (int(region["start"]), base64.b64decode(region["data"])) == (0x7000_0000_1000, b"s" * 64)


def test_the_environment_by_allow_list() -> None:
    environ = b"\0".join(
        [b"PATH=/bin", b"LC_ALL=C", b"LC=1", b"HIDDEN=x", b"PATH=/second", b"noequals", b"=x", b"TZ=\xff"]
    )
    found = _built([Stack(_frames(1))], asset=environ, variables=("PATH", "LC_*", "TZ"))
    assert found["annotations"]["environment"] == {"PATH": "/bin", "LC_ALL": "C", "TZ": "\ufffd"}
    assert "environment" not in _built([Stack(_frames(1))], asset=environ)["annotations"]
    whole = _built([Stack(_frames(1))], asset=environ, variables=("*",))["annotations"]["environment"]
    assert whole["HIDDEN"] == "x"


def test_a_head_of_something_else_has_no_fingerprint() -> None:
    for data in (b"", b"{}", b'{"fingerprint":"' + b"a" * 64 + b'"}', b"btt" + bytes(300)):
        assert fingerprint_of(data) == ""


def test_a_core_without_anything_to_find(tmp_path: Path) -> None:
    """One thread, no files, no memory: there is a report, with a fingerprint that says as much as is known."""
    (tmp_path / "core").write_bytes(cores.core(cores.prstatus(1, struct.unpack("<27Q", bytes(216)))))
    report = json.loads(run("-o-", "--core", tmp_path / "core").stdout)
    VALIDATOR.validate(report)
    assert report["annotations"]["fingerprint"] == ["SIGSEGV"]
    assert (report["memory"], report["modules"], report["sourceCode"]) == ([], [], {})
