# SPDX-License-Identifier: Apache-2.0
"""A report that may not be as large as it would be: what it has then, and what it says of the rest."""

from __future__ import annotations

import functools
import json
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures import cores
from tests.fixtures.cores import Load
from tests.support.site import REPOSITORY
from tests.unit.test_snapshot import VALIDATOR, report_of
from tests.unit.test_snapshot_program import run

_SIZES = [4096, 5000, 8192, 16384, 40000, 100000, 1 << 20]
_THREADS, _MODULES = 60, 80
_PART = re.compile(r"(threads|registers of threads|modules|attributes): (\d+) of (\d+), the report would be too large")


def _core(path: Path, text: bytes = b"n") -> Path:
    """A core of many threads and modules; the one that crashed is in the last module."""
    bases = [cores.BASE + 0x10000 * index for index in range(_MODULES)]
    entries = [(base, base + 0x1000, 0, b"/lib/" + text * 40 + b"%d" % base) for base in bases]
    notes = cores.prstatus(1, [2**64 - 1] * 16 + [bases[-1] + 0x10, *[2**64 - 1] * 10]) + cores.prpsinfo(2)
    notes += cores.siginfo(11, 1, 0x10) + cores.files(*entries)
    for tid in range(2, _THREADS + 1):
        notes += cores.prstatus(tid, [tid] * 16 + [bases[tid] + 0x10])
    path.write_bytes(cores.core(notes, [Load(base, cores.image(b"b" * 20)) for base in bases]))
    return path


def _program_report(core: Path, out: Path, max_bytes: int, **options: Any) -> dict[str, Any]:
    done = run(
        *("-o", out, "--core", core),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes)),
        **options,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert out.stat().st_size <= max_bytes
    report: dict[str, Any] = json.loads(out.read_bytes())
    VALIDATOR.validate(report)
    return report


def _said(report: dict[str, Any]) -> dict[str, tuple[int, int]]:
    lines = map(_PART.fullmatch, report["annotations"].get("missing", []))
    return {line[1]: (int(line[2]), int(line[3])) for line in lines if line}


def _has(report: dict[str, Any]) -> dict[str, int]:
    threads = report["threads"].values()
    registers = sum("registers" in thread["stack"][0] for thread in threads)
    return {"threads": len(threads), "registers of threads": registers, "modules": len(report["modules"])}


@pytest.mark.parametrize("max_bytes", _SIZES)
def test_a_report_has_what_there_is_room_for(tmp_path: Path, max_bytes: int) -> None:
    """The limit comes as the stage processor's worker sets it."""
    report = _program_report(_core(tmp_path / "core"), tmp_path / "out", max_bytes)
    has, said = _has(report), _said(report)
    whole = {"threads": _THREADS, "registers of threads": has["threads"], "modules": _MODULES}
    assert {what: (has[what], whole[what]) for what in has if has[what] < whole[what]} == said
    main = report["threads"]["1"]
    assert main["fault"]
    assert len(main["stack"][0]["registers"]) == 27
    assert main["stack"][0]["library"] in [module["path"] for module in report["modules"]]
    assert report["attributes"]["error.message"] == "SIGSEGV: address not mapped (SEGV_MAPERR) at 0x10"
    assert bool(said) == (max_bytes < 100000)


def test_more_room_has_more(tmp_path: Path) -> None:
    core = _core(tmp_path / "core")
    found = [_has(report_of(core, max_bytes=max_bytes)) for max_bytes in _SIZES]
    for what in ("threads", "modules"):
        counts = [has[what] for has in found]
        assert counts == sorted(counts)
        assert counts[0] < counts[-1]


def test_room_is_used(tmp_path: Path) -> None:
    core, out = _core(tmp_path / "core"), tmp_path / "out"
    for max_bytes in (8192, 16384, 20000):
        _program_report(core, out, max_bytes)
        assert out.stat().st_size > max_bytes * 0.8


def test_the_limit_leaves_no_part_of_a_pyc(tmp_path: Path) -> None:
    """Python checks no length when it writes one: below the limit every program of this installation would fail then."""
    shutil.copytree(REPOSITORY / "coresnap", tmp_path / "coresnap", ignore=shutil.ignore_patterns("__pycache__"))
    program, core = tmp_path / "coresnap" / "take_snapshot.py", _core(tmp_path / "core")
    for limit in (4096, resource.RLIM_INFINITY):
        bounds = (limit, resource.RLIM_INFINITY)
        limited = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, bounds)
        argv = [sys.executable, "-IS", str(program), "-o-", "--core", str(core)]
        subprocess.run(argv, preexec_fn=limited, capture_output=True, check=True)


@pytest.mark.parametrize("max_bytes", _SIZES)
def test_attributes_without_end(tmp_path: Path, max_bytes: int) -> None:
    """defaults.command gives them, also over the report's own; half of the room is for others."""
    defaults = "".join(f"key{number}={'v' * 500}\n" for number in range(100)) + f"thread.count={'9' * 4000}\n"
    environment = {"BACKTRACE_DEFAULTS": defaults}
    report = _program_report(_core(tmp_path / "core"), tmp_path / "out", max_bytes, env=environment)
    assert report["attributes"]["process.id"] == 2
    assert len(report["threads"]["1"]["stack"][0]["registers"]) == 27
    given = sum(key.startswith("key") for key in report["attributes"])
    if max_bytes < 100000:
        assert 0 <= given < 100
        assert _said(report)["attributes"][1] == len(report["attributes"]) + 100 - given
        assert len(report["threads"]) > 1
    if max_bytes == 1 << 20:
        assert (given, report["attributes"]["thread.count"]) == (100, "9" * 4000)


def test_names_that_take_six_times_their_size(tmp_path: Path) -> None:
    core = tmp_path / "core"
    name = b"\x01" * 4000
    notes = cores.prstatus(1, [2**64 - 1] * 16 + [cores.BASE + 16, *[2**64 - 1] * 10])
    notes += cores.prpsinfo(1, b"\x01" * 16, b"\x01" * 80) + cores.siginfo(11, 1, 0x10)
    notes += cores.files((cores.BASE, cores.BASE + 4096, 0, name))
    core.write_bytes(cores.core(notes, [Load(cores.BASE, cores.image(b"b" * 20))]))
    report = _program_report(core, tmp_path / "out", 4096)
    (thread,) = report["threads"].values()
    assert "library" not in thread["stack"][0]
    assert _said(report)["modules"] == (0, 1)
    whole = _program_report(core, tmp_path / "out", 1 << 20)
    assert whole["threads"]["1"]["stack"][0]["library"] == "\x01" * 1024
