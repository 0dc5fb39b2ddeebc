# SPDX-License-Identifier: Apache-2.0
"""Crashed programs whose files the snapshot does not find under their paths: what was kept at capture time gives their stacks."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from coresnap.capture import handover
from coresnap.capture.capture import OVERHEAD_BYTES
from coresnap.ground.flat import ArchiveSettings
from tests.crash import Crash, build, crash
from tests.crash.hold import kernel_writes_files
from tests.integration.test_capture_service import _service
from tests.support.site import REPOSITORY, Site, assert_whole

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="/proc/PID/map_files is followed by root alone"),
    pytest.mark.skipif(
        not kernel_writes_files(), reason="the tracer cannot follow a program from namespace to namespace"
    ),
]

_PROGRAM = [sys.executable, "-I", str(REPOSITORY / "coresnap" / "take_snapshot.py")]
_WAIT_MSEC = 30_000


@dataclass
class _Case:
    """How a program comes to be out of reach: what is started, and what is done once it has crashed."""

    start: list[str]
    afterwards: Callable[[], object]


def _deleted(program: Path) -> _Case:
    shutil.copy(build("crash"), program)
    return _Case([], program.unlink)


def _replaced(program: Path) -> _Case:
    shutil.copy(build("crash"), program)
    another = program.with_name("another")
    subprocess.run(["gcc", "-O2", "-x", "c", "-o", another, "-"], input=b"int main(void) { return 0; }", check=True)
    return _Case([], lambda: another.replace(program))


def _in_a_mount_namespace(program: Path) -> _Case:
    place = program.parent
    script = f'mount -t tmpfs none {place}; cp {build("crash")} {program}; exec "$@"'
    return _Case(["/usr/bin/unshare", "--mount", "/bin/sh", "-ec", script, "sh"], lambda: None)


def _in_a_chroot(program: Path) -> _Case:
    """With libraries of its own, of the same build as those outside; its own path leads to nothing outside."""
    jail = program.parent / "jail"
    listed = subprocess.run(["ldd", build("crash")], capture_output=True, text=True, check=True).stdout
    for path in re.findall(r"(/\S+) \(0x", listed):
        (jail / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, jail / path[1:])
    inside = jail / str(program)[1:]
    inside.parent.mkdir(parents=True)
    shutil.copy(build("crash"), inside)
    enter = f"import os, sys; os.chroot({str(jail)!r}); os.execv(sys.argv[1], sys.argv[1:])"
    return _Case(["/usr/bin/python3", "-c", enter], lambda: None)


@pytest.fixture(params=[_deleted, _replaced, _in_a_mount_namespace, _in_a_chroot], ids=lambda case: case.__name__[1:])
def crashed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Crash, Path]]:
    """Yield a crash, and the path of the program, where it is not found."""
    program = tmp_path / "place" / "program"
    program.parent.mkdir()
    case = request.param(program)
    with crash([*case.start, program, "segv", "3"]) as found:
        case.afterwards()
        yield found, program


def _stacks(dump: Path, *arguments: str | Path) -> dict[str, list[tuple[int, str | None, bool]]]:
    """Return the threads' frames, as (address, function, guessed)."""
    argv = [*_PROGRAM, "-o", "-", "--core", dump / "core", *arguments]
    report = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout)
    return {
        tid: [(int(one["address"]), one.get("funcName"), one.get("guessed_frame", False)) for one in thread["stack"]]
        for tid, thread in report["threads"].items()
    }


def _record(dump: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((dump / "dump.json").read_text())
    return document


def _assert_whole_stacks(dump: Path, found: Crash, program: Path) -> None:
    """With the asset the stacks are those that there are with the file itself; without either they are not."""
    assert _record(dump)["assets"]["missing"] == []
    assert not program.exists() or program.read_bytes() != build("crash").read_bytes()
    kept, without = _stacks(dump, "--resource", dump / "assets.tar"), _stacks(dump)
    program.unlink(missing_ok=True)
    shutil.copy(build("crash"), program)
    assert kept == _stacks(dump)
    faulting = kept[str(found.said["tid"])]
    names = [function for _address, function, _guessed in faulting]
    assert names[:3] == ["store", "die", "run"]
    assert not any(guessed for _address, _function, guessed in faulting)
    assert "main" in [function for _address, function, _guessed in kept[str(found.pid)]]
    lost = without[str(found.said["tid"])]
    assert [function for _address, function, _guessed in lost[:3]] == [None] * 3
    assert lost != faulting


def test_archive_alone(crashed: tuple[Crash, Path], site: Site) -> None:
    found, program = crashed
    done = site.archive(found.core, *found.core_pattern())
    assert done.returncode == 0, done
    ((_stage, dump),) = site.dumps()
    _assert_whole_stacks(dump, found, program)


def test_the_capture_service(crashed: tuple[Crash, Path], site: Site, tmp_path: Path) -> None:
    """It takes one after the other: what its reader does for one is not in the way of the next."""
    found, program = crashed
    with _service(site, tmp_path) as (_process, path):
        for _again in range(3):
            with _descriptor(f"/proc/{found.pid}") as proc_fd, found.core.open("rb") as core:
                given = [core.fileno(), proc_fd]
                assert handover.offer(path, time.monotonic_ns(), found.core_pattern(), given, _WAIT_MSEC)
        site.wait_for("pending", 3)
    for _stage, dump in site.dumps():
        assert _record(dump)["assets"]["missing"] == []
    _assert_whole_stacks(dump, found, program)


@contextmanager
def _descriptor(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def _kept(dump: Path) -> list[str]:
    with tarfile.open(dump / "assets.tar") as asset:
        return [name for name in asset.getnames() if name.startswith("modules/")]


def test_nothing_is_kept_of_what_is_reached(site: Site) -> None:
    with crash([build("crash"), "segv", "3"]) as found:
        site.archive(found.core, *found.core_pattern()).check_returncode()
    ((_stage, dump),) = site.dumps()
    assert _kept(dump) == []


@pytest.mark.parametrize(("setting", "says"), [("0", False), ("2K", True)])
def test_no_more_is_kept_than_is_set(tmp_path: Path, setting: str, says: bool) -> None:
    site, program = Site(tmp_path / "site", archive__modules_max_bytes=setting), tmp_path / "program"
    shutil.copy(build("crash"), program)
    with crash([program, "segv", "3"]) as found:
        program.unlink()
        site.archive(found.core, *found.core_pattern()).check_returncode()
        maps = Path(f"/proc/{found.pid}/maps").read_text()
    ((_stage, dump),) = site.dumps()
    start = next(line for line in maps.splitlines() if "program" in line).split("-")[0]
    assert _record(dump)["assets"]["missing"] == ([f"modules/{start}"] if says else [])
    with tarfile.open(dump / "assets.tar") as asset:
        assert sum(member.size for member in asset if member.name.startswith("modules/")) <= 2048
    assert len(_stacks(dump, "--resource", dump / "assets.tar")) == 3


def test_the_quota_leaves_them_out(tmp_path: Path, site: Site) -> None:
    """There is room for the core and for the evidence; what is kept of files does not take it."""
    program, large = tmp_path / "program", tmp_path / "large"
    large.write_bytes(os.urandom(2 << 20))
    subprocess.run(["objcopy", "--add-section", f".gnu_debugdata={large}", build("crash"), program], check=True)
    with crash([program, "segv", "3"]) as found:
        program.unlink()
        lines = [line for line in site.compiled.read_text().splitlines() if not line.startswith("ceiling_bytes")]
        ceiling_bytes = found.core.stat().st_size + OVERHEAD_BYTES + (64 << 10)
        site.compiled.write_text("\n".join([*lines, f"ceiling_bytes\t{ceiling_bytes}", ""]))
        site.archive(found.core, *found.core_pattern()).check_returncode()
    ((_stage, dump),) = site.dumps()
    assert _record(dump)["core"]["truncated"] is None
    assert "modules/: dump.quota or dump.ceiling is reached" in _record(dump)["assets"]["missing"]
    with tarfile.open(dump / "assets.tar") as asset:
        assert {"proc/status", "host/meminfo"} <= set(asset.getnames())
        assert sum(member.size for member in asset) < large.stat().st_size
    assert _stacks(dump, "--resource", dump / "assets.tar")[str(found.said["tid"])][0][1] is None


def test_a_file_server_that_does_not_answer(site: Site, tmp_path: Path) -> None:
    """A container with a file system of its own making: it costs the tables, and neither the core nor the process's time."""
    place, told = tmp_path / "place", tmp_path / "told"
    place.mkdir()
    server = [
        "/usr/bin/python3",
        str(REPOSITORY / "tests" / "support" / "stalling.py"),
        str(place),
        str(build("crash")),
    ]
    script = f'{" ".join(server)} program > {told}; exec "$@"'
    with crash(
        ["/usr/bin/unshare", "--mount", "/bin/sh", "-ec", script, "sh", place / "program", "segv", "3"]
    ) as found:
        pid = int(told.read_text())
        os.kill(pid, signal.SIGSTOP)
        try:
            before = time.monotonic()
            site.archive(found.core, *found.core_pattern()).check_returncode()
            assert time.monotonic() - before < 10
        finally:
            os.kill(pid, signal.SIGKILL)
        assert_whole(site, found.core.read_bytes())
        maps = Path(f"/proc/{found.pid}/maps").read_text()
    ((_stage, dump),) = site.dumps()
    start = next(line for line in maps.splitlines() if "program" in line).split("-")[0]
    assert _record(dump)["assets"]["missing"] == [f"modules/{start}"]
    assert _record(dump)["captured"]["held_usec"] < ArchiveSettings().evidence_budget_usec
    assert [name for name in _kept(dump) if not name.startswith(f"modules/{start}/")] == []
