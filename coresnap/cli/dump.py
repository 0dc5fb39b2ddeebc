# SPDX-License-Identifier: Apache-2.0
"""Write a dump's core, or its asset or snapshot, to a file or to standard output.

A core's holes stay holes in a file. The file must not exist; it is made readable for its owner alone, for a core has
all that was in the process's memory.

What is encrypted is written as it is, unless the private key is given; `age -d -i KEY | zstd -d` reads such a core elsewhere.

examples:
  coresnap dump 8460 -o core.vim
  coresnap dump 8460 --asset | tar tv
  coresnap dump 8460 --snapshot | jq .attributes
  coresnap dump 8460 --identity ~/.ssh/id_ed25519 -o core.vim
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from functools import partial
from typing import TYPE_CHECKING

from coresnap.cli import cores, dumps, terminal
from coresnap.cli.terminal import Progress
from coresnap.ground import durable
from coresnap.ground.errors import Refused, TryLater
from coresnap.spool import compressed

if TYPE_CHECKING:
    import argparse

    from coresnap.spool.stages import Dump

_BLOCK_BYTES = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("dump", metavar="UUID", help="the dump, [STAGE/]BEGINNING-OF-UUID")
    parser.add_argument("-o", "--output", metavar="FILE", default="-", help="write to this new file; - is stdout")
    parser.add_argument("--identity", metavar="FILE", help="the private key, of age or ssh, for what is encrypted")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--asset", dest="name", action="store_const", const=dumps.ASSETS, help="the TAR of evidence")
    what.add_argument("--snapshot", dest="name", action="store_const", const=dumps.SNAPSHOT, help="the snapshot")
    parser.set_defaults(name=dumps.CORE)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.output == "-" and sys.stdout.isatty():
        raise Refused(f"a {args.name} is not for a terminal", hint="name a file with -o, or pipe it on")
    with dumps.open_to_read(dumps.dump_root(args.settings)) as spool, dumps.open_dump(spool, args.dump) as dump:
        is_compressed, size_bytes, is_sealed = False, 0, cores.is_encrypted(dump, args.name)
        if is_sealed:
            source_fd, is_compressed = cores.open_sealed(dump, args.name)
            size_bytes = _size_bytes(dump, args.name)
        elif args.name == dumps.CORE:
            source_fd, is_compressed = cores.open_core(dump)
            size_bytes = dumps.load_record(dump)["core"]["size_bytes"] if is_compressed else 0
        else:
            source_fd = dumps.open_file(dump, args.name)
    if is_sealed and args.identity is None:
        how = "age -d -i KEY" + (" | zstd -d" if is_compressed else "")
        terminal.note(f"it is encrypted, and written so: `{how}` reads it, or --identity KEY here")
        is_sealed = is_compressed = False
    copy = partial(_unseal, args.identity) if is_sealed else _copy_any
    if args.output == "-":
        copy(source_fd, 1, args.name, is_compressed, size_bytes)
        return 0
    target_fd = _create(args.output)
    try:
        copy(source_fd, target_fd, args.output, is_compressed, size_bytes)
    except BaseException as error:
        os.unlink(args.output)
        if isinstance(error, OSError):
            raise TryLater(f"{args.output}: {error.strerror}", hint="nothing is left of it") from error
        raise
    return 0


def _create(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise Refused(f"{path} exists", hint="name a new file") from error
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}") from error


def _copy_any(source_fd: int, target_fd: int, name: str, is_compressed: bool, size_bytes: int) -> None:
    if is_compressed:
        _unpack(source_fd, target_fd, name, size_bytes)
    else:
        _copy(source_fd, target_fd, name)


def _size_bytes(dump: Dump, name: str) -> int:
    document = dumps.load_record(dump)
    size_bytes: int = document["core" if name == dumps.CORE else "assets"]["size_bytes"]
    return size_bytes


def _unseal(identity: str, source_fd: int, target_fd: int, name: str, is_compressed: bool, size_bytes: int) -> None:
    """Write an encrypted core or asset plainly. Raises Refused, BadInput, OSError."""
    with cores.unsealed(source_fd, is_compressed, identity) as pipe_fd:
        _write(pipe_fd, target_fd, name, size_bytes)


def _unpack(source_fd: int, target_fd: int, name: str, size_bytes: int) -> None:
    """Write a compressed core plainly. Raises Refused, BadInput, OSError."""
    with compressed.opened(source_fd) as pipe_fd:
        _write(pipe_fd, target_fd, name, size_bytes)


def _write(pipe_fd: int, target_fd: int, name: str, size_bytes: int) -> None:
    """Write what comes through a pipe, of `size_bytes`; to a regular file that is empty with holes. Raises OSError."""
    status = os.fstat(target_fd)
    sparse = stat.S_ISREG(status.st_mode) and not status.st_size
    done_bytes = 0
    with Progress(name, size_bytes, lambda: done_bytes):
        for offset, block in compressed.pieces(pipe_fd, zeros=not sparse):
            if sparse:
                durable.pwrite(target_fd, block, offset)
            else:
                durable.write(target_fd, block)
            done_bytes = offset + len(block)
        if sparse:
            os.ftruncate(target_fd, size_bytes)


def _copy(source_fd: int, target_fd: int, name: str) -> None:
    """Copy the file; to a regular file that is empty without its holes."""
    status = os.fstat(target_fd)
    size_bytes = os.fstat(source_fd).st_size
    done_bytes = 0
    sparse = stat.S_ISREG(status.st_mode) and not status.st_size
    with Progress(name, size_bytes, lambda: done_bytes):
        while done_bytes < size_bytes:
            start, end = _next_data(source_fd, done_bytes, size_bytes) if sparse else (done_bytes, size_bytes)
            while start < end:
                block = os.pread(source_fd, min(_BLOCK_BYTES, end - start), start)
                if not block:
                    raise OSError(errno.EIO, "the dump's file became shorter meanwhile")
                if sparse:
                    durable.pwrite(target_fd, block, start)
                else:
                    durable.write(target_fd, block)
                start += len(block)
                done_bytes = start
            done_bytes = end
        if sparse:
            os.ftruncate(target_fd, size_bytes)


def _next_data(fd: int, offset: int, size_bytes: int) -> tuple[int, int]:
    """Return where the next data in a file starts and ends, at or after `offset`. lseek(2)."""
    try:
        start = os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size_bytes, size_bytes  # nothing but a hole is left
        raise
    return start, os.lseek(fd, start, os.SEEK_HOLE)
