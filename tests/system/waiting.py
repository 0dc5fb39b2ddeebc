# SPDX-License-Identifier: Apache-2.0
"""Crashes in a guest, and what becomes of them, waited for by what can be seen there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.system.booted import Booted

CRASH = "python3 -c 'import ctypes; ctypes.string_at(16)' || true"
#: The drop-in of `with_lines`.
LINES = "90-test.conf"
_JOURNALD = "systemd-journald.socket systemd-journald-dev-log.socket systemd-journald.service"
_CONFIGURATION = "/etc/coresnap/coresnap.conf"
#: Prints what a process's parent hears of its end: its number, the signal, and whether a core was dumped.
_END = """
import ctypes, os, resource, signal, sys
pid = os.fork()
if not pid:
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    exec(sys.argv[1])
    os.kill(os.getpid(), signal.SIGSEGV)
status = os.waitpid(pid, 0)[1]
print(pid, os.WTERMSIG(status), os.WCOREDUMP(status))
"""


def until(guest: Booted, condition: str, seconds: int = 90, *, check: bool = True) -> bool:
    """Wait in the guest until a shell condition holds; say whether it came to hold."""
    script = f"for i in $(seq {seconds * 5}); do if {condition}; then exit 0; fi; sleep 0.2; done; exit 1"
    return guest.sh(script, seconds=seconds * 4, check=check).status == 0


def dumps(guest: Booted) -> list[dict[str, Any]]:
    """Return the dumps, oldest first, once no capture is under way."""
    until(guest, '[ -z "$(ls -A /var/lib/coresnap/staging)" ]', 120)
    found: list[dict[str, Any]] = json.loads(guest.sh("coresnap list --json").stdout)
    return found


def lost(guest: Booted) -> list[dict[str, Any]]:
    """Return what the ledger has, newest first."""
    done = guest.sh("coresnap why --json -n 100000", check=False)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return [entry for entry in found if not entry["kept"] and "reason" in entry]


def end(guest: Booted, before: str = "", program: str = "python3") -> tuple[int, int, bool]:
    """Crash a process that runs `before`, in Python, first; return its number, its signal, and whether it dumped core.

    `program` is a Python interpreter.
    """
    pid, number, dumped = guest.run(program, "-c", _END, before).stdout.split()
    return int(pid), int(number), dumped == "True"


def all_committed(guest: Booted, seconds: int = 240) -> None:
    """Wait until every dump has gone all the way."""
    stages = " ".join(f"/var/lib/coresnap/{stage}" for stage in ("staging", "pending", "sending"))
    until(guest, f'[ -z "$(find {stages} -mindepth 1 -maxdepth 1)" ]', seconds)


@contextmanager
def settings(guest: Booted, *lines: str) -> Iterator[None]:
    """Have these settings in force for a while."""
    text = "\\n".join(lines)
    reload = "systemctl reload coresnapd; coresnap config --compile"
    guest.sh(f"mkdir -p $(dirname {_CONFIGURATION}); printf '%b\\n' '{text}' > {_CONFIGURATION}; {reload}")
    try:
        yield
    finally:
        guest.sh(f"rm {_CONFIGURATION}; {reload}")


@contextmanager
def with_lines(guest: Booted, unit: str, section: str, *lines: str) -> Iterator[None]:
    """Have other lines in a unit for a while."""
    path = f"/run/systemd/system/{unit}.d/{LINES}"
    text = "\\n".join([f"[{section}]", *lines])
    guest.sh(f"mkdir -p $(dirname {path}); printf '%b\\n' '{text}' > {path}; systemctl daemon-reload")
    try:
        yield
    finally:
        guest.sh(f"rm -f {path}; systemctl daemon-reload; systemctl reset-failed 'coresnap*' || true")


@contextmanager
def no_journal(guest: Booted) -> Iterator[None]:
    """Have no journald for a while, and see that it stays away.

    It is masked: else the audit record of its own stop, the next line that is written, or a service that wants it has it
    started, which cancels the stop.
    """
    guest.sh(f"systemctl mask --runtime --now {_JOURNALD} 2>&1")
    try:
        yield
        states = guest.sh(f"systemctl is-active {_JOURNALD}", check=False).stdout.split()
        assert set(states) <= {"inactive", "failed"}
    finally:
        guest.sh(f"systemctl unmask --runtime {_JOURNALD}; systemctl reset-failed 'systemd-journald*'")
        guest.sh(f"systemctl start {_JOURNALD} 2>&1")
