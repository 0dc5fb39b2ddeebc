# SPDX-License-Identifier: Apache-2.0
"""One face of logging, over each of the two packages that speak to the journal, syslog, and standard error.

The packages send to a socket whose path is fixed, so each test has a /run and a /dev of its own, in a mount name space;
the sockets there speak the journal's and syslog's datagram protocols.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from coresnap.ground.log import FIELDS, Log

_REPOSITORY = Path(__file__).parents[2]
_LISTENER = """
import json, os, socket, sys
kind, blocked = sys.argv[1:3]
path = {"journal": "/run/systemd/journal/socket", "syslog": "/dev/log"}[kind]
os.makedirs(os.path.dirname(path), exist_ok=True)
server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
server.bind(path)
for name in blocked.split():
    sys.modules[name] = None
from coresnap.ground.log import Log
log = Log.open()
log.info("plain né\\nnot a second line", CORESNAP_DUMP="u\\nPRIORITY=0", CORESNAP_STAGE="")
log.error("bad \\x1b[31m")
server.setblocking(False)
print(json.dumps([server.recv(65536).decode() for _ in range(2)]))
"""


#: A journal that reads nothing for a while, then all: what a program that logs meanwhile finds.
_FULL = """
import json, os, socket, sys
path = "/run/systemd/journal/socket"
os.makedirs(os.path.dirname(path), exist_ok=True)
server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
server.bind(path)
for name in sys.argv[2].split():
    sys.modules[name] = None
from coresnap.ground.log import Log
log = Log.open()
for number in range(2000):
    log.info(f"line {number}")
told = log.entry(2, "crash", {"COREDUMP_PID": "1"})
server.setblocking(False)
def drained():
    lines = []
    while True:
        try:
            lines.append(server.recv(65536).decode())
        except BlockingIOError:
            return lines
before = drained()
later = log.entry(2, "crash", {"COREDUMP_PID": "1", "COREDUMP_CMDLINE": "two\\nlines", "COREDUMP_EXE": "half \\ud83d\\0"})
log.info("after")
print(json.dumps([told, len(before), later, drained()]))
"""


def _received(kind: str, blocked: str) -> list[str]:
    """Log two lines where a journal or a syslog listens, with some packages not to be had; return the datagrams."""
    received: list[str] = json.loads(_alone(_LISTENER, kind, blocked).stdout)
    return received


def _alone(program: str, kind: str, blocked: str) -> subprocess.CompletedProcess[str]:
    """Run a program with a /run and a /dev of its own."""
    mounts = "mount -t tmpfs run /run && mount -t tmpfs dev /dev && "
    root = [] if os.getuid() == 0 else ["--user", "--map-root-user"]
    start = ["unshare", "--mount", *root, "sh", "-c", f'{mounts} exec "$@"', "sh"]
    argv = [*start, sys.executable, "-c", program, kind, blocked]
    done = subprocess.run(argv, cwd=_REPOSITORY, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize(("package", "other"), [("systemd", "cysystemd"), ("cysystemd", "systemd")])
def test_a_journal_that_does_not_read_keeps_nobody_waiting(package: str, other: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed here; the other of the two environments has it")
    done = _alone(_FULL, "journal", other)
    told, taken, later, lines = json.loads(done.stdout)
    assert taken < 2000
    assert len(done.stderr.splitlines()) == 2000 - taken, "what the journal has not taken is on standard error"
    assert not told
    assert later
    entry, lost, after = lines
    assert "COREDUMP_PID=1\n" in entry
    assert "two\nlines" in entry
    assert "COREDUMP_EXE=half ?\n" in entry
    assert f"MESSAGE={2000 - taken} lines before this one could not be logged here" in lost
    assert "MESSAGE=after" in after


@pytest.mark.parametrize(("package", "other"), [("systemd", "cysystemd"), ("cysystemd", "systemd")])
def test_the_journal_gets_fields(package: str, other: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed here; the other of the two environments has it")
    info, error = _received("journal", other)
    lines = info.splitlines()
    assert "MESSAGE=plain né\\nnot a second line" in lines
    assert "PRIORITY=6" in lines
    assert "SYSLOG_IDENTIFIER=coresnap" in lines
    assert "CORESNAP_DUMP=u\\nPRIORITY=0" in lines
    assert not [line for line in lines if line.startswith(("PRIORITY=0", "CORESNAP_STAGE"))]
    assert "MESSAGE=bad \\x1b[31m" in error.splitlines()
    assert "PRIORITY=3" in error.splitlines()


def test_syslog_stands_in_for_the_journal() -> None:
    info, error = _received("syslog", "systemd cysystemd")
    assert info.startswith("<30>")  # daemon.info
    assert info.rstrip("\0").endswith(": plain né\\nnot a second line")
    assert " coresnap[" in info
    assert error.startswith("<27>")  # daemon.err


def test_standard_error_is_the_last_resort(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coresnap.ground.log.JOURNAL_SOCKET", "/nowhere")
    monkeypatch.setattr("coresnap.ground.log.SYSLOG_SOCKET", "/nowhere")
    Log.open().warning("something\x07")
    assert capsys.readouterr().err == "coresnap: something\\x07\n"


def test_a_command_that_has_told_its_caller_does_not_echo(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coresnap.ground.log.JOURNAL_SOCKET", "/nowhere")
    monkeypatch.setattr("coresnap.ground.log.SYSLOG_SOCKET", "/nowhere")
    Log.open(echo=False).info("something")
    assert capsys.readouterr().err == ""


def test_an_undeclared_field_is_a_mistake() -> None:
    assert "CORESNAP_DUMP" in FIELDS
    with pytest.raises(ValueError, match="CORESNAP_DMUP"):
        Log([]).info("x", CORESNAP_DMUP="x")
