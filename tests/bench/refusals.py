# SPDX-License-Identifier: Apache-2.0
"""What it takes to refuse a crash over the kernel's socket, by a limit and by the quota, and what counting adds.

Run it by itself: refusals.py [PAIRS]. The kernel is played over a pair of sockets; the kinds are measured in turns.
"""

from __future__ import annotations

import os
import socket
import statistics
import struct
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from coresnap.capture.capture import Capture
from coresnap.capture.finish import finish
from coresnap.capture.kernel_socket import KernelSocket
from coresnap.capture.victim import Victim
from coresnap.ground.flat import ArchiveSettings
from coresnap.spool import ledger, limits, stages
from coresnap.spool.stages import Spool

_REQUEST = struct.pack("=IIQ", 16, 16, 15) + struct.pack("=I", 0)
_HOUR = 3_600_000_000


def _settings(root: Path, quota_percent: int, most: int) -> ArchiveSettings:
    settings = ArchiveSettings()
    settings.root = str(root)
    settings.quota_percent = quota_percent
    settings.limit_exe = settings.limit_unit = settings.limit_user = most, _HOUR
    return settings


def _capture(settings: ArchiveSettings) -> Capture:
    victim = Victim()
    victim.pid, victim.uid, victim.gid, victim.comm = os.getpid(), os.getuid(), os.getgid(), "refusals"
    victim.pidfd = os.pidfd_open(os.getpid())
    return Capture(settings, victim, "socket", time.monotonic_ns())


def _refused_usec(settings: ArchiveSettings, reason: str) -> float:
    """Return the time from the connection to the answer."""
    kernel, ours = socket.socketpair()
    with kernel, ours:
        kernel.sendall(_REQUEST)
        started_nsec = time.perf_counter_ns()
        capture = _capture(settings)
        capture.hold(KernelSocket(ours), f"/proc/{os.getpid()}")
        usec = (time.perf_counter_ns() - started_nsec) / 1000
        assert kernel.recv(16)[8] == 4
    assert capture.reason == reason, capture.detail
    finish(capture)
    os.close(capture.victim.pidfd or -1)
    return usec


def _asked_usec(settings: ArchiveSettings) -> float:
    """Return the time that settings take of a crash that is kept."""
    capture = _capture(settings)
    with Spool(settings.root) as spool:
        capture.spool = spool
        started_nsec = time.perf_counter_ns()
        capture._ask_the_settings(f"/proc/{os.getpid()}")  # it is what is measured
        usec = (time.perf_counter_ns() - started_nsec) / 1000
        if capture.admission is not None:
            capture.admission.give_back(spool.root_fd)
    os.close(capture.victim.pidfd or -1)
    return usec


def main() -> int:
    """Measure; print medians and quartiles."""
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 301
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory) / "spool"
        stages.prepare(str(root), -1, -1)
        with Spool(str(root)) as spool:
            ledger.prepare(spool.root_fd)
            limits.prepare(spool.root_fd)
        full, limited, free, off = (
            _settings(root, 100, 5),
            _settings(root, 0, 1),
            _settings(root, 0, 1_000_000),
            _settings(root, 0, 0),
        )
        _asked_usec(limited)
        capture = _capture(limited)
        with Spool(str(root)) as capture.spool:
            capture._ask_the_settings(f"/proc/{os.getpid()}")  # the one that is kept
        rows = [
            (
                _refused_usec(full, "quota"),
                _refused_usec(limited, "rate"),
                _asked_usec(off),
                _asked_usec(free),
            )
            for _pair in range(pairs)
        ]
    for name, values in zip(
        ("refused: quota", "refused: rate", "asked: no limit", "asked: counted"), zip(*rows, strict=True), strict=True
    ):
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"{name}: {middle:.0f} ({low:.0f}-{high:.0f}) us, of {pairs}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
