# SPDX-License-Identifier: Apache-2.0
"""What crash.c does in its mode `null`, where there is no compiler: crash.py null [THREADS]. It knows no instruction."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path


def run(index: int, ready: threading.Barrier, threads: int) -> None:
    """Be one of the threads; the second dies, or the only one."""
    tid, name = threading.get_native_id(), f"worker-{index}"
    # The kernel's name of a thread: Python sets it from 3.14 on only.
    Path(f"/proc/self/task/{tid}/comm").write_text(name, encoding="ascii")
    ready.wait()
    while index != (threads > 1):
        time.sleep(60)
    said = {"pid": os.getpid(), "tid": tid, "name": name, "threads": threads, "signal": int(signal.SIGSEGV)}
    # SEGV_MAPERR: nothing is mapped at 16
    print(json.dumps({**said, "code": 1, "address": "0x10", "instruction": None}), flush=True)
    ctypes.string_at(16)


def main() -> None:
    """Start them."""
    threads = int(sys.argv[2]) if len(sys.argv) > 2 else 4
    ready = threading.Barrier(threads)
    for index in range(1, threads):
        threading.Thread(target=run, args=(index, ready, threads), daemon=True).start()
    run(0, ready, threads)


if __name__ == "__main__":
    main()
