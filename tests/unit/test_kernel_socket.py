# SPDX-License-Identifier: Apache-2.0
"""The kernel's side of its coredump socket, played: what it asks for, and when it is gone."""

from __future__ import annotations

import socket
import struct

import pytest

from coresnap.capture.kernel_socket import KernelSocket
from coresnap.capture.source import Gone
from coresnap.ground.errors import BadInput

_REQUEST = struct.pack("=IIQ", 16, 16, 15)


def test_the_core_is_asked_for() -> None:
    kernel, ours = socket.socketpair()
    with kernel, ours:
        kernel.sendall(_REQUEST + struct.pack("=I", 0))
        source = KernelSocket(ours)
        source.begin()
        assert kernel.recv(100) == struct.pack("=IIQ", 16, 0, 1 | 8)
        assert source.keeps_process()


@pytest.mark.parametrize("request_bytes", [_REQUEST[:3], _REQUEST[:15], struct.pack("=IIQ", 5000, 16, 15)])
def test_what_is_no_request_is_refused(request_bytes: bytes) -> None:
    kernel, ours = socket.socketpair()
    with ours:
        with kernel:
            kernel.sendall(request_bytes)
        with pytest.raises(BadInput):
            KernelSocket(ours)


def test_a_process_that_was_killed_meanwhile_is_gone() -> None:
    """Before its request, before the answer to it, and after that: nothing of it is a mistake of coresnap's."""
    kernel, ours = socket.socketpair()
    with ours:
        kernel.close()
        with pytest.raises(Gone):
            KernelSocket(ours)
    kernel, ours = socket.socketpair()
    with ours:
        kernel.sendall(_REQUEST)
        source = KernelSocket(ours)
        kernel.close()
        with pytest.raises(Gone):
            source.begin()
        source.refuse()
    kernel, ours = socket.socketpair()
    with ours:
        kernel.sendall(_REQUEST)
        source = KernelSocket(ours)
        kernel.shutdown(socket.SHUT_WR)
        with pytest.raises(Gone):
            source.begin()
    kernel.close()
