# SPDX-License-Identifier: Apache-2.0
"""What a command in a worker's sandbox can do: it tries, and fails; with the unit's line taken away it succeeds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.machine import Machine
from tests.system.waiting import CRASH

pytestmark = pytest.mark.long

#: A hostile snapshot.command, and send.command: it says what it could do, where the test finds it.
_INTRUDER = Path(__file__).with_name("intruder.py")
_DROP_IN = "/run/systemd/system/{unit}.d/90-broken.conf"

#: What is tried, and the lines without which it succeeds.
_PROCESSOR = {
    "network": [
        "PrivateNetwork=no",
        "RestrictAddressFamilies=",
        "RestrictAddressFamilies=AF_UNIX AF_INET",
        "IPAddressDeny=",
    ],
    "another dump": ["InaccessiblePaths="],
    "write elsewhere": ["ProtectSystem=no"],
    "mount": [
        "RestrictNamespaces=no",
        "SystemCallFilter=",
        "PrivateUsers=no",
        "LockPersonality=no",
        "ProtectKernelTunables=no",
        "ProtectKernelLogs=no",
        "ProtectControlGroups=no",
        "ProtectProc=default",
        "ProcSubset=all",
        "ProtectHostname=no",
    ],
    "ptrace": ["SystemCallFilter=", "PrivateUsers=no", "ProtectProc=default", "ProcSubset=all"],
    "memory": ["MemoryMax=infinity"],
}
#: The same of the query service, which may read dumps, and which no other user namespace is for.
_QUERY = {
    **{what: lines for what, lines in _PROCESSOR.items() if what not in ("another dump", "memory")},
    "change a dump": ["ProtectSystem=no"],
}


@pytest.fixture(scope="module")
def hostile() -> Iterator[Machine]:
    """Boot a guest whose snapshot.command and send.command are the intruder."""
    with Machine("bookworm", memory_mib=2560) as machine:
        machine.install()
        machine.run("sh", "-c", "cat > /usr/local/bin/intruder", stdin=_INTRUDER.read_bytes())
        machine.sh(
            "chmod 755 /usr/local/bin/intruder; mkdir -p /etc/coresnap\n"
            "printf '%s\\n' 'snapshot.command = /usr/local/bin/intruder %S' 'send.command = /usr/local/bin/intruder - %S'"
            " 'on.sending = /usr/local/bin/intruder hook'"
            " 'snapshot.memory = 64G' 'command.output = inherit' > /etc/coresnap/coresnap.conf\n"
            "systemd-run -q python3 -m http.server --bind 127.0.0.1 8099\n"
            "systemd-run -q --uid=coresnap sleep 424242\n"
            "systemctl enable --now coresnapd 2>&1\n"
            # What coresnapd has fitted to snapshot.memory is not what is looked at here.
            "mkdir -p /run/systemd/system/coresnap-process@.service.d\n"
            "printf '[Service]\\nMemoryMax=1280M\\n' > /run/systemd/system/coresnap-process@.service.d/60-memory.conf\n"
            "systemctl daemon-reload; sysctl -q kernel.yama.ptrace_scope=0 || true\n"
            "mkdir -p /var/lib/coresnap/committed/victim; echo secret > /var/lib/coresnap/committed/victim/core\n"
            "chown -R coresnap: /var/lib/coresnap/committed/victim; chmod 700 /var/lib/coresnap/committed/victim\n"
        )
        yield machine


def _without(guest: Machine, unit: str, lines: list[str]) -> None:
    text = "\\n".join(["[Service]", *lines])
    path = _DROP_IN.format(unit=unit)
    guest.sh(f"mkdir -p $(dirname {path}); printf '{text}\\n' > {path}; systemctl daemon-reload")


def _whole(guest: Machine, unit: str) -> None:
    guest.sh(f"rm -f {_DROP_IN.format(unit=unit)}; systemctl daemon-reload")


def _reports(guest: Machine, name: str) -> dict[str, str]:
    """Crash something, and return what the intruder could do in a worker, as the journal has it."""
    guest.sh(f"date +%s.%N > /root/since; {CRASH}")
    return _told(guest, name)


def _told(guest: Machine, name: str) -> dict[str, str]:
    script = (
        "for i in $(seq 600); do"
        f" journalctl --no-pager -b -o cat --since @$(cat /root/since) | grep 'INTRUDER {name} ' && exit 0; sleep 0.2; done; exit 1"
    )
    lines = guest.sh(script, seconds=400).stdout.strip().splitlines()
    found = re.search(rf"INTRUDER {name} (\{{.*?\}})", lines[-1])
    assert found, lines[-1]
    report: dict[str, str] = json.loads(found[1])
    return report


def test_the_processor_keeps_a_hostile_command_in(hostile: Machine) -> None:
    report = _reports(hostile, "snapshot")
    assert report.keys() == {*_PROCESSOR}
    assert {what for what, outcome in report.items() if outcome == "done"} == set(), report


@pytest.mark.parametrize("what", [what for what in _PROCESSOR if what != "memory"])
def test_without_its_line_it_would_get_out(hostile: Machine, what: str) -> None:
    _without(hostile, "coresnap-process@.service", _PROCESSOR[what])
    try:
        assert _reports(hostile, "snapshot")[what] == "done"
    finally:
        _whole(hostile, "coresnap-process@.service")


def test_without_its_limit_it_would_take_the_memory(hostile: Machine) -> None:
    _without(hostile, "coresnap-process@.service", _PROCESSOR["memory"])
    try:
        assert _reports(hostile, "snapshot")["memory"] == "done"
    finally:
        _whole(hostile, "coresnap-process@.service")


def test_the_sender_cannot_open_a_core(hostile: Machine) -> None:
    assert _reports(hostile, "send")["another dump"] != "done"
    _without(hostile, "coresnap-send@.service", ["InaccessiblePaths=", "User=coresnap", "Group=coresnap"])
    try:
        hostile.sh("systemctl stop coresnap-sender.service")
        assert _reports(hostile, "send")["another dump"] == "done"
    finally:
        _whole(hostile, "coresnap-send@.service")


def _asked(guest: Machine) -> dict[str, str]:
    """Ask the query service, in whose place the intruder is, and return what that could do."""
    directory = "/run/systemd/system/coresnap-query@.service.d"
    lines = "[Service]\\nExecStart=\\nExecStart=/usr/local/bin/intruder query\\n"
    guest.sh(f"mkdir -p {directory}; printf '{lines}' > {directory}/80-intruder.conf; systemctl daemon-reload")
    asked = guest.sh("date +%s.%N > /root/since; runuser -u nobody -- coresnap list 2>&1", check=False)
    assert "hung up" in asked.stdout
    return _told(guest, "query")


def test_the_query_service_keeps_what_takes_its_place_in(hostile: Machine) -> None:
    report = _asked(hostile)
    assert report.keys() == _QUERY.keys()
    assert {what for what, outcome in report.items() if outcome == "done"} == set(), report


@pytest.mark.parametrize("what", _QUERY)
def test_without_its_line_the_query_service_would_let_it_out(hostile: Machine, what: str) -> None:
    _without(hostile, "coresnap-query@.service", _QUERY[what])
    try:
        assert _asked(hostile)[what] == "done"
    finally:
        _whole(hostile, "coresnap-query@.service")


@pytest.mark.parametrize(
    ("what", "lines"),
    [
        ("another dump", ["InaccessiblePaths=", "User=coresnap", "Group=coresnap"]),
        ("mount", _PROCESSOR["mount"]),
    ],
)
def test_a_hook_is_kept_in_by_its_unit(hostile: Machine, what: str, lines: list[str]) -> None:
    assert _reports(hostile, "hook")[what] != "done"
    _without(hostile, "coresnap-hook@.service", lines)
    try:
        assert _reports(hostile, "hook")[what] == "done"
    finally:
        _whole(hostile, "coresnap-hook@.service")
