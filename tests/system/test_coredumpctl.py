# SPDX-License-Identifier: Apache-2.0
"""coredumpctl, which knows nothing of coresnap, finds its dumps; and a journal that is away holds nothing up."""

from __future__ import annotations

import json

import pytest

from tests.system.debugged import frames
from tests.system.machine import Machine
from tests.system.waiting import CRASH, no_journal, until


def _crash_in_a_unit(guest: Machine) -> str:
    """Crash a service's process; return its dump's UUID once it has been delivered."""
    before = set(guest.sh("ls /var/lib/coresnap/committed").stdout.split())
    guest.sh(f"systemd-run -q --wait --collect -p Environment=LANG=C.UTF-8 --unit=victim {CRASH}")
    until(guest, f'[ "$(ls /var/lib/coresnap/committed | wc -l)" -gt {len(before)} ]')
    (uuid,) = set(guest.sh("ls /var/lib/coresnap/committed").stdout.split()) - before
    return uuid


def test_coredumpctl_finds_it_after_it_has_moved(enabled: Machine) -> None:
    uuid = _crash_in_a_unit(enabled)
    until(enabled, "coredumpctl list --no-pager --no-legend 2>/dev/null | grep -q python3")
    listed = enabled.sh("coredumpctl list --no-pager --no-legend").stdout
    assert "SIGSEGV" in listed
    assert "present" in listed
    info = enabled.sh("coredumpctl info --no-pager").stdout
    for expected in (
        "python3",
        "11 (SEGV)",
        "Unit: victim.service",
        "Slice: system.slice",
        f"by-uuid/{uuid}.core.zst (present)",
    ):
        assert expected in info, info
    entries = enabled.sh("journalctl -b -o json MESSAGE_ID=fc2e22bc6ee647b6b90729ab34a250b1").stdout.splitlines()
    assert len(entries) == 1, "one entry a dump"
    entry = json.loads(entries[0])
    assert entry["COREDUMP_UNIT"] == "victim.service"
    assert entry["COREDUMP_ENVIRON"].startswith("LANG=C.UTF-8") or "\nLANG=C.UTF-8" in entry["COREDUMP_ENVIRON"]
    assert "Max core file size" in entry["COREDUMP_PROC_LIMITS"]
    assert entry["COREDUMP_CGROUP"] == "/system.slice/victim.service"
    got = enabled.sh(
        f"coredumpctl dump -q -o /root/theirs; coresnap dump {uuid} -o /root/ours; cmp /root/theirs /root/ours"
    )
    assert got.status == 0
    explained = enabled.sh(f"journalctl --no-pager -b -x CORESNAP_DUMP={uuid}").stdout
    for subject in ("its core was kept", "A snapshot was made", "A snapshot was delivered"):
        assert subject in explained, explained
    assert f"coresnap info {uuid}" in explained
    shown = enabled.sh(f"coresnap info {uuid[:8]}").stdout
    assert "victim.service" in shown


def test_both_debug_commands_open_a_compressed_core(enabled: Machine) -> None:
    (uuid,) = enabled.sh("ls /var/lib/coresnap/committed").stdout.split()
    stack = frames(enabled, uuid)
    assert "libc.so" in stack[0], "the crash is in a string function"
    assert len(stack) > 5


def test_the_core_s_name_goes_with_the_core(enabled: Machine) -> None:
    (uuid,) = enabled.sh("ls /var/lib/coresnap/committed").stdout.split()
    enabled.sh(f"coresnap rm {uuid}")
    assert enabled.sh("ls /var/lib/coresnap/by-uuid").stdout == ""
    assert "missing" in enabled.sh("coredumpctl list --no-pager --no-legend").stdout


@pytest.mark.long
def test_a_journal_that_is_away_holds_nothing_up(enabled: Machine) -> None:
    """Nor do those who were started meanwhile, with no journal there, stay without it."""
    enabled.sh("systemctl stop coresnap-processor.service coresnap-sender.service")
    with no_journal(enabled):
        enabled.sh(CRASH)
        until(enabled, '[ "$(ls /var/lib/coresnap/committed | wc -l)" -ge 1 ]')
    (dump,) = json.loads(enabled.sh("coresnap list --json").stdout)
    assert dump["record"]["core"]["truncated"] is None
    assert enabled.sh(f"coresnap info {dump['uuid']}").stdout
    uuid = _crash_in_a_unit(enabled)
    for line in (
        f"COREDUMP_FILENAME=/var/lib/coresnap/by-uuid/{uuid}.core.zst",
        f"CORESNAP_DUMP={uuid} CORESNAP_STAGE=committed",
    ):
        until(enabled, f"journalctl --no-pager -q -b {line} | grep -q .")
    # What was processed meanwhile is told of later: coresnapd looks once a minute.
    late = f"COREDUMP_FILENAME=/var/lib/coresnap/by-uuid/{dump['uuid']}.core.zst"
    until(enabled, f"journalctl --no-pager -q -b {late} | grep -q .", 180)
    until(enabled, '[ -z "$(ls /var/lib/coresnap/unjournaled)" ]')
    listed = enabled.sh("coredumpctl list --no-pager --no-legend").stdout.splitlines()
    assert len(listed) == 2
    assert all("present" in line for line in listed)
