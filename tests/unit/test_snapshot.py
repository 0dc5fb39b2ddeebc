# SPDX-License-Identifier: Apache-2.0
"""Reports of real cores, held against what the programs said before they died and against gdb and elfutils."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from coresnap.snapshot.core import open_core
from coresnap.snapshot.report import REPORT_MAX_BYTES, Options, build
from tests.crash import bigcore, crash
from tests.crash import build as compiled
from tests.fixtures import cores

_UUID = "11111111-2222-4333-8444-555555555555"
SCHEMA = json.loads((Path(__file__).parents[2] / "coresnap" / "snapshot" / "report.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def report_of(
    core: Path, asset: dict[str, bytes] | None = None, executable: str = "", max_bytes: int = REPORT_MAX_BYTES
) -> dict[str, Any]:
    """Return the report of a core as it is written, after it has been held against its schema."""
    with core.open("rb") as file:
        data = build(
            open_core(file.fileno()),
            asset or {},
            uuid=_UUID,
            executable=executable,
            more={"coresnap.object": _UUID},
            missing=[],
            options=Options(max_bytes=max_bytes),
        )
    assert len(data) <= max_bytes
    report: dict[str, Any] = json.loads(data)
    VALIDATOR.validate(report)
    return report


@dataclass(frozen=True)
class _Dead:
    core: Path
    pid: int
    tid: int
    uid: int
    exe: str
    said: dict[str, Any]


@pytest.fixture(scope="module", params=["auto", "gdb"])
def dead(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Dead]:
    """A program with five threads that died of SIGSEGV: its core by the kernel where that writes files, and by gdb."""
    core = tmp_path_factory.mktemp("dead") / "core"
    with crash([compiled("crash"), "segv", "5"], origin=request.param) as crashed:
        shutil.copyfile(crashed.core, core)
        found = _Dead(core, crashed.pid, crashed.tid, crashed.uid, crashed.exe, crashed.said)
    yield found
    core.unlink()


def _gdb(dead: _Dead, *commands: str) -> str:
    words = [word for command in ("set auto-load off", *commands) for word in ("-ex", command)]
    argv = ["gdb", "-nx", "-batch", *words, "-c", str(dead.core), dead.exe]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def test_what_happened(dead: _Dead) -> None:
    report, said = report_of(dead.core), dead.said
    attributes = report["attributes"]
    assert attributes["fault.address"] == said["address"]
    assert attributes["error.message"] == f"SIGSEGV: address not mapped (SEGV_MAPERR) at {said['address']}"
    assert report["annotations"]["siginfo"]["code"] == said["code"] == attributes["signal.code"]
    assert report["classifiers"] == ["SIGSEGV"]
    assert (attributes["process.id"], attributes["thread.count"]) == (dead.pid, said["threads"])
    assert attributes["application"] == "crash"
    assert "missing" not in report["annotations"]
    assert (report["mainThread"], report["entryThread"]) == (str(dead.tid), str(dead.pid))
    assert next(iter(report["threads"])) == report["mainThread"], "the thread that crashed is the first"
    assert [thread["fault"] for thread in report["threads"].values()] == [True, False, False, False, False]


def test_registers_are_gdbs(dead: _Dead) -> None:
    """All that gdb shows of a core; fs_base is what glibc's threads are known by."""
    theirs: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for line in _gdb(dead, "thread apply all info registers").splitlines():
        if found := re.search(r"Thread 0x([0-9a-f]+) \(LWP (\d+)\)\):", line):
            current = theirs.setdefault(found[2], {"fs_base": str(int(found[1], 16))})
        elif found := re.match(r"(\w+) +0x([0-9a-f]+) ", line):
            current[found[1]] = str(int(found[2], 16))
    report = report_of(dead.core)
    ours = {tid: thread["stack"][0]["registers"] for tid, thread in report["threads"].items()}
    assert set(ours) == set(theirs)
    for tid, registers in ours.items():
        assert set(registers) - set(theirs[tid]) == {"orig_rax", "gs_base"}
        assert {name: theirs[tid].get(name, value) for name, value in registers.items()} == registers
    faulting = report["threads"][report["mainThread"]]["stack"][0]
    assert hex(int(faulting["address"])) == hex(int(faulting["registers"]["rip"])) == dead.said["instruction"]


def test_modules_are_elfutils(dead: _Dead) -> None:
    theirs = {}
    listed = subprocess.run(["eu-unstrip", "-n", f"--core={dead.core}"], capture_output=True, text=True, check=True)
    for line in listed.stdout.splitlines():
        extent, build_id = line.split()[:2]
        theirs[int(extent.partition("+")[0], 16)] = build_id.partition("@")[0]
    modules = report_of(dead.core)["modules"]
    assert {int(module["start"]): module["build_id"] for module in modules} == theirs
    assert modules == sorted(modules, key=lambda module: int(module["start"]))
    assert "[vdso]" in [module["path"] for module in modules]


def test_frames_are_in_their_modules(dead: _Dead) -> None:
    report = report_of(dead.core)
    ids = {module["path"]: module["build_id"] for module in report["modules"]}
    first, *others = [thread["stack"][0] for thread in report["threads"].values()]
    assert first["library"] == dead.exe
    assert all("libc.so" in frame["library"] for frame in others)
    assert all(frame["debug_identifier"] == ids[frame["library"]] for frame in (first, *others))


def test_a_core_names_only_its_first_thread(dead: _Dead) -> None:
    names = {tid: thread["name"] for tid, thread in report_of(dead.core)["threads"].items() if thread["name"]}
    assert list(names) == [str(dead.pid)]


def _died(tmp_path: Path, *argv: str | Path) -> tuple[dict[str, Any], int]:
    with crash(argv) as crashed:
        core = shutil.copyfile(crashed.core, tmp_path / "core")
        uid = crashed.uid
    return report_of(core), uid


@pytest.mark.parametrize(
    ("mode", "says", "kinds"),
    [
        ("null", r"SIGSEGV: address not mapped \(SEGV_MAPERR\) at 0x10", ["null-dereference"]),
        ("fpe", r"SIGFPE: integer division by zero \(FPE_INTDIV\) at 0x[0-9a-f]+", ["divide-by-zero"]),
        ("ill", r"SIGILL: illegal operand \(ILL_ILLOPN\) at 0x[0-9a-f]+", ["illegal-instruction", "trap"]),
        ("abort", r"SIGABRT: sent by tgkill, as abort and raise do \(SI_TKILL\) by pid \d+", ["abort"]),
    ],
)
def test_other_deaths(tmp_path: Path, mode: str, says: str, kinds: list[str]) -> None:
    report, uid = _died(tmp_path, compiled("crash"), mode, "2")
    assert re.fullmatch(says, report["attributes"]["error.message"])
    assert report["classifiers"] == [says.partition(":")[0], *kinds]
    if mode == "abort":
        siginfo = report["annotations"]["siginfo"]
        assert (siginfo["sender"], siginfo["sender_uid"]) == (report["attributes"]["process.id"], uid)
        assert "fault.address" not in report["attributes"]
    elif mode in ("fpe", "ill"):
        address = int(report["attributes"]["fault.address"], 16)
        assert str(address) == report["threads"][report["mainThread"]]["stack"][0]["address"]


def test_an_interpreter_that_reads_address_0(tmp_path: Path) -> None:
    interpreter = os.path.realpath(sys.executable)
    report, _uid = _died(tmp_path, interpreter, "-c", "import ctypes; ctypes.string_at(0)")
    assert report["attributes"]["fault.address"] == "0x0"
    assert report["attributes"]["application"] == os.path.basename(interpreter)
    assert interpreter in [module["path"] for module in report["modules"]]
    assert any("_ctypes" in module["path"] for module in report["modules"])


def test_no_data_file_passes_for_a_module(tmp_path: Path) -> None:
    """A mapped file that is not ELF is none, be its pages in the core (private) or not (shared)."""
    data = tmp_path / "data"
    data.write_bytes(b"data" * 4096)
    program = (
        f"import ctypes, mmap; f = open({str(data)!r}, 'r+b');"
        "a = mmap.mmap(f.fileno(), 0, flags=mmap.MAP_PRIVATE); a[0] = 1; b = mmap.mmap(f.fileno(), 0); b[5];"
        "ctypes.string_at(0)"
    )
    with crash([os.path.realpath(sys.executable), "-c", program]) as crashed:
        assert crashed.core.read_bytes().count(str(data).encode() + b"\0") >= 2, "the core lists the file"
        report = report_of(crashed.core)
    assert [module["path"] for module in report["modules"] if not module.get("build_id")] == []


def _gcore(core: Path, argv: list[str | Path], said: bytes) -> dict[str, Any]:
    """Return the report of a process that gcore dumped alive, once it has said so much."""
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == said
            gdb = ["gdb", "-nx", "-batch", "-p", str(process.pid), "-ex", f"generate-core-file {core}"]
            subprocess.run(gdb, capture_output=True, check=True)
        finally:
            process.kill()
    return report_of(core)


def test_a_process_that_gcore_dumped_alive(tmp_path: Path) -> None:
    """The core says no signal, cursig 0; the SIGSTOP in siginfo_t is gdb's own. The vDSO is in the core, and a module."""
    program = "import threading, time; threading.Thread(target=time.sleep, args=[60]).start(); print('up', flush=True)"
    core = tmp_path / "core"
    report = _gcore(core, [os.path.realpath(sys.executable), "-c", program], b"up\n")
    assert len(report["threads"]) == 2
    assert not [thread for thread in report["threads"].values() if thread["fault"]]
    assert "SIGSTOP" not in json.dumps(report)
    assert not {"signal", "signal.name", "signal.code"} & report["attributes"].keys()
    assert report["attributes"]["error.message"].startswith("no signal: ")
    (vdso,) = [module for module in report["modules"] if module["path"] == "[vdso]"]
    listed = subprocess.run(["eu-unstrip", "-n", f"--core={core}"], capture_output=True, text=True, check=True).stdout
    assert re.search(rf"^{int(vdso['start']):#x}\+0x\w+ {vdso['build_id']}@", listed, re.MULTILINE)


def test_an_old_gdb_writes_the_thread_that_crashed_anywhere(tmp_path: Path) -> None:
    """Every thread's cursig is that of the signal that killed; of siginfo_t, the one that crashed has it, others gdb's SIGSTOP."""
    notes = cores.prpsinfo(1)
    for tid, found in ((3, cores.siginfo(19, 0x80)), (2, cores.siginfo(11, 1, 0x10)), (1, cores.siginfo(19, 0x80))):
        notes += cores.prstatus(tid, [tid] * 27) + found
    (tmp_path / "core").write_bytes(cores.core(notes))
    report = report_of(tmp_path / "core")
    assert report["attributes"]["error.message"] == "SIGSEGV: address not mapped (SEGV_MAPERR) at 0x10"
    assert [(tid, thread["fault"]) for tid, thread in report["threads"].items()] == [
        ("2", True),
        ("3", False),
        ("1", False),
    ]
    assert report["threads"]["2"]["stack"][0]["registers"]["rip"] == "2"


def test_a_siginfo_of_another_signal_is_not_that_of_the_crash(tmp_path: Path) -> None:
    (tmp_path / "core").write_bytes(cores.core(cores.prstatus(1, signal=6) + cores.siginfo(19, 0x80)))
    attributes = report_of(tmp_path / "core")["attributes"]
    assert (attributes["signal.name"], attributes["error.message"]) == ("SIGABRT", "SIGABRT")
    assert "signal.code" not in attributes


def test_the_made_core_has_the_kernels_notes(tmp_path: Path) -> None:
    """Of the size that readelf and elfutils know; a core of the kernel's tells who died."""
    core = tmp_path / "core"
    with core.open("wb") as file:
        bigcore.write(file, 1 << 20)
    listed = subprocess.run(["eu-readelf", "-n", core], capture_output=True, text=True, check=True).stdout
    sizes = {line.split()[2]: int(line.split()[1]) for line in listed.splitlines() if line.startswith("  CORE")}
    assert (sizes["PRPSINFO"], sizes["PRSTATUS"], sizes["SIGINFO"]) == (136, 336, 128)
    assert "fname: bigcore" in listed
    report = report_of(core)
    assert report["annotations"]["command"] == "bigcore"
    assert (report["attributes"]["process.id"], report["attributes"]["fault.address"]) == (4242, "0x10")
