#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""clear.py - in a guest: say how many crashes a collector has, and clear them away

SYNOPSIS
    clear.py ours|peer CRASHES

DESCRIPTION
    Waits until the collector has kept so many, or has them on record, or until their number has not changed for a while;
    prints how many it has kept, and how many it has on record alone. `peer` keeps files of systemd-coredump's, and nothing
    else is asked of it; `ours` keeps dumps, and has the ledger.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PEER = Path("/var/lib/systemd/coredump")
_LOST_BEFORE = Path("/run/bench-lost")
#: The peer keeps what it keeps before it lets a process go, or soon after; ours is told of a crash that was lost a little later.
_UNCHANGED_SECONDS = {"ours": 60.0, "peer": 10.0}
_STOPPED_SECONDS, _TRY_LATER = 120.0, 75
_PATHS = ("coresnap-pending.path", "coresnap-sending.path")
_AT_WORK = ("coresnap-processor.service", "coresnap-sender.service", "coresnap-process@*", "coresnap-send@*")


def main() -> int:
    """Count and clear; return the exit status."""
    name, crashes = sys.argv[1:]
    count, clear = {"ours": (_ours, _clear_ours), "peer": (_peers, _clear_peer)}[name]
    print(*_settled(count, int(crashes), _UNCHANGED_SECONDS[name]))
    clear()
    return 0


def _settled(count: Callable[[], tuple[int, int]], crashes: int, unchanged_seconds: float) -> tuple[int, int]:
    known, since = count(), time.monotonic()
    while sum(known) < crashes and time.monotonic() - since < unchanged_seconds:
        time.sleep(1)
        now = count()
        if now != known:
            known, since = now, time.monotonic()
    return known


def _peers() -> tuple[int, int]:
    return sum(not path.name.startswith(".") for path in _PEER.iterdir()), 0


def _clear_peer() -> None:
    for path in _PEER.iterdir():
        path.unlink()


def _ours() -> tuple[int, int]:
    before = int(_LOST_BEFORE.read_text()) if _LOST_BEFORE.exists() else 0
    return len(_captured()), _lost() - before


def _captured() -> list[str]:
    """Return the dumps that are whole: of one in staging a process has been let go, and its capture is at work still."""
    return [dump["uuid"] for dump in _told("list", "--json") if dump["stage"] != "staging"]


def _lost() -> int:
    return sum("reason" in entry and not entry["kept"] for entry in _told("why", "--json", "-n", "10000"))


def _told(*words: str) -> list[Any]:
    done = subprocess.run(["coresnap", *words], stdout=subprocess.PIPE, check=False)
    told: list[Any] = json.loads(done.stdout or b"[]")
    return told


def _clear_ours() -> None:
    subprocess.run(["systemctl", "stop", *_PATHS, *_AT_WORK], check=True)
    end = time.monotonic() + _STOPPED_SECONDS
    while uuids := _captured():
        done = subprocess.run(["coresnap", "rm", "-y", *uuids], check=False, stdout=subprocess.DEVNULL)
        # A worker that has just been stopped, or a capture, may have a dump for a moment.
        if done.returncode not in (0, _TRY_LATER) or time.monotonic() > end:
            raise SystemExit(f"dumps cannot be cleared away: coresnap rm ends with {done.returncode}")
    _LOST_BEFORE.write_text(str(_lost()))
    subprocess.run(["systemctl", "start", *_PATHS], check=True)


if __name__ == "__main__":
    sys.exit(main())
