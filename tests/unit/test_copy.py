# SPDX-License-Identifier: Apache-2.0
"""The copy: byte for byte, sparse, one pass, and an account of how it ended."""

from __future__ import annotations

import errno
import os
import random
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from coresnap.capture import copy as copying
from coresnap.capture.copy import BUFFER_BYTES, PAGE_BYTES, Copied, copy
from coresnap.ground import durable
from coresnap.spool import stages
from coresnap.spool.quota import Reservation
from coresnap.spool.stages import Spool

#: The start of a 64-bit little-endian x86-64 core.
HEAD = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    stages.prepare(str(tmp_path / "spool"), -1, -1)
    with Spool(str(tmp_path / "spool")) as opened:
        yield opened


def _copy(spool: Spool, data: bytes, path: Path, pieces: int = 65536, ceiling_bytes: int = 0) -> Copied:
    """Copy `data` through a pipe that gets it in pieces."""
    read_fd, write_fd = os.pipe()

    def feed() -> None:
        try:
            for at in range(0, len(data), pieces):
                os.write(write_fd, data[at : at + pieces])
        except BrokenPipeError:
            pass
        os.close(write_fd)

    core_fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    reservation = Reservation(spool, 0, ceiling_bytes, 0)
    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        copied = copy(read_fd, core_fd, reservation)
        os.ftruncate(core_fd, copied.size_bytes)
    finally:
        os.close(read_fd)
        os.close(core_fd)
        feeder.join()
        reservation.close()
    return copied


def _pages(seed: int, count: int, share: float) -> bytes:
    chance = random.Random(seed)
    pages = (chance.randbytes(PAGE_BYTES) if chance.random() < share else bytes(PAGE_BYTES) for _ in range(count))
    return HEAD.ljust(PAGE_BYTES, b"\1") + b"".join(pages)


@pytest.mark.parametrize("pieces", [100, 4096, 65536])
@pytest.mark.parametrize("tail", [0, 1, 4095, 5000])
def test_every_byte_arrives(spool: Spool, tmp_path: Path, pieces: int, tail: int) -> None:
    data = _pages(pieces, 700, 0.4) + b"\0" * (tail // 2) + b"x" * (tail - tail // 2)
    copied = _copy(spool, data, tmp_path / "core", pieces)
    assert (copied.size_bytes, copied.reason) == (len(data), "")
    assert (tmp_path / "core").read_bytes() == data


@pytest.mark.parametrize("size", [PAGE_BYTES - 1, BUFFER_BYTES - 1, BUFFER_BYTES, BUFFER_BYTES + 1, 2 * BUFFER_BYTES])
def test_sizes_around_the_buffer(spool: Spool, tmp_path: Path, size: int) -> None:
    data = HEAD.ljust(size - 5, b"\0") + b"12345"
    copied = _copy(spool, data, tmp_path / "core")
    assert copied.size_bytes == size
    assert (tmp_path / "core").read_bytes() == data


def test_zero_pages_are_holes(spool: Spool, tmp_path: Path) -> None:
    data = _pages(1, 4096, 0.25) + bytes(8 * BUFFER_BYTES)
    _copy(spool, data, tmp_path / "core")
    full = sum(any(data[at : at + PAGE_BYTES]) for at in range(0, len(data), PAGE_BYTES))
    blocks_bytes = (tmp_path / "core").stat().st_blocks * 512
    assert (tmp_path / "core").stat().st_size == len(data)
    assert blocks_bytes <= full * PAGE_BYTES * 1.01 + PAGE_BYTES


def test_what_is_no_core_is_not_written(spool: Spool, tmp_path: Path) -> None:
    copied = _copy(spool, b"#!/bin/sh\n" * 1000, tmp_path / "core")
    assert copied.reason == "not-a-core"
    assert (tmp_path / "core").stat().st_blocks == 0


def test_nothing_is_nothing(spool: Spool, tmp_path: Path) -> None:
    copied = _copy(spool, b"", tmp_path / "core")
    assert (copied.size_bytes, copied.reason) == (0, "")


def test_the_ceiling_stops_the_copy(spool: Spool, tmp_path: Path) -> None:
    copied = _copy(spool, _pages(3, 4096, 1), tmp_path / "core", ceiling_bytes=4 << 20)
    assert copied.reason == "quota"
    assert "dump.ceiling" in copied.detail
    assert copied.size_bytes <= 6 << 20


@pytest.mark.parametrize(("code", "reason"), [("ENOSPC", "disk-full"), ("EDQUOT", "disk-full"), ("EIO", "write-error")])
def test_a_failing_disk_is_told(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, reason: str
) -> None:
    writes = 0

    def fail_the_third(operation: str, _name: str) -> int | None:
        nonlocal writes
        writes += operation == "write"
        if writes == 3:
            raise OSError(getattr(errno, code), code)
        return None

    monkeypatch.setattr(durable, "fault", fail_the_third)
    data = _pages(4, 1024, 0.5)
    copied = _copy(spool, data, tmp_path / "core")
    assert copied.reason == reason
    assert (tmp_path / "core").read_bytes() == data[: copied.size_bytes]


def test_a_failing_source_ends_the_copy(spool: Spool, tmp_path: Path) -> None:
    core_fd = os.open(tmp_path / "core", os.O_RDWR | os.O_CREAT, 0o600)
    directory_fd = os.open(tmp_path, os.O_RDONLY)
    reservation = Reservation(spool, 0, 0, 0)
    copied = copy(directory_fd, core_fd, reservation)
    assert copied.reason == "cut-short"
    assert "Is a directory" in copied.detail
    reservation.close()
    os.close(core_fd)
    os.close(directory_fd)
    assert copying.BUFFER_BYTES % PAGE_BYTES == 0
