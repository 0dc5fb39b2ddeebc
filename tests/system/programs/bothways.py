#!/usr/bin/python3 -I
# SPDX-License-Identifier: Apache-2.0
"""A core_pattern helper: take a core with its memory read from the process, then the kernel's own dump of it, and compare.

bothways.py RESULT PID < CORE; the result is JSON. The kernel waits with its dump where nobody reads, so both are of one crash.
"""

import json
import os
import sys

sys.path.insert(0, "/usr/local/lib/coresnap/python")

from coresnap.capture.copy import copy
from coresnap.spool.quota import Reservation
from coresnap.spool.stages import Spool

_BLOCK_BYTES = 1 << 20


def compare(core_fd: int, pid: str) -> dict[str, object]:
    """Return how long the core is, how much of it the kernel had still to send, and where the two differ first."""
    with Spool("/var/lib/coresnap") as spool:
        reservation = Reservation(spool, 0, 0, 0)
        copied = copy(0, core_fd, reservation, 0, f"/proc/{pid}")
        reservation.close()
    os.ftruncate(core_fd, copied.size_bytes)
    blocks = []
    while block := os.read(0, _BLOCK_BYTES):
        blocks.append(block)
    theirs_bytes = sum(map(len, blocks))
    at, differs = copied.size_bytes - theirs_bytes, -1
    for block in blocks:
        ours = os.pread(core_fd, len(block), at)
        if ours != block and differs < 0:
            differs = at + next((i for i, (a, b) in enumerate(zip(ours, block, strict=False)) if a != b), len(ours))
        at += len(block)
    return {
        "reason": copied.reason,
        "size_bytes": copied.size_bytes,
        "disk_bytes": os.fstat(core_fd).st_blocks * 512,
        "theirs_bytes": theirs_bytes,
        "differs_at": differs,
    }


def main() -> None:
    """Compare, and leave the result behind."""
    result, pid = sys.argv[1:]
    for fd in (1, 2):
        os.dup2(os.open(result + ".log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), fd)
    core_fd = os.open(result + ".core", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    text = json.dumps(compare(core_fd, pid))
    with open(result + ".new", "w", encoding="ascii") as file:
        file.write(text)
    os.rename(result + ".new", result)


if __name__ == "__main__":
    main()
