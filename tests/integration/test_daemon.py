# SPDX-License-Identifier: Apache-2.0
"""coresnapd as a supervisor: what comes is taken, children that die are started again, and it ends with all that it started."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from coresnap.ground import flat
from tests.support.site import REPOSITORY, Site


@contextmanager
def _daemon(site: Site, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-m", "coresnap.daemon", "--settings", str(site.settings), "--compiled", str(site.compiled)]
    with subprocess.Popen([*argv, *arguments], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)


def test_coresnapd_takes_what_comes_and_survives_its_children(site: Site, real_core: Path) -> None:
    with _daemon(site, "-f") as daemon:
        assert site.archive(real_core).returncode == 0
        site.wait_for("committed", 1)
        owners = _children(daemon.pid)
        assert {"process.py", "send.py"} <= set(owners)
        for name in ("process.py", "send.py"):
            os.kill(owners[name], signal.SIGKILL)
        assert site.archive(real_core).returncode == 0
        site.wait_for("committed", 2)
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(30) == 0
        assert daemon.stderr is not None
        said = daemon.stderr.read()
        assert "process ended with status -9; starting it again" in said
    assert set(site.stages()) == {"committed"}


def _children(pid: int) -> dict[str, int]:
    """Return the children of a process by the name of the program that they run."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = stat.read_text().rpartition(")")[2].split()[1]
            words = (stat.parent / "cmdline").read_text().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == str(pid) and len(words) > 2:
            found[Path(words[2]).name] = int(stat.parent.name)
    return found


def test_coresnapd_refuses_wrong_settings_and_goes_on(site: Site, real_core: Path) -> None:
    with _daemon(site) as daemon:
        assert site.archive(real_core).returncode == 0
        site.wait_for("committed", 1)
        good = site.settings.read_text()
        site.settings.write_text(good + "dump.quoda = 3%\n")
        daemon.send_signal(signal.SIGHUP)
        assert daemon.stderr is not None
        line = next(line for line in daemon.stderr if "reload" in line)
        assert "coresnap.conf:" in line
        assert "did you mean dump.quota?" in line
        assert site.archive(real_core).returncode == 0
        site.wait_for("committed", 2)


@pytest.mark.parametrize("mode", ["-f", "--once"])
def test_what_a_daemon_started_ends_with_it(tmp_path: Path, real_core: Path, mode: str) -> None:
    """SIGTERM in the middle of a snapshot: the command goes too, and the dump waits for the next coresnapd."""
    fifo = tmp_path / "started"
    os.mkfifo(fifo)
    command = tmp_path / "command"
    command.write_text(f"#!/bin/sh\necho $$ > {fifo}\nexec sleep 600\n")
    command.chmod(0o755)
    site = Site(tmp_path / "site", **{"snapshot.command": str(command)})
    assert site.archive(real_core).returncode == 0
    with _daemon(site, mode) as daemon:
        pid = int(fifo.read_text())
        pidfd = os.pidfd_open(pid)
        started = time.monotonic()
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(30)
        assert select.select([pidfd], [], [], 10)[0], "snapshot.command outlives coresnapd"
        assert time.monotonic() - started < 20
        os.close(pidfd)
    assert site.stages() == ["pending"]
    site.settings.write_text(site.settings.read_text().replace(f"snapshot.command = {command}\n", ""))
    assert site.once().returncode == 0
    assert site.stages() == ["committed"], "the interrupted try is due at once"


def test_a_spool_has_one_coresnapd(site: Site, real_core: Path) -> None:
    with _daemon(site):
        assert site.archive(real_core).returncode == 0
        site.wait_for("committed", 1)
        second = site.run("daemon", "--compiled", str(site.compiled))
        assert second.returncode == 75
        assert f"a coresnapd is at work on {site.root} already" in second.stderr
        quiet = site.once()
        assert (quiet.returncode, quiet.stderr) == (0, ""), "cron has nothing to say every five minutes"


def test_only_prepare_makes_a_spool(site: Site) -> None:
    """An unmounted dump.root is not filled behind the mount's back."""
    site.root.rename(site.root.with_name("elsewhere"))
    done = site.once()
    assert done.returncode == 69
    (line,) = done.stderr.splitlines()
    assert str(site.root) in line
    assert "coresnapd --prepare" in line
    assert not site.root.exists()


def test_settings_named_by_hand_are_not_the_machines(site: Site) -> None:
    before = os.stat(flat.PATH).st_mtime_ns if Path(flat.PATH).exists() else None
    site.compiled.unlink()
    done = site.run("daemon", "--once")
    assert done.returncode == 0, done.stderr
    assert not site.compiled.exists()
    assert (os.stat(flat.PATH).st_mtime_ns if Path(flat.PATH).exists() else None) == before
