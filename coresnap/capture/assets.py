# SPDX-License-Identifier: Apache-2.0
"""The asset of a dump, written member by member: a TAR (ustar, pax(1p)) of plain files, those of mapped files at its end."""

from __future__ import annotations

import errno
import os
import tarfile
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from coresnap.capture.capture import OVERHEAD_BYTES
from coresnap.ground import durable
from coresnap.ground.redact import Redaction
from coresnap.spool.quota import QuotaExceeded

if TYPE_CHECKING:
    from coresnap.spool.quota import Reservation

ASSETS = "assets.tar"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_BLOCK_BYTES = 512
#: Two blocks of zeros.
_END = bytes(2 * _BLOCK_BYTES)


class Assets:
    """An asset under way. Close it when done.

    Where there is no room for the evidence there is no asset; where there is none for a piece of a mapped file, none from it on.
    `problem` says why, for the record.
    """

    def __init__(self, dump_fd: int, owner: tuple[int, int, int], reservation: Reservation | None) -> None:
        """Create it in the dump. Raises OSError."""
        self.problem = ""
        self.size_bytes = 0
        self._dump_fd = dump_fd
        self._reservation = reservation
        self._evidence_bytes = 0
        self._fd = durable.create(dump_fd, ASSETS, *owner)

    def put_evidence(self, members: Mapping[str, bytes], redaction: Redaction) -> None:
        """Write these members, in their order, before all else. Raises OSError where it is not the disk that is full."""
        redact = {"proc/cmdline": redaction.argv, "proc/environ": redaction.environ}
        self._put(b"".join(_member(name, redact.get(name, bytes)(data)) for name, data in members.items()))
        self._evidence_bytes = self.size_bytes

    def put_piece(self, name: str, data: bytes) -> None:
        """Write a piece of a mapped file, if there is room for it and for what comes after the asset. Raises as put_evidence."""
        block = _member(name, data)
        try:
            if self._reservation is not None and not self.problem:
                self._reservation.ensure(len(block) + OVERHEAD_BYTES)
        except QuotaExceeded:
            self.problem = "dump.quota or dump.ceiling is reached"
        except OSError as error:
            self._blame(error)
        if self._put(block) and self._reservation is not None:
            self._reservation.spend(len(block))

    def finish(self) -> None:
        """End it, and have it on the disk, or take it away where there is no room for it. Raises as put_evidence."""
        self._put(_END, even_so=self._evidence_bytes > 0)
        if self.size_bytes:
            durable.sync(self._fd)
        else:
            durable.unlink(self._dump_fd, ASSETS)

    def close(self) -> None:
        """Close its file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _put(self, block: bytes, *, even_so: bool = False) -> bool:
        """Write behind what there is; say no where there is no room, and take back all pieces then."""
        if self.problem and not even_so:
            return False
        try:
            durable.pwrite(self._fd, block, self.size_bytes)
        except OSError as error:
            self._blame(error)
            self.size_bytes = self._evidence_bytes
            durable.truncate(self._fd, self.size_bytes)
            return False
        self.size_bytes += len(block)
        return True

    def _blame(self, error: OSError) -> None:
        if error.errno not in _FULL:
            raise error
        self.problem = "the disk is full"


def _member(name: str, data: bytes) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    member.mode = 0o400
    member.mtime = int(time.time())
    return member.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % _BLOCK_BYTES)
