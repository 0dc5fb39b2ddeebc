# SPDX-License-Identifier: Apache-2.0
"""The cache of debug files that were fetched, by build-id: `.build-id/xx/yyy.debug` below it, as gdb looks for them.

A debug file counts only if its build-id is the one in its name. What a server did not have is remembered, as an empty
`yyy.none`, so that it is not asked for the same file every time.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from coresnap.ground import durable
from coresnap.ground.elf_file import ElfFile
from coresnap.ground.errors import BadInput, Refused

PATH = "/var/cache/coresnap/debug"
#: The distribution's own.
SYSTEM = "/usr/lib/debug"
BUILD_ID = re.compile(r"[0-9a-f]{8,128}")
_NONE_SECONDS = 86400
_HALF_DONE_SECONDS = 3600
_MODE, _DIRECTORY_MODE = 0o644, 0o755


def name_of(build_id: str) -> str:
    """Return where a debug file lies below a directory of such files. The build-id is one, in hex."""
    return f".build-id/{build_id[:2]}/{build_id[2:]}.debug"


def has(path: str, build_id: str) -> bool:
    """Say whether there is a debug file in the cache at `path`, which need not be there, or of the distribution's."""
    name = name_of(build_id)
    return any(os.path.isfile(f"{directory}/{name}") for directory in (SYSTEM, path))


#: What makes the cache: tmpfiles.d has it.
_HINT = "`systemd-tmpfiles --create` makes it"


class Cache:
    """The cache, open. What is written there belongs to whom the cache belongs to."""

    def __init__(self, path: str = PATH) -> None:
        """Open the cache. Raises Refused."""
        self.path = path
        try:
            self._fd = durable.open_directory(path)
        except OSError as error:
            raise Refused(f"{path}: {error.strerror}", hint=_HINT if path == PATH else "make it first") from error
        status = os.fstat(self._fd)
        self._owner = status.st_uid, status.st_gid

    def close(self) -> None:
        """Close the cache."""
        os.close(self._fd)

    def has(self, build_id: str) -> bool:
        """Say whether there is a debug file, here or of the distribution's."""
        return has(self.path, build_id)

    def is_known_missing(self, build_id: str) -> bool:
        """Say whether no server had it, less than a day ago."""
        try:
            status = os.stat(f"{name_of(build_id).removesuffix('debug')}none", dir_fd=self._fd, follow_symlinks=False)
        except OSError:
            return False
        return -_NONE_SECONDS < time.time() - status.st_mtime < _NONE_SECONDS

    def note_missing(self, build_id: str) -> None:
        """Remember that no server had it. Raises OSError."""
        with self._directory(build_id) as fd:
            durable.replace(fd, f"{build_id[2:]}.none", b"", _MODE, *self._owned())

    @contextmanager
    def new_file(self, build_id: str) -> Iterator[int]:
        """Yield a descriptor to write a debug file to; at the end of the context it is looked at, and is in the cache.

        Raises OSError, and BadInput where it is no ELF file of that build-id: nothing of it is kept.
        """
        name = f"{build_id[2:]}.debug"
        with self._directory(build_id) as directory_fd:
            temporary = f".{name}.{os.getpid()}"
            fd = durable.create(directory_fd, temporary, _MODE, *self._owned())
            try:
                yield fd
                _check(fd, build_id)
                durable.sync(fd)
                try:
                    durable.link(directory_fd, temporary, name)
                except FileExistsError:
                    pass  # somebody else has fetched it meanwhile
                durable.sync(directory_fd)
            finally:
                os.close(fd)
                durable.unlink(directory_fd, temporary)

    def make_room(self, most_bytes: int) -> list[str]:
        """Remove the files that were fetched first, until all take no more than `most_bytes`; return their build-ids."""
        files = sorted(self._files())
        total = sum(size_bytes for _time, size_bytes, _directory, _name in files)
        removed = []
        for _time, size_bytes, directory, name in files:
            if total <= most_bytes:
                break
            with self._opened(directory) as fd:
                durable.unlink(fd, name)
            total -= size_bytes
            removed.append(directory + name.removesuffix(".debug"))
        return removed

    def _files(self) -> Iterator[tuple[float, int, str, str]]:
        """Yield (time, size, directory, name) of each file; what a fetch that was killed has left is removed."""
        for directory in self._directories() if durable.exists(self._fd, ".build-id") else ():
            with self._opened(directory) as fd:
                for name in os.listdir(fd):
                    status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    age_seconds = time.time() - status.st_mtime
                    is_left = name.startswith(".") and age_seconds > _HALF_DONE_SECONDS
                    if is_left or (name.endswith(".none") and age_seconds > _NONE_SECONDS):
                        durable.unlink(fd, name)
                    elif stat.S_ISREG(status.st_mode) and name.endswith(".debug"):
                        yield status.st_mtime, status.st_blocks * 512, directory, name

    def _directories(self) -> list[str]:
        fd = durable.open_directory(".build-id", self._fd)
        try:
            return [name for name in os.listdir(fd) if re.fullmatch("[0-9a-f]{2}", name)]
        finally:
            os.close(fd)

    @contextmanager
    def _opened(self, directory: str) -> Iterator[int]:
        fd = durable.open_directory(f".build-id/{directory}", self._fd)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def _directory(self, build_id: str) -> Iterator[int]:
        """Yield the directory of a build-id, made where it is not there."""
        if not BUILD_ID.fullmatch(build_id):
            raise BadInput(f"{build_id[:200]!r} is no build-id")
        outer_fd = self._made(".build-id", self._fd)
        try:
            fd = self._made(build_id[:2], outer_fd)
        finally:
            os.close(outer_fd)
        try:
            yield fd
        finally:
            os.close(fd)

    def _made(self, name: str, dir_fd: int) -> int:
        try:
            return durable.open_directory(name, dir_fd)
        except FileNotFoundError:
            pass
        try:
            return durable.mkdir(dir_fd, name, _DIRECTORY_MODE, *self._owned())
        except FileExistsError:
            return durable.open_directory(name, dir_fd)

    def _owned(self) -> tuple[int, int]:
        """Return whose the files are to be: root leaves none of its own in another user's directory."""
        return self._owner if os.geteuid() == 0 else (-1, -1)


def _check(fd: int, build_id: str) -> None:
    """See that a file is of a build-id. Raises BadInput."""
    found = ElfFile(partial(_pread, fd), build_id).build_id()
    if found != build_id:
        raise BadInput(f"{build_id}: the file that came is of build-id {found or 'none'}")


def _pread(fd: int, count: int, offset: int) -> bytes:
    return os.pread(fd, count, offset)
