# SPDX-License-Identifier: Apache-2.0
"""Workers that a supervisor starts, one for each connection of the owner's."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.site import REPOSITORY, Site


@contextmanager
def _supervisor(path: Path, program: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start a worker for each connection, as a socket unit with Accept=yes does; yield those that were started."""
    started: list[subprocess.Popen[bytes]] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen(16)

        def serve() -> None:
            while True:
                try:
                    connection, _address = listener.accept()
                except OSError:
                    return
                with connection:
                    argv = [sys.executable, "-IS", str(REPOSITORY / "coresnap" / f"{program}.py")]
                    started.append(subprocess.Popen(argv, stdin=connection.fileno()))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield started
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for worker in started:
                worker.wait(30)


def test_each_dump_has_a_worker_of_its_own(site: Site, tmp_path: Path, real_core: Path) -> None:
    for _ in range(3):
        site.archive(real_core).check_returncode()
    path = tmp_path / "process"
    with _supervisor(path, "process_worker") as started:
        site.run("process", "--once", "--worker-socket", str(path)).check_returncode()
    assert site.stages() == ["sending"] * 3
    assert [worker.returncode for worker in started] == [0, 0, 0]
    path = tmp_path / "send"
    with _supervisor(path, "send_worker") as started:
        site.run("send", "--once", "--worker-socket", str(path)).check_returncode()
    assert site.stages() == ["committed"] * 3
    assert [worker.returncode for worker in started] == [0], "one worker carries all deliveries"


def test_an_owner_that_ends_ends_its_workers(tmp_path: Path, real_core: Path) -> None:
    """Nothing but the connection tells such a worker, and what it runs, that it is no longer wanted."""
    running = tmp_path / "running"
    os.mkfifo(running)
    site = Site(tmp_path / "site", **{"snapshot.command": f"sh -c 'echo > {running}; exec sleep 1000'"})
    site.archive(real_core).check_returncode()
    path = tmp_path / "process"
    with _supervisor(path, "process_worker") as started:
        argv = [
            sys.executable,
            "-m",
            "coresnap.process",
            "--settings",
            str(site.settings),
            "--worker-socket",
            str(path),
        ]
        owner = subprocess.Popen(argv, cwd=REPOSITORY)
        running.read_text()
        owner.send_signal(signal.SIGTERM)
        assert owner.wait(30) == 0
        assert started[0].wait(30) != 0
    assert site.stages() == ["pending"]


def test_without_workers_no_dump_is_to_blame(site: Site, tmp_path: Path, real_core: Path) -> None:
    site.archive(real_core).check_returncode()
    done = site.run("process", "--once", "--worker-socket", str(tmp_path / "nobody"))
    assert done.returncode == 0
    assert site.stages() == ["pending"]
    ((_stage, path),) = site.dumps()
    assert '"process": 0' in (path / "dump.json").read_text().replace('":0', '": 0')
    assert "no worker" in done.stderr
