#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""carriers.py - in a guest: kill each archive that carries the crashes of others, until the file GO is gone; print how many

An archive carries once its own crash has been taken: its input is no pipe any more, and it has the pipe `carriers` open.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path


def _carries(process: Path) -> bool:
    if (
        b"coresnap.archive" not in (process / "cmdline").read_bytes()
        or os.readlink(process / "fd" / "0") != "/dev/null"
    ):
        return False
    return any(os.readlink(fd) == "/run/coresnap/carriers" for fd in (process / "fd").iterdir())


def main() -> int:
    """Kill; return the exit status."""
    killed = 0
    while Path(sys.argv[1]).exists():
        for process in Path("/proc").iterdir():
            with suppress(OSError):
                if process.name.isdigit() and _carries(process):
                    os.kill(int(process.name), signal.SIGKILL)
                    killed += 1
        time.sleep(0.2)
    print(killed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
