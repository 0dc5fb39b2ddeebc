# SPDX-License-Identifier: Apache-2.0
"""A thousand deliveries to a store that lies: each dump is stored once, no token is told, memory stays flat."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coresnap.ground import settings
from coresnap.ground.log import Log
from coresnap.send import Sending
from coresnap.spool import stages
from coresnap.spool.stages import new_uuid
from tests.support import certificates, hours, spools
from tests.support.deliveries import TOKEN
from tests.support.hours import HOUR, Hours
from tests.support.lying_store import Lie, LyingStore, Plan, lies
from tests.support.site import REPOSITORY
from tests.support.spools import Made
from tests.support.workers import Worker

if TYPE_CHECKING:
    import pytest

_COUNT = 1000
_LYING = 0.3
_SEED = 6
_LARGE_BYTES = 400 << 20


def _coroner(directory: Path, write: str, *lines: str) -> Path:
    path = directory / "coroner.cf"
    text = ["[universe]", "name = universe", f"write = {write}", *lines, "[token]", f"web = {TOKEN}"]
    path.write_text("\n".join(text) + "\n")
    path.chmod(0o600)
    return path


def _report(uuid: str, chance: random.Random) -> bytes:
    return json.dumps({"uuid": uuid, "lang": "c", "stack": ["main"] * chance.randrange(2000)}).encode()


def _seen(plan: Plan, kinds: set[str]) -> Plan:
    def told(number: int) -> Lie | None:
        lie = plan(number)
        if lie:
            kinds.add(
                f"{lie.kind} {str(lie.value)[:12] if lie.kind in ('status', 'error', 'busy', 'redirect') else ''}"
            )
        return lie

    return told


def test_each_dump_is_stored_once_whatever_the_store_says(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The owner and its workers are the real ones; the time that they wait is a clock's of the test's own."""
    kinds: set[str] = set()
    certified = certificates.make(tmp_path)
    with LyingStore(tokens={TOKEN}, plan=_seen(lies(_SEED, _LYING), kinds), certificate=str(certified.server)) as store:
        coroner = _coroner(tmp_path, store.address, f"ssl.ca_file = {certified.ca}")
        made = spools.make(
            tmp_path, f"send.coroner = {coroner}", "send.timeout = 1s", "send.whole_per_day = 0", "format.1 = web"
        )
        expected = _fill(made)
        with made.open() as spool:
            trade = Sending(settings.load(str(made.configuration)), Log([]))
            _owner, told = hours.live(spool, trade, Hours(), 1000 * HOUR)
        committed = {path.name for path in (made.root / stages.COMMITTED).iterdir()}
        assert committed == expected.keys(), f"not delivered: {sorted(expected.keys() - committed)[:3]}"
        assert {uuid: stored.upload[1] for uuid, stored in store.objects.items()} == expected
        attachments = {stored.attachments["assets.tar"][0] for stored in store.objects.values()}
    assert attachments == {10240}
    offered = [stored.offered for stored in store.objects.values()]
    said = "".join([*capfd.readouterr(), *(f"{uuid} {verdict}" for uuid, verdict in told)])
    said += "".join(path.read_text() for path in made.root.rglob("*.json"))
    assert TOKEN not in said
    assert len(kinds) >= 20, "it lied in every way"
    print(
        f"{len(store.requests)} requests, {sum(1 for request in store.requests if request.lie)} lied to, {max(offered)} times"
    )


def _fill(made: Made, count: int = _COUNT) -> dict[str, str]:
    chance, expected = random.Random(_SEED), {}
    for _ in range(count):
        uuid = new_uuid()
        report = _report(uuid, chance)
        expected[uuid] = hashlib.sha256(report).hexdigest()
        spools.add(
            made,
            stages.SENDING,
            uuid,
            report=report,
            snapshot={"size_bytes": len(report), "sha256": expected[uuid]},
        )
    return expected


def test_whoever_is_killed_while_a_report_is_under_way(tmp_path: Path) -> None:
    """The owner or its worker, when a report comes to the store or when it has been taken: it is stored once all the same."""
    running: list[subprocess.Popen[bytes]] = []
    killed: list[str] = []

    def kills(number: int) -> Lie | None:
        what = ("worker", "owner", "worker, taken", "owner, taken", "")[number % 5]
        if not what:
            return None
        killed.append(what)
        owner = running[-1].pid
        workers = Path(f"/proc/{owner}/task/{owner}/children").read_text().split()
        for pid in [owner] if what.startswith("owner") else map(int, workers):
            os.kill(pid, signal.SIGKILL)
        return Lie("drop-answer", 0) if what.endswith("taken") else Lie("drop-request", 1)

    with LyingStore(tokens={TOKEN}, plan=kills) as store:
        coroner = _coroner(tmp_path, store.address)
        lines = ["send.retry = 1ms", "send.jobs = 1", "format.1 = web"]
        made = spools.make(tmp_path, f"send.coroner = {coroner}", *lines)
        expected = _fill(made, 10)
        argv = [sys.executable, "-m", "coresnap.send", "--once", "--settings", str(made.configuration)]
        for _run in range(200):
            with subprocess.Popen(argv, cwd=REPOSITORY, stderr=subprocess.DEVNULL) as process:
                running.append(process)
                process.wait(60)
            committed = {path.name for path in (made.root / stages.COMMITTED).iterdir()}
            if committed == expected.keys():
                break
        assert committed == expected.keys()
        assert {uuid: stored.upload[1] for uuid, stored in store.objects.items()} == expected
    assert len(set(killed)) == 4
    assert any(stored.offered > 1 for stored in store.objects.values())


def _request(store: Path, data: bytes, uuid: str, **changes: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "job": "send",
        "uuid": uuid,
        "files": ["snapshot"],
        "project": "web",
        "store": f"coroner:{store}",
        "store_max_bytes": 1 << 20,
        "store_max_age_usec": 1 << 50,
        "command": [],
        "timeout_usec": 1_000_000,
        "small": 0,
        "snapshot": {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()},
        **changes,
    }


def test_a_workers_memory_stays_flat(tmp_path: Path) -> None:
    """One worker, asked again until each of a thousand is delivered."""
    chance, memory_kb, tries = random.Random(_SEED), {}, 0
    worker = Worker()
    with LyingStore(tokens={TOKEN}, plan=lies(_SEED, _LYING)) as store:
        coroner = _coroner(tmp_path, store.address)
        for number in range(1, _COUNT + 1):
            uuid = new_uuid()
            data = _report(uuid, chance)
            (tmp_path / "snapshot").write_bytes(data)
            fd = os.open(tmp_path / "snapshot", os.O_RDONLY)
            status = ""
            while status != "delivered":
                answer = worker.ask(_request(coroner, data, uuid), [fd])
                assert answer is not None, worker.end()
                status = answer["status"]
                assert status in ("delivered", "later", "parked"), answer
                assert TOKEN not in json.dumps(answer)
                tries += 1
            os.close(fd)
            if number in (100, _COUNT):
                memory_kb[number] = worker.memory_kb()
        assert len(store.objects) == _COUNT
    assert worker.end() == (0, "")
    print(f"{tries} tries; kB: {memory_kb}")
    assert memory_kb[_COUNT] - memory_kb[100] < 2048
    assert memory_kb[_COUNT] < 64 << 10


def test_a_core_goes_along_in_constant_memory(tmp_path: Path) -> None:
    """Its bytes are more than the worker may have ever had."""
    uuid = new_uuid()
    data = _report(uuid, random.Random(0))
    for name in ("snapshot", "core"):
        (tmp_path / name).write_bytes(data)
    os.truncate(tmp_path / "core", _LARGE_BYTES)
    fds = [os.open(tmp_path / name, os.O_RDONLY) for name in ("snapshot", "core")]
    worker = Worker()
    with LyingStore(tokens={TOKEN}) as store:
        coroner = _coroner(tmp_path, store.address)
        request = _request(coroner, data, uuid, files=["snapshot", "core"], timeout_usec=100_000_000)
        answer = worker.ask(request, fds)
        assert answer is not None
        assert answer["status"] == "delivered", answer
        assert store.objects[uuid].attachments["core"][0] == _LARGE_BYTES
    peak_kb = worker.memory_kb("VmHWM")
    print(f"peak {peak_kb} kB")
    for fd in fds:
        os.close(fd)
    assert worker.end() == (0, "")
    assert peak_kb < 64 << 10
