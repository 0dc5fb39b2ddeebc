# SPDX-License-Identifier: Apache-2.0
"""archive as a real kernel starts it, and the log as a real journald takes it."""

from __future__ import annotations

import json

from tests.system.machine import Machine
from tests.system.waiting import CRASH, dumps


def test_a_crash_goes_all_the_way(guest: Machine) -> None:
    before = {entry["uuid"] for entry in dumps(guest)}
    guest.sh(CRASH)
    guest.sh("coresnapd --once", seconds=300)
    (dump,) = [entry for entry in dumps(guest) if entry["uuid"] not in before]
    assert dump["stage"] == "committed"
    record = dump["record"]
    assert record["captured"]["transport"] == "pipe"
    assert record["victim"]["signal"] == 11
    assert record["victim"]["exe"].startswith("/usr/bin/python3")
    assert record["assets"]["missing"] == []
    assert record["core"]["truncated"] is None
    info = guest.run("coresnap", "info", dump["uuid"]).stdout
    assert "SIGSEGV: address not mapped (SEGV_MAPERR) at 0x10" in info
    journal = guest.sh("journalctl -o json -t coresnap --no-pager").stdout
    entries = [json.loads(line) for line in journal.splitlines()]
    ours = [entry for entry in entries if entry.get("CORESNAP_DUMP") == dump["uuid"]]
    assert [entry.get("CORESNAP_STAGE", "coredumpctl's") for entry in ours] == [
        *("pending", "coredumpctl's", "sending", "committed"),
    ]
    owner = guest.sh(f"stat -c %U:%G:%a /var/lib/coresnap/committed/{dump['uuid']}/core.zst").stdout
    assert owner == "coresnap:coresnap:600\n"


def test_the_environment_of_a_process_started_by_the_kernel_is_enough(guest: Machine) -> None:
    """A crash with a limit of no core at all, of another user, with a hostile name: kept like any other."""
    before = {entry["uuid"] for entry in dumps(guest)}
    guest.sh(
        "cp /usr/bin/sleep '/tmp/a b\x1b[31m'\n"
        "ulimit -c 0\n"
        "setpriv --reuid=1234 --regid=1234 --clear-groups '/tmp/a b\x1b[31m' 60 & sleep 3\n"
        "kill -SEGV $!; wait $! || true\n"
    )
    (dump,) = [entry for entry in dumps(guest) if entry["uuid"] not in before]
    victim = dump["record"]["victim"]
    assert (victim["uid"], victim["gid"], victim["rlimit_core"]) == (1234, 1234, 0)
    assert victim["exe"] == "/tmp/a b\x1b[31m"
    listed = guest.run("coresnap", "list").stdout
    assert "\x1b" not in listed
    assert "a b\\x1b[31m" in listed


def test_a_storm(guest: Machine) -> None:
    """Twenty at once: all kept, none of them truncated, and the kernel skipped none."""
    before = len(dumps(guest))
    guest.sh(f"for i in $(seq 20); do ({CRASH}) & done; wait", seconds=600)
    found = dumps(guest)
    assert len(found) == before + 20
    assert all(entry["record"]["core"]["truncated"] is None for entry in found)
    assert "Skipping core dump" not in guest.sh("dmesg").stdout


def test_no_room_is_on_record(guest: Machine) -> None:
    guest.sh("sed -i 's/1%/99%/' /usr/local/etc/coresnap/coresnap.conf; coresnap config --compile")
    before = len(dumps(guest))
    guest.sh(CRASH)
    guest.sh("sed -i 's/99%/1%/' /usr/local/etc/coresnap/coresnap.conf; coresnap config --compile")
    assert len(dumps(guest)) == before
    why = guest.run("coresnap", "why", "python3").stdout
    assert "dump.quota" in why
