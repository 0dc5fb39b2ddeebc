# SPDX-License-Identifier: Apache-2.0
"""The crashes that other tests rest on: they are real, they are held, and nothing but a death that dumps core is one."""

from __future__ import annotations

import os
import platform
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import crash as crashes
from tests.bench.cores import nonzero_page_bytes
from tests.crash import REPOSITORY, Crash, bigcore, build, crash, hold, victim

_BY_KERNEL = pytest.mark.skipif(not hold.kernel_writes_files(), reason="the kernel hands its cores to a program here")
_BY_GDB = pytest.mark.skipif(not shutil.which("gdb"), reason="there is no gdb")
both_ways = pytest.mark.parametrize(
    "origin", [pytest.param("kernel", marks=_BY_KERNEL), pytest.param("gdb", marks=_BY_GDB)]
)
_DEADLY = ["segv", "null", "0x123450", "bus", "ill", "abort", *(["fpe"] if platform.machine() == "x86_64" else [])]


def in_gdb(core: Path, *commands: str) -> str:
    """Return what gdb says of a core."""
    words = [word for command in commands for word in ("-ex", command)]
    argv = ["gdb", "-nx", "-q", "-batch", "-ex", "set debuginfod enabled off", *words, "-c", str(core)]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout


def threads_in(told: str) -> list[str]:
    """Return the thread ids of gdb's `info threads`."""
    return re.findall(r"^[* ] \d+ .*LWP (\d+)", told, re.MULTILINE)


def thread_names(crashed: Crash) -> list[str]:
    """Return the names of a held process's threads."""
    return sorted(path.read_text().strip() for path in Path(f"/proc/{crashed.pid}/task").glob("*/comm"))


@both_ways
def test_a_crashed_process_is_held_and_then_gone(origin: str) -> None:
    with crash([build("crash"), "segv", "5"], origin=origin) as crashed:
        proc = Path(f"/proc/{crashed.pid}")
        assert crashed.origin == origin
        assert (crashed.pid, crashed.tid) == (crashed.said["pid"], crashed.said["tid"])
        assert (crashed.uid, crashed.gid, crashed.signal) == (os.getuid(), os.getgid(), 11)
        assert str(build("crash")) in (proc / "maps").read_text()
        assert (proc / "exe").readlink() == Path(crashed.exe) == build("crash")
        assert b"segv" in (proc / "cmdline").read_bytes()
        assert (proc / "auxv").read_bytes()
        assert (proc / "environ").read_bytes()
        assert (proc / "fd/1").readlink().name == "output"
        assert thread_names(crashed) == [f"worker-{number}" for number in range(5)]
        unmapped = int(crashed.said["address"], 16)
        ranges = [line.split()[0].split("-") for line in (proc / "maps").read_text().splitlines()]
        assert not any(int(start, 16) <= unmapped < int(end, 16) for start, end in ranges)
    assert not proc.exists()
    assert not crashed.core.parent.exists()


@both_ways
@_BY_GDB
@pytest.mark.parametrize("mode", _DEADLY)
def test_the_core_says_what_the_program_said(origin: str, mode: str) -> None:
    with crash([build("crash"), mode, "3"], origin=origin) as crashed:
        said = crashed.said
        header = subprocess.run(["readelf", "-hlW", crashed.core], capture_output=True, text=True, check=True)
        siginfo = [
            "print $_siginfo.si_signo",
            "print $_siginfo.si_code",
            "print/x $_siginfo._sifields._sigfault.si_addr",
        ]
        told = in_gdb(crashed.core, "info threads", *siginfo, "print/x $pc")
    assert "CORE (Core file)" in header.stdout
    assert not header.stderr
    assert len(threads_in(told)) == said["threads"]
    assert str(said["tid"]) in threads_in(told)
    number, code, address, instruction = re.findall(r"^\$\d+ = (\S+)", told, re.MULTILINE)
    assert (int(number), int(code)) == (said["signal"], said["code"])
    assert crashed.signal == said["signal"]
    assert said["address"] in (address, None)
    assert said["instruction"] in (instruction, None)


@both_ways
@_BY_GDB
def test_the_core_has_every_thread(origin: str) -> None:
    with crash([build("crash"), "segv", "300"], origin=origin) as crashed:
        listed = os.listdir(f"/proc/{crashed.pid}/task")
        told = in_gdb(crashed.core, "info threads")
    assert len(listed) == 300
    assert sorted(threads_in(told)) == sorted(listed)


@both_ways
def test_a_caught_signal_is_no_death(origin: str) -> None:
    with crash([build("crash"), "caught", "2"], origin=origin) as crashed:
        assert crashed.signal == crashed.said["signal"] == 6


@both_ways
def test_signals_are_passed_on(origin: str) -> None:
    script = """trap 'echo "{\\"passed\\": true}"' USR1; kill -USR1 $$; kill -SEGV $$"""
    with crash(["/bin/sh", "-c", script], origin=origin) as crashed:
        assert crashed.said == {"passed": True}
        assert crashed.signal == 11


@_BY_KERNEL
def test_a_process_may_stop_and_go_on() -> None:
    script = "(until grep -q 'State:.[Tt]' /proc/$$/status; do :; done; kill -CONT $$) & kill -STOP $$; kill -SEGV $$"
    with crash(["/bin/sh", "-c", script], origin="kernel") as crashed:
        assert crashed.signal == 11


@both_ways
def test_the_first_thread_may_be_gone(origin: str) -> None:
    with crash([build("crash"), "headless", "3"], origin=origin) as crashed:
        assert crashed.tid == crashed.said["tid"] != crashed.pid
        assert Path(crashed.exe) == build("crash")
        assert not Path(f"/proc/{crashed.pid}/maps").read_text()
        assert crashed.exe in Path(f"/proc/{crashed.pid}/task/{crashed.tid}/maps").read_text()


@both_ways
def test_a_python_program_crashes_as_well(origin: str) -> None:
    program = [sys.executable, str(REPOSITORY / "tests/crash/programs/crash.py"), "null", "3"]
    with crash(program, origin=origin) as crashed:
        assert (crashed.signal, crashed.tid) == (crashed.said["signal"], crashed.said["tid"])
        assert thread_names(crashed) == ["worker-0", "worker-1", "worker-2"]


@contextmanager
def fifo(path: Path) -> Iterator[int]:
    """Make a FIFO and open it for reading, without waiting for a writer."""
    os.mkfifo(path)
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        yield fd
    finally:
        os.close(fd)


@both_ways
def test_what_does_not_die_is_killed(origin: str, tmp_path: Path) -> None:
    with fifo(tmp_path / "alive") as fd:
        program = ["/bin/sh", "-c", f"exec 3> {tmp_path}/alive; echo here >&3; exec sleep 600"]
        argv = [sys.executable, hold.__file__, origin, "600", str(tmp_path), *program]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as tracer:
            assert select.select([fd], [], [], 120)[0]
            assert os.read(fd, 16) == b"here\n"
            tracer.send_signal(signal.SIGALRM)  # as the timer does
            assert tracer.stdout is not None
            assert "did not die in time" in tracer.stdout.readline()
        assert tracer.returncode == 1
        poll = select.poll()
        poll.register(fd, 0)  # to be told that no writer is left is not asked for
        assert [event for _fd, event in poll.poll(60_000)] == [select.POLLHUP]


@both_ways
def test_there_is_a_time_limit(origin: str) -> None:
    with pytest.raises(RuntimeError, match="did not die in time"):
        crash(["/bin/sleep", "600"], origin=origin, seconds=0.5).__enter__()


@both_ways
@pytest.mark.parametrize(
    "program", [["/bin/true"], ["/bin/sh", "-c", "kill -TERM $$"], ["/bin/sh", "-c", "kill -KILL $$"], ["/nonexistent"]]
)
def test_another_end_is_no_crash(origin: str, program: list[str]) -> None:
    with pytest.raises(RuntimeError, match=program[0]), crash(program, origin=origin, seconds=20):
        pass


@_BY_KERNEL
def test_how_it_ended_is_told() -> None:
    for script, told in {
        "exit 7": "ended with 7",
        "kill -TERM $$": "died of SIGTERM",
        "kill -KILL $$": "SIGKILL",
    }.items():
        with pytest.raises(RuntimeError, match=told), crash(["/bin/sh", "-c", script], origin="kernel"):
            pass


def test_archive_is_given_what_a_kernel_would_give() -> None:
    with crash([build("crash"), "segv", "2"]) as crashed:
        given = crashed.core_pattern()
    unlimited = str(2**64 - 1)
    assert given[:5] == [str(crashed.pid), str(crashed.said["tid"]), str(os.getuid()), str(os.getgid()), "11"]
    assert given[6:] == [unlimited, "1", "", str(build("crash")).replace("/", "!")]
    assert int(given[5]) == crashed.time


def _others_may_read() -> bool:
    return all(path.stat().st_mode & 0o005 == 0o005 for path in (REPOSITORY, *REPOSITORY.parents))


@pytest.mark.skipif(os.getuid() != 0, reason="the other tests are an ordinary user's already")
@pytest.mark.skipif(not _others_may_read(), reason="an ordinary user cannot read this repository")
@both_ways
def test_an_ordinary_user_may_do_it(origin: str) -> None:
    program = [str(build("crash")), "segv", "2"]
    lines = "import sys; from tests.crash import crash\nwith crash(sys.argv[2:], origin=sys.argv[1]) as c: print(c.uid, c.signal)"
    argv = ["/usr/bin/python3", "-c", lines, origin, *program]
    nobody: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []}
    environment = {"PATH": os.environ["PATH"], "TMPDIR": "/tmp", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(argv, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, **nobody)
    assert (done.stdout, done.returncode) == ("65534 11\n", 0), done.stderr


def test_without_a_compiler_there_is_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert victim() == [str(build("crash"))]
    monkeypatch.setattr(crashes, "_PROGRAMS", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert victim()[0] == sys.executable


@_BY_GDB
@pytest.mark.parametrize("fill_percent", [0, 44, 100])
@pytest.mark.parametrize("size_bytes", [8 << 20, (80 << 20) + 3 * 4096])
def test_a_synthetic_core(tmp_path: Path, fill_percent: int, size_bytes: int) -> None:
    path = tmp_path / "core"
    with path.open("wb") as file:
        nonzero_bytes = bigcore.write(file, size_bytes, fill_percent, threads=7)
    assert 0 <= path.stat().st_size - size_bytes < 16384
    assert nonzero_page_bytes(path) == nonzero_bytes
    if size_bytes % (16 << 20) == 0 or fill_percent in (0, 100):
        assert abs(100 * nonzero_bytes / size_bytes - fill_percent) < 1
    assert not subprocess.run(["readelf", "-hlW", path], capture_output=True, text=True, check=True).stderr
    told = in_gdb(path, "info threads", "print $_siginfo.si_signo")
    assert len(threads_in(told)) == 7
    assert "= 11\n" in told


def _demo(*lines: str) -> subprocess.CompletedProcess[str]:
    """Run the demo as a program, after these lines."""
    program = "\n".join(["import functools, sys, tests.demo as demo", *lines, "sys.exit(demo.main())"])
    argv = [sys.executable, "-c", program]
    return subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120)


@both_ways
def test_the_demo_delivers(origin: str) -> None:
    done = _demo(f"demo.crash = functools.partial(demo.crash, origin={origin!r})")
    assert done.returncode == 0, done
    assert re.fullmatch(r"delivered [0-9a-f-]{36} in \d+\.\d s", done.stdout.splitlines()[-1])
    assert "\x1b" not in done.stdout


def test_the_demo_tells_of_a_mismatch() -> None:
    done = _demo(
        "compare = demo.compare", "demo.compare = lambda report, said: compare(report, {**said, 'threads': 6})"
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[1:] == ["demo: thread count: the report has 5, the program said 6"]
    assert not done.stdout.splitlines()[-1].startswith("delivered ")
