# SPDX-License-Identifier: Apache-2.0
"""What may go wrong with coresnap itself, and what becomes of the crashes meanwhile."""

from __future__ import annotations

import pytest

from tests.system.machine import Machine
from tests.system.test_traps import _CORE_PATTERN
from tests.system.waiting import CRASH, dumps, until, with_lines

pytestmark = pytest.mark.long


def _crash(guest: Machine) -> str:
    """Crash a process; return how its core came."""
    before = {dump["uuid"] for dump in dumps(guest)}
    guest.sh(CRASH)
    until(guest, f"[ $(coresnap list --json | grep -o '\"transport\"' | wc -l) -gt {len(before)} ]")
    (dump,) = [dump for dump in dumps(guest) if dump["uuid"] not in before]
    transport: str = dump["record"]["captured"]["transport"]
    return transport


def test_a_capture_service_that_cannot_start_is_done_without_until_it_can(enabled: Machine) -> None:
    service = "coresnap-archive.service"
    usual = _crash(enabled)
    assert usual in ("socket", "handover")
    with with_lines(enabled, service, "Service", "ExecStart=", "ExecStart=/bin/false"):
        enabled.sh(f"systemctl kill -s KILL {service}")
        until(
            enabled, "! systemctl is-active -q coresnap-handover.socket && ! systemctl is-active -q coresnap-fallback"
        )
        assert enabled.run("cat", _CORE_PATTERN).stdout.startswith("|")
        assert _crash(enabled) == "pipe"
    enabled.sh("systemctl start coresnap-rescue.service")  # as its timer does
    until(enabled, f"systemctl is-active -q {service}")
    if usual == "socket":
        assert _crash(enabled) == "handover"
        until(enabled, f"grep -q ^@@ {_CORE_PATTERN}", 100)
    assert _crash(enabled) == usual
