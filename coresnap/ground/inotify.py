# SPDX-License-Identifier: Apache-2.0
"""A directory watched for what comes into it, or a file for what is written to it: inotify(7), through the C library."""

from __future__ import annotations

import ctypes
import os
import struct

from coresnap.ground.errors import Refused

_IN_MODIFY, _IN_MOVED_TO, _IN_CREATE, _IN_ATTRIB, _IN_ONLYDIR = 0x2, 0x80, 0x100, 0x4, 0x01000000
COMES_IN = _IN_MOVED_TO | _IN_CREATE | _IN_ATTRIB | _IN_ONLYDIR
WRITTEN = _IN_MODIFY

_EVENT = struct.Struct("iIII")


class Watch:
    """A watched directory or file. `fd` can be read when something has come into it, or been touched in it."""

    def __init__(self, watched_fd: int, mask: int = COMES_IN) -> None:
        """Start watching; `mask` is COMES_IN, for a directory, or WRITTEN, for a file.

        Raises Refused where the system has no inotify, or no watch left.
        """
        self.fd = -1
        self.touched: set[str] = set()
        library = ctypes.CDLL(None, use_errno=True)
        if not hasattr(library, "inotify_init1"):
            raise Refused("this system has no inotify")
        fd: int = library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        path = f"/proc/self/fd/{watched_fd}".encode()
        if fd < 0 or library.inotify_add_watch(fd, path, mask) < 0:
            reason = os.strerror(ctypes.get_errno())
            if fd >= 0:
                os.close(fd)
            raise Refused(f"inotify: {reason}", hint="see fs.inotify in /proc/sys")
        self.fd = fd

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self.fd)

    def drain(self) -> set[str]:
        """Take the events that have arrived; return the names that they are about.

        Those that somebody has touched (utimes(2), chmod(2)) are `touched` then. The empty name says that the queue has
        overflowed: the caller looks at the directory itself. struct inotify_event: watch, mask, cookie, length of the
        name, then the name, padded with NUL.
        """
        names = set()
        self.touched = set()
        try:
            while events := os.read(self.fd, 1 << 16):
                at = 0
                while at < len(events):
                    _watch, mask, _cookie, length = _EVENT.unpack_from(events, at)
                    at += _EVENT.size + length
                    name = os.fsdecode(events[at - length : at].rstrip(b"\0"))
                    names.add(name)
                    if mask & _IN_ATTRIB:
                        self.touched.add(name)
        except BlockingIOError:
            pass
        return names
