# SPDX-License-Identifier: Apache-2.0
"""A reader of evidence that stays, and reads for one capture after another: a crash costs it no fork.

One that has not read all in time, which may block for ever, is killed and not used again.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
from collections.abc import Callable

import coresnap.capture.modules  # noqa: F401  # its child wants it for some crashes
from coresnap.capture.evidence import Reader
from coresnap.capture.members import GO, STOP, Wish, send_members, widen
from coresnap.capture.reach import pin

_REQUEST_MAX_BYTES = 64 << 10


class ResidentReader(Reader):
    """Its child has nothing open of what its owner has, neither held processes nor the locks of dumps that are not finished."""

    def __init__(self, prepare: Callable[[], None]) -> None:
        """`prepare` is run in the child; it closes what the child must not hold."""
        super().__init__(())
        self._prepare = prepare
        self._requests: socket.socket | None = None

    def make_ready(self) -> None:
        """Start the child where there is none. Raises OSError."""
        if self._requests is not None:
            return
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._fd, write_fd = os.pipe()
        try:
            widen(write_fd)
            self._pid = os.fork()
            if self._pid == 0:
                self._serve(theirs, write_fd)
        except OSError:
            self.end(whole=False)
            raise
        finally:
            theirs.close()
            os.close(write_fd)

    def _serve(self, requests: socket.socket, write_fd: int) -> None:
        try:
            self._prepare()
            _close_all_but(0, 1, 2, requests.fileno(), write_fd)
            while True:
                request, fds, _flags, _address = socket.recv_fds(requests, _REQUEST_MAX_BYTES, 1)
                if not request:
                    break  # its owner has ended
                if request in (GO, STOP):
                    continue  # there were no files to be read
                modules_bytes, uid, *environ = request.decode().split("\0")
                wish = Wish(environ, int(modules_bytes), int(uid))
                send_members(write_fd, fds[0] if fds else -1, wish, pin, lambda: requests.recv(1))
                for fd in fds:
                    os.close(fd)
        except OSError:
            pass  # its owner is gone
        finally:
            os._exit(0)

    def start(self, proc_fd: int, wish: Wish) -> int:
        """Have the child read; return the descriptor that the members come from. Raises OSError."""
        if self._requests is None:  # one that is forked now would hold the crashed process, too
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        request = "\0".join([str(wish.modules_bytes), str(wish.uid), *wish.environ]).encode()
        try:
            socket.send_fds(self._requests, [request], [proc_fd] if proc_fd >= 0 else [])
        except OSError:
            self.end(whole=False)
            raise
        return self._fd

    def tell(self, word: bytes) -> None:
        """Say that the process has been let go: GO on with its files, or STOP. Raises OSError."""
        if self._requests is not None:
            self._requests.send(word)

    def end(self, *, whole: bool) -> None:
        """Keep the child for the next capture, or be done with it where it has not read all, or has ended."""
        if whole and self._lives():
            return
        if self._requests is not None:
            self._requests.close()
            self._requests = None
            os.close(self._fd)
        if self._pid > 0:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0 if whole else os.WNOHANG)
        self._fd = self._pid = -1

    def _lives(self) -> bool:
        """Say whether the child has its end of the pipe open still."""
        if self._requests is None:
            return False
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return not poll.poll(0)


def _close_all_but(*kept: int) -> None:
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd not in kept:
            try:
                os.close(fd)
            except OSError:
                pass  # that of the list itself
