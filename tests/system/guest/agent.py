# SPDX-License-Identifier: Apache-2.0
"""The guest's end of the command channel: runs what the host asks for, one command at a time.

A request is a line of JSON, {"argv": [...], "seconds": n, "stdin_bytes": n}, and the bytes of standard input; an answer is a
line of JSON, {"status": n, "stdout_bytes": n, "stderr_bytes": n}, and the bytes of both. A status of -1000 is a time-out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

TIMED_OUT = -1000


def read(fd: int, count: int) -> bytes:
    """Read exactly `count` bytes; an end of file means that the host is not there yet, or no more."""
    blocks = []
    while count:
        block = os.read(fd, min(count, 1 << 16))
        if not block:
            raise EOFError
        blocks.append(block)
        count -= len(block)
    return b"".join(blocks)


def read_line(fd: int) -> bytes:
    """Read up to the end of a line."""
    line = bytearray()
    while not line.endswith(b"\n"):
        line += read(fd, 1)
    return bytes(line)


def run(argv: list[str], stdin: bytes, seconds: float) -> tuple[int, bytes, bytes]:
    """Run a command to its end."""
    try:
        done = subprocess.run(argv, input=stdin, capture_output=True, timeout=seconds, check=False, cwd="/")
    except subprocess.TimeoutExpired as late:
        return TIMED_OUT, late.stdout or b"", late.stderr or b""
    except OSError as error:
        return 127, b"", f"{argv[0]}: {error.strerror}\n".encode()
    return done.returncode, done.stdout, done.stderr


def main() -> int:
    """Serve until the machine goes down."""
    fd = os.open(sys.argv[1], os.O_RDWR)
    while True:
        try:
            request = json.loads(read_line(fd))
        except EOFError:
            time.sleep(0.1)  # the host has not connected yet, and nothing tells when it does
            continue
        stdin = read(fd, request["stdin_bytes"])
        status, stdout, stderr = run(request["argv"], stdin, request["seconds"])
        head = {"status": status, "stdout_bytes": len(stdout), "stderr_bytes": len(stderr)}
        answer = memoryview(json.dumps(head).encode() + b"\n" + stdout + stderr)
        while answer:
            answer = answer[os.write(fd, answer) :]


if __name__ == "__main__":
    sys.exit(main())
