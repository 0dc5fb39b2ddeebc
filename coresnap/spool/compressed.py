# SPDX-License-Identifier: Apache-2.0
"""Cores as Zstandard frames (RFC 8878), made and read by zstd(1): a program of its own, bounded by the runner.

A core is compressed after its snapshot, off the held path, and only where that takes less of the disk. What has been
written is read back and checked against its checksum before the core may go.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from coresnap.ground import durable, runner
from coresnap.ground.errors import BadInput, CoresnapError

_LEAST_BYTES = 4096
_MEMORY_BYTES = 1 << 30
_PIECE_BYTES = 64 << 10
_BLOCK_BYTES = 1 << 20
_ZEROS = bytes(_PIECE_BYTES)


def compress(source_fd: int, target_fd: int, most_bytes: int, timeout_usec: int, abandon_fd: int = -1) -> str:
    """Compress a file into another, empty one, of at most `most_bytes`, and check it; return why not, or nothing.

    The two steps may take `timeout_usec` each. Raises nothing but OSError.
    """
    os.lseek(source_fd, 0, os.SEEK_SET)
    try:
        made = runner.run(
            ["zstd", "-q", "-c", f"--stream-size={os.fstat(source_fd).st_size}"],
            timeout_usec=timeout_usec,
            stdin=source_fd,
            output=target_fd,
            memory_bytes=_MEMORY_BYTES,
            file_size_bytes=max(most_bytes, _LEAST_BYTES),
            abandon_fd=abandon_fd,
        )
        if made.signal == signal.SIGXFSZ or b"File too large" in made.output:
            return "it would not become smaller"
        if made.status == 0:
            os.lseek(target_fd, 0, os.SEEK_SET)
            made = runner.run(
                ["zstd", "-q", "-t"],
                timeout_usec=timeout_usec,
                stdin=target_fd,
                memory_bytes=_MEMORY_BYTES,
                abandon_fd=abandon_fd,
            )
    except CoresnapError as error:
        return error.line()
    return "" if made.status == 0 else f"zstd: {made.ending()}"


@contextmanager
def opened(fd: int) -> Iterator[int]:
    """Yield a pipe from which the compressed file at `fd` is read plainly.

    Raises Refused where there is no zstd, BadInput at the end where what was read is not whole.
    """
    with runner.reading(["zstd", "-d", "-q", "-c"], stdin=fd) as (pipe_fd, ending):
        yield pipe_fd
        if problem := ending():
            raise BadInput(f"the compressed core is not whole: {problem}")


def pieces(pipe_fd: int, *, zeros: bool) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of what comes through a pipe, with or without the pieces that are nothing but zeros."""
    offset = 0
    with os.fdopen(os.dup(pipe_fd), "rb", _BLOCK_BYTES) as file:
        while piece := file.read(_PIECE_BYTES):
            if zeros or piece != _ZEROS[: len(piece)]:
                yield offset, piece
            offset += len(piece)


def unpack(fd: int, target_fd: int, size_bytes: int) -> None:
    """Write a compressed core of `size_bytes` to an empty file, with holes for its zeros. Raises Refused, BadInput, OSError."""
    with opened(fd) as pipe_fd:
        for offset, piece in pieces(pipe_fd, zeros=False):
            durable.pwrite(target_fd, piece, offset)
    os.ftruncate(target_fd, size_bytes)
