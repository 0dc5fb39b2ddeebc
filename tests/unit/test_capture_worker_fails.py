# SPDX-License-Identifier: Apache-2.0
"""A worker of the capture service that ends by a mistake: that is told, and what it had taken is put on record."""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest

from coresnap import capture_service
from coresnap.capture.board import CAPTURES, FREE
from coresnap.capture.victim import Victim
from coresnap.capture.worker import Worker
from coresnap.ground import flat
from coresnap.ground.log import Log
from coresnap.spool import ledger, stages
from coresnap.spool.stages import Spool


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "spool"
    stages.prepare(str(root), -1, -1)
    with Spool(str(root)) as spool:
        ledger.prepare(spool.root_fd, -1, -1)
    return root


def test_a_mistake_is_told_and_the_crash_put_on_record(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    victim = Victim()
    victim.pid, victim.comm = 4711, "victim"
    settings = tmp_path / "settings"
    settings.write_text(f"{flat.HEADER}\nroot\t{root}\nquota_percent\t0\n")

    def take_one(worker: Worker, *_arguments: object) -> None:
        worker.board.put(worker.place, CAPTURES)
        worker.board.crash(worker.place).put(victim, stages.new_uuid())
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(Worker, "run", take_one)
    service = capture_service.Service({}, flat.Compiled(str(settings)), 1, Log.open())
    service._fork_workers()
    while service.workers or service.sweeper:
        _wait_for_a_child(service.sweeper or next(iter(service.workers)))
        service._reap()
        service._sweep()
    assert service.board.count(FREE) == 1, "its place is another's now"
    assert "ZeroDivisionError('a mistake')" in capfd.readouterr().err
    with Spool(str(root)) as spool:
        assert [(entry["reason"], entry["comm"]) for entry in ledger.read(spool.root_fd)] == [("interrupted", "victim")]


def _wait_for_a_child(pid: int) -> None:
    """Wait until it has ended, and leave it to be reaped."""
    fd = os.pidfd_open(pid)
    select.select([fd], [], [])
    os.close(fd)
