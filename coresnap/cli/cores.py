# SPDX-License-Identifier: Apache-2.0
"""Cores and assets of dumps as the command line reads them: plain, compressed, encrypted."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from coresnap.cli import dumps
from coresnap.ground import durable
from coresnap.ground.errors import Refused, TryLater
from coresnap.spool import compressed, encrypted, stages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from coresnap.spool.record import Record
    from coresnap.spool.stages import Dump

_HOW_TO_DECRYPT = "`coresnap dump` and `coresnap debug` take --identity FILE, the private key"


def is_encrypted(dump: Dump, name: str) -> bool:
    """Say whether the dump has its core, or its asset, encrypted alone."""
    names = dumps.names_of(dump)
    plain = (dumps.CORE, stages.COMPRESSED) if name == dumps.CORE else (name,)
    return not any(one in names for one in plain) and any(one + stages.AGE in names for one in plain)


def open_core(dump: Dump) -> tuple[int, bool]:
    """Open the dump's core for reading; say whether it is compressed. Raises Refused, BadInput."""
    if is_encrypted(dump, dumps.CORE):
        raise Refused(f"{dump.stage}/{dump.uuid}: its core is encrypted", hint=_HOW_TO_DECRYPT)
    if dumps.CORE not in dumps.names_of(dump):  # it is unlinked once there is the other
        try:
            return dumps.open_plainly(dump, stages.COMPRESSED), True
        except FileNotFoundError:
            pass
    return dumps.open_file(dump, dumps.CORE), False


def open_sealed(dump: Dump, name: str) -> tuple[int, bool]:
    """Open the dump's encrypted core, or asset, as it is; say whether what is in it is compressed. Raises Refused."""
    is_compressed = name == dumps.CORE and stages.COMPRESSED + stages.AGE in dumps.names_of(dump)
    return dumps.open_file(dump, (stages.COMPRESSED if is_compressed else name) + stages.AGE), is_compressed


@contextmanager
def unsealed(fd: int, is_compressed: bool, identity: str) -> Iterator[int]:
    """Yield a pipe of what is in an encrypted core or asset, unpacked, by the private key in the file `identity`.

    Raises Refused, BadInput.
    """
    with ExitStack() as stack:
        pipe_fd = stack.enter_context(encrypted.opened(fd, identity))
        yield stack.enter_context(compressed.opened(pipe_fd)) if is_compressed else pipe_fd


def plain_core(dump: Dump, document: Record, identity: str | None = None) -> int:
    """Open the dump's core so that it opens again by its descriptor; a packed one is unpacked into a file without a name.

    `identity` is the file of the private key, for one that is encrypted. Raises Refused, BadInput, TryLater.
    """
    if identity is not None and is_encrypted(dump, dumps.CORE):
        return _decrypted(dump, document, identity)
    fd, is_compressed = open_core(dump)
    if not is_compressed:
        return dumps.opens_again(fd)
    try:
        with tempfile.TemporaryFile(dir=dumps.LARGE) as file:
            compressed.unpack(fd, file.fileno(), document["core"]["size_bytes"])
            return os.dup(file.fileno())
    except OSError as error:
        raise TryLater(
            f"{dumps.LARGE}: {error.strerror}", hint="the core is unpacked there: free some space"
        ) from error
    finally:
        os.close(fd)


def _decrypted(dump: Dump, document: Record, identity: str) -> int:
    fd, is_compressed = open_sealed(dump, dumps.CORE)
    try:
        with tempfile.TemporaryFile(dir=dumps.LARGE) as file, unsealed(fd, is_compressed, identity) as pipe_fd:
            for offset, piece in compressed.pieces(pipe_fd, zeros=False):
                durable.pwrite(file.fileno(), piece, offset)
            os.ftruncate(file.fileno(), document["core"]["size_bytes"])
            return os.dup(file.fileno())
    except OSError as error:
        raise TryLater(
            f"{dumps.LARGE}: {error.strerror}", hint="the core is decrypted there: free some space"
        ) from error
    finally:
        os.close(fd)
