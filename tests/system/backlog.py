# SPDX-License-Identifier: Apache-2.0
"""What is shown in a guest and, faster, in a container: dumps that wait, and path units that have failed."""

from __future__ import annotations

import json
from contextlib import ExitStack

from tests.system.booted import Booted
from tests.system.waiting import LINES, until, with_lines

SPOOL = "/var/lib/coresnap"
_CORE = "/root/core"
_PATH, _TIMER = "coresnap-pending.path", "coresnap-rescue.timer"
_PROCESSOR = "coresnap-processor.service"
#: A service that ends at once, and so is started without end as long as a dump waits.
_AT_ONCE = (_PROCESSOR, "Service", "Type=oneshot", "Restart=no", "ExecStart=", "ExecStart=/bin/true")
#: What brings the path unit to fail, by the result that it fails with.
LIMITS: dict[str, list[tuple[str, ...]]] = {
    "unit-start-limit-hit": [(*_AT_ONCE, "[Unit]", "StartLimitIntervalSec=1h", "StartLimitBurst=3")],
    "trigger-limit-hit": [_AT_ONCE, (_PATH, "Path", "TriggerLimitIntervalSec=1h", "TriggerLimitBurst=3")],
}


def in_stage(guest: Booted, stage: str) -> set[str]:
    """Return the UUIDs of the dumps in a stage."""
    return set(guest.run("ls", f"{SPOOL}/{stage}").stdout.split())


def take_in(guest: Booted, core: bytes, count: int) -> set[str]:
    """Take a core into the spool, so many times; return the dumps' UUIDs."""
    guest.run("sh", "-c", f"cat > {_CORE}", stdin=core)
    uuids = guest.sh(f"coresnap import $(yes {_CORE} | head -n {count})", seconds=1200).stdout.split()
    assert len(set(uuids)) == count
    return set(uuids)


def wait_until_committed(guest: Booted, uuids: set[str], seconds: int) -> None:
    """Wait until these dumps are committed, each delivered once, and nothing has failed."""
    until(guest, f'[ -z "$(ls -A {SPOOL}/pending)$(ls -A {SPOOL}/sending)" ]', seconds)
    assert uuids <= in_stage(guest, "committed")
    assert not in_stage(guest, "failed")
    stored = guest.run("ls", "/var/lib/coresnap-store/blackhole").stdout.split()
    assert {name.removesuffix(".json") for name in stored if name.endswith(".json")} >= uuids
    assert failed_units(guest) == ""


def failed_units(guest: Booted) -> str:
    """Return what of coresnap systemd says has failed."""
    return guest.sh("systemctl list-units --failed --all --no-legend --no-pager 'coresnap*'").stdout


def started(guest: Booted, units: str) -> int:
    """Return how many services of this pattern have been started since the boot."""
    script = f"journalctl --sync; journalctl --no-pager -b -o cat -u '{units}' | grep -c '^Started ' || true"
    return int(guest.sh(script).stdout)


def hundreds_wait_at_boot(guest: Booted, core: bytes, count: int, seconds: int) -> None:
    """Have dumps wait in pending when the system boots, and see them all delivered."""
    guest.sh(f"systemctl stop coresnap.target; while systemctl is-active -q {_PROCESSOR}; do sleep 0.1; done")
    uuids = take_in(guest, core, count)
    assert in_stage(guest, "pending") == uuids
    guest.reboot()
    wait_until_committed(guest, uuids, seconds)
    assert started(guest, "coresnap-process@*") == count, "a worker of its own for each core"
    assert started(guest, "coresnap-send@*") == 1, "one worker for all deliveries"


def a_failed_path_unit_recovers(guest: Booted, core: bytes, result: str) -> None:
    """Bring the path unit to fail, so that a dump is stranded, and see coresnap-rescue.timer mend it."""
    (timer,) = json.loads(guest.sh(f"systemctl list-timers --all -o json {_TIMER}").stdout)
    now_usec = int(guest.run("date", "+%s").stdout) * 1_000_000
    assert 0 < timer["next"] - now_usec <= 7 * 60 * 1_000_000, "it is active, and due within minutes"
    with ExitStack() as stack:
        for unit, section, *lines in LIMITS[result]:
            stack.enter_context(with_lines(guest, unit, section, *lines))
        guest.sh(f"systemctl stop {_PATH} {_PROCESSOR}; systemctl start {_PATH}")
        uuids = take_in(guest, core, 1)
        until(guest, f"systemctl is-failed -q {_PATH}")
        assert guest.run("systemctl", "show", "-P", "Result", _PATH).stdout == f"{result}\n"
        guest.sh(f"rm /run/systemd/system/coresnap-*.d/{LINES}; systemctl daemon-reload")
        assert uuids <= in_stage(guest, "pending")
        stack.enter_context(with_lines(guest, _TIMER, "Timer", "OnActiveSec=", "OnActiveSec=1s", "AccuracySec=1s"))
        guest.sh(f"systemctl is-failed -q {_PATH}; systemctl restart {_TIMER}")
        wait_until_committed(guest, uuids, 120)
        assert guest.run("systemctl", "is-active", _PATH).stdout == "active\n"
    guest.sh(f"systemctl restart {_TIMER}")
