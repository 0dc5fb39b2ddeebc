# SPDX-License-Identifier: Apache-2.0
"""`systemctl enable --now coresnapd` is the whole installation: core_pattern is its own from then on, and given back."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.system.machine import Machine
from tests.system.waiting import CRASH, dumps, until

_CORE_PATTERN = "/proc/sys/kernel/core_pattern"


def _pattern(guest: Machine) -> str:
    return guest.sh(f"cat {_CORE_PATTERN}").stdout.strip()


def _is_ours(guest: Machine) -> bool:
    return "/coresnap/" in _pattern(guest)


def _committed(guest: Machine) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(guest.sh("coresnap list --json").stdout)
    return [entry for entry in found if entry["stage"] == "committed"]


def _journal(guest: Machine) -> str:
    return guest.sh("journalctl --sync; journalctl --no-pager -b -t coresnap -o cat").stdout


def test_status_says_how_it_stands(enabled: Machine) -> None:
    status = enabled.sh("systemctl status --no-pager -l coresnapd").stdout
    assert "active (running)" in status
    assert re.search(r"Main PID: \d+ \(coresnapd\)", status)
    line = enabled.sh("systemctl show -P StatusText coresnapd").stdout
    over = "over the kernel's socket" if "forky" in str(enabled.image.disk) else "through archive"
    assert over in line
    assert "systemd" in line.partition("core_pattern was")[2]
    assert "pending 0, sending 0, committed 0, failed 0" in line
    assert _is_ours(enabled)


def test_a_crash_goes_all_the_way(enabled: Machine) -> None:
    enabled.sh(CRASH)
    until(enabled, '[ -n "$(ls -A /var/lib/coresnap/committed)" ]')
    (dump,) = _committed(enabled)
    assert dump["record"]["victim"]["signal"] == 11
    assert dump["record"]["captured"]["transport"] in ("handover", "socket")
    uuid = dump["uuid"]
    stored = enabled.sh(f"stat -c %U:%a /var/lib/coresnap-store/blackhole/{uuid}.json").stdout
    assert stored == "coresnap-send:600\n"
    workers = enabled.sh("journalctl --sync; journalctl --no-pager -b -u 'coresnap-process@*'").stdout
    assert "a snapshot" in workers


def test_it_is_ours_after_what_others_do(enabled: Machine) -> None:
    """A restart of systemd-sysctl; systemd-coredump's own installation; a collector that writes it by itself."""
    enabled.sh("systemctl restart systemd-sysctl")
    assert _is_ours(enabled)
    enabled.sh("DPKG_MAINTSCRIPT_PACKAGE=systemd-coredump sh /var/lib/dpkg/info/systemd-coredump.postinst configure")
    until(enabled, f"grep -q /coresnap/ {_CORE_PATTERN}")
    enabled.sh(f"echo '|/lib/systemd/systemd-coredump %P' > {_CORE_PATTERN}")
    until(enabled, f"grep -q /coresnap/ {_CORE_PATTERN}")
    assert "systemd-coredump has taken core_pattern; it is coresnap's again" in _journal(enabled)


def test_what_an_administrator_writes_stays_and_is_complained_of(enabled: Machine) -> None:
    enabled.sh(f"echo core.%p > {_CORE_PATTERN}")
    until(enabled, "systemctl show -P StatusText coresnapd | grep -q 'CORES GO ELSEWHERE'")
    assert _pattern(enabled) == "core.%p"
    enabled.sh("systemctl restart coresnapd")
    assert _is_ours(enabled)


def test_a_restart_leaves_the_sockets_open(enabled: Machine) -> None:
    sockets = "systemctl show -P InvocationID coresnap-archive.socket coresnap-handover.socket coresnap-archive.service"
    before = enabled.sh(sockets).stdout
    enabled.sh("systemctl restart coresnapd")
    assert enabled.sh(sockets).stdout == before
    assert "is `core.%p` again" not in _journal(enabled)
    assert _is_ours(enabled)


def test_reload_takes_a_right_file_and_refuses_a_wrong_one(enabled: Machine) -> None:
    enabled.sh(
        "mkdir -p /etc/coresnap; echo 'dump.quota = 2%' > /etc/coresnap/coresnap.conf; systemctl reload coresnapd"
    )
    until(enabled, "grep -q 'quota_percent.2$' /var/cache/coresnap/archive.settings")
    wrong = enabled.sh(
        "echo 'dump.quota = 200%' > /etc/coresnap/coresnap.conf; systemctl reload coresnapd 2>&1", check=False
    )
    assert wrong.status != 0
    until(enabled, "journalctl --no-pager -b -u coresnapd | grep -q 'coresnap.conf:1: `dump.quota = 200%`'")
    assert enabled.sh("systemctl is-active coresnapd").stdout == "active\n"
    assert "quota_percent\t2\n" in enabled.sh("cat /var/cache/coresnap/archive.settings").stdout
    enabled.sh("rm /etc/coresnap/coresnap.conf; systemctl reload coresnapd")


def test_options_from_the_environment_file_and_another_spool(enabled: Machine) -> None:
    """The units follow dump.root: what they may write, where they look."""
    enabled.sh(
        "echo 'CORESNAPD_OPTS=\"--settings /etc/other.conf\"' > /etc/default/coresnapd\n"
        "echo 'dump.root = /srv/dumps' > /etc/other.conf\n"
        "systemctl restart coresnapd\n"
        f"{CRASH}"
    )
    until(enabled, '[ -n "$(ls -A /srv/dumps/committed)" ]')
    enabled.sh("rm /etc/default/coresnapd; systemctl restart coresnapd")
    assert (
        enabled.sh("ls /run/systemd/system | grep coresnap || true").stdout == ""
        or not enabled.sh("find /run/systemd/system -name 50-settings.conf").stdout
    )


def test_a_capture_service_that_fails_for_good_is_done_without(enabled: Machine) -> None:
    enabled.sh(
        "mkdir -p /run/systemd/system/coresnap-archive.service.d\n"
        "printf '[Service]\\nExecStart=\\nExecStart=/bin/false\\n' > /run/systemd/system/coresnap-archive.service.d/broken.conf\n"
        "systemctl daemon-reload; systemctl restart coresnap-archive.service 2>&1 || true"
    )
    until(enabled, f"grep -q '^|' {_CORE_PATTERN}")
    before = len(dumps(enabled))
    enabled.sh(CRASH)
    assert len(dumps(enabled)) == before + 1
    enabled.sh(
        "rm /run/systemd/system/coresnap-archive.service.d/broken.conf; systemctl daemon-reload\n"
        "systemctl reset-failed; systemctl restart coresnapd"
    )
    assert (
        enabled.sh("systemctl is-active coresnap-archive.socket coresnap-archive.service").stdout == "active\nactive\n"
    )
    over = "@@" if "forky" in str(enabled.image.disk) else "|"
    assert _pattern(enabled).startswith(over)


def test_a_collector_that_would_take_it_back_is_named(enabled: Machine) -> None:
    """Debian has no apport and no abrt: their core_pattern stands for them."""
    enabled.sh(f"systemctl stop coresnapd; cp {_CORE_PATTERN} /root/pattern")
    enabled.sh(f"echo '|/usr/share/apport/apport -p%p -s%s' > {_CORE_PATTERN}")
    assert enabled.sh("systemctl start coresnapd 2>&1", check=False).status != 0
    until(enabled, "journalctl --no-pager -b -t coresnap | grep -q 'service apport stop; echo \"enabled=0\"'")
    assert "apport" in _pattern(enabled)
    enabled.sh(f"cat /root/pattern > {_CORE_PATTERN}; systemctl start coresnapd")
    assert _is_ours(enabled)


def test_after_a_reboot_it_is_ours_again(enabled: Machine) -> None:
    enabled.reboot()
    until(enabled, "systemctl is-active -q coresnapd")
    assert _is_ours(enabled)
    before = len(_committed(enabled))
    enabled.sh(CRASH)
    until(enabled, f'[ "$(ls -A /var/lib/coresnap/committed | wc -l)" -gt {before} ]')


def _recorded_by_systemd(guest: Machine) -> None:
    before = guest.sh("coredumpctl list --no-pager --no-legend 2>/dev/null | wc -l").stdout.strip()
    guest.sh(CRASH)
    until(guest, f'[ "$(coredumpctl list --no-pager --no-legend 2>/dev/null | wc -l)" -gt {before} ]')


def test_stopped_or_disabled_the_one_before_records_crashes_again(enabled: Machine) -> None:
    enabled.sh("systemctl stop coresnapd")
    assert not _is_ours(enabled)
    until(enabled, '[ -z "$(ls -A /run/coresnap | grep -v -e ^gate -e ^carriers -e ^waiting)" ]')
    assert "99-coresnap" not in enabled.sh("ls /run/sysctl.d").stdout
    _recorded_by_systemd(enabled)
    enabled.sh("systemctl start coresnapd")
    assert _is_ours(enabled)
    enabled.sh("systemctl disable --now coresnapd 2>&1")
    _recorded_by_systemd(enabled)
    enabled.sh("systemctl enable --now coresnapd 2>&1; systemctl disable coresnapd 2>&1")
    assert _is_ours(enabled)
    enabled.reboot()
    assert not _is_ours(enabled)
    _recorded_by_systemd(enabled)
