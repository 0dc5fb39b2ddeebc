# SPDX-License-Identifier: Apache-2.0
"""coresnap-snapshot on the dumps that archive makes of real crashes, held against gdb, readelf and the program's own word."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from coresnap import take_snapshot
from coresnap.ground import elf
from tests.crash import build, crash
from tests.support import packaged
from tests.support.site import REPOSITORY, Site
from tests.unit.test_snapshot import VALIDATOR

_PROGRAM = [sys.executable, "-I", str(REPOSITORY / "coresnap" / "take_snapshot.py")]


@dataclass(frozen=True)
class _Dump:
    """A dump of a crash of known mode and number of threads, and the report of it."""

    mode: str
    threads: int
    core: Path
    exe: str
    said: dict[str, Any]
    report: dict[str, Any]


def _report(core: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [*_PROGRAM, "-o", "-", "--core", core, *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)


@pytest.fixture(
    scope="module",
    params=[("segv", 1), ("segv", 50), ("caught", 5), ("null", 3), ("fpe", 2), ("ill", 2)],
    ids=lambda param: f"{param[0]}-{param[1]}",
)
def dump(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> _Dump:
    mode, threads = request.param
    directory = tmp_path_factory.mktemp("dump")
    site = Site(directory / "site")
    with crash([build("crash"), mode, str(threads)]) as crashed:
        site.archive(crashed.core, *crashed.core_pattern()).check_returncode()
    [(_stage, path)] = site.dumps()
    done = _report(path / "core", "--resource", path / "assets.tar", crashed.exe)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    VALIDATOR.validate(report)
    return _Dump(mode, threads, path / "core", crashed.exe, crashed.said, report)


def _gdb(dump: _Dump, *commands: str) -> str:
    words = [word for command in commands for word in ("-ex", command)]
    argv = ["gdb", "-nx", "-batch", "-iex", "set debuginfod enabled off", "-iex", "set auto-load off", *words]
    return subprocess.run([*argv, dump.exe, dump.core], capture_output=True, text=True, check=True).stdout


def test_threads_and_registers_are_gdbs(dump: _Dump) -> None:
    """gdb: `Thread 2 (Thread 0x7f... (LWP 4711)):`, then `rip  0x401136  0x401136 <main+4>` and so on."""
    theirs: dict[str, dict[str, int]] = {}
    for part in _gdb(dump, "thread apply all info registers").split("\nThread ")[1:]:
        thread = re.match(r"\d+ \(.*(?:LWP|process) (\d+)\)", part)
        assert thread
        registers = re.findall(r"^(\w+) +(0x[0-9a-f]+) ", part, re.MULTILINE)
        theirs[thread[1]] = {name: int(value, 16) for name, value in registers}
    ours = dump.report["threads"]
    assert len(ours) == dump.threads
    assert set(ours) == set(theirs)
    for tid, known in theirs.items():
        frame = ours[tid]["stack"][0]
        common = {name: int(value) for name, value in frame["registers"].items() if name in known}
        assert set(common) >= {"rip", "rsp"} or set(common) >= {"pc", "sp"}
        assert common == {name: known[name] for name in common}


def test_the_signal_is_gdbs_and_the_programs(dump: _Dump) -> None:
    pattern = r"^\$\d+ = (-?\w+)"
    commands = ("p $_siginfo.si_signo", "p $_siginfo.si_code", "p/x (long)$_siginfo._sifields._sigfault.si_addr")
    number, code, address = re.findall(pattern, _gdb(dump, *commands), re.MULTILINE)
    siginfo = dump.report["annotations"]["siginfo"]
    assert (siginfo["signo"], siginfo["code"]) == (int(number), int(code)) == (dump.said["signal"], dump.said["code"])
    if dump.said["address"]:
        assert int(siginfo["address"], 16) == int(address, 16) == int(dump.said["address"], 16)
    else:
        assert "address" not in siginfo
        assert siginfo["sender"] == dump.said["pid"]
    faulting = dump.report["threads"][dump.report["mainThread"]]
    assert dump.report["mainThread"] == str(dump.said["tid"])
    assert [thread["fault"] for thread in dump.report["threads"].values()] == [True] + [False] * (dump.threads - 1)
    if dump.said["instruction"]:
        assert int(faulting["stack"][0]["address"]) == int(dump.said["instruction"], 16)


def test_names_come_from_the_asset(dump: _Dump) -> None:
    names = [thread["name"] for thread in dump.report["threads"].values()]
    assert sorted(names) == sorted(f"worker-{number}" for number in range(dump.threads))
    assert names[0] == dump.said["name"]


def test_build_ids_are_readelfs(dump: _Dump) -> None:
    modules = {module["path"]: module for module in dump.report["modules"]}
    assert dump.exe in modules
    on_disk = [path for path in modules if path.startswith("/")]
    assert len(on_disk) >= 3  # the program, libc and the dynamic linker
    for path in on_disk:
        listing = subprocess.run(["readelf", "-nW", path], capture_output=True, text=True, check=True).stdout
        found = re.search(r"Build ID: ([0-9a-f]+)", listing)
        assert modules[path].get("build_id") == (found[1] if found else None)


def test_attributes_are_plausible(dump: _Dump) -> None:
    attributes = dump.report["attributes"]
    uname = os.uname()
    assert attributes["application"] == "crash"
    assert attributes["process.id"] == dump.said["pid"]
    assert attributes["thread.count"] == dump.threads
    assert attributes["hostname"] == uname.nodename
    assert (attributes["uname.machine"], attributes["uname.release"]) == (uname.machine, uname.release)
    assert attributes["system.memory.total"] == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 64 << 10 < attributes["vm.rss.size"] <= attributes["vm.rss.peak"] <= attributes["vm.vma.peak"] < 1 << 40
    assert 3 <= attributes["descriptor.count"] < 65536
    assert 0 <= attributes["process.age"] < 120
    assert abs(attributes["cpu.boottime"] + time.clock_gettime(time.CLOCK_BOOTTIME) - time.time()) < 60
    assert "missing" not in dump.report["annotations"]


def test_a_package_note_is_reported(tmp_path: Path) -> None:
    program = packaged.build(tmp_path)
    with crash([program, "null", "1"]) as crashed:
        report = json.loads(_report(crashed.core).stdout)
    [module] = [module for module in report["modules"] if module["path"] == str(program)]
    assert module["package"] == packaged.PACKAGE
    assert report["attributes"]["package.version"] == "1.2-3"


def test_cut_cores_are_refused_in_a_line_or_say_what_is_missing(
    real_core: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = real_core.read_bytes()
    header = elf.read_core(lambda count, offset: data[offset : offset + count])
    start, end = header.notes_offset, header.notes_end
    points = [0, 3, 15, 17, 40, 63, 64, 100, start - 1, start, start + 11, start + 300]
    points += [*range(start + 356, end, (end - start) // 8), end - 1, end, end + 1, 4096, 8192]
    points += [*range(end + 4096, len(data), (len(data) - end) // 8), len(data) - 1]
    assert len(points) >= 30
    seen = set()
    for size in sorted(set(points)):
        core, out = tmp_path / "cut", tmp_path / "out"
        core.write_bytes(data[:size])
        status = take_snapshot.main(["-o", str(out), "--core", str(core)])
        line = capsys.readouterr().err
        seen.add(status)
        if status == 65:
            assert line.count("\n") == 1
            assert line.startswith(f"coresnap-snapshot: {core}: core: ")
            assert size < start + 356, "one thread was there"
            continue
        assert (status, line) == (0, "")
        report = json.loads(out.read_bytes())
        VALIDATOR.validate(report)
        missing = report["annotations"]["missing"]
        assert f"the core is cut: {size} of {len(data)} bytes" in missing
        assert any(text.startswith("the notes are cut") for text in missing) == (size < end)
        assert report["attributes"]["core.truncated"] is True
    assert seen == {0, 65}


def test_a_report_above_its_limit_says_which(real_core: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    argv = [*_PROGRAM, "-o", str(tmp_path / "out"), "--core", str(real_core)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, preexec_fn=limit)
    line = f"coresnap-snapshot: {tmp_path}/out: File too large: snapshot.max_bytes allows no more\n"
    assert (done.returncode, done.stderr) == (75, line)


@pytest.mark.parametrize("seed", range(6))
def test_damaged_cores_end_in_a_report_or_a_line(real_core: Path, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    core = Path(shutil.copyfile(real_core, tmp_path / "core"))
    with core.open("r+b") as file:
        for _ in range(40):
            file.seek(chance.randrange(16, 8192))
            file.write(chance.choice([b"\xff" * 8, b"\0" * 8, chance.randbytes(4)]))
    done = _report(core)
    if done.returncode == 0:
        VALIDATOR.validate(json.loads(done.stdout))
        assert done.stderr == ""
    else:
        assert done.returncode == 65
        assert re.fullmatch(rf"coresnap-snapshot: {re.escape(str(core))}: [^\n]+\n", done.stderr)
