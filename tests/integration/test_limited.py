# SPDX-License-Identifier: Apache-2.0
"""Limits before capture, through the real programs: the first crashes are kept, the rest are counted, and told of."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import time
from pathlib import Path

import pytest

from coresnap.capture.capture import Capture
from coresnap.capture.finish import Outcome, finish
from coresnap.capture.kernel_socket import KernelSocket
from coresnap.capture.source import Source
from coresnap.capture.victim import from_core_pattern
from coresnap.ground import flat
from coresnap.spool import ledger
from tests.crash import Crash, build, crash
from tests.support.site import ARCHIVE, Site

_REQUEST = struct.pack("=IIQ", 16, 16, 15)
_REJECT = struct.pack("=IIQ", 16, 0, 4)


def _site(tmp_path: Path, text: str) -> Site:
    return Site(tmp_path / "site", **dict(line.split(" = ") for line in text.split("; ")))


def _crash_again(site: Site, crashed: Crash) -> int:
    return site.archive(crashed.core, *crashed.core_pattern()).returncode


def _at_the_socket(site: Site, crashed: Crash) -> tuple[bool, Capture, Outcome]:
    """Play the kernel at its socket; say whether it was rejected, and return the capture and what became of it."""
    settings, problem = flat.read(str(site.compiled))
    assert problem == ""
    kernel, ours = socket.socketpair()
    with kernel, ours, crashed.core.open("rb") as core:
        kernel.sendall(_REQUEST + struct.pack("=I", 0))
        capture = Capture(settings, from_core_pattern(crashed.core_pattern()), "socket", time.monotonic_ns())
        source = KernelSocket(ours)
        pid = os.fork()
        if not pid:
            ours.close()
            answer = kernel.recv(16)
            if answer != _REJECT:
                kernel.sendall(core.read())
            kernel.shutdown(socket.SHUT_WR)
            os._exit(0 if answer == _REJECT else 1)
        capture.hold(source, f"/proc/{crashed.pid}")
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status == 0, capture, finish(capture)


def test_a_crash_loop_leaves_its_first_cores_and_is_counted(tmp_path: Path) -> None:
    site = _site(tmp_path, "limit.exe = 2/1h")
    with crash([build("crash"), "segv"]) as crashed:
        assert [_crash_again(site, crashed) for _crash in range(7)] == [0, 0, 69, 69, 69, 69, 69]
        assert site.stages() == ["pending"] * 2
    losses = site.ledger()
    assert [(loss["reason"], loss["count"], loss["pid"]) for loss in losses] == [
        ("rate", count, crashed.pid) for count in range(1, 6)
    ]
    assert losses[0]["exe"] == str(build("crash")), "its metadata are on record all the same"
    told = site.run("cli", "why", str(crashed.pid)).stdout
    assert "rate: limit.exe: 2 of " in told
    assert "the next one is kept from " in told
    assert "to do: `coresnap list` has those that were kept" in told
    rows = {row["kind"]: row for row in json.loads(site.run("cli", "limits", "--json").stdout)}
    assert (rows["exe"]["kept"], rows["exe"]["lost"], rows["exe"]["reached"]) == (2, 5, True)
    assert [row["kind"] for row in json.loads(site.run("cli", "status", "--json").stdout)["limits_reached"]] == ["exe"]
    assert "reached, 5 not kept: `coresnap limits`" in site.run("cli", "status").stdout
    assert (rows["user"]["kept"], rows["user"]["lost"], rows["user"]["name"]) == (2, 0, str(crashed.uid))


def test_of_many_that_are_not_kept_few_are_told_of_one_by_one(tmp_path: Path) -> None:
    site = _site(tmp_path, "limit.exe = 1/1h")
    with crash([build("crash"), "segv"]) as crashed:
        said = [site.archive(crashed.core, *crashed.core_pattern()).stderr for _crash in range(10)]
    assert ["not kept: rate" in line for line in said[1:]] == [count in (1, 2, 4, 8) for count in range(1, 10)]
    assert len(site.ledger()) == 9


def test_after_a_reset_the_next_is_kept_and_says_how_many_were_not(tmp_path: Path) -> None:
    site = _site(tmp_path, "limit.exe = 1/1s")
    with crash([build("crash"), "segv"]) as crashed:
        assert _crash_again(site, crashed) == 0
        deadline = time.monotonic() + 60
        lost = 0
        while _crash_again(site, crashed) == 69:  # until its window has passed
            lost += 1
            assert time.monotonic() < deadline
    assert lost
    told = [json.loads((dump / "dump.json").read_text())["history"][0]["detail"] for _stage, dump in site.dumps()]
    assert any(detail.endswith(f"; {lost} crashes like it, before, were over a limit and not kept") for detail in told)
    assert site.run("cli", "limits", "--reset").stdout == ""
    assert site.run("cli", "limits").stdout == ""


def test_what_the_disk_did_not_take_is_no_share_of_a_limit(tmp_path: Path) -> None:
    """The first crash is the one that is kept: one that was lost on the way does not count as it."""
    site = _site(tmp_path, "limit.exe = 1/1h")
    trace = tmp_path / "trace"
    with crash([build("crash"), "segv"]) as crashed:
        arguments = crashed.core_pattern()
        done = site.archive(crashed.core, *arguments, faulty=["ENOSPC:2", str(trace)])
        assert done.returncode == 75, done.stderr
        assert [loss["reason"] for loss in site.ledger()] == ["disk-full"]
        assert [_crash_again(site, crashed) for _crash in range(2)] == [0, 69]


def test_many_crashes_at_once_are_counted_one_by_one(tmp_path: Path) -> None:
    site = _site(tmp_path, "limit.exe = 5/1h")
    with crash([build("crash"), "segv"]) as crashed:
        argv = [*ARCHIVE, "--settings", str(site.compiled), *crashed.core_pattern()]
        storm = []
        for _number in range(60):
            with crashed.core.open("rb") as core:
                storm.append(subprocess.Popen(argv, stdin=core, stderr=subprocess.DEVNULL))
        statuses = [process.wait(120) for process in storm]
    assert sorted(statuses) == [0] * 5 + [69] * 55
    assert site.stages() == ["pending"] * 5
    assert sorted(loss["count"] for loss in site.ledger()) == list(range(1, 56))


@pytest.mark.parametrize(
    ("lines", "reason", "status"),
    [
        ("archive.exclude = crash", "excluded", 69),
        ("archive.exclude = vim uid:*; archive.include = *", "", 0),
        ("archive.include = /usr/bin/* vim", "excluded", 69),
        ("archive.include = /usr/bin/* crash", "", 0),
        ("archive.core_max_bytes = 64K", "too-large", 69),
        ("archive.core_max_bytes = 1G", "", 0),
    ],
)
def test_over_the_pipe_and_over_the_socket_it_means_the_same(
    tmp_path: Path, lines: str, reason: str, status: int
) -> None:
    if "uid:*" in lines:  # a user is a number
        with pytest.raises(subprocess.CalledProcessError):
            _site(tmp_path, lines)
        lines = lines.replace("uid:*", "uid:123456")
    site = _site(tmp_path, lines)
    with crash([build("crash"), "segv"]) as crashed:
        assert _crash_again(site, crashed) == status
        rejected, _capture, outcome = _at_the_socket(site, crashed)
    assert rejected == bool(reason)
    assert outcome.reason == reason
    assert [loss["reason"] for loss in site.ledger()] == ([reason] * 2 if reason else [])
    assert all(loss["exe"] == str(build("crash")) for loss in site.ledger())
    if reason:
        assert "to do: " in site.run("cli", "why", str(crashed.pid)).stdout


def test_over_the_socket_a_limit_is_a_reject_before_anything_is_begun(tmp_path: Path) -> None:
    site = _site(tmp_path, "limit.exe = 1/1h")
    with crash([build("crash"), "segv"]) as crashed:
        rejected, _capture, outcome = _at_the_socket(site, crashed)
        assert outcome.kept
        assert not rejected
        rejected, capture, outcome = _at_the_socket(site, crashed)
        assert rejected
        assert capture.evidence is None, "nobody has read of the process what is not asked for"
        assert outcome.reason == "rate"
        assert _crash_again(site, crashed) == 69, "the count is the same on every transport"


def test_a_core_by_hand_is_nobodys_limit(tmp_path: Path, real_core: Path) -> None:
    site = _site(tmp_path, "limit.exe = 1/1h; limit.user = 1/1h; archive.include = none; archive.core_max_bytes = 1")
    assert [site.archive(real_core).returncode for _again in range(3)] == [0] * 3


def test_without_counts_a_core_is_kept(tmp_path: Path) -> None:
    site = _site(tmp_path, "limit.exe = 1/1h")
    (site.root / "limits").unlink()
    (site.root / "limits").mkdir()
    with crash([build("crash"), "segv"]) as crashed:
        assert [_crash_again(site, crashed) for _crash in range(2)] == [0, 0]


def test_a_storm_of_one_program_does_not_push_out_what_was_lost_of_another(tmp_path: Path, real_core: Path) -> None:
    site = _site(tmp_path, "archive.exclude = crash")
    (tmp_path / "cut").write_bytes(real_core.read_bytes()[:200])
    assert site.archive(tmp_path / "cut").returncode == 65
    with crash([build("crash"), "segv"]) as crashed:
        for _crash in range(3):
            _crash_again(site, crashed)
    assert (site.root / "ledger.unwanted").read_bytes().count(b'"excluded"') == 3
    assert b'"excluded"' not in (site.root / "ledger").read_bytes()
    assert [loss["reason"] for loss in site.ledger()] == ["cut-short", *["excluded"] * 3]


def test_thousands_that_are_over_a_limit_are_counted_told_of_a_few_times_and_push_nothing_out(
    tmp_path: Path, real_core: Path
) -> None:
    """More than the ledger has lines."""
    site = _site(tmp_path, "limit.exe = 1/1h")
    (tmp_path / "cut").write_bytes(real_core.read_bytes()[:200])
    assert site.archive(tmp_path / "cut").returncode == 65
    settings, _problem = flat.read(str(site.compiled))
    told = []
    for number in range(ledger.LINES + 500):
        victim = from_core_pattern([str(os.getpid()), str(os.getpid()), "4711", "4711", "11"])
        capture = Capture(settings, victim, "pipe", time.monotonic_ns())
        if number:
            capture.hold(Source(-1, "pipe"), f"/proc/{os.getpid()}")
        else:
            with real_core.open("rb") as core:
                capture.hold(Source(core.fileno(), "pipe"), f"/proc/{os.getpid()}")
        outcome = finish(capture)
        assert outcome.kept == (number == 0)
        told += [number] if number and not outcome.quiet else []
    assert told == [1 << power for power in range(12)]
    reasons = [loss["reason"] for loss in site.ledger()]
    assert (reasons.count("rate"), reasons.count("cut-short")) == (ledger.LINES, 1)
    rows = json.loads(site.run("cli", "limits", "--json").stdout)
    assert [row["lost"] for row in rows if row["kind"] == "exe"] == [ledger.LINES + 499]


def test_a_killed_capture_leaves_no_lock(tmp_path: Path) -> None:
    """One that is killed while it counts; the next one does not wait for it."""
    site = _site(tmp_path, "limit.exe = 3/1h")
    with crash([build("crash"), "segv"]) as crashed:
        argv = [*ARCHIVE, "--settings", str(site.compiled), *crashed.core_pattern()]
        read_fd, write_fd = os.pipe()
        with subprocess.Popen(argv, stdin=read_fd) as process:
            os.write(write_fd, crashed.core.read_bytes()[:4096])
            process.send_signal(signal.SIGKILL)
        os.close(read_fd)
        os.close(write_fd)
        assert _crash_again(site, crashed) == 0
