# SPDX-License-Identifier: Apache-2.0
"""The capture service's side of the hand-over, up to the descriptors."""

from __future__ import annotations

import os
import socket
import struct
import sys

from coresnap.capture import handover
from coresnap.capture.board import Crash
from coresnap.capture.handover import HandedOver
from coresnap.capture.source import Source, Withdrawn
from coresnap.capture.victim import Victim, from_core_pattern
from coresnap.ground.errors import BadInput

_PEER = struct.Struct("=iII")


def from_archive(connection: socket.socket, fds: list[int], crash: Crash, uuid: str) -> tuple[Victim, Source, str, int]:
    """Take what archive hands over, its descriptors into `fds`; it stands on the board, as `crash`, under this UUID.

    Raises Withdrawn where archive has given up waiting, BadInput where it is not archive, or not root.
    """
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    _pid, uid, _gid = _PEER.unpack(peer)
    if uid not in (0, os.geteuid()):
        raise BadInput(f"user {uid} at the hand-over socket")
    try:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, crash.board_fd.to_bytes(4, sys.byteorder))]
        connection.sendmsg([handover.ready_for(crash.at, uuid)], rights)
    except OSError as error:
        raise Withdrawn("archive has waited for long enough") from error
    try:
        message, passed, _flags, _address = socket.recv_fds(connection, handover.LIMIT_BYTES, handover.FDS_MAX)
    except ConnectionResetError as error:
        raise Withdrawn("archive was killed before it had read that") from error
    fds += passed
    known = handover.read(message)
    if known is None or len(fds) < 2:
        raise BadInput("what came over the hand-over socket is not archive's")
    started_nsec, arguments = known
    for fd in fds:
        os.set_inheritable(fd, False)
    victim = from_core_pattern(arguments)
    victim.pidfd = fds[2] if len(fds) > 2 else None
    crash.put(victim, uuid, is_offered=True)
    note_fd = fds[3] if len(fds) > 3 else -1
    return victim, HandedOver(fds[0], connection, note_fd, crash.take), f"/proc/self/fd/{fds[1]}", started_nsec
