# SPDX-License-Identifier: Apache-2.0
"""Calls that are over, and tail calls, in programs without unwind tables and frame pointers: whose frames are guessed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from coresnap.snapshot.unwind import functions
from tests.crash import crash
from tests.support import errors
from tests.unit.test_snapshot import report_of

_OPTIONS = ("-O2", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables", "-fomit-frame-pointer")
_SOURCE = """
#define ALONE __attribute__((noipa))
ALONE void leaf(void) { __asm__ volatile("" ::: "memory"); }
ALONE void earlier(void) { volatile long room[32]; room[0] = 1; leaf(); room[1] = 1; }
ALONE int again(volatile int *at);
ALONE int entry(volatile int *at) { return again(at + 1); }
ALONE int step(volatile int *at) { return again(at + 2); }
ALONE int inner(volatile int *at) { volatile long room[64]; room[0] = 1; return *at = 1; }
ALONE int outer(volatile int *at) { return inner(at) + 1; }
ALONE int again(volatile int *at) { return inner(at + 1); }
ALONE int chain(volatile int *at) { return entry(at) + step(at); }
int main(int count, char **arguments) {
    earlier();
    return (arguments[1][0] == 'o' ? outer(0) : chain(0)) + 1;
}
"""


@pytest.mark.parametrize(
    ("code", "is_indirect"),
    [
        ("48 8b 87 e8 00 00 00 ff e0", True),  # mov 0xe8(%rdi),%rax; jmp *%rax
        ("48 8b 87 e0 00 00 00 ff e0", True),
        ("ff 25 00 10 00 00", True),  # jmp *0x1000(%rip)
        ("e8 10 f0 ff ff 66 90", False),  # call backwards; nop
        ("0f 84 10 f0 ff ff 66 90", False),
        ("48 01 d0 ff e0", False),  # add %rdx,%rax; jmp *%rax: a switch
    ],
)
def test_what_is_a_jump_to_an_unknown_place(code: str, *, is_indirect: bool) -> None:
    assert bool(functions._INDIRECT.search(bytes.fromhex(code))) is is_indirect


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("calls")
    (directory / "calls.c").write_text(_SOURCE)
    subprocess.run(["gcc", "-Wl,--build-id", *_OPTIONS, "calls.c", "-o", "calls"], cwd=directory, check=True)
    return directory / "calls"


@pytest.mark.parametrize("is_stripped", [False, True])
def test_a_call_that_is_over_is_no_frame(program: Path, tmp_path: Path, *, is_stripped: bool) -> None:
    """`earlier` has left its return address within the frame of `inner`; without symbols nothing tells that it is another's."""
    if is_stripped:
        subprocess.run(["strip", "-o", tmp_path / "calls", program], check=True)
        program = tmp_path / "calls"
    with crash([program, "outer"]) as crashed:
        report = report_of(crashed.core)
    found = errors.functions(report)
    if not is_stripped:
        assert found[:3] == ["inner", "outer", "main"]
    assert report["threads"][report["mainThread"]]["stack"][1]["guessed_frame"] is True


def test_a_tail_call_leads_on(program: Path) -> None:
    """`chain` has called `entry`, which went on to `again`, and that to `inner`."""
    with crash([program, "chain"]) as crashed:
        found = errors.functions(report_of(crashed.core))
    assert found[:3] == ["inner", "chain", "main"]
