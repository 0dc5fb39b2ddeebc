# SPDX-License-Identifier: Apache-2.0
"""Lines and inlined calls by drgn, Python's frames by pystack, on real crashes; and what is left when these go wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coresnap.ground import program
from coresnap.snapshot import lines
from coresnap.snapshot.frames import Place
from coresnap.snapshot.lines import DRGN, PYSTACK, Located, is_installed, locate
from tests.crash import crash
from tests.unit.test_snapshot import VALIDATOR, report_of

_SOURCE = """
static inline __attribute__((always_inline)) int innermost(volatile int *at) {
    return *at = 1; /* line 3 */
}
static __attribute__((noinline)) int outer(volatile int *at) {
    return innermost(at) + 1; /* line 6 */
}
int main(void) {
    return outer(0); /* line 9 */
}
"""
_PYTHON = "import ctypes\ndef inner(at):\n    ctypes.string_at(at)\ndef outer():\n    inner(0)\nouter()\n"


def test_lines_and_inlined_calls_are_gdbs(tmp_path: Path) -> None:
    if not is_installed(DRGN):
        pytest.skip("drgn is not installed for this interpreter")
    (tmp_path / "it.c").write_text(_SOURCE.lstrip())
    subprocess.run(["gcc", "-g", "-O1", "-fno-optimize-sibling-calls", "it.c", "-o", "it"], cwd=tmp_path, check=True)
    with crash([tmp_path / "it"]) as crashed:
        report = report_of(crashed.core)
        argv = [
            "gdb",
            "-nx",
            "-batch",
            "-iex",
            "set debuginfod enabled off",
            "-ex",
            "bt",
            crashed.exe,
            str(crashed.core),
        ]
        theirs = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    frames = report["threads"][report["mainThread"]]["stack"][:3]
    paths = [report["sourceCode"][frame["sourceCode"]]["path"] for frame in frames]
    assert [(frame["funcName"], frame["line"]) for frame in frames] == [("innermost", 2), ("outer", 5), ("main", 8)]
    assert {os.path.basename(path) for path in paths} == {"it.c"}
    assert [word for word in ("it.c:2", "it.c:5", "it.c:8") if word not in theirs] == []
    assert frames[0]["address"] == frames[1]["address"], "an inlined call is at its function's address"


def test_frames_of_python(tmp_path: Path) -> None:
    if not is_installed(PYSTACK):
        pytest.skip("pystack is not installed for this interpreter")
    (tmp_path / "it.py").write_text(_PYTHON)
    with crash([os.path.realpath("/usr/bin/python3"), tmp_path / "it.py"]) as crashed:
        report = report_of(crashed.core)
    frames = report["annotations"]["python"][str(crashed.tid)]
    named = [(frame["funcName"], frame["line"]) for frame in frames if frame["path"] == str(tmp_path / "it.py")]
    assert named == [("inner", 3), ("outer", 5), ("<module>", 6)]
    assert frames[0]["funcName"] == "string_at"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, real_core: Path) -> FakeLocate:
    monkeypatch.setattr(lines, "is_installed", lambda package: package == DRGN)
    script = tmp_path / "locate"
    monkeypatch.setattr(program, "argv_of", lambda _name, *, packages: [sys.executable, "-IS", str(script)])
    return FakeLocate(script, real_core)


class FakeLocate:
    """A program in place of coresnap's own that says what a test has it say."""

    def __init__(self, script: Path, core: Path) -> None:
        self._script = script
        self.core = core

    def __call__(self, body: str) -> Located:
        self._script.write_text(f"import sys, os, json, time\n{body}\n")
        with self.core.open("rb") as file:
            return locate(file.fileno(), [1, 2])


def test_what_it_says_is_typed_and_bounded(fake: FakeLocate) -> None:
    rows = [
        ["inner", "/a.c", 3, 4],
        ["f", "/a.c", "3", 4],
        ["f", 7, 3, 4],
        [None, "/a.c", 1, 1],
        ["f", "/a.c", -1, 0],
        ["f", "/a.c", 1 << 40, 0],
        ["f", "/a.c", True, 0],
        [],
        "row",
        ["x" * 5000, "/b.c", 9, 0],
    ]
    answer = {"1": rows, "2": [], "3": "no list", "x": rows, "-1": rows, "9" * 30: rows}
    found = fake(f"print(json.dumps({answer!r}))")
    assert found.missing == []
    assert found.places == {1: (Place("inner", "/a.c", 3, 4), Place("", "/b.c", 9, 0))}
    assert fake("print(json.dumps([1]))").places == {}


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("sys.exit('no such thing')", "drgn: exit status 1: no such thing"),
        ("os.kill(os.getpid(), 11)", "drgn: was killed by signal 11"),
        ("print('{')", "drgn: Expecting"),
        ("print('[' * 100000)", "drgn: "),
        ("print(b'x' * (40 << 20))", "drgn: "),
        ("x = b'x' * (2 << 30)", "drgn: exit status 1: MemoryError"),
        ("pass", "drgn: Expecting value"),
    ],
    ids=["fails", "dies", "cut", "deep", "much", "memory", "nothing"],
)
def test_its_end_costs_lines_only(fake: FakeLocate, body: str, line: str) -> None:
    found = fake(body)
    assert (found.places, len(found.missing)) == ({}, 1)
    assert found.missing[0].startswith(line)


def test_it_has_an_end(fake: FakeLocate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_TIMEOUT_USEC", 300_000)
    started = time.monotonic()
    assert fake("time.sleep(100)").missing == ["drgn: took too long and was killed"]
    assert time.monotonic() - started < 10


def test_a_report_goes_on_without_it(fake: FakeLocate) -> None:
    fake("os.kill(os.getpid(), 11)")
    report = report_of(fake.core)
    assert [text for text in report["annotations"]["missing"] if text.startswith("drgn: was killed")]
    assert report["threads"][report["mainThread"]]["stack"][0]["funcName"]


def test_where_nothing_is_installed_nothing_is_started(monkeypatch: pytest.MonkeyPatch, real_core: Path) -> None:
    monkeypatch.setattr(lines, "is_installed", lambda _package: False)
    monkeypatch.setattr(program, "argv_of", lambda *_arguments, **_more: pytest.fail("it was started"))
    with real_core.open("rb") as file:
        found = locate(file.fileno(), [1], python=shutil.which("python3") or "")
        assert vars(found) == vars(Located())


def test_the_places_of_a_report_are_in_its_schema(fake: FakeLocate) -> None:
    report = report_of(fake.core)
    addresses = [frame["address"] for frame in report["threads"][report["mainThread"]]["stack"]]
    answer = json.dumps({address: [["call", "/src/a.c", 7, 1], ["own", "/src/b.c", 8, 0]] for address in addresses})
    fake(f"print('''{answer}''')")
    report = report_of(fake.core)
    VALIDATOR.validate(report)
    call, own = report["threads"][report["mainThread"]]["stack"][:2]
    assert (call["funcName"], call["line"], call["column"], own["line"]) == ("call", 7, 1, 8)
    assert own["funcName"] != "own", "a function's own name is the symbol table's"
    assert [report["sourceCode"][frame["sourceCode"]]["path"] for frame in (call, own)] == ["/src/a.c", "/src/b.c"]
