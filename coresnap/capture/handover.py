# SPDX-License-Identifier: Apache-2.0
"""The hand-over: archive, started by the kernel for one crash, gives it to the resident capture service and is gone.

Packets over an AF_UNIX socket, SOCK_SEQPACKET. A worker of the service that has accepted the connection says READY, one
byte, and where the crash will stand on its board (coresnap.capture.board), 8 bytes, under which UUID, and the board's
descriptor. Before that archive sends nothing: a descriptor that lies in a queue holds the process, and cannot be called back.
Then archive sends HEADER, CLOCK_MONOTONIC at archive's start in nanoseconds, and archive's arguments, each after a NUL byte; with
it the descriptors of the core's pipe, of /proc/PID, where the kernel gave one of the process (a pidfd), and, where it hands
over for another that waits, of that one's note (coresnap.capture.carry). The service answers TAKEN, one byte, just before it
reads the core. Until then archive keeps its descriptors and may take the crash back, by shutting its end for reading: an
answer arrives before that, or it fails. Where the worker dies without an answer archive looks at the board, as the sweep will:
a byte there says whether the crash was taken, so that both, or neither, is never the one that has it.

Imported while a crashed process is held.
"""

import os
import sys

from coresnap.capture.source import Source, Withdrawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

PATH = "/run/coresnap/handover"
HEADER = b"coresnap-handover 2"
READY = b"?"
TAKEN = b"+"
_AT_BYTES = 8
_READY_BYTES = 1 + _AT_BYTES + 36
LIMIT_BYTES = 4096
FDS_MAX = 4
#: Whose crashes archive captures by itself: PID 1, journald and coresnap cannot serve while they are held. archive.sh has
#: the same.
_NOT_SERVED = (b"/init.scope", b"/systemd-journald", b"/coresnap.slice/")


def is_served(pid: str, proc_fd: int) -> bool:
    """Say whether a crash of this process can be given to the service. Raises OSError."""
    fd = os.open("cgroup", os.O_RDONLY, dir_fd=proc_fd)
    try:
        cgroup = os.read(fd, 4096)
    finally:
        os.close(fd)
    return pid != "1" and not any(group in cgroup for group in _NOT_SERVED)


def offer(path: str, started_nsec: int, arguments: "list[str]", fds: "list[int]", wait_msec: int) -> bool:
    """Offer the crash to the service that listens at `path`; say whether it was taken. Raises nothing."""
    import _socket  # what socket itself imports costs as much as the interpreter's start

    message = _message(started_nsec, arguments)
    board_fds: list[int] = []
    if len(message) > LIMIT_BYTES:
        return False
    rights = b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds)
    try:
        connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    except OSError:
        return False
    try:
        connection.setblocking(False)  # a full queue is no place to wait in
        connection.connect(path)
        connection.settimeout(wait_msec / 1000)
        ready, passed, _flags, _address = connection.recvmsg(_READY_BYTES, _socket.CMSG_SPACE(4))
        board_fds = [int.from_bytes(data[:4], sys.byteorder) for _level, _type, data in passed]
        if not ready.startswith(READY):
            return False
        try:
            connection.sendmsg([message], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
            answer = connection.recv(1)
        except TimeoutError:
            connection.setblocking(False)
            connection.shutdown(_socket.SHUT_RD)
            return connection.recv(1) == TAKEN
        except OSError:
            answer = b""
        return answer == TAKEN or (not answer and any(_was_taken(fd, ready) for fd in board_fds))
    except OSError:
        return False
    finally:
        connection.close()
        for fd in board_fds:
            os.close(fd)


def ready_for(at: int, uuid: str) -> bytes:
    """Return what a worker says: READY, the offset on its board where the crash will stand, and under which UUID."""
    return READY + at.to_bytes(_AT_BYTES, "little") + uuid.encode()


def _was_taken(board_fd: int, ready: bytes) -> bool:
    """Say what the board tells after the worker has died. Raises OSError."""
    uuid = ready[1 + _AT_BYTES :]
    return os.pread(board_fd, len(uuid) + 1, int.from_bytes(ready[1 : 1 + _AT_BYTES], "little")) == uuid + b"\0"


def is_short(arguments: "list[str]") -> bool:
    """Say whether these can be handed over: a path may be too long."""
    return len(_message(1 << 64, arguments)) <= LIMIT_BYTES


def _message(started_nsec: int, arguments: "list[str]") -> bytes:
    return b"\0".join([HEADER, str(started_nsec).encode(), *map(os.fsencode, arguments)])


def read(message: bytes) -> "tuple[int, list[str]] | None":
    """Return archive's start and its arguments; None where the message is not of this protocol."""
    header, _nul, rest = message.partition(b"\0")
    started, *arguments = rest.split(b"\0")
    if header != HEADER or not started.isdigit() or len(started) > 20:
        return None
    return int(started), [os.fsdecode(argument) for argument in arguments]


class HandedOver(Source):
    """A core that archive offers; it is ours from the answer on."""

    def __init__(
        self,
        pipe_fd: int,
        connection: "socket.socket",
        note_fd: int = -1,
        on_take: "Callable[[bool], None] | None" = None,
    ) -> None:
        """`note_fd` is of the note by which an archive that waits knows that its crash has been taken.

        `on_take` is called with yes just before archive is told so, and with no where that cannot be told.
        """
        super().__init__(pipe_fd, "handover")
        self._connection = connection
        self._note_fd = note_fd
        self._on_take = on_take or (lambda _is_taken: None)
        self._is_settled = False

    def fds(self) -> "tuple[int, ...]":
        """Return the pipe and the connection."""
        return (self.fd, self._connection.fileno())

    def begin(self) -> None:
        """Take the crash over. Raises Withdrawn where archive has taken it back, or has died."""
        try:
            self._take()
        except OSError as error:
            raise Withdrawn("archive has taken the crash back") from error

    def refuse(self) -> None:
        """Take the crash over, so that archive does not try what is refused here a second time."""
        try:
            self._take()
        except OSError:
            pass  # archive comes to the same end by itself

    def _take(self) -> None:
        if self._is_settled:
            return
        self._is_settled = True
        self._on_take(True)
        try:
            self._connection.send(TAKEN)
        except OSError:
            self._on_take(False)
            raise
        if self._note_fd >= 0:
            try:
                os.pwrite(self._note_fd, TAKEN, 0)
            except OSError:
                pass  # /run is full: who offered it has been told
