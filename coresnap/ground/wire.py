# SPDX-License-Identifier: Apache-2.0
"""What the owner of a stage and its workers say to each other: one JSON object a packet, with open descriptors beside it.

The connection is AF_UNIX, SOCK_SEQPACKET, on the worker's standard input; descriptors travel as SCM_RIGHTS (unix(7)).
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Sequence
from typing import Any

from coresnap.ground.errors import BadInput

LIMIT_BYTES = 128 << 10


def send(connection: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Send one message with its descriptors, which stay the caller's too. Raises OSError."""
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > LIMIT_BYTES:
        raise BadInput(f"a message of {len(data)} bytes, {LIMIT_BYTES} is the most")
    socket.send_fds(connection, [data], list(fds))


def receive(connection: socket.socket, max_fds: int) -> tuple[dict[str, Any], list[int]] | None:
    """Return the next message and its descriptors, which are the caller's to close; None at the end.

    Raises BadInput where it is no JSON object, is too long, or brings more than `max_fds` descriptors.
    """
    size = array.array("i").itemsize
    data, ancillary, flags, _address = connection.recvmsg(
        LIMIT_BYTES, socket.CMSG_SPACE(max_fds * size) if max_fds else 0, socket.MSG_CMSG_CLOEXEC
    )
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(payload[: len(payload) - len(payload) % size])
    if not data and not fds:
        return None
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise BadInput("a message is too long, or brings too many descriptors")
        try:
            message = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"a message is no JSON: {error}") from error
        if not isinstance(message, dict):
            raise BadInput("a message is no JSON object")
    except BadInput:
        for fd in fds:
            os.close(fd)
        raise
    return message, list(fds)
