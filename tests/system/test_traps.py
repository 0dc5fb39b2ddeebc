# SPDX-License-Identifier: Apache-2.0
"""Six traps of systemd's, each with the line that avoids it, and with what happens without that line."""

from __future__ import annotations

from typing import Any

import pytest

from tests.system.machine import Machine
from tests.system.waiting import CRASH, dumps, until, with_lines

pytestmark = pytest.mark.long

_CORE_PATTERN = "/proc/sys/kernel/core_pattern"


def _starts(guest: Machine, unit: str) -> int:
    return int(
        guest.sh(f"journalctl --sync; journalctl --no-pager -b -o cat -u {unit} | grep -c ^Started || true").stdout
    )


def test_a_path_unit_does_not_spin_while_dumps_wait(enabled: Machine) -> None:
    """--linger: the owner stays as long as anything is in its stage, also where that waits for its next attempt."""
    unit = "coresnap-processor.service"
    enabled.sh(
        "mkdir -p /etc/coresnap; echo 'snapshot.command = false' > /etc/coresnap/coresnap.conf; systemctl reload coresnapd\n"
        f"{CRASH}"
    )
    until(enabled, f"systemctl show -P StatusText {unit} | grep -q 'next try at'")
    before = _starts(enabled, unit)
    assert not until(enabled, f"! systemctl is-active -q {unit}", 10, check=False)
    assert _starts(enabled, unit) == before
    line = "ExecStart=/usr/local/lib/coresnap/process --once --worker-socket /run/coresnap/process"
    with with_lines(enabled, unit, "Service", "ExecStart=", line):
        enabled.sh(f"systemctl restart {unit}")
        assert not until(enabled, "false", 20, check=False)
        assert _starts(enabled, unit) >= before + 4, "it is started again and again"
    enabled.sh("rm /etc/coresnap/coresnap.conf; systemctl reload coresnapd")
    enabled.sh("coresnap list | awk '/^pending/ {print $1}' | xargs -r coresnap retry")


def test_many_starts_are_no_reason_to_stop(enabled: Machine) -> None:
    """StartLimitIntervalSec=0: dumps come when they come."""
    unit = "coresnap-sender.service"
    once = f"systemctl restart --no-block {unit}; systemctl kill -s KILL {unit} || true"
    often = f"for i in 1 2 3 4 5 6 7 8; do {once}; done; sleep 1; systemctl start {unit} 2>&1"
    assert enabled.sh(often, seconds=300, check=False).status == 0
    with with_lines(enabled, "coresnap-sender.service", "Unit", "StartLimitIntervalSec=60", "StartLimitBurst=5"):
        assert enabled.sh(often, seconds=300, check=False).status != 0


def test_a_storm_does_not_close_the_door(enabled: Machine) -> None:
    """TriggerLimitIntervalSec=0: a service that ends at once is started again, as often as it takes."""
    knock = (
        "import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect('/run/coresnap/handover');"
        " import time; time.sleep(8)"
    )
    at_once = ("Type=oneshot", "Restart=no", "ExecStart=", "ExecStart=/bin/true")
    with with_lines(enabled, "coresnap-archive.service", "Service", *at_once):
        # It would start again what the limit closes.
        enabled.sh("systemctl mask --runtime coresnap-fallback; systemctl stop coresnap-archive.service 2>&1")
        enabled.run("python3", "-c", knock)
        assert enabled.sh("systemctl is-active coresnap-handover.socket").stdout == "active\n"
        with with_lines(
            enabled, "coresnap-handover.socket", "Socket", "TriggerLimitIntervalSec=60s", "TriggerLimitBurst=4"
        ):
            enabled.sh("systemctl restart coresnap-handover.socket; systemctl stop coresnap-archive.service 2>&1")
            enabled.run("python3", "-c", knock)
            assert enabled.sh("systemctl is-active coresnap-handover.socket", check=False).stdout != "active\n"
    enabled.sh("systemctl unmask --runtime coresnap-fallback")
    enabled.sh("systemctl restart coresnap-archive.socket coresnap-handover.socket coresnap-archive.service")


def test_a_restart_of_systemd_sysctl_does_not_take_it_away(enabled: Machine) -> None:
    """/run/sysctl.d/99-coresnap.conf, while coresnapd cannot look."""
    enabled.sh("echo kernel.core_pattern=theirs > /etc/sysctl.d/70-theirs.conf")
    stopped = "systemctl kill -s STOP coresnapd"
    enabled.sh(f"{stopped}; systemctl restart systemd-sysctl; grep -q /coresnap/ {_CORE_PATTERN}")
    enabled.sh(
        f"mv /run/sysctl.d/99-coresnap.conf /root; systemctl restart systemd-sysctl; grep -q theirs {_CORE_PATTERN}"
    )
    enabled.sh(
        "mv /root/99-coresnap.conf /run/sysctl.d; rm /etc/sysctl.d/70-theirs.conf; systemctl restart systemd-sysctl"
    )
    enabled.sh(f"systemctl kill -s CONT coresnapd; grep -q /coresnap/ {_CORE_PATTERN}")


#: A process of 700 MB that crashes, and a wait until its core is being copied.
_BIG = (
    'python3 -c "import ctypes, os; b = bytearray(os.urandom(1 << 20)) * 700; ctypes.string_at(16)" & \n'
    'until [ -n "$(ls -A /var/lib/coresnap/staging)" ]; do sleep 0.02; done\n'
)


def _newest(guest: Machine, before: set[str]) -> dict[str, Any]:
    until(guest, '[ -z "$(ls -A /var/lib/coresnap/staging)" ]', 120)
    (dump,) = [dump for dump in dumps(guest) if dump["uuid"] not in before]
    record: dict[str, Any] = dump["record"]
    return record


def test_a_stop_in_mid_copy_waits_for_the_core(enabled: Machine) -> None:
    """KillMode=mixed and TimeoutStopSec=: what is under way is finished."""
    before = {dump["uuid"] for dump in dumps(enabled)}
    enabled.sh(f"{_BIG} systemctl restart coresnap-archive.service; wait || true", seconds=400)
    assert _newest(enabled, before)["core"]["truncated"] is None
    with with_lines(enabled, "coresnap-archive.service", "Service", "TimeoutStopSec=20ms"):
        before = {dump["uuid"] for dump in dumps(enabled)}
        enabled.sh(f"{_BIG} systemctl restart coresnap-archive.service; wait || true", seconds=400)
        assert _newest(enabled, before)["core"]["truncated"] is not None, "killed in mid-copy; what came is kept"


def test_a_crash_of_pid_1(enabled: Machine) -> None:
    """Its core is in the spool, and it ends as it does without coresnap. The guest is of no use afterwards."""
    enabled.run("kill", "-SEGV", "1")
    seen = 'for f in /var/lib/coresnap/pending/*/dump.json; do grep -q \'"comm":"systemd"\' $f && exit 0; done; false'
    until(enabled, f"( {seen} )", 120)
    until(enabled, "journalctl --no-pager -b -o cat _PID=1 | tail -1 | grep -q 'Freezing execution'", 120)
    assert "dumped core as pid" in enabled.sh("journalctl --no-pager -b -o cat _PID=1 | tail -2").stdout
