# SPDX-License-Identifier: Apache-2.0
"""Python that dies in a thread of its own, in a C function that it calls: deaths.py null|abort|recursion|thread."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import threading


def innermost(mode: str) -> None:
    """Die."""
    if mode == "abort":
        os.abort()
    ctypes.string_at(16)


def middle(mode: str, depth: int) -> None:
    """Call itself, then the end."""
    if depth:
        middle(mode, depth - 1)
    else:
        innermost(mode)


def main() -> None:
    """Say in which functions of the interpreter it will be, and die."""
    mode = sys.argv[1]
    print(json.dumps({"functions": ["abort"] if mode == "abort" else []}), flush=True)
    if mode != "thread":
        middle(mode, 3)
    thread = threading.Thread(target=middle, args=(mode, 3))
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
