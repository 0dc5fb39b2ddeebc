# SPDX-License-Identifier: Apache-2.0
"""`coresnap put`, the real program, to real stores."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from coresnap.spool.stages import new_uuid
from coresnap.store import Receipt
from tests.support.deliveries import TOKEN
from tests.support.lying_store import Lie, LyingStore

REPOSITORY = Path(__file__).resolve().parents[2]
PUT = [sys.executable, "-m", "coresnap.cli", "put"]


@pytest.fixture
def store() -> Iterator[LyingStore]:
    with LyingStore(tokens={TOKEN}) as running:
        yield running


class Desk:
    """Where somebody works: a home of their own, with a coroner.cf and a report."""

    def __init__(self, directory: Path, store: LyingStore) -> None:
        self.directory = directory
        self.coroner = directory / ".coroner.cf"
        self.coroner.write_text(
            f"[universe]\nname = u\nwrite = {store.address}\n[token]\nweb = {TOKEN}\nshop = {TOKEN}\n"
        )
        self.coroner.chmod(0o600)
        self.uuid = new_uuid()
        self.report = directory / "snapshot"
        self.report.write_text(json.dumps({"uuid": self.uuid, "lang": "c"}))

    def put(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run the command."""
        env = {"HOME": str(self.directory), "PATH": os.environ["PATH"]}
        argv = [*PUT, *map(str, arguments)]
        return subprocess.run(argv, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def desk(tmp_path: Path, store: LyingStore) -> Desk:
    return Desk(tmp_path, store)


def test_as_coroner_documents_it(desk: Desk, store: LyingStore) -> None:
    """coroner -c FILE put [-u] project token file"""  # the program's name
    done = desk.put("-c", desk.coroner, "-u", "shop", "web", desk.report)
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        done.stdout == f"{desk.uuid}: delivered to {store.address}, project shop, as {store.objects[desk.uuid].rxid}\n"
    )
    assert not desk.report.exists()
    assert store.objects[desk.uuid].token == TOKEN


def test_a_persons_coroner_cf_is_found_and_the_token_may_be_left_out(desk: Desk, store: LyingStore) -> None:
    done = desk.put("--json", "web", desk.report)
    receipt = Receipt.from_json(json.loads(done.stdout))
    assert (receipt.uuid, receipt.project, receipt.already_there) == (desk.uuid, "web", False)
    assert desk.report.exists()
    again = desk.put("web", desk.report)
    assert again.returncode == 0
    assert "(it was there)" in again.stdout
    assert len(store.objects) == 1


def test_with_all_that_goes_along(desk: Desk, store: LyingStore) -> None:
    (desk.directory / "core").write_bytes(os.urandom(1 << 20))
    done = desk.put("-v", "--kv", "release=7 a", "--attach", f"core.4711={desk.directory}/core", "web", desk.report)
    assert done.returncode == 0
    stored = store.objects[desk.uuid]
    assert stored.attributes == {"release": "7 a"}
    digest = hashlib.sha256((desk.directory / "core").read_bytes()).hexdigest()
    assert stored.attachments == {"core.4711": (1 << 20, digest)}
    assert f"{store.address}, project web, format json" in done.stderr
    assert "1.00mB sent" in done.stderr


def test_another_format_is_the_same_report_each_time(desk: Desk, store: LyingStore) -> None:
    minidump = desk.directory / "dump"
    minidump.write_bytes(b"MDMP" + os.urandom(2000))
    first, second = (json.loads(desk.put("--json", "web", minidump).stdout) for _ in range(2))
    assert (first["uuid"], first["already_there"], second["already_there"]) == (second["uuid"], False, True)
    assert store.objects[first["uuid"]].format == "minidump"
    assert desk.put("--format", "btt", "web", desk.report).returncode == 0
    assert "btt" in {stored.format for stored in store.objects.values()}


def test_a_token_itself_and_a_store_by_its_address(desk: Desk, store: LyingStore) -> None:
    desk.coroner.unlink()
    done = desk.put("--store", store.address, "any", TOKEN, desk.report)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    other = desk.directory / "other"
    other.write_text(json.dumps({"uuid": new_uuid()}))
    assert desk.put("--store", f"{store.address}/universe/{TOKEN}/json", "any", other).returncode == 0
    assert len(store.objects) == 2


def test_the_file_store(desk: Desk) -> None:
    done = desk.put("--store", f"file:{desk.directory}/reports", "web", desk.report)
    assert done.returncode == 0, done.stderr
    assert (desk.directory / "reports" / "web" / f"{desk.uuid}.json").read_bytes() == desk.report.read_bytes()


@pytest.mark.parametrize(
    ("lie", "status"),
    [
        (Lie("status", 400), 69),
        (Lie("status", 413), 69),
        (Lie("status", 401), 78),
        (Lie("status", 404), 78),
        (Lie("status", 500), 75),
        (Lie("busy", "5"), 75),
        (Lie("drop-answer", 3), 75),
        (Lie("page"), 75),
        (Lie("redirect", "https://elsewhere.invalid/"), 78),
    ],
    ids=str,
)
def test_exit_statuses(desk: Desk, store: LyingStore, lie: Lie, status: int) -> None:
    """And -u removes nothing that was not acknowledged."""
    store.plan = lambda _number: lie
    done = desk.put("-u", "web", desk.report)
    assert done.returncode == status
    assert done.stderr.startswith(f"coresnap: {store.address}")
    assert done.stderr.count("\n") == 1
    assert (done.stdout, desk.report.exists()) == ("", True)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("web", "nothing", "{report}"), 78, "no token of that name"),
        (("unknown", "{report}"), 78, "no token of project unknown"),
        (("web", "/nonexistent"), 65, "No such file"),
        (("web", "/"), 65, "not a regular file"),
        (("web", "/dev/zero"), 65, "not a regular file"),
        (("-c", "/nonexistent", "web", "{report}"), 78, "No such file"),
        (("--store", "ftp://x", "web", "{report}"), 78, "--store: https://HOST"),
        (("--store", "file:here", "web", "{report}"), 78, "--store: file: and the absolute path"),
        (("--attach", "../x=/etc/passwd", "web", "{report}"), 65, "NAME=FILE expected"),
        (("--attach", "x=/nonexistent", "web", "{report}"), 65, "No such file"),
        (("--kv", "x", "web", "{report}"), 65, "KEY=VALUE expected"),
        (("--format", "../x", "web", "{report}"), 65, "--format"),
        (("a/b", "web", "{report}"), 65, "PROJECT"),
        (("--timeout", "0", "web", "{report}"), 2, "--timeout"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_before_anything_is_sent(
    desk: Desk, store: LyingStore, arguments: tuple[str, ...], status: int, said: str
) -> None:
    done = desk.put(*(word.format(report=desk.report) for word in arguments))
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert store.requests == []


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b'{"uuid": 7}',
        b'{"uuid": "x"}',
        b"{" * 100_000,
        b'{"uuid": "\xff"}',
        b'{"a": {"uuid": "00000000000000000000000000000000"}}',
        b'{"uuid": ',
        b'{"uuid": "00000000',
    ],
)
def test_what_is_no_report(desk: Desk, store: LyingStore, data: bytes) -> None:
    desk.report.write_bytes(data)
    done = desk.put("web", desk.report)
    assert done.returncode == 65
    assert str(desk.report) in done.stderr
    assert store.requests == []


def test_a_report_of_any_size(desk: Desk, store: LyingStore) -> None:
    """Its UUID stands at its end, after what looks like one; it is not read into memory."""
    with desk.report.open("w") as file:
        file.write('{"a": {"uuid": "no"}, "b": ["uuid", "no"], "uui\\"d": "no", "c": "uuid", "more": "')
        for text in ("0123456789abcdef", '\\\\\\"{[}]:,') * 10:
            file.write(text * (1 << 16))
        file.write(f'", "uuid" : "{desk.uuid}"}}')
    argv = [*PUT, "-c", str(desk.coroner), "web", str(desk.report)]
    limited = ["sh", "-c", 'ulimit -v 400000; exec "$@"', "sh", *argv]  # a backtracking search takes 2.5 GB for it
    subprocess.run(limited, cwd=REPOSITORY, stdout=subprocess.DEVNULL, check=True, timeout=120)
    assert desk.uuid in store.objects


def test_a_file_that_is_another_by_then_stays(desk: Desk, store: LyingStore) -> None:
    """It changes while the store answers: the new one has been delivered nowhere."""

    def changes(_number: int) -> None:
        desk.report.unlink()
        desk.report.write_text("{}")

    store.plan = changes
    done = desk.put("-u", "web", desk.report)
    assert done.returncode == 75
    assert "it stays" in done.stderr
    assert desk.report.read_text() == "{}"
    assert desk.uuid in store.objects


def test_a_coroner_cf_for_everybody_is_warned_about(desk: Desk) -> None:
    desk.coroner.chmod(0o644)
    done = desk.put("web", desk.report)
    assert done.returncode == 0
    assert "every user of this machine can read it: chmod 600" in done.stderr


def test_progress_on_a_terminal(desk: Desk, store: LyingStore) -> None:
    """Shown once it has taken a second, with how much there is, and wiped away."""
    (desk.directory / "core").write_bytes(os.urandom(5 << 20))
    store.plan = lambda _number: Lie("slow-answer", 0.02)
    ours, theirs = pty.openpty()
    argv = [*PUT, "-c", str(desk.coroner), "--attach", f"core={desk.directory}/core", "web", str(desk.report)]
    process = subprocess.Popen(argv, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 4096)
        except OSError:
            break
    os.close(ours)
    assert process.wait(60) == 0
    assert b"of 5.00mB" in shown
    assert shown.endswith(b"\r\x1b[K")


def test_nobody_is_there(desk: Desk) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"https://127.0.0.1:{listener.getsockname()[1]}"
    done = desk.put("--store", address, "web", desk.report)
    assert (done.returncode, done.stderr) == (75, f"coresnap: {address}: Connection refused\n")
