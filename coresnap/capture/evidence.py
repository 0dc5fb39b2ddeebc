# SPDX-License-Identifier: Apache-2.0
"""Evidence: what /proc tells of the crashed process and of the host, read before it is gone.

What cannot block, and is wanted before the core, the capture reads itself: status and the names. The rest is read in a
child process that holds no pipe, no lock and no file of the dump: a read that blocks (an environ or an executable behind a
FUSE server that does not answer) then costs the asset what has not been read by the deadline, and never the core. The child
sends each member as it has it; what dies with the process comes first, and a mark follows it, after which the process need
not be held any longer. Mapped files that will not be reached later are pinned before that mark, and read once the process has
been let go: their unwind tables and symbols are members modules/START/OFFSET, in hex, of what stands there in the file.

Imported while a crashed process is held. Files and their layouts: proc(5), proc_pid(5).
"""

import os
import select
import time

from coresnap.capture.members import (
    END,
    FIRST_FILES,
    GO,
    HEADER,
    HOST_FILES,
    LATE_FILES,
    MARK,
    MODULES,
    STOP,
    VICTIM_FILES,
    VICTIM_LINKS,
    WHOLE,
    Wish,
    link,
    read,
    send_members,
    widen,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from coresnap.capture.reach import Pinned

_FILES_NAMED_MAX = 20


class Reader:
    """The child that reads for one capture. capture_service's heir of it reads for one after another."""

    def __init__(self, held_fds: "Sequence[int]") -> None:
        """`held_fds` are what the child must not hold: the crashed process would be held with them."""
        self._held_fds = held_fds
        self._pid = -1
        self._fd = self._tell_fd = -1

    def start(self, proc_fd: int, wish: "Wish") -> int:
        """Start reading; return the descriptor that the members come from. Raises OSError."""
        self._fd, write_fd = os.pipe()
        told_fd, self._tell_fd = os.pipe()
        try:
            self._pid = os.fork()
            if self._pid == 0:
                self._be_the_child(proc_fd, wish, write_fd, told_fd)
        finally:
            os.close(write_fd)
            os.close(told_fd)
        return self._fd

    def _be_the_child(self, proc_fd: int, wish: "Wish", write_fd: int, told_fd: int) -> None:
        try:
            for fd in (*self._held_fds, self._fd, self._tell_fd):
                os.close(fd)
            widen(write_fd)
            send_members(write_fd, proc_fd, wish, _pin, lambda: os.read(told_fd, 1))
        except OSError:
            pass  # the parent has gone on without us
        finally:
            os._exit(0)

    def tell(self, word: bytes) -> None:
        """Say that the process has been let go: GO on with its files, or STOP. Raises OSError."""
        os.write(self._tell_fd, word)

    def end(self, *, whole: bool) -> None:
        """Be done with the child: it is killed, not waited for, where it has not read all."""
        for fd in (self._fd, self._tell_fd):
            if fd >= 0:
                os.close(fd)
        if self._pid > 0:
            if not whole:
                os.kill(self._pid, 9)
            os.waitpid(self._pid, 0 if whole else os.WNOHANG)


def _pin(proc_fd: int, maps: bytes, suspects: "list[bytes]", uid: int) -> "list[Pinned]":
    from coresnap.capture.reach import pin  # few crashes need it

    return pin(proc_fd, maps, suspects, uid)


class Evidence:
    """The members read so far, in their order, and the child that reads more."""

    __slots__ = ("_buffer", "_fd", "_forgotten", "_reader", "_sink", "_unread", "members", "read_whole", "victim_read")

    def __init__(self, proc: "str | None", wish: "Wish", reader: "Reader") -> None:
        """Start reading. `proc` is the directory of the process in /proc, None where it is not known."""
        self.members: dict[str, bytes] = {}
        self.victim_read = self.read_whole = False
        self._forgotten = False
        self._unread: set[str] = set()
        self._sink: Callable[[str, bytes], None] | None = None
        self._buffer = bytearray()
        self._reader: Reader | None = reader
        proc_fd = _directory(proc)
        try:
            self._fd = reader.start(proc_fd, wish)
        except OSError:  # no process, or no descriptor, to be had: the core is still taken
            self._fd = -1
            self.victim_read = self.read_whole = True
        if proc_fd >= 0:
            self.members.update(_first(proc_fd))
            os.close(proc_fd)

    def wait_for_victim(self, budget_usec: int) -> None:
        """Return once the victim's part has been read, or after `budget_usec` with what there is by then."""
        self._receive(time.monotonic() + budget_usec / 1e6, until_mark=True)

    def wait_for_host(self, budget_usec: int, sink: "Callable[[str, bytes], None] | None" = None) -> None:
        """Take the rest, and be done with the child, in time or not. Once is enough.

        `sink` is given name and contents of each piece of a mapped file, after all other members are there; without one
        no file is read.
        """
        if self._reader is None:
            return
        self._sink = sink
        if not self.read_whole:
            try:
                self._reader.tell(GO if sink is not None and not self._forgotten else STOP)
            except OSError:
                pass  # it has ended, as will be seen
        self._receive(time.monotonic() + budget_usec / 1e6, until_mark=False)
        self._reader.end(whole=self.read_whole)
        self._reader = None

    def forget_victim(self) -> None:
        """Drop the victim's part, and what is still to come of it: it may be another process's."""
        self._forgotten = True
        self.members = {name: data for name, data in self.members.items() if name.startswith("host/")}

    def missing(self) -> "list[str]":
        """Return the names of the members that could not be read, or not in time."""
        victim = [f"proc/{name}" for name, _limit in (*FIRST_FILES, *VICTIM_FILES, *LATE_FILES)]
        links = [f"proc/{name}" for name in (*VICTIM_LINKS, "fd", "task")]
        host = [f"host/{name}" for name, _path, _limit in HOST_FILES]
        files = sorted(self._unread)[:_FILES_NAMED_MAX]
        return [*(name for name in (*victim, *links, *host) if name not in self.members), *files]

    def _receive(self, deadline: float, until_mark: bool) -> None:
        if self.read_whole:
            return
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        while not self.read_whole and not (until_mark and self.victim_read):
            left_msec = int((deadline - time.monotonic()) * 1000)
            if left_msec <= 0 or not poll.poll(left_msec):
                return
            block = os.read(self._fd, 1 << 18)
            self.read_whole = not block
            self._buffer += block
            self._split()

    def _split(self) -> None:
        """Take the whole members off the buffer."""
        at = 0
        while len(self._buffer) - at >= HEADER.size:
            name_bytes, data_bytes = HEADER.unpack_from(self._buffer, at)
            end = at + HEADER.size + name_bytes + data_bytes
            if end > len(self._buffer):
                break
            name = self._buffer[at + HEADER.size : at + HEADER.size + name_bytes].decode()
            self._take(name, bytes(self._buffer[end - data_bytes : end]))
            at = end
        del self._buffer[:at]

    def _take(self, name: str, data: bytes) -> None:
        if name == MARK:
            self.victim_read = True
            self._unread.update(data.decode().split())
        elif name == WHOLE:
            self._unread.discard(data.decode())
        elif name == END:
            self.read_whole = True
        elif name.startswith(MODULES):
            if self._sink is not None and not self._forgotten:
                self._sink(name, data)
        elif not self._forgotten or name.startswith("host/"):
            self.members[name] = data


def _directory(proc: "str | None") -> int:
    if proc is None:
        return -1
    try:
        return os.open(proc, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return -1


def _first(proc_fd: int) -> "Iterator[tuple[str, bytes]]":
    for name, limit_bytes in FIRST_FILES:
        data = read(name, limit_bytes, proc_fd)
        if data is not None:
            yield f"proc/{name}", data
    for name in VICTIM_LINKS:
        target = link(name, proc_fd)
        if target is not None:
            yield f"proc/{name}", target
