# SPDX-License-Identifier: Apache-2.0
"""Files as age(1) encrypts them, to public keys: a program of its own, bounded by the runner. Format: age-encryption.org/v1.

What this machine has encrypted it cannot read. That age has written all is taken from its exit status, its header and the size.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from coresnap.ground import durable, runner
from coresnap.ground.errors import BadInput, CoresnapError
from coresnap.spool import stages
from coresnap.spool.record import Record
from coresnap.spool.stages import Dump

TOOL = "age"
#: What may be encrypted, once it is.
NAMES = (stages.CORE + stages.AGE, stages.COMPRESSED + stages.AGE, stages.ASSETS + stages.AGE)
HEADER = b"age-encryption.org/v1\n"


def encrypt(source_fd: int, target_fd: int, keys: Sequence[str], timeout_usec: int, abandon_fd: int = -1) -> str:
    """Encrypt a file into another, empty one; return why that failed, or nothing: it is empty again then.

    What are holes in the one is as long as all else in the other. Raises nothing but OSError.
    """
    problem = _encrypt(source_fd, target_fd, keys, timeout_usec, abandon_fd)
    if problem:
        os.ftruncate(target_fd, 0)  # there are captures that need the room
    return problem


def _encrypt(source_fd: int, target_fd: int, keys: Sequence[str], timeout_usec: int, abandon_fd: int) -> str:
    os.lseek(source_fd, 0, os.SEEK_SET)
    size_bytes, disk = os.fstat(source_fd).st_size, os.fstatvfs(target_fd)
    if size_bytes + size_bytes // 1000 > disk.f_bavail * disk.f_frsize:
        return f"the disk has no room for {size_bytes} bytes more, holes and all"
    try:
        made = runner.run(
            [TOOL, "--encrypt", *(word for key in keys for word in ("--recipient", key))],
            timeout_usec=timeout_usec,
            stdin=source_fd,
            output=target_fd,
            abandon_fd=abandon_fd,
        )
    except CoresnapError as error:
        return error.line()
    if made.status:
        return f"{TOOL}: {made.ending()}"
    return "" if is_whole(target_fd, size_bytes) else f"{TOOL}: what it wrote is not whole"


def is_whole(fd: int, plain_bytes: int) -> bool:
    """Say whether the file can be what so many bytes have been encrypted to."""
    return os.pread(fd, len(HEADER), 0) == HEADER and os.fstat(fd).st_size > plain_bytes


def core_of(document: Record) -> str:
    """Return the name of the file that the core is in, by the record."""
    name = stages.CORE if document["core"]["compressed_bytes"] is None else stages.COMPRESSED
    return name if document["encrypted"] is None else name + stages.AGE


def take(dump: Dump, document: Record, recipients: Sequence[str]) -> None:
    """Take what has been encrypted to `recipients`, their fingerprints, into the record, once it is on the disk.

    Where there are none, or a file is not whole, nothing is encrypted. What is not needed goes. Raises OSError, BadInput.
    """
    wanted: list[str] = []
    if recipients and document["encrypted"] is None:
        plain = _plain(dump, is_compressed=document["core"]["compressed_bytes"] is not None)
        if is_done(dump, is_compressed=plain[0] == stages.COMPRESSED):
            document["encrypted"] = {"tool": TOOL, "recipients": list(recipients)}
            document["core"]["disk_bytes"] = _status(dump, plain[0] + stages.AGE).st_blocks * 512
            wanted = [name + stages.AGE for name in plain]
    if document["encrypted"] is None or wanted:
        for name in NAMES:
            if name not in wanted and durable.exists(dump.fd, name):
                durable.unlink(dump.fd, name)


def is_done(dump: Dump, *, is_compressed: bool) -> bool:
    """Say whether all that is to be encrypted is, and on the disk; the core in the form in which it is kept. Raises OSError."""
    return all(_is_taken(dump, name) for name in _plain(dump, is_compressed=is_compressed))


def _plain(dump: Dump, *, is_compressed: bool) -> list[str]:
    assets = [stages.ASSETS] if durable.exists(dump.fd, stages.ASSETS) else []
    return [stages.COMPRESSED if is_compressed else stages.CORE, *assets]


def _is_taken(dump: Dump, name: str) -> bool:
    """Say whether the file is whole in its encrypted form, which is on the disk then."""
    if not (durable.exists(dump.fd, name) and durable.exists(dump.fd, name + stages.AGE)):
        return False
    fd = durable.open_regular(dump.fd, name + stages.AGE)
    try:
        durable.sync(fd)
        return is_whole(fd, _status(dump, name).st_size)
    finally:
        os.close(fd)


def _status(dump: Dump, name: str) -> os.stat_result:
    return os.stat(name, dir_fd=dump.fd, follow_symlinks=False)


@contextmanager
def opened(fd: int, identity: str) -> Iterator[int]:
    """Yield a pipe from which the encrypted file at `fd` is read plainly, with the private key in the file `identity`.

    Raises Refused where there is no age, BadInput at the end where the key is not one of the recipients', or the file not whole.
    """
    with runner.reading([TOOL, "--decrypt", "--identity", os.path.abspath(identity)], stdin=fd) as (pipe_fd, ending):
        try:
            yield pipe_fd
        except BadInput:  # of whoever reads what this one has not made whole
            while os.read(pipe_fd, 1 << 20):
                pass
            _judge(ending())
            raise
        _judge(ending())


def _judge(problem: str) -> None:
    if problem:
        hint = ""
        if "passphrase" in problem:
            hint = "that needs a terminal: `coresnap dump` without --identity, then age by hand"
        elif "no identity matched" in problem:
            hint = "it is not encrypted to this key: `coresnap info` says to which"
        raise BadInput(f"it cannot be decrypted: {problem}", hint=hint)
