# SPDX-License-Identifier: Apache-2.0
"""A worker of the capture service: no process waits for what another one's dump needs after that has been let go."""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path

import pytest

from coresnap.capture import handover, worker
from coresnap.capture.board import Board
from coresnap.capture.capture import Capture
from coresnap.capture.finish import Outcome, finish
from coresnap.capture.worker import Worker
from coresnap.ground import flat
from coresnap.ground.log import Log
from coresnap.spool import ledger, stages
from coresnap.spool.stages import Spool
from tests.fixtures import cores

_CRASHES = 4


def _hand_over(connection: socket.socket, core: bytes) -> None:
    """Do as archive does, once a worker has accepted."""
    assert connection.recv(1) == handover.READY
    pipe_fd, write_fd = os.pipe()
    proc_fd = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY)
    os.write(write_fd, core)
    os.close(write_fd)
    message = b"\0".join([handover.HEADER, b"1", b"4194304", b"", b"0", b"0", b"11"])
    socket.send_fds(connection, [message], [pipe_fd, proc_fd])
    os.close(pipe_fd)
    os.close(proc_fd)
    assert connection.recv(1) == handover.TAKEN
    connection.close()


@pytest.mark.parametrize("ends_readers", [False, True])
def test_those_that_wait_are_let_go_before_any_dump_is_finished(tmp_path: Path, ends_readers: bool) -> None:
    root = tmp_path / "spool"
    stages.prepare(str(root), -1, -1)
    with Spool(str(root)) as spool:
        ledger.prepare(spool.root_fd, -1, -1)
    settings = tmp_path / "settings"
    settings.write_text(f"{flat.HEADER}\nroot\t{root}\nquota_percent\t0\n")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(tmp_path / "handover"))
    listener.listen()
    listener.setblocking(False)
    clients = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(_CRASHES)]
    for client in clients:
        client.connect(str(tmp_path / "handover"))
    core = cores.core(cores.prstatus(1))
    threads = [threading.Thread(target=_hand_over, args=(client, core)) for client in clients]
    stopped_fd, stop_fd = os.pipe()
    want_fd = os.open(os.devnull, os.O_WRONLY)
    events: list[str] = []
    free: list[bool] = []
    hold = Capture.hold

    def note_hold(capture: Capture, *arguments: object) -> None:
        hold(capture, *arguments)  # type: ignore[arg-type]  # as it is called
        events.append("held")
        reader = arguments[2]
        if ends_readers and reader._pid > 0:  # type: ignore[attr-defined]  # it may not have been seen to be dead before
            os.kill(reader._pid, signal.SIGKILL)  # type: ignore[attr-defined]  # as if it had not read all in time

    def note_finish(capture: Capture) -> Outcome:
        outcome = finish(capture)
        events.append("kept" if outcome.kept else outcome.reason)
        if len(events) == 2 * _CRASHES:
            with Spool(str(root)) as spool:
                for uuid in spool.uuids(stages.PENDING):
                    taken = spool.take(stages.PENDING, uuid)
                    free.append(taken is not None)
            os.write(stop_fd, b"+")
        return outcome

    for thread in threads:
        thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Capture, "hold", note_hold)
        patch.setattr(worker, "finish", note_finish)
        Worker(0, Board.new(2), {"handover": listener}, flat.Compiled(str(settings)), "", Log.open()).run(
            stopped_fd, want_fd, lambda _pid: False
        )
    for thread in threads:
        thread.join()
    assert events == ["held"] * _CRASHES + ["kept"] * _CRASHES
    assert free == [True] * _CRASHES, "no child of the worker's has a dump's lock"
    listener.close()
    for fd in (stopped_fd, stop_fd, want_fd):
        os.close(fd)
