# SPDX-License-Identifier: Apache-2.0
"""The kernel's coredump socket: the server's side of a connection that a crashing process makes (Linux 6.17 and later).

Where core_pattern is `@@/path`, the kernel connects for each crash, sends a request, and goes by the answer: the core
follows on the same connection, or the process ends without one. Layouts: include/uapi/linux/coredump.h; of the process
behind the connection, include/uapi/linux/pidfd.h.
"""

import fcntl
import os
import socket
import struct
import time

from coresnap.capture.capture import has_exited
from coresnap.capture.source import Gone, Source
from coresnap.capture.victim import Victim, comm_of
from coresnap.ground.errors import BadInput

_HEAD = struct.Struct("=IIQ")
_MARK = struct.Struct("=I")
_REQUEST_MAX_BYTES = 4096
KERNEL, USERSPACE, REJECT, WAIT = 1, 2, 4, 8
_MARKS = {1: "the answer is too short", 2: "it is too long", 3: "it is not supported", 4: "it contradicts itself"}

_GONE = "the kernel closed its coredump socket: the process was killed before its core was asked for"

_PEER = struct.Struct("=iII")
_SO_PEERPIDFD = 77
_PIDFD_GET_INFO = 0xC048FF0B
_INFO = struct.Struct("=QQIII 8I iII")
_INFO_CREDENTIALS, _INFO_EXIT, _INFO_COREDUMP, _INFO_SIGNAL = 2, 8, 0x10, 0x40
_COREDUMPED, _DUMPED_AS_USER = 1, 4


class KernelSocket(Source):
    """A connection of the kernel's. The process is held until it is closed."""

    def __init__(self, connection: socket.socket) -> None:
        """Read the request. Raises Gone, BadInput, OSError."""
        super().__init__(connection.fileno(), "socket")
        self._connection = connection
        request = connection.recv(_HEAD.size, socket.MSG_WAITALL)
        if not request:
            raise Gone(_GONE)
        size_bytes = int.from_bytes(request[:4], "little")
        if not _HEAD.size <= size_bytes < _REQUEST_MAX_BYTES:
            raise BadInput(f"the coredump socket's request claims {size_bytes} bytes")
        if size_bytes > len(request) == _HEAD.size:  # a later kernel's has more fields
            request += connection.recv(size_bytes - _HEAD.size, socket.MSG_WAITALL)
        if len(request) < size_bytes:
            raise BadInput("the coredump socket's request is cut short")
        _size_bytes, answer_bytes, can = _HEAD.unpack_from(request)
        if answer_bytes < _HEAD.size or can & (KERNEL | WAIT) != KERNEL | WAIT:
            raise BadInput(f"the coredump socket can {can:#x}, and takes answers of {answer_bytes} bytes")

    def keeps_process(self) -> bool:
        """Say yes: that is what WAIT asks for."""
        return True

    def begin(self) -> None:
        """Have the kernel send the core, and hold the process until the connection is closed."""
        mark = self._answer(KERNEL | WAIT)
        if mark != 0:
            raise BadInput(f"the kernel will not send the core: {_MARKS.get(mark, mark)}")

    def acknowledge(self) -> None:
        """Have the kernel say that there is a core, and send none. Raises Gone, OSError."""
        self._answer(USERSPACE)

    def refuse(self) -> None:
        """Have the kernel end the process without a core: not one byte moves."""
        try:
            self._answer(REJECT)
        except (OSError, Gone):
            pass  # it has gone already

    def _answer(self, mask: int) -> int:
        try:
            self._connection.sendall(_HEAD.pack(_HEAD.size, 0, mask))
            data = self._connection.recv(_MARK.size, socket.MSG_WAITALL)
        except ConnectionError as error:
            raise Gone(_GONE) from error
        if len(data) < _MARK.size:
            raise Gone(_GONE)
        (mark,) = _MARK.unpack(data)
        return int(mark)


def peer_of(connection: socket.socket) -> tuple[int, int, int]:
    """Return whose connection it is, as fast as that can be known: the process, its effective user and group. Raises OSError."""
    pid, uid, gid = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return pid, uid, gid


def learn(victim: Victim, connection: socket.socket) -> None:
    """Add what the kernel tells of the process that crashes. Raises BadInput where it does not crash, OSError.

    Of one that has been killed meanwhile, and reaped, there is no more than `peer_of` tells.
    """
    pidfd = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    victim.pidfd = pidfd
    os.set_inheritable(pidfd, False)
    buffer = bytearray(_INFO.size)
    _INFO.pack_into(buffer, 0, _INFO_CREDENTIALS | _INFO_EXIT | _INFO_COREDUMP | _INFO_SIGNAL, *[0] * 15)
    fcntl.ioctl(pidfd, _PIDFD_GET_INFO, buffer)
    mask, _cgroup, _pid, tgid, _ppid, ruid, rgid, *_ids, _exit, dumped, number = _INFO.unpack(buffer)
    if not (mask & _INFO_COREDUMP and dumped & _COREDUMPED):
        raise BadInput(f"process {tgid} is at the coredump socket, and has not crashed")
    if tgid:
        victim.pid, victim.uid, victim.gid = tgid, ruid, rgid
    victim.dumpable = 1 if dumped & _DUMPED_AS_USER else 2
    victim.time = int(time.time())
    comm = comm_of(f"/proc/{tgid}")
    victim.comm = None if has_exited(pidfd) else comm  # its number may be another's by now
    if mask & _INFO_SIGNAL:
        victim.signal = number
