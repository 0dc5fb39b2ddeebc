# SPDX-License-Identifier: Apache-2.0
"""The sender, or its worker, is killed while a store is answering: each report is at the store once, and no dump is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from coresnap.spool import record
from tests.support import spools
from tests.support.deliveries import TOKEN
from tests.support.lying_store import Lie, LyingStore
from tests.support.site import REPOSITORY

_DUMPS, _EVERY, _ROUNDS = 120, 17, 40


@pytest.mark.parametrize("victim", ["owner", "worker"])
def test_each_report_is_there_once(tmp_path: Path, victim: str) -> None:
    running: list[int] = []
    killed: list[int] = []

    def plan(number: int) -> Lie | None:
        """Kill at every so many requests, just when one has begun to come: its answer is lost."""
        if number % _EVERY == _EVERY - 1 and running:
            pid = running[-1]
            if victim == "worker":
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                pid = int(children[0]) if children else 0
            if pid:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
        return None

    with LyingStore(plan=plan) as store:
        coroner = tmp_path / "coroner.cf"
        coroner.write_text(f"[universe]\nname = u\nwrite = {store.address}\n[token]\nblackhole = {TOKEN}\n")
        coroner.chmod(0o600)
        made = spools.make(tmp_path, f"send.coroner = {coroner}")
        uuids = set(spools.fill(made, _DUMPS))
        argv = [sys.executable, "-m", "coresnap.send", "--settings", str(made.configuration), "--once"]
        for _ in range(_ROUNDS):
            with subprocess.Popen(argv, cwd=REPOSITORY, stderr=subprocess.DEVNULL) as process:
                running.append(process.pid)
                process.wait(120)
                running.clear()
            waiting = list((made.root / "sending").iterdir())
            if not waiting:
                break
            for path in waiting:
                _make_due(path)
            (made.root / "stores.json").unlink(missing_ok=True)
    assert {path.name for path in (made.root / "committed").iterdir()} == uuids
    assert store.objects.keys() == uuids
    assert len(killed) >= 5
    for uuid, stored in store.objects.items():
        document = made.record("committed", uuid)
        receipt = json.loads((made.path("committed", uuid) / "receipt.json").read_bytes())
        assert stored.upload == (receipt["size_bytes"], receipt["sha256"])
        assert stored.upload[1] == document["snapshot"]["sha256"]


def _make_due(path: Path) -> None:
    document = record.parse((path / record.NAME).read_bytes())
    document["next_try_usec"] = None
    (path / record.NAME).write_text(json.dumps(document))
