# SPDX-License-Identifier: Apache-2.0
"""The sender's worker, as a process of its own with a real socket on its standard input."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coresnap.ground import program, wire
from coresnap.spool.stages import new_uuid
from coresnap.store import Receipt
from tests.support.lying_store import LyingStore
from tests.support.workers import Worker

SNAPSHOT, ASSETS = b'{"snapshot": 1}', b"assets"
PRIVATE = "c0ffee0123456789"  # stands for a token


@pytest.fixture
def worker() -> Iterator[Worker]:
    running = Worker()
    yield running
    running.connection.close()
    if running.process.poll() is None:
        running.process.kill()
    running.process.communicate()


@pytest.fixture
def fds(tmp_path: Path) -> Iterator[list[int]]:
    opened = []
    for name, data in (("snapshot", SNAPSHOT), ("assets.tar", ASSETS)):
        (tmp_path / name).write_bytes(data)
        opened.append(os.open(tmp_path / name, os.O_RDONLY))
    yield opened
    for fd in opened:
        os.close(fd)


def _request(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "job": "send",
        "uuid": new_uuid(),
        "files": ["snapshot", "assets.tar"],
        "project": "project",
        "store": f"file:{tmp_path}/store",
        "store_max_bytes": 1 << 20,
        "store_max_age_usec": 1 << 50,
        "command": [],
        "timeout_usec": 10_000_000,
        "snapshot": {"size_bytes": len(SNAPSHOT), "sha256": hashlib.sha256(SNAPSHOT).hexdigest()},
        "small": 0,
        **changes,
    }


def _status(answer: dict[str, Any] | None) -> str:
    assert answer is not None, "the worker has ended"
    assert answer["version"] == 1
    return str(answer["status"])


def test_many_deliveries_over_one_connection(worker: Worker, fds: list[int], tmp_path: Path) -> None:
    for number in range(20):
        answer = worker.ask(request := _request(tmp_path, project=f"p{number % 2}"), fds)
        assert answer is not None
        receipt = Receipt.from_json(answer["receipt"])
        assert (receipt.uuid, receipt.already_there) == (request["uuid"], False)
        assert (tmp_path / "store" / receipt.object).read_bytes() == SNAPSHOT
        assert (tmp_path / "store" / receipt.project / f"{receipt.uuid}.assets.tar").read_bytes() == ASSETS
        # The worker closes what it is handed: a connection of thousands of dumps does not run out of descriptors.
        assert len(os.listdir(f"/proc/{worker.process.pid}/fd")) <= 6
    again = worker.ask(request, fds)
    assert again is not None
    assert Receipt.from_json(again["receipt"]).already_there
    assert worker.end() == (0, "")


def test_a_snapshot_alone(worker: Worker, fds: list[int], tmp_path: Path) -> None:
    assert _status(worker.ask(_request(tmp_path, files=["snapshot"]), fds[:1])) == "delivered"
    assert len([path for path in (tmp_path / "store").rglob("*") if path.is_file()]) == 1


def test_each_kind_of_failure_has_its_answer(worker: Worker, fds: list[int], tmp_path: Path) -> None:
    """And none of them keeps the next delivery from going through."""
    (tmp_path / "file").write_text("x")
    wrong = {"size_bytes": len(SNAPSHOT), "sha256": "0" * 64}
    for changes, status, said in (
        ({"snapshot": wrong}, "refused", "on record"),
        ({"store_max_bytes": 3}, "refused", "store.max_bytes"),
        ({"store": f"file:{tmp_path}/file"}, "parked", "Not a directory"),
        ({"store": "file:/proc/store"}, "parked", "/proc/store"),
        ({"store": f"https://{PRIVATE}@localhost/"}, "parked", "send.store: "),
        ({"store": f"coroner:{tmp_path}/coroner.cf"}, "parked", "coroner.cf: No such file"),
        ({"command": ["/nonexistent/client"]}, "parked", "/nonexistent/client"),
        ({"command": ["/bin/echo", "%Z"]}, "parked", "%Z"),
    ):
        answer = worker.ask(_request(tmp_path, **changes), fds)
        assert _status(answer) == status, changes
        assert answer is not None
        assert said in answer["detail"]
        assert "\n" not in answer["detail"]
        assert PRIVATE not in answer["detail"]
        assert _status(worker.ask(_request(tmp_path), fds)) == "delivered"


def test_a_store_that_is_mended_is_used_again(worker: Worker, fds: list[int], tmp_path: Path) -> None:
    assert _status(worker.ask(_request(tmp_path), fds)) == "delivered"
    (tmp_path / "store").rename(tmp_path / "away")
    (tmp_path / "store").write_text("in the way")
    assert _status(worker.ask(_request(tmp_path), fds)) == "parked"
    (tmp_path / "store").unlink()
    assert _status(worker.ask(_request(tmp_path), fds)) == "delivered"


def test_without_requests_the_object_store_waits_for_it(fds: list[int], tmp_path: Path) -> None:
    (tmp_path / "coroner.cf").write_text("write = https://store.example\n")
    worker = Worker(packages=False)
    answer = worker.ask(_request(tmp_path, store=f"coroner:{tmp_path}/coroner.cf"), fds)
    assert _status(answer) == "parked"
    assert answer is not None
    assert "install python3-requests" in answer["detail"]
    assert _status(worker.ask(_request(tmp_path), fds)) == "delivered", "the file: store needs no package"
    assert worker.end() == (0, "")


def test_a_worker_whose_coroner_cf_has_changed_ends(tmp_path: Path, fds: list[int]) -> None:
    """Under systemd what it was given of the file stays as it was; its owner has another one started."""
    named, given = tmp_path / "coroner.cf", tmp_path / "credentials"
    given.mkdir()
    with LyingStore() as first, LyingStore() as second:
        for store in (first, second):
            # What stands for systemd's copy is later than the file, as systemd's is.
            for path in (named, given / "coroner.cf"):
                path.write_text(f"write = {store.address}\nproject = {PRIVATE}{PRIVATE}\n")
            named.chmod(0o600)
            os.utime(given / "coroner.cf", ns=(0, named.stat().st_ctime_ns))
            running = Worker(CREDENTIALS_DIRECTORY=str(given))
            asked = _request(tmp_path, store=f"coroner:{named}", uuid=new_uuid())
            report = tmp_path / "report"
            report.write_bytes(b'{"uuid": "%s"}' % asked["uuid"].encode())
            fd = os.open(report, os.O_RDONLY)
            told = {"size_bytes": report.stat().st_size, "sha256": hashlib.sha256(report.read_bytes()).hexdigest()}
            request = {**asked, "files": ["snapshot"], "snapshot": told}
            assert _status(running.ask(request, [fd])) == "delivered"
            assert len(store.objects) == 1
            os.utime(given / "coroner.cf", ns=(0, named.stat().st_ctime_ns - 1))  # it was given before the file changed
            assert running.ask(request, [fd]) == {
                "version": 1,
                "status": "later",
                "detail": "the coroner.cf has changed",
                "retry_after_usec": 1_000_000,
                "scope": "store",
            }
            os.close(fd)
            assert running.end() == (0, "")


def test_another_client(worker: Worker, fds: list[int], tmp_path: Path) -> None:
    """send.command gets its formats expanded after splitting, and the snapshot by a path that opens."""
    script = 'printf "%%s\\n" "$@" > "$0"; cat "$4" > "$0.snapshot"; cat "$5" > "$0.assets"'
    told = tmp_path / "told by the client"
    command = ["/bin/sh", "-c", script, str(told), "put", "%P", "%t", "%S", "%a", "%B $(id) %%"]
    request = _request(tmp_path, command=command, project="a.project", token=PRIVATE)
    answer = worker.ask(request, fds)
    assert answer is not None
    receipt = Receipt.from_json(answer["receipt"])
    assert (receipt.store, receipt.object, receipt.already_there) == ("command:/bin/sh", request["uuid"], False)
    words = told.read_text().splitlines()
    assert words[:3] == ["put", "a.project", "a.project"]
    assert words[5] == f"{request['uuid']} $(id) %"
    assert Path(f"{told}.snapshot").read_bytes() == SNAPSHOT
    assert Path(f"{told}.assets").read_bytes() == ASSETS
    assert PRIVATE not in told.read_text()
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo first; printf 'no\\033[31m room' >&2; exit 75", "exit status 75: no\\x1b[31m room"),
        ("exit 1", "exit status 1: without a word"),
        ("exec sleep 600", "took too long"),
        ("kill -9 $$", "exit status 137"),
    ],
)
def test_a_client_that_fails_is_asked_again(
    worker: Worker, fds: list[int], tmp_path: Path, script: str, said: str
) -> None:
    timeout_usec = 300_000 if "sleep" in script else 30_000_000
    answer = worker.ask(_request(tmp_path, command=["/bin/sh", "-c", script], timeout_usec=timeout_usec), fds)
    assert _status(answer) == "later"
    assert answer is not None
    assert said in answer["detail"]
    assert _status(worker.ask(_request(tmp_path), fds)) == "delivered"


def _snapshot(**changes: Any) -> dict[str, Any]:
    return {"snapshot": {"size_bytes": len(SNAPSHOT), "sha256": hashlib.sha256(SNAPSHOT).hexdigest()} | changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"version": True},
        {"job": "process"},
        {"uuid": "../../../escaped"},
        {"uuid": None},
        {"project": "a/b"},
        {"project": 1},
        {"store": "file:/\0"},
        {"store": "file:/" + "x" * 5000},
        {"store": "file:/\ud800"},
        {"store_max_bytes": -1},
        {"store_max_bytes": 1 << 64},
        {"store_max_age_usec": 1.5},
        {"timeout_usec": 0},
        {"small": -1},
        {"small": True},
        {"command": [1]},
        {"command": ["/bin/echo", "a\0b"]},
        {"command": "/bin/echo"},
        {"token": 7},
        {"more": 1},
        {"snapshot": {}},
        {"snapshot": []},
        _snapshot(size_bytes="15"),
        _snapshot(size_bytes=-1),
        _snapshot(sha256="x" * 64),
        _snapshot(sha256=None),
        _snapshot(more=1),
        {"files": ["snapshot"]},
        {"files": ["snapshot", "snapshot"]},
        {"files": ["core", "assets.tar"]},
        {"files": ["snapshot", "../assets"]},
        {"files": ["snapshot", ["assets.tar"]]},
        {"files": {"snapshot": 0}},
    ],
    ids=str,
)
def test_a_request_is_read_strictly(worker: Worker, fds: list[int], tmp_path: Path, changes: dict[str, Any]) -> None:
    request = {"token": PRIVATE, **_request(tmp_path), **changes}
    assert worker.ask(request, fds) is None
    status, said = worker.end()
    assert status == 65
    assert said.startswith("coresnap send-worker: request: ")
    assert said.count("\n") == 1
    assert PRIVATE not in said
    assert not (tmp_path / "store").exists()


def test_a_key_that_is_missing(tmp_path: Path, fds: list[int]) -> None:
    for name in _request(tmp_path):
        request = _request(tmp_path)
        del request[name]
        running = Worker()
        assert running.ask(request, fds) is None, name
        assert running.end()[0] == 65, name


@pytest.mark.parametrize("packet", [b"no JSON", b"[]", b"\xff", b"[" * 50_000])
def test_a_packet_that_is_no_request(worker: Worker, packet: bytes) -> None:
    worker.connection.send(packet)
    assert wire.receive(worker.connection, max_fds=0) is None
    status, said = worker.end()
    assert (status, said.count("\n")) == (65, 1)


def test_a_standard_input_that_is_no_socket() -> None:
    done = subprocess.run(
        program.argv_of("send_worker", packages=True),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 75
    assert done.stderr.count("\n") == 1
