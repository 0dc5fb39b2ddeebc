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


def _received(kind: str, blocked: str) -> list[str]:
    """Log two lines where a journal or a syslog listens, with some packages not to be had; return the datagrams."""
    mounts = "mount -t tmpfs run /run && mount -t tmpfs dev /dev && "
    root = [] if os.getuid() == 0 else ["--user", "--map-root-user"]
    argv = [
        "unshare",
        "--mount",
        *root,
        "sh",
        "-c",
        f'{mounts} exec "$@"',
        "sh",
        sys.executable,
        "-c",
        _LISTENER,
        kind,
        blocked,
    ]
    done = subprocess.run(argv, cwd=_REPOSITORY, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    received: list[str] = json.loads(done.stdout)
    return received


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


def test_an_undeclared_field_is_a_mistake() -> None:
    assert "CORESNAP_DUMP" in FIELDS
    with pytest.raises(ValueError, match="CORESNAP_DMUP"):
        Log([]).info("x", CORESNAP_DMUP="x")
