# SPDX-License-Identifier: Apache-2.0
"""A file system with one file, served by this process until it is stopped: stalling.py MOUNTPOINT FILE NAME

The file is NAME below MOUNTPOINT, with the contents of FILE. Its server, once mounted, writes a line and goes on in the
background, its number in that line. Nothing is cached but what has been read. Protocol: include/uapi/linux/fuse.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

INIT, LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, FLUSH, INTERRUPT, BATCH_FORGET = 26, 1, 2, 3, 14, 15, 18, 25, 36, 42
_IN, _OUT = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")
_ROOT, _FILE = 1, 2
_NO_ANSWER = (FORGET, INTERRUPT, BATCH_FORGET)
_REQUEST_MAX_BYTES = 1 << 20


def _attributes(node: int, size_bytes: int) -> bytes:
    mode = 0o100755 if node == _FILE else 0o40755
    return struct.pack("<6Q10I", node, size_bytes, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def _answer(opcode: int, node: int, body: bytes, name: bytes, data: bytes) -> bytes | int:
    """Return the answer, or an error number."""
    size_bytes = len(data) if node == _FILE else 0
    if opcode == INIT:
        return struct.pack("<IIIIHHIIHHI7I", 7, 31, 1 << 16, 0, 16, 12, 1 << 16, 1, 0, 0, 0, *[0] * 7)
    if opcode == LOOKUP:
        if node != _ROOT or body.rstrip(b"\0") != name:
            return errno.ENOENT
        return struct.pack("<QQQQII", _FILE, 0, 3600, 0, 0, 0) + _attributes(_FILE, len(data))
    if opcode == GETATTR:
        return struct.pack("<QII", 0, 0, 0) + _attributes(node, size_bytes)
    if opcode == OPEN:
        return struct.pack("<QII", 1, 0, 0)
    if opcode == READ:
        _handle, offset, count = struct.unpack_from("<QQI", body)
        return data[offset : offset + count]
    return b"" if opcode in (RELEASE, FLUSH) else errno.ENOSYS


def serve(fd: int, name: bytes, data: bytes) -> None:
    """Answer requests until the file system is gone."""
    while True:
        try:
            request = os.read(fd, _REQUEST_MAX_BYTES)
        except OSError as error:
            if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                continue
            return
        _length, opcode, unique, node, *_rest = _IN.unpack_from(request)
        if opcode in _NO_ANSWER:
            continue
        answer = _answer(opcode, node, request[_IN.size :], name, data)
        failed, body = (-answer, b"") if isinstance(answer, int) else (0, answer)
        try:
            os.write(fd, _OUT.pack(_OUT.size + len(body), failed, unique) + body)
        except OSError as error:
            if error.errno != errno.ENOENT:  # nobody waits for it any more
                return


def main() -> int:
    """Mount, and serve in the background."""
    place, source, name = sys.argv[1:]
    with open(source, "rb") as file:
        data = file.read()
    fd = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    if ctypes.CDLL(None, use_errno=True).mount(b"stalling", os.fsencode(place), b"fuse", 0, options):
        print(os.strerror(ctypes.get_errno()), file=sys.stderr)
        return 1
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        return 0
    null_fd = os.open(os.devnull, os.O_RDWR)
    os.dup2(null_fd, 0)
    os.dup2(null_fd, 1)
    serve(fd, os.fsencode(name), data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
