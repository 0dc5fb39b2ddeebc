# SPDX-License-Identifier: Apache-2.0
"""An ordinary user sees his own dumps and nothing else: the real programs, and the kernel's word for who asks."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from coresnap.ground import wire
from coresnap.spool import asked, ledger, record
from tests.crash import build, crash
from tests.crash.hold import kernel_writes_files
from tests.support import spools
from tests.support.door import ask_as, coresnap_as, door
from tests.support.site import Site
from tests.support.spools import Made

ALICE, BOB = 41_001, 41_002
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")
_MINE, _HIS, _NOBODYS = (f"{digit * 8}-0000-4000-8000-000000000001" for digit in "123")


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that everybody may walk through; pytest's is its user's."""
    path = Path(tempfile.mkdtemp(prefix="coresnap-query-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def made(open_directory: Path) -> Made:
    """Return a spool with a dump of Alice's, one of Bob's, and one of nobody's that Alice's set-uid program left."""
    made = spools.make(open_directory)
    spools.add(made, "committed", _MINE, report=b'{"uuid": "mine"}', reader_uid=ALICE, uid=ALICE, exe="/usr/bin/hers")
    spools.add(made, "failed", _HIS, reader_uid=BOB, uid=BOB, exe="/usr/bin/his")
    spools.add(made, "pending", _NOBODYS, reader_uid=None, uid=ALICE, dumpable=2, exe="/usr/bin/passwd")
    return made


@contextmanager
def _served(made: Made, **environment: str) -> Iterator[tuple[Path, list[str]]]:
    path = made.root.parent / "query"
    argv = [sys.executable, "-m", "coresnap.query", "--settings", str(made.configuration)]
    with door(path, argv, environment) as said:
        yield path, said


def _settings(made: Made) -> list[str]:
    return ["--settings", str(made.configuration)]


def test_a_user_lists_his_own_and_nothing_else(made: Made) -> None:
    with _served(made) as (path, _said):
        hers = coresnap_as(ALICE, path, "list", "--json", *_settings(made))
        his = coresnap_as(BOB, path, "list", "--uuid", *_settings(made))
        nobodys = coresnap_as(41_003, path, "list", *_settings(made))
        why = coresnap_as(ALICE, path, "why", "--json", *_settings(made))
    assert hers.returncode == 0, hers.stderr
    assert [entry["uuid"] for entry in json.loads(hers.stdout)] == [_MINE]
    assert re.findall("[0-9a-f-]{36}", his.stdout) == [_HIS]
    assert (nobodys.returncode, nobodys.stdout) == (0, "")
    assert [entry["uuid"] for entry in json.loads(why.stdout)] == [_MINE]


def test_root_and_who_may_open_the_spool_see_all_of_it_and_ask_nobody(made: Made) -> None:
    found = coresnap_as(0, made.root.parent / "no-such-socket", "list", "--json", *_settings(made))
    assert {entry["uuid"] for entry in json.loads(found.stdout)} == {_MINE, _HIS, _NOBODYS}


def test_without_the_service_one_is_told_to_ask_as_root(made: Made) -> None:
    done = coresnap_as(ALICE, made.root.parent / "no-such-socket", "list", *_settings(made))
    assert (done.returncode, done.stdout) == (69, "")
    assert "Permission denied: ask as root" in done.stderr


def test_a_user_reads_his_own_core_and_snapshot(made: Made, open_directory: Path) -> None:
    hers = open_directory / "hers"
    hers.mkdir()
    os.chown(hers, ALICE, ALICE)
    with _served(made) as (path, _said):
        core = coresnap_as(ALICE, path, "dump", "1111", "-o", str(hers / "core"), *_settings(made))
        info = coresnap_as(ALICE, path, "info", "1111", *_settings(made))
        snapshot = coresnap_as(ALICE, path, "dump", "1111", "--snapshot", *_settings(made))
    assert core.returncode == 0, core.stderr
    assert (hers / "core").read_bytes() == spools.CORE
    assert (hers / "core").stat().st_uid == ALICE
    assert "/usr/bin/hers" in info.stdout
    assert "shown to root alone" in info.stdout
    assert json.loads(snapshot.stdout) == {"uuid": "mine"}


@pytest.mark.parametrize("command", ["dump", "info", "debug"])
def test_what_is_not_his_is_not_told_from_what_is_not_there(made: Made, command: str) -> None:
    """By a beginning and by the whole UUID, of another user's dump, of a set-uid program's, and of none."""
    with _served(made) as (path, _said):
        for name in (_HIS, _NOBODYS, "99999999-0000-4000-8000-000000000001"):
            for named in (name, name[:8]):
                done = coresnap_as(ALICE, path, command, named, *_settings(made))
                assert done.returncode == 69
                assert done.stdout == ""
                assert done.stderr.replace(named, "X").startswith("coresnap: no dump X"), done.stderr


def test_a_command_that_changes_dumps_is_refused_as_before(made: Made) -> None:
    with _served(made) as (path, _said):
        for command in ("rm", "retry"):
            done = coresnap_as(ALICE, path, command, "1111", *_settings(made))
            assert done.returncode == 69
            assert "ask as root" in done.stderr
    assert made.path("committed", _MINE).is_dir()


_OPEN = """
root, uuid, name = {root!r}, {uuid!r}, {name!r}
wire.send(connection, {{"version": 1, "root": root, "what": "open", "uuid": uuid, "name": name}})
answer, fds = wire.receive(connection, 4)
print(json.dumps([answer, len(fds)]))
"""


def test_why_tells_a_user_of_his_own_processes_that_left_no_core(made: Made) -> None:
    with made.open() as spool:
        for uid, reason, detail in (
            (ALICE, "rate", "limit.exe = 5/1h"),
            (ALICE, "internal", "/secret"),
            (BOB, "rate", "his"),
        ):
            ledger.append(spool.root_fd, reason, detail, "", {"pid": uid, "uid": uid, "exe": f"/usr/bin/{uid}"})
    with _served(made) as (path, _said):
        hers = coresnap_as(ALICE, path, "why", str(ALICE), "--json", *_settings(made))
        his = coresnap_as(ALICE, path, "why", str(BOB), *_settings(made))
    told = [(loss["reason"], loss["detail"]) for loss in json.loads(hers.stdout)]
    assert sorted(told) == [("internal", ""), ("rate", "limit.exe = 5/1h")]
    assert his.returncode == 69
    assert his.stdout == ""


@pytest.mark.parametrize(
    ("uuid", "name"),
    [
        (_HIS, "core"),
        (_NOBODYS, "core"),
        (_MINE, "dump.json"),
        (_MINE, "receipt.json"),
        (_MINE, ".."),
        (_MINE, "../../failed/x/core"),
        ("..", "core"),
        (f"../failed/{_HIS}", "core"),
        ("99999999-0000-4000-8000-000000000001", "core"),
    ],
)
def test_the_service_itself_hands_out_nothing_else(made: Made, uuid: str, name: str) -> None:
    with _served(made) as (path, _said):
        done = ask_as(ALICE, path, _OPEN.format(root=str(made.root), uuid=uuid, name=name))
    answer, fds = json.loads(done.stdout)
    assert fds == 0
    assert answer == {"version": 1, "status": "refused", "detail": "no such dump of yours, or it has no such file"}


def test_a_link_in_place_of_a_file_is_not_followed(made: Made, open_directory: Path) -> None:
    """A dump's directory is coresnap's alone; but if one got there, it would not be followed out of it."""
    secret = open_directory / "secret"
    secret.write_text("secret")
    core = made.path("committed", _MINE) / "core"
    core.unlink()
    core.symlink_to(secret)
    with _served(made) as (path, _said):
        done = ask_as(ALICE, path, _OPEN.format(root=str(made.root), uuid=_MINE, name="core"))
    assert json.loads(done.stdout)[1] == 0


def test_what_is_handed_out_can_be_read_and_not_written(made: Made) -> None:
    """Nor opened anew by its path, which its mode is for; the record's file, and the directory, are never handed out."""
    body = _OPEN.format(root=str(made.root), uuid=_MINE, name="core") + (
        "import fcntl\nprint(os.pread(fds[0], 4, 0), fcntl.fcntl(fds[0], fcntl.F_GETFL) & os.O_ACCMODE)\n"
        "for flags in (os.O_RDONLY, os.O_RDWR):\n"
        "    try:\n        os.open(f'/proc/self/fd/{fds[0]}', flags); print('opened')\n"
        "    except PermissionError: print('not opened')\n"
    )
    with _served(made) as (path, _said):
        done = ask_as(ALICE, path, body)
    assert done.stdout.splitlines()[1:] == [r"b'\x7fELF' 0", "not opened", "not opened"], done.stderr


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"x",
        b"[]",
        b"{}",
        b'{"version": 2, "root": "/", "what": "list"}',
        b'{"version": 1, "root": "ROOT", "what": "list", "more": "x"}',
        b'{"version": 1, "root": "ROOT", "what": ["list"]}',
        b'{"version": 1, "root": 5, "what": "list"}',
        b'{"version": 1, "root": "/somewhere/else", "what": "list"}',
        b'{"version": 1, "root": "ROOT", "what": "open", "uuid": {}, "name": "core"}',
        b"[" * 100_000,
    ],
)
def test_a_question_that_is_none_is_refused(made: Made, packet: bytes) -> None:
    sent = packet.replace(b"ROOT", str(made.root).encode())
    body = f"connection.send({sent!r})\nconnection.shutdown(socket.SHUT_WR)\nprint(connection.recv(4096).decode())"
    with _served(made) as (path, said):
        done = ask_as(ALICE, path, body)
    answer = done.stdout.strip()
    assert not answer or json.loads(answer)["status"] == "refused", done.stderr
    assert not any("Traceback" in text for text in said)


def _ask(connection: socket.socket, root: Path) -> str:
    """Ask for the list, and return the status; the answer's file is of no interest."""
    wire.send(connection, asked.request(str(root), "list"))
    received = wire.receive(connection, max_fds=1)
    assert received is not None
    for fd in received[1]:
        os.close(fd)
    return str(received[0]["status"])


def test_one_user_has_four_connections_and_others_are_served_meanwhile(made: Made, open_directory: Path) -> None:
    """The fifth is hung up on, with a word."""
    places = open_directory / "places"
    places.mkdir()
    with _served(made, RUNTIME_DIRECTORY=str(places)) as (path, _said), ExitStack() as open_ones:

        def connect() -> socket.socket:
            connection = open_ones.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            connection.settimeout(60)
            connection.connect(str(path))
            return connection

        assert [_ask(connect(), made.root) for _count in range(4)] == ["ok"] * 4
        refused = wire.receive(connect(), max_fds=0)
        assert refused is not None
        assert refused[0]["status"] == "later"
        assert coresnap_as(BOB, path, "list", *_settings(made)).returncode == 0
    assert (places / "places").stat().st_size == 0


def test_an_owner_is_not_told_what_a_store_has_said(made: Made) -> None:
    uuid = "44444444-0000-4000-8000-000000000001"
    document = spools.document(uuid)
    record.note(document, "process: done", "a snapshot of 9 bytes")
    record.note(document, "send: later", "https://inside.example: refused")
    spools.add(
        made,
        "failed",
        uuid,
        reader_uid=ALICE,
        uid=ALICE,
        history=document["history"],
        failure={"reason": "send", "detail": "https://inside.example says no"},
    )
    with _served(made) as (path, _said):
        done = coresnap_as(ALICE, path, "info", "4444", "--json", *_settings(made))
    assert "inside.example" not in done.stdout
    assert "a snapshot of 9 bytes" in done.stdout


@pytest.mark.skipif(not kernel_writes_files(), reason="the kernel hands its cores to a program here")
def test_the_debugger_opens_a_user_s_own_core(open_directory: Path) -> None:
    """A real crash, of a process of hers, captured by archive: the record says whose it is; gdb reads it as her."""
    site = Site(open_directory / "site")
    (open_directory / "site").chmod(0o755)
    program = open_directory / "crash"
    shutil.copy(build("crash"), program)
    program.chmod(0o755)
    become = f"chown {ALICE} . && exec setpriv --reuid={ALICE} --regid={ALICE} --clear-groups {program} null"
    with crash(["/bin/sh", "-c", become], origin="kernel") as crashed:
        archived = site.archive(crashed.core, *crashed.core_pattern())
    assert archived.returncode == 0, archived.stderr
    ((_stage, path),) = site.dumps()
    assert record.parse((path / "dump.json").read_bytes())["reader_uid"] == ALICE
    made = Made(site.root, site.settings)
    with _served(made) as (door_path, _said):
        arguments = ["debug", path.name[:8], "--", "-batch", "-ex", "bt"]
        hers = coresnap_as(ALICE, door_path, *_settings(made), *arguments)
        his = coresnap_as(BOB, door_path, *_settings(made), *arguments)
    assert "#0" in hers.stdout, hers.stderr
    assert "no dump" in his.stderr
