# SPDX-License-Identifier: Apache-2.0
"""The command line as people use it: the real program, on real spools, with what crashed processes dare to write."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from coresnap.ground import inotify
from coresnap.spool import ledger, outlook, quota, stages
from tests.crash import build
from tests.support import spools

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.spools import Made

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = (sys.executable, "-m", "coresnap.cli")
A = "aaaa1111-0000-4000-8000-000000000001"
B = "aaaa2222-0000-4000-8000-000000000002"
C = "cccc3333-0000-4000-8000-000000000003"
HOSTILE = "x\x1b]0;owned\x07\n\u202egnp.exe\x9b31m"
NOBODY = 65534


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return spools.make(tmp_path)


def coresnap(made: Made, *arguments: str | Path, user: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    argv = [*PROGRAM, *map(str, arguments), "--settings", str(made.configuration)]
    if "--" in arguments:
        argv = [*PROGRAM, "--settings", str(made.configuration), *map(str, arguments)]
    if user:
        argv = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *argv]
    variables = {**os.environ, "TZ": "UTC", **environment}
    return subprocess.run(argv, cwd=REPOSITORY, env=variables, capture_output=True, text=True, check=False)


def on_a_terminal(made: Made, *arguments: str | Path, answer: str = "", **environment: str) -> tuple[int, str]:
    """Run coresnap with a terminal on all three of its descriptors; return its exit status and all that it showed."""
    ours, theirs = pty.openpty()
    variables = {**os.environ, "TERM": "xterm", **environment}
    argv = [*PROGRAM, "--settings", str(made.configuration), *map(str, arguments)]
    with subprocess.Popen(argv, cwd=REPOSITORY, env=variables, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        os.write(ours, answer.encode())
        shown = b""
        try:
            while block := os.read(ours, 4096):
                shown += block
        except OSError:
            pass  # a terminal without a writer ends so
    os.close(ours)
    return process.returncode, shown.decode()


def where(made: Made, uuid: str) -> list[str]:
    return [stage for stage in stages.STAGES if made.path(stage, uuid).exists()]


# list


def test_list_prints_the_documented_columns_and_footer(made: Made) -> None:
    core = {
        "size_bytes": 1 << 23,
        "disk_bytes": 3271557 - 10240,
        "compressed_bytes": None,
        "class": 64,
        "truncated": None,
    }
    spools.add(made, "pending", A, time_usec=1492210180_000000, core=core)
    spools.add(made, "sending", B, time_usec=1492210181_000000, report=b"{}", comm="sh", exe=None)
    listed = coresnap(made, "list")
    assert listed.stdout.splitlines() == [
        "pending/aaaa1111-000... c-a vim.basic Fri Apr 14 22:49:40 2017  3.12mB",
        "sending/aaaa2222-000... csa sh        Fri Apr 14 22:49:41 2017 14.00kB",
        "[pending]/1O/3.12mB [sending]/1O/14.00kB",
    ]
    assert (listed.returncode, listed.stderr) == (0, "")


def test_list_groups_the_dumps_of_one_bug(made: Made) -> None:
    """Bugs with the most dumps come first; dumps without a fingerprint are together by executable and signal."""
    usec = 1492210180_000000
    mark, other = "ab" * 32, "cd" * 32
    spools.add(made, "committed", A, time_usec=usec, fingerprint=other, signal=6)
    spools.add(made, "pending", B, time_usec=usec + 1000000, fingerprint=mark, exe="/opt/vim.tiny")
    spools.add(made, "sending", C, time_usec=usec + 2000000, fingerprint=mark)
    for signal in (11, 11, 11, 8):
        spools.add(made, "pending", time_usec=usec - 1000000, signal=signal, exe=HOSTILE)
    listed = coresnap(made, "list", "--group")
    lines = [line.split() for line in listed.stdout.splitlines()]
    assert [(line[0], *line[2:3], line[-2]) for line in lines] == [
        ("3", "SIGSEGV", "-"),
        ("2", "SIGSEGV", "abababababab"),
        ("1", "SIGABRT", "cdcdcdcdcdcd"),
        ("1", "SIGFPE", "-"),
    ]
    assert lines[1][1] == "vim.basic", "the latest tells what it is called"
    assert lines[1][-1] == f"sending/{C[:12]}..."
    assert "\x1b" not in listed.stdout
    first, second, *_more = json.loads(coresnap(made, "list", "--group", "--json").stdout)
    assert (first["fingerprint"], first["count"], first["executables"]) == (None, 3, [HOSTILE])
    assert second == {
        **{"fingerprint": mark, "count": 2, "first_usec": usec + 1000000, "last_usec": usec + 2000000},
        **{"executables": ["vim.basic", "vim.tiny"], "signals": [11], "uuids": [B, C]},
    }
    assert coresnap(made, "list", "--group", "--signal", "4").stderr == "coresnap: no such dump\n"
    assert json.loads(coresnap(made, "list", "--group", "--json", "--signal", "4").stdout) == []


def test_list_is_sorted_by_time_across_stages_and_filtered(made: Made) -> None:
    day = 86400 * 10**6
    spools.add(made, "committed", A, time_usec=3 * day, pid=1, signal=6)
    spools.add(made, "pending", B, time_usec=1 * day, pid=2, exe="/opt/shop/server (deleted)", comm="server")
    spools.add(made, "failed", C, time_usec=2 * day, uid=0)

    def uuids(*arguments: str) -> list[str]:
        return [dump["uuid"] for dump in json.loads(coresnap(made, "list", "--json", *arguments).stdout)]

    assert uuids() == [B, C, A]
    assert uuids("failed", "pending") == [B, C]
    assert uuids("-1") == [A]
    assert uuids("-n", "2", "pending", "failed", "committed") == [C, A]
    assert uuids("-n", "0") == []
    assert uuids("--exe", "server") == uuids("--exe", "/opt/*") == uuids("--exe", "/opt/shop/server") == [B]
    assert uuids("--exe", "erver") == []
    assert uuids("--pid", "1") == uuids("--signal", "ABRT") == uuids("--signal", "6") == [A]
    assert uuids("--uid", "root") == uuids("--uid", "0") == [C]
    assert uuids("--since", "1970-01-03") == [C, A]
    assert uuids("--until", "1970-01-03") == [B]
    assert uuids("--since", "today") == uuids("--since", "2h ago") == []


def test_list_json_has_the_whole_record(made: Made) -> None:
    spools.add(made, "failed", A, failure={"reason": "process", "detail": "no"})
    (dump,) = json.loads(coresnap(made, "list", "--json").stdout)
    assert dump == {
        "stage": "failed",
        "uuid": A,
        "files": ["assets.tar", "core", "dump.json"],
        "record": made.record("failed", A),
        "problem": None,
    }


def test_nothing_there_is_no_output_and_no_error(made: Made) -> None:
    listed = coresnap(made, "list")
    assert (listed.returncode, listed.stdout, listed.stderr) == (0, "", "coresnap: no dumps\n")
    assert coresnap(made, "list", "--json").stdout == "[]\n"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b'{"version": 7, "what": "ever"}', "of version 7"),
        (b"{", "dump.json: Expecting"),
        (b'{"version": 1}', "dump.json: document: an object of"),
        (b"[" * 100000, "dump.json"),
        (b" " * 300000, "more than"),
        (json.dumps(spools.document(HOSTILE)).encode(), "owned"),
    ],
    ids=["newer", "cut", "bare", "deep", "large", "another's"],
)
def test_a_dump_with_an_unreadable_record_is_listed_with_a_note(made: Made, data: bytes, problem: str) -> None:
    spools.add(made, "pending", A)
    (made.path("pending", A) / "dump.json").write_bytes(data)
    spools.add(made, "pending", B)
    listed = coresnap(made, "list")
    assert listed.returncode == 0
    assert re.search(r"^pending/aaaa1111-000\.\.\. c-a \? .* \?$", listed.stdout, re.MULTILINE)
    assert "[pending]/2O/" in listed.stdout
    assert listed.stderr.count("\n") == 1
    assert listed.stderr.startswith(f"coresnap: pending/{A}: dump.json")
    assert problem in listed.stderr
    by_uuid = {dump["uuid"]: dump for dump in json.loads(coresnap(made, "list", "--json").stdout)}
    assert by_uuid[A]["record"] is None
    assert problem in by_uuid[A]["problem"]
    refused = coresnap(made, "info", A[:8])
    assert (refused.returncode, refused.stdout) == (65, "")
    assert refused.stderr.count("\n") == 1
    assert f"pending/{A}" in refused.stderr
    assert "\x1b" not in listed.stderr + refused.stderr


def test_a_record_that_is_a_fifo_or_a_link_blocks_nothing(made: Made, tmp_path: Path) -> None:
    for uuid in (A, B):
        spools.add(made, "pending", uuid)
        (made.path("pending", uuid) / "dump.json").unlink()
    os.mkfifo(made.path("pending", A) / "dump.json")
    (tmp_path / "secret").write_text("{}")
    (made.path("pending", B) / "dump.json").symlink_to(tmp_path / "secret")
    listed = coresnap(made, "list")
    assert listed.returncode == 0
    assert listed.stderr.count("\n") == 2
    assert "[pending]/2O/" in listed.stdout


def test_foreign_files_are_no_dumps(made: Made) -> None:
    (made.root / "pending" / "README\x1b[31m").write_text("hello")
    (made.root / "failed" / A).write_text("a file with a UUID for a name")
    assert coresnap(made, "list").stderr == "coresnap: no dumps\n"
    status = coresnap(made, "status")
    assert "pending/README\\x1b[31m" in status.stdout
    assert status.returncode == 0


def test_list_while_dumps_move_shows_each_once(made: Made) -> None:
    for _number in range(60):
        spools.add(made, "pending")
    mover = subprocess.Popen(
        [sys.executable, "-c", _MOVER, str(made.root)], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with mover:
        assert mover.stdin is not None
        assert mover.stdout is not None
        mover.stdout.readline()
        for _turn in range(5):
            listed = coresnap(made, "list", "--json")
            assert (listed.returncode, listed.stderr) == (0, "")
            uuids = [dump["uuid"] for dump in json.loads(listed.stdout)]
            assert len(uuids) == len(set(uuids)) == 60
        mover.stdin.close()


_MOVER = """
import os, select, sys
from coresnap.spool.stages import Spool
way = ["pending", "sending", "committed"]
with Spool(sys.argv[1]) as spool:
    print("moving", flush=True)
    for stage, following in zip(way, way[1:]):
        for uuid in spool.uuids(stage):
            dump = spool.take(stage, uuid)
            spool.move(dump, following)
            dump.close()
            if select.select([0], [], [], 0.004)[0]:
                sys.exit()
"""


# what crashed processes write


@pytest.fixture
def hostile(made: Made) -> Made:
    texts: dict[str, Any] = {"comm": HOSTILE, "exe": f"/bin/{HOSTILE}", "cmdline": HOSTILE, "hostname": HOSTILE}
    report = json.dumps({"attributes": {"error.message": HOSTILE}}).encode()
    spools.add(made, "failed", A, report=report, failure={"reason": HOSTILE, "detail": HOSTILE}, **texts)
    spools.add(made, "pending", B, assets={"size_bytes": 1, "missing": [HOSTILE]}, next_try_usec=2**64 - 1, **texts)
    spools.add(made, "pending", C, time_usec=2**64 - 1, transport=HOSTILE, signal=2**63, uid=2**64 - 1, **texts)
    (made.path("failed", A) / "receipt.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    with made.open() as spool:
        ledger.append(spool.root_fd, "quota", HOSTILE, C, {"comm": HOSTILE, "exe": HOSTILE, "pid": 1})
    return made


@pytest.mark.parametrize(
    "arguments",
    [["list"], ["list", "--json"], ["info", A], ["info", B], ["info", C], ["why"], ["why", "--json"], ["status"]],
)
def test_no_text_of_a_crashed_process_reaches_the_terminal_unescaped(hostile: Made, arguments: list[str]) -> None:
    for shown in (coresnap(hostile, *arguments).stdout, on_a_terminal(hostile, *arguments, NO_COLOR="1")[1]):
        lines = shown.replace("\r\n", "\n").removesuffix("\n").split("\n")
        assert all(line.isprintable() for line in lines), [line for line in lines if not line.isprintable()]
        assert "owned" in shown


def test_notes_are_escaped_as_well(hostile: Made) -> None:
    asked = on_a_terminal(hostile, "rm", A, answer="n\n", NO_COLOR="1")[1]
    assert "owned" in asked
    assert "\x1b" not in asked
    assert "\x1b" not in coresnap(hostile, "debug", A, "--debugger", "true").stderr


def test_a_failed_dump_is_red_on_a_terminal_and_nowhere_else(made: Made) -> None:
    spools.add(made, "failed", A)
    assert "\x1b[31mfailed/" in on_a_terminal(made, "list")[1]
    assert "\x1b" not in on_a_terminal(made, "list", NO_COLOR="1")[1]
    assert "\x1b" not in on_a_terminal(made, "list", TERM="dumb")[1]
    assert "\x1b" not in coresnap(made, "list").stdout


def test_an_old_terminal_gets_escapes_and_no_traceback(made: Made) -> None:
    spools.add(made, "pending", A, comm="naïve", exe=None)
    assert "na\\xefve" in coresnap(made, "list", PYTHONIOENCODING="ascii").stdout


def test_a_reader_that_goes_away_is_no_error(made: Made) -> None:
    spools.add(made, "pending", A)
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    argv = [*PROGRAM, "list", "--settings", str(made.configuration)]
    ended = subprocess.run(argv, cwd=REPOSITORY, stdout=write_fd, stderr=subprocess.PIPE, check=False)
    os.close(write_fd)
    assert (ended.returncode, ended.stderr) == (141, b"")


# naming a dump


@pytest.mark.parametrize("name", [A, "aaaa1", "AAAA1111", "pending/aaaa1", "pending/aaaa1111-000..."])
def test_a_dump_is_found_by_the_beginning_of_its_uuid(made: Made, name: str) -> None:
    spools.add(made, "pending", A)
    spools.add(made, "failed", B)
    assert f"pending/{A}" in coresnap(made, "info", name).stdout


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("aaaa", f"any of 2 dumps: give more of it: pending/{A}, failed/{B}"),
        ("aaa", "at least 4"),
        ("zzzz", "not the beginning of a UUID"),
        ("../etc", "there is no stage .."),
        ("failed/aaaa1", "no dump failed/aaaa1"),
        ("dddd4444", "coresnap why dddd4444"),
    ],
)
@pytest.mark.parametrize("command", ["info", "rm", "retry", "dump", "debug"])
def test_a_name_that_does_not_do_is_refused_in_a_line(made: Made, command: str, name: str, words: str) -> None:
    spools.add(made, "pending", A)
    spools.add(made, "failed", B)
    refused = coresnap(made, command, name)
    assert (refused.returncode, refused.stdout) == (69, "")
    assert refused.stderr.count("\n") == 1
    assert words in refused.stderr
    assert where(made, A) == ["pending"]


# info


def test_info_tells_in_words(made: Made) -> None:
    truncated = {
        "size_bytes": 2048,
        "disk_bytes": 4096,
        "compressed_bytes": 512,
        "class": 64,
        "truncated": {"reason": "disk-full", "expected_bytes": 1 << 20},
    }
    report = json.dumps({"attributes": {"error.message": "stack smashed"}}).encode()
    spools.add(made, "committed", A, report=report, core=truncated, tid=4712)
    (made.path("committed", A) / "receipt.json").write_text('{"store": "file:/store", "object": "1"}')
    told = coresnap(made, "info", A).stdout
    for expected in (
        "/usr/bin/vim.basic",
        "4711, its thread 4712",
        "11, SIGSEGV: Segmentation fault",
        "handed over by the kernel, the process held for 1.0 ms",
        "stack smashed",
        "the disk was full; whole it has 1.00mB",
        "64 bit, 4.00kB on disk, compressed",
        "file:/store took it as 1",
        "captured: held 1000 usec",
    ):
        assert expected in told
    whole = json.loads(coresnap(made, "info", A, "--json").stdout)
    assert whole["record"] == made.record("committed", A)
    assert whole["receipt"] == {"store": "file:/store", "object": "1"}
    assert whole["error_message"] == "stack smashed"


@pytest.mark.parametrize("report", [b"btt\0\1\2", b"[]", b'{"attributes": 1}', b'{"attributes": {"error.message": 1}}'])
def test_info_passes_over_a_snapshot_of_another_kind(made: Made, report: bytes) -> None:
    spools.add(made, "sending", A, report=report)
    assert coresnap(made, "info", A).returncode == 0
    assert json.loads(coresnap(made, "info", A, "--json").stdout)["error_message"] is None


# why


def test_why_looks_into_the_stages_and_the_ledger_newest_first(made: Made) -> None:
    spools.add(
        made,
        "failed",
        A,
        time_usec=10**15,
        failure={"reason": "process", "detail": "no stack"},
        comm="app",
        exe="/opt/app",
    )
    spools.add(made, "pending", B, pid=77)
    with made.open() as spool:
        ledger.append(spool.root_fd, "quota", "4 bytes are free", C, {"pid": 99, "comm": "app", "exe": "/opt/app"})
    told = coresnap(made, "why", "app").stdout
    assert told.index("free some space") < told.index("it has been given up on: failed/aaaa1111-000...")
    assert "quota: 4 bytes are free" in told
    assert "process: no stack" in told
    assert "coresnap retry aaaa1111" in told
    for what, expected in (
        ("77", "pending/aaaa2222"),
        ("99", "not kept"),
        ("cccc3333", "not kept"),
        (B, "waits for its snapshot"),
    ):
        told = coresnap(made, "why", what).stdout
        assert expected in told
        assert told.count("to do") == 1
    assert [one["kept"] for one in json.loads(coresnap(made, "why", "--json").stdout)] == [False, True, True]
    assert coresnap(made, "why", "-n", "1").stderr == "coresnap: 2 earlier ones are not shown: -n 3 shows them\n"


@pytest.mark.parametrize("reason", sorted(ledger.REASONS))
def test_why_has_something_to_do_for_every_reason(made: Made, reason: str) -> None:
    with made.open() as spool:
        ledger.append(spool.root_fd, reason, "", C, {"pid": 99})
    told = coresnap(made, "why", "99").stdout
    assert ledger.REASONS[reason] in told
    assert "to do: " in told


@pytest.mark.parametrize(
    ("stage", "report", "to_do"),
    [
        ("pending", b"", "coresnap rm"),
        ("sending", b"{}", "coresnap retry"),
        ("committed", b"{}", "has its receipt"),
        ("failed", b"", "coresnap rm"),
        ("failed", b"{}", "coresnap retry"),
    ],
)
def test_a_core_that_somebody_deleted_is_not_claimed(made: Made, stage: str, report: bytes, to_do: str) -> None:
    spools.add(made, stage, A, report=report)
    before = coresnap(made, "list").stdout
    assert f" c{'s' if report else '-'}a " in before
    (made.path(stage, A) / "core").unlink()
    told = coresnap(made, "why", A).stdout
    assert "is gone from the spool" in told
    assert "to do: " in told
    assert to_do in told
    assert "core is kept" not in told
    assert "coresnap debug" not in told
    assert f" -{'s' if report else '-'}a " in coresnap(made, "list").stdout
    assert re.search("Core: MISSING", coresnap(made, "info", A).stdout)
    (listed,) = json.loads(coresnap(made, "list", "--json").stdout)
    assert "core" not in listed["files"]
    (known,) = json.loads(coresnap(made, "why", A, "--json").stdout)
    assert known["kept"] is False
    for command in ("debug", "dump"):
        refused = coresnap(made, command, A)
        assert (refused.returncode, "has deleted it" in refused.stderr) == (69, True)


def test_retry_refuses_what_has_neither_core_nor_snapshot(made: Made) -> None:
    spools.add(made, "failed", A)
    (made.path("failed", A) / "core").unlink()
    refused = coresnap(made, "retry", A)
    assert (refused.returncode, where(made, A)) == (69, ["failed"])
    assert "coresnap rm aaaa1111" in refused.stderr


def test_a_core_without_a_record_is_not_claimed_either(made: Made) -> None:
    spools.add(made, "pending", A)
    (made.path("pending", A) / "core").unlink()
    (made.path("pending", A) / "dump.json").write_text("{")
    told = coresnap(made, "why", A).stdout
    assert "is gone from the spool" in told
    assert "its record cannot be read" in told
    assert "it is kept" not in told


def test_a_delivered_dump_without_a_receipt_is_told(made: Made) -> None:
    spools.add(made, "committed", A, report=b"{}")
    assert "Receipt: missing" in coresnap(made, "info", A).stdout


def test_why_of_what_is_not_known_says_what_that_means(made: Made) -> None:
    refused = coresnap(made, "why", "4242")
    assert (refused.returncode, refused.stdout) == (69, "")
    assert refused.stderr.startswith("coresnap: nothing is known of 4242: ")
    assert "core" in refused.stderr
    assert refused.stderr.count("\n") == 1


# retry


def test_retry_puts_what_failed_back_to_work(made: Made) -> None:
    failed: dict[str, Any] = {"failure": {"reason": "x", "detail": "y"}, "attempts": {"process": 3, "send": 2}}
    spools.add(made, "failed", A, **failed)
    spools.add(made, "failed", B, report=b"{}", **failed)
    retried = coresnap(made, "retry", "--all-failed")
    assert retried.returncode == 0
    assert f"{A}: failed -> pending" in retried.stdout
    assert (where(made, A), where(made, B)) == (["pending"], ["sending"])
    for stage, uuid in (("pending", A), ("sending", B)):
        document = made.record(stage, uuid)
        assert document["attempts"] == {"process": 0, "send": 0}
        assert document["failure"] is None
        assert [line["event"] for line in document["history"]] == ["captured", "retried"]


def test_retry_of_a_waiting_dump_makes_it_due_and_wakes_its_owner(made: Made) -> None:
    spools.add(made, "sending", A, report=b"{}", next_try_usec=2**62, attempts={"process": 1, "send": 9})
    with made.open() as spool, inotify.Watch(spool.stage_fds["sending"]) as watch:
        assert coresnap(made, "retry", f"sending/{A[:8]}").stdout == f"{A}: due now in sending\n"
        assert select.select([watch.fd], [], [], 0)[0]
    assert made.record("sending", A)["next_try_usec"] is None


def test_retry_of_a_lost_snapshot_makes_a_new_one(made: Made) -> None:
    spools.add(made, "sending", A, report=b"{}")
    (made.path("sending", A) / "snapshot").unlink()
    assert coresnap(made, "retry", A).returncode == 0
    assert made.record("pending", A)["snapshot"] is None


def test_retry_refuses_what_is_delivered_and_what_is_in_work(made: Made) -> None:
    spools.add(made, "committed", A)
    spools.add(made, "failed", B)
    with made.open() as spool, spool.take("failed", B) or pytest.fail("not taken"):
        refused = coresnap(made, "retry", A, B)
    assert refused.returncode == 75
    assert f"failed/{B} is in work: try again" in refused.stderr
    assert f"committed/{A} is delivered" in refused.stderr
    assert coresnap(made, "retry", A).returncode == 69
    assert coresnap(made, "retry").returncode == 2
    assert coresnap(made, "retry", A, "--all-failed").returncode == 2


# rm


def test_rm_removes_and_takes_the_bytes_off_the_count(made: Made) -> None:
    for stage, uuid in (("pending", A), ("failed", B), ("committed", C)):
        spools.add(made, stage, uuid)
    (made.path("failed", B) / "dump.json").write_text("unreadable")
    with made.open() as spool:
        table_fd = quota.open_table(spool)
        quota.add_used(table_fd, 1 << 20)
        with spool.take("pending", A) or pytest.fail("not taken") as dump:
            freed_bytes = dump.disk_bytes()
        assert coresnap(made, "rm", A).returncode == 0
        assert quota.read_table(table_fd)[0][0] == (1 << 20) - freed_bytes
        os.close(table_fd)
    assert where(made, A) == []
    assert coresnap(made, "rm", B, C, B[:10]).returncode == 0
    assert (where(made, B), where(made, C)) == ([], [])
    assert os.listdir(made.root / "staging") == []


def test_rm_of_a_dump_in_work_is_for_later_and_the_others_go(made: Made) -> None:
    spools.add(made, "pending", A)
    spools.add(made, "pending", B)
    with made.open() as spool, spool.take("pending", A) or pytest.fail("not taken"):
        removed = coresnap(made, "rm", A, B)
    assert removed.returncode == 75
    assert removed.stderr.count("\n") == 1
    assert (where(made, A), where(made, B)) == (["pending"], [])


def test_rm_leaves_a_capture_under_way_alone(made: Made) -> None:
    spools.add(made, "staging", A)
    refused = coresnap(made, "rm", f"staging/{A}")
    assert refused.returncode == 69
    assert where(made, A) == ["staging"]


def test_rm_asks_on_a_terminal(made: Made) -> None:
    spools.add(made, "pending", A)
    status, shown = on_a_terminal(made, "rm", A, answer="n\n")
    assert (status, where(made, A)) == (0, ["pending"])
    assert "NOT delivered" in shown
    assert on_a_terminal(made, "rm", A, answer="y\n")[0] == 0
    assert where(made, A) == []
    spools.add(made, "pending", B)
    assert "[y/N]" not in on_a_terminal(made, "rm", "-y", B)[1]
    assert where(made, B) == []


# dump, debug, import


def test_dump_keeps_the_holes_of_a_core(made: Made, tmp_path: Path) -> None:
    spools.add(made, "pending", A)
    core, target = made.path("pending", A) / "core", tmp_path / "out"
    with core.open("r+b") as file:
        for offset in (0, 5 << 20, 63 << 20):
            file.seek(offset)
            file.write(b"data" * 1024)
        file.truncate(100 << 20)
    assert coresnap(made, "dump", A, "-o", target).returncode == 0
    assert target.read_bytes() == core.read_bytes()
    assert target.stat().st_blocks <= core.stat().st_blocks
    assert target.stat().st_mode & 0o777 == 0o600
    refused = coresnap(made, "dump", A, "-o", target)
    assert (refused.returncode, refused.stderr.count("\n")) == (69, 1)


def test_dump_to_a_pipe_and_of_the_other_files(made: Made) -> None:
    spools.add(made, "sending", A, report=b'{"a": 1}')
    assert coresnap(made, "dump", A, "--snapshot").stdout == '{"a": 1}'
    assert coresnap(made, "dump", A).stdout.startswith("\x7fELF")
    assert coresnap(made, "dump", A, "--asset").stdout == "\0" * 10240
    spools.add(made, "pending", B)
    assert coresnap(made, "dump", B, "--snapshot").returncode == 69


def test_dump_is_not_for_a_terminal_and_leaves_nothing_half_written(made: Made) -> None:
    spools.add(made, "pending", A)
    status, shown = on_a_terminal(made, "dump", A)
    assert status == 69
    assert "ELF" not in shown
    os.truncate(made.path("pending", A) / "core", 1 << 20)
    (made.path("pending", A) / "core").write_bytes(os.urandom(1 << 20))
    full = subprocess.run(
        [
            "prlimit",
            "--fsize=65536",
            *PROGRAM,
            "dump",
            A,
            "-o",
            made.root.parent / "out",
            "--settings",
            made.configuration,
        ],
        cwd=REPOSITORY,
        capture_output=True,
        check=False,
    )
    assert full.returncode == 75
    assert not (made.root.parent / "out").exists()


def test_import_takes_cores_and_refuses_the_rest_in_a_line_each(made: Made, real_core: Path, tmp_path: Path) -> None:
    bad = {
        "text": b"hello\n",
        "empty": b"",
        "cut": real_core.read_bytes()[:1000],
        "program": Path("/bin/sh").read_bytes(),
    }
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
    core = tmp_path / "core"
    shutil.copyfile(real_core, core)
    os.utime(core, (10**9, 10**9))
    paths = [tmp_path / name for name in bad]
    imported = coresnap(made, "import", "--exe", build("crash"), *paths, tmp_path, tmp_path / "none", core)
    assert imported.returncode == 66
    assert len(imported.stderr.splitlines()) == len(bad) + 2
    uuid = imported.stdout.strip()
    assert where(made, uuid) == ["pending"]
    document = made.record("pending", uuid)
    assert document["captured"]["transport"] == "import"
    assert document["captured"]["time_usec"] == 10**15
    assert document["victim"]["exe"] == str(build("crash"))
    assert document["victim"]["signal"] == 11
    assert (made.path("pending", uuid) / "core").read_bytes() == real_core.read_bytes()
    assert core.exists()
    with made.open() as spool:
        assert list(ledger.read(spool.root_fd)) == []


def test_import_goes_by_the_quota_of_the_same_settings(tmp_path: Path, real_core: Path) -> None:
    made = spools.make(tmp_path, "dump.ceiling = 1K")
    refused = coresnap(made, "import", real_core)
    assert refused.returncode == 75
    assert "dump.ceiling" in refused.stderr
    assert os.listdir(made.root / "pending") == []


def test_debug_starts_gdb_safely_on_a_real_core(made: Made, real_core: Path, tmp_path: Path) -> None:
    uuid = coresnap(made, "import", "--exe", build("crash"), real_core).stdout.strip()
    told = coresnap(made, "debug", uuid[:8], "--", "-batch", "-ex", "show auto-load python-scripts", "-ex", "bt")
    assert "Auto-loading of Python scripts is off." in told.stdout
    assert "terminated with signal SIGSEGV" in told.stdout
    assert " in run (" in told.stdout, told.stdout
    fake = tmp_path / "fake-gdb"
    fake.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done; echo "${DEBUGINFOD_URLS-none}"\n')
    fake.chmod(0o755)
    words = coresnap(made, "debug", uuid, "--debugger", str(fake), DEBUGINFOD_URLS="http://x").stdout.splitlines()
    assert words[-4:-2] == [str(build("crash")), "--core"]
    assert words[-2].startswith("/proc/self/fd/")
    assert words[-1] == "none"
    assert "set auto-load off" in words


def test_debug_without_executable_or_debugger(made: Made, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    spools.add(made, "pending", A, exe=str(tmp_path / "fifo"))
    told = coresnap(made, "debug", A, "--debugger", "echo")
    assert told.stdout.startswith("--core /proc/self/fd/")
    assert "--exe FILE" in told.stderr
    refused = coresnap(made, "debug", A, "--debugger", "no-such-debugger")
    assert refused.returncode == 69
    assert "apt install no-such-debugger" in refused.stderr


# status


def test_status_tells_how_the_stores_stand(made: Made) -> None:
    standings = [
        {"store": "https://one", "delivered": 7},
        {"store": "https://one", "project": "quiet"},
        {
            "store": "https://one",
            "project": "app",
            "state": "parked",
            "since_usec": 5,
            "next_try_usec": 10**18,
            "detail": HOSTILE,
        },
        {"store": "https://two", "state": "waiting", "next_try_usec": 10**18, "failures": 3, "detail": "no route"},
    ]
    stores = [vars(outlook.Standing(**known)) for known in standings]  # type: ignore[arg-type]  # of mixed types
    (made.root / outlook.NAME).write_text(json.dumps({"version": 1, "stores": stores}))
    told = coresnap(made, "status").stdout
    assert "https://one: up, 7 delivered" in told
    assert "https://one, project app: parked since" in told
    assert "next try in " in told
    assert "quiet" not in told
    assert "https://two: waiting since" in told
    assert all(line.isprintable() for line in told.splitlines())
    assert json.loads(coresnap(made, "status", "--json").stdout)["stores"] == stores
    (made.root / outlook.NAME).write_text("[" * 10_000)
    broken = coresnap(made, "status")
    assert broken.returncode == 0
    assert "how the stores stand is not shown" in broken.stderr


def test_status_counts_what_is_there(made: Made) -> None:
    spools.add(made, "pending", A, time_usec=1000)
    spools.add(made, "failed", B)
    with made.open() as spool:
        ledger.append(spool.root_fd, "quota", "full", C, {"comm": "vim"})
    status = json.loads(coresnap(made, "status", "--json").stdout)
    assert status["stages"]["pending"]["dumps"] == 1
    assert status["stages"]["pending"]["oldest_usec"] == 1000
    blocks = sum(file.stat().st_blocks for file in made.path("failed", B).iterdir())
    assert status["stages"]["failed"]["disk_bytes"] == blocks * 512
    assert status["stages"]["sending"] == {"dumps": 0, "disk_bytes": 0, "oldest_usec": None, "latest_usec": None}
    assert status["ledger"]["entries"] == 1
    assert status["ledger"]["last"]["reason"] == "quota"
    assert status["core_pattern"] == Path("/proc/sys/kernel/core_pattern").read_text().removesuffix("\n")
    assert "1 on record" in coresnap(made, "status").stdout


def test_status_says_what_to_do_about_a_foreign_core_pattern(made: Made) -> None:
    status = json.loads(coresnap(made, "status", "--json").stdout)
    assert status["core_pattern_is_ours"] or "archive(8)" in coresnap(made, "status").stdout


# what is not of a crashed process, but as little to be trusted: arguments, files' names, settings


@pytest.mark.parametrize(
    "arguments",
    [
        [HOSTILE],
        ["list", HOSTILE],
        ["list", "--since", HOSTILE],
        ["list", "--signal", HOSTILE],
        ["list", "--uid", HOSTILE],
        ["list", "--pid", HOSTILE],
        ["list", f"--{HOSTILE}"],
        ["info", HOSTILE],
        ["info", f"{HOSTILE}/aaaa"],
        ["why", HOSTILE],
        ["rm", "-y", HOSTILE],
        ["retry", HOSTILE],
        ["dump", HOSTILE],
        ["dump", A, "-o", f"/no-such-place/{HOSTILE}"],
        ["debug", A, "--debugger", HOSTILE],
        ["import", f"/tmp/{HOSTILE}"],
        ["config", "--check", f"/tmp/{HOSTILE}"],
        ["config", "--compile", "--output", f"/no-such-place/{HOSTILE}/x"],
    ],
    ids=lambda arguments: " ".join(arguments).replace(HOSTILE, "X").replace("/", "_"),
)
def test_no_argument_comes_back_unescaped(made: Made, arguments: list[str]) -> None:
    spools.add(made, "pending", A)
    refused = coresnap(made, *arguments)
    assert refused.returncode in (2, 65, 66, 69, 78)
    shown = (refused.stdout + refused.stderr).removesuffix("\n").split("\n")
    assert all(line.isprintable() for line in shown), shown
    assert "Traceback" not in refused.stderr
    assert "owned" in refused.stderr


def test_no_setting_comes_back_unescaped(made: Made) -> None:
    lines = made.configuration.read_text()
    for line in (
        f"dump.rot = {HOSTILE}",
        f"{HOSTILE} = 1",
        f"dump.mode = {HOSTILE}",
        "dump.mode = \x9b31m",
        f"[{HOSTILE}",
    ):
        made.configuration.write_text(lines + line.replace("\n", "") + "\n")
        for arguments in (["config"], ["config", "--check", str(made.configuration)], ["list"]):
            refused = coresnap(made, *arguments)
            assert refused.returncode == 78
            assert all(row.isprintable() for row in (refused.stdout + refused.stderr).split("\n"))


def test_json_has_no_control_character_not_even_del(made: Made) -> None:
    spools.add(made, "pending", A, comm="x\x7f\x1b", exe=None)
    for arguments in (["list", "--json"], ["info", A, "--json"], ["why", "--json"]):
        shown = coresnap(made, *arguments).stdout
        assert all(line.isprintable() for line in shown.split("\n"))
        assert '"x\\u007f\\u001b"' in shown
        json.loads(shown)


# the program


def test_json_is_json_where_nothing_is_there(made: Made) -> None:
    for command, status in (("list", 0), ("why", 69), ("status", 0), ("config", 0)):
        shown = coresnap(made, command, "--json")
        assert shown.returncode == status
        json.loads(shown.stdout)


def test_settings_that_cannot_be_written_are_refused_with_their_path(made: Made, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "no" / "such" / "place"):
        refused = coresnap(made, "config", "--compile", "--output", path)
        assert (refused.returncode, refused.stderr.count("\n")) == (69, 1)
        assert refused.stderr.startswith(f"coresnap: {path}: ")


def test_a_missing_argument_is_named_alone(made: Made) -> None:
    assert coresnap(made, "debug").stderr.endswith("the following arguments are required: UUID\n")
    assert coresnap(made, "why", "-n", "-1").returncode == 2
    assert coresnap(made, "list", "-n", "x").returncode == 2


def test_help_fits_the_terminal(made: Made) -> None:
    for columns in ("60", "80"):
        for line in coresnap(made, "retry", "--help", COLUMNS=columns).stdout.splitlines():
            assert len(line) <= int(columns) or line.startswith("  coresnap ")


def test_usage_and_help(made: Made) -> None:
    help_ = subprocess.run([*PROGRAM, "--help"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert "examples:" in help_
    assert re.search(r"^  why +tell where a core is", help_, re.MULTILINE)
    for arguments, status in (
        (["frobnicate"], 2),
        (["list", "--no-such"], 2),
        (["list", "nostage"], 2),
        (["list", "--since", "yesteryear"], 2),
        (["list", "--signal", "SIGNONE"], 2),
        (["list", "--help"], 0),
        (["--version"], 0),
    ):
        ended = subprocess.run([*PROGRAM, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert (ended.returncode, "Traceback" in ended.stderr) == (status, False), arguments
    assert subprocess.run(PROGRAM, cwd=REPOSITORY, capture_output=True, check=False).returncode == 2


def test_settings_are_taken_before_and_after_the_command(made: Made, tmp_path: Path) -> None:
    spools.add(made, "pending", A)
    for arguments in (["--settings", made.configuration, "list"], ["list", "--settings", made.configuration]):
        ended = subprocess.run(
            [*PROGRAM, *map(str, arguments)], cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
        assert "aaaa1111" in ended.stdout
    made.configuration.write_text("dump.rot = /\n")
    broken = coresnap(made, "list")
    assert (broken.returncode, broken.stderr.count("\n")) == (78, 1)
    assert f"{made.configuration}:1" in broken.stderr


def test_no_spool_is_refused_in_a_line(made: Made) -> None:
    shutil.rmtree(made.root / "sending")
    for command in ("list", "status"):
        refused = coresnap(made, command)
        assert (refused.returncode, refused.stderr.count("\n")) == (69, 1)
        assert "is its file system mounted?" in refused.stderr


@pytest.fixture
def nobodys(tmp_path: Path) -> Iterator[Made]:
    """A spool of another user's, in a place that this user can reach."""
    if os.getuid():
        pytest.skip("only root can be another user")
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        made = spools.make(Path(directory))
        yield made


def test_another_user_is_told_to_ask_as_root(nobodys: Made) -> None:
    refused = coresnap(nobodys, "list", user=NOBODY)
    assert (refused.returncode, refused.stderr.count("\n")) == (69, 1)
    assert "as root" in refused.stderr


def test_a_dump_that_may_not_be_read_is_listed_all_the_same(nobodys: Made) -> None:
    spools.add(nobodys, "pending", A)
    spools.add(nobodys, "pending", B)
    for path in (nobodys.root, *nobodys.root.iterdir(), nobodys.path("pending", A)):
        os.chown(path, NOBODY, NOBODY)
    listed = coresnap(nobodys, "list", user=NOBODY)
    assert listed.returncode == 0
    assert "[pending]/2O/" in listed.stdout
    assert f"pending/{A}: dump.json: Permission denied" in listed.stderr
    assert f"pending/{B}: dump.json: Permission denied" in listed.stderr
    for command in ("info", "dump", "debug"):
        refused = coresnap(nobodys, command, A, user=NOBODY)
        assert (refused.returncode, refused.stderr.count("\n")) == (69, 1), command


def test_progress_shows_on_a_terminal_only_after_a_second(made: Made, tmp_path: Path) -> None:
    spools.add(made, "pending", A)
    with (made.path("pending", A) / "core").open("r+b") as file:
        file.truncate(1 << 40)
        file.seek((1 << 40) - 8)
        file.write(b"the end!")
    assert "%" not in on_a_terminal(made, "dump", A, "-o", tmp_path / "quick")[1]
    os.mkfifo(tmp_path / "slow")
    ours, theirs = pty.openpty()
    argv = [*PROGRAM, "dump", A, "--settings", str(made.configuration)]
    read_fd, write_fd = os.pipe()
    fcntl.fcntl(write_fd, 1031, 4096)
    with subprocess.Popen(argv, cwd=REPOSITORY, stdout=write_fd, stderr=theirs) as process:
        os.close(write_fd)
        shown = os.read(ours, 4096)  # nobody reads the pipe, so it takes long
        process.kill()
    for fd in (ours, theirs, read_fd):
        os.close(fd)
    assert b"core: " in shown
    assert b"of 1.00tB" in shown
