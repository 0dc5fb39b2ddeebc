# SPDX-License-Identifier: Apache-2.0
"""The capture service under a real systemd: over the hand-over where the kernel has a pipe, over the kernel's own socket."""

from __future__ import annotations

from typing import Any

from tests.system.machine import Machine
from tests.system.waiting import CRASH, dumps, end


def _crashed(guest: Machine, script: str = CRASH) -> dict[str, Any]:
    before = {entry["uuid"] for entry in dumps(guest)}
    guest.sh(script)
    (dump,) = [entry for entry in dumps(guest) if entry["uuid"] not in before]
    return dump


def test_the_service_captures(served: tuple[Machine, str]) -> None:
    guest, transport = served
    dump = _crashed(guest)
    record = dump["record"]
    assert record["captured"]["transport"] == transport
    assert record["victim"]["signal"] == 11
    assert record["victim"]["exe"].startswith("/usr/bin/python3")
    assert record["assets"]["missing"] == []
    assert record["core"]["truncated"] is None
    owner = guest.sh(f"stat -c %U:%G:%a /var/lib/coresnap/pending/{dump['uuid']}/core").stdout
    assert owner == "coresnap:coresnap:600\n"
    guest.sh("coresnapd --once", seconds=300)
    assert "SIGSEGV" in guest.run("coresnap", "info", dump["uuid"]).stdout


def test_a_crash_of_another_user(served: tuple[Machine, str]) -> None:
    guest, _transport = served
    script = "setpriv --reuid=1234 --regid=1234 --clear-groups sleep 60 & sleep 3; kill -SEGV $!; wait $! || true"
    victim = _crashed(guest, script)["record"]["victim"]
    assert (victim["uid"], victim["gid"], victim["comm"]) == (1234, 1234, "sleep")


def test_a_storm(served: tuple[Machine, str]) -> None:
    guest, _transport = served
    before = len(dumps(guest))
    guest.sh(f"for i in $(seq 30); do ({CRASH}) & done; wait", seconds=600)
    found = dumps(guest)
    assert len(found) == before + 30
    assert all(entry["record"]["core"]["truncated"] is None for entry in found)


def test_what_the_quota_forbids_is_rejected_and_on_record(served: tuple[Machine, str]) -> None:
    guest, transport = served
    guest.sh("sed -i 's/1%/99%/' /usr/local/etc/coresnap/coresnap.conf; coresnap config --compile")
    before = len(dumps(guest))
    _pid, number, dumped = end(guest)
    guest.sh("sed -i 's/99%/1%/' /usr/local/etc/coresnap/coresnap.conf; coresnap config --compile")
    assert len(dumps(guest)) == before
    assert number == 11
    if transport == "socket":
        assert not dumped, "REJECT: the kernel says that there is no core"
    assert "dump.quota" in guest.run("coresnap", "why", "python3*").stdout


def test_a_service_that_is_stopped_finishes_and_is_missed_by_nobody(served: tuple[Machine, str]) -> None:
    """Over the pipe archive captures by itself; the socket has PID 1 start the service again."""
    guest, transport = served
    guest.sh("systemctl stop coresnap-archive.service coresnap-handover.socket 2>&1")
    captured = _crashed(guest)["record"]["captured"]
    assert captured["transport"] == ("socket" if transport == "socket" else "pipe")
    guest.sh("systemctl start coresnap-archive.service")


def test_the_units_are_in_order(served: tuple[Machine, str]) -> None:
    guest, _transport = served
    verified = guest.sh(
        "systemd-analyze verify --man=no /usr/local/lib/systemd/system/coresnap-archive.service 2>&1", check=False
    )
    assert "coresnap" not in verified.stdout
    security = guest.sh("systemd-analyze security --no-pager coresnap-archive.service | tail -1").stdout
    assert float(security.split(":")[1].split()[0]) <= 1.5, security
