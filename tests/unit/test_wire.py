# SPDX-License-Identifier: Apache-2.0
"""Owner and worker: one object a packet, descriptors beside it, everything else refused and closed."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from coresnap.ground import wire
from coresnap.ground.errors import BadInput

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def _open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_messages_and_descriptors_arrive(pair: Pair) -> None:
    read_fd, write_fd = os.pipe()
    wire.send(pair[0], {"a": 1}, [write_fd])
    os.close(write_fd)
    received = wire.receive(pair[1], max_fds=2)
    assert received is not None
    message, (fd,) = received
    assert message == {"a": 1}
    assert not os.get_inheritable(fd)
    os.write(fd, b"x")
    assert os.read(read_fd, 2) == b"x"
    os.close(fd)
    os.close(read_fd)


def test_the_end_is_none(pair: Pair) -> None:
    pair[0].close()
    assert wire.receive(pair[1], max_fds=1) is None


@pytest.mark.parametrize("data", [b"[]", b"{", b"\xff", b"1", b"[" * 60000, b"x" * 70000])
def test_what_is_no_object_is_refused_and_its_descriptors_closed(pair: Pair, data: bytes) -> None:
    before = _open_fds()
    socket.send_fds(pair[0], [data], [0])
    with pytest.raises(BadInput, match="message"):
        wire.receive(pair[1], max_fds=1)
    assert _open_fds() == before


@pytest.mark.parametrize("allowed", [0, 2])
def test_too_many_descriptors_are_refused_and_closed(pair: Pair, allowed: int) -> None:
    before = _open_fds()
    socket.send_fds(pair[0], [b"{}"], [0] * 4)
    with pytest.raises(BadInput, match="too many descriptors"):
        wire.receive(pair[1], max_fds=allowed)
    assert _open_fds() == before


def test_a_message_that_is_too_long_is_not_sent(pair: Pair) -> None:
    with pytest.raises(BadInput, match="131072 is the most"):
        wire.send(pair[0], {"x": "y" * 140000})
