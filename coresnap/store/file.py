# SPDX-License-Identifier: Apache-2.0
"""The file: store: snapshots in a directory of this machine, so that a fresh installation works with no account.

    <directory>/<project>/<uuid>.json       the snapshot
    <directory>/<project>/<uuid>.<name>     what goes with it

A file is written under another name, synced, read back against what was sent, and only then linked to its own; the
snapshot comes last. So whatever bears a name is whole, and what has its .json has everything. A put holds the lock of
the directory. The store is capped: the oldest give way to a new one. Files of others in the directory are left alone.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from coresnap.ground import durable
from coresnap.ground.errors import BadInput, TryLater
from coresnap.spool.stages import is_uuid
from coresnap.store.face import Delivery, Parked, Receipt, StoreRefused, is_name

_SNAPSHOT = "json"
_FILE_MODE, _DIRECTORY_MODE = 0o600, 0o700
_BLOCK_BYTES = 1 << 20
_UUID_LENGTH = 36
#: Errors that stay until somebody has changed something.
_TO_BE_MENDED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ELOOP}


class FileStore:
    """An open file: store. It keeps no descriptor: its directory may be moved or mounted over between two puts."""

    def __init__(self, path: str, *, max_bytes: int, max_age_usec: int) -> None:
        """Open the store: make its directory, remove what a killed put has left. Raises Parked or TryLater."""
        self.path = path.rstrip("/") or "/"
        self.max_bytes = max_bytes
        self.max_age_usec = max_age_usec
        self._total_bytes = 0
        self._oldest_usec = 0
        self._changed_nsec: dict[str, tuple[int, int]] = {}
        with self._told():
            _make_directory(self.path)
            with self._locked() as store_fd:
                _sweep(store_fd)

    def close(self) -> None:
        """Close the store."""

    def put(self, delivery: Delivery) -> Receipt:
        """Store the snapshot durably and verify it; see face.Store."""
        if not is_name(delivery.project):
            raise Parked(f"project {delivery.project!r}: not a name for a directory", hint="mend format.N")
        if not is_uuid(delivery.uuid):
            raise StoreRefused(f"{delivery.uuid!r} is not a UUID")
        for attachment in delivery.attachments:
            if not is_name(attachment.name) or attachment.name == _SNAPSHOT:
                raise StoreRefused(f"attachment {attachment.name!r}: not a name for a file")
        total_bytes = delivery.size_bytes + sum(attachment.size_bytes for attachment in delivery.attachments)
        if total_bytes > self.max_bytes:
            raise StoreRefused(f"{total_bytes} bytes are more than store.max_bytes, {self.max_bytes}")
        with self._told(), self._locked() as store_fd:
            project_fd = _directory(store_fd, delivery.project)
            try:
                stored = self._put(store_fd, project_fd, delivery, total_bytes)
            finally:
                os.close(project_fd)
        return Receipt(
            uuid=delivery.uuid,
            store=f"file:{self.path}",
            project=delivery.project,
            object=f"{delivery.project}/{delivery.uuid}.{_SNAPSHOT}",
            acknowledged_usec=time.time_ns() // 1000,
            size_bytes=stored[0] if stored else delivery.size_bytes,
            sha256=stored[1] if stored else delivery.sha256,
            already_there=stored is not None,
        )

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what the file system says into what it means for the sender."""
        try:
            yield
        except BadInput as error:
            raise Parked(f"store file:{self.path}: {error}", hint="something else lies in its place") from error
        except OSError as error:
            message = f"store file:{self.path}: {error.strerror}"
            if error.errno in _TO_BE_MENDED:
                raise Parked(message, hint="make the directory, or set send.store") from error
            raise TryLater(message) from error

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Open the store's directory and hold its lock."""
        store_fd = durable.open_directory(self.path)
        try:
            fcntl.flock(store_fd, fcntl.LOCK_EX)
            yield store_fd
        finally:
            os.close(store_fd)

    def _put(self, store_fd: int, project_fd: int, delivery: Delivery, total_bytes: int) -> tuple[int, str] | None:
        """Have the snapshot in the store, durably; return size and checksum of what was there before, if anything was."""
        name = f"{delivery.uuid}.{_SNAPSHOT}"
        there = _size_and_digest(project_fd, name) if durable.exists(project_fd, name) else None
        if there:
            stored = there[1]
            if stored not in (delivery.sha256, delivery.before_sha256):
                raise StoreRefused(
                    f"store file:{self.path} has another snapshot of {delivery.uuid}: {stored}, not {delivery.sha256}"
                )
        else:
            self._make_room(store_fd, total_bytes)
            for attachment in delivery.attachments:
                _write(project_fd, f"{delivery.uuid}.{attachment.name}", attachment.fd, attachment.size_bytes, None)
            _write(project_fd, name, delivery.fd, delivery.size_bytes, delivery.sha256)
            self._total_bytes += total_bytes
            self._changed_nsec = _changed_nsec(store_fd)
        # Also for what was there: the put that brought it may have been killed just before this.
        durable.sync(project_fd)
        return there

    def _make_room(self, store_fd: int, wanted_bytes: int) -> None:
        """Remove what is too old, then the oldest, until the new one fits under the cap.

        What the last put saw still holds if no project has changed since, so not every put looks at every file.
        """
        expired_usec = time.time_ns() // 1000 - self.max_age_usec
        fits = self._total_bytes + wanted_bytes <= self.max_bytes and self._oldest_usec >= expired_usec
        if fits and self._changed_nsec == _changed_nsec(store_fd):
            return
        stored = deque(sorted(_stored(store_fd)))
        self._total_bytes = sum(size_bytes for _time, _project, _uuid, size_bytes in stored)
        while stored and (self._total_bytes + wanted_bytes > self.max_bytes or stored[0][0] < expired_usec):
            _time, project, uuid, size_bytes = stored.popleft()
            _remove(store_fd, project, uuid)
            self._total_bytes -= size_bytes
        self._oldest_usec = stored[0][0] if stored else time.time_ns() // 1000


def _make_directory(path: str) -> None:
    """Make the directory and what leads to it, durably. One that has something in it has been seen to before."""
    parent = os.path.dirname(path)
    try:
        if os.listdir(path):
            return
        if not os.access(parent, os.R_OK):  # made for us by somebody who could
            return
    except FileNotFoundError:
        _make_directory(parent)
    parent_fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.close(_directory(parent_fd, os.path.basename(path)))
    finally:
        os.close(parent_fd)


def _directory(parent_fd: int, name: str) -> int:
    """Open a directory, made if need be. Its own entry is on the disk before anything is put into it."""
    try:
        fd = durable.mkdir(parent_fd, name, _DIRECTORY_MODE)
    except FileExistsError:
        fd = durable.open_directory(name, parent_fd)
    try:
        if not os.listdir(fd):
            durable.sync(parent_fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _write(dir_fd: int, name: str, source_fd: int, size_bytes: int, sha256: str | None) -> None:
    """Write a copy of `source_fd` durably under `name`. Raises StoreRefused where the source is not what was announced."""
    temporary = f".{name}.put"
    fd = durable.create(dir_fd, temporary, _FILE_MODE)
    try:
        count_bytes, sent = _copy(source_fd, fd, size_bytes)
        if count_bytes != size_bytes:
            raise StoreRefused(f"{name}: {count_bytes} bytes came, {size_bytes} were announced")
        if sha256 not in (None, sent):
            raise StoreRefused(f"{name}: its checksum is {sent}, {sha256} is on record")
        durable.sync(fd)
        os.posix_fadvise(
            fd, 0, 0, os.POSIX_FADV_DONTNEED
        )  # what is read back comes from the disk, where that can be had
        if _digest(fd) != sent:
            raise OSError(errno.EIO, f"{name} reads back as something else")
        if durable.exists(dir_fd, name):  # an attachment whose snapshot never came
            durable.unlink(dir_fd, name)
        durable.link(dir_fd, temporary, name)
    finally:
        os.close(fd)
        durable.unlink(dir_fd, temporary)


def _copy(source_fd: int, fd: int, size_bytes: int) -> tuple[int, str]:
    """Copy at most `size_bytes` from the start of the source; return how many came, and their checksum."""
    digest = hashlib.sha256()
    offset = 0
    while offset < size_bytes and (block := os.pread(source_fd, min(_BLOCK_BYTES, size_bytes - offset), offset)):
        digest.update(block)
        durable.write(fd, block)
        offset += len(block)
    return offset, digest.hexdigest()


def _digest(fd: int) -> str:
    digest = hashlib.sha256()
    offset = 0
    while block := os.pread(fd, _BLOCK_BYTES, offset):
        digest.update(block)
        offset += len(block)
    return digest.hexdigest()


def _size_and_digest(dir_fd: int, name: str) -> tuple[int, str]:
    fd = durable.open_regular(dir_fd, name)
    try:
        return os.fstat(fd).st_size, _digest(fd)
    finally:
        os.close(fd)


def _projects(store_fd: int) -> Iterator[tuple[str, int]]:
    """Yield the name and a descriptor of each project."""
    for project in os.listdir(store_fd):
        if not is_name(project):
            continue
        try:
            project_fd = durable.open_directory(project, store_fd)
        except (NotADirectoryError, PermissionError):  # somebody else's
            continue
        try:
            yield project, project_fd
        finally:
            os.close(project_fd)


def _changed_nsec(store_fd: int) -> dict[str, tuple[int, int]]:
    """Return each project's inode and when an entry of it was last made or removed."""
    statuses = {
        name: os.stat(name, dir_fd=store_fd, follow_symlinks=False) for name in os.listdir(store_fd) if is_name(name)
    }
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in statuses.items()}


def _stored(store_fd: int) -> Iterator[tuple[int, str, str, int]]:
    """Yield (time in usec, project, UUID, bytes) of each stored snapshot."""
    for project, project_fd in _projects(store_fd):
        objects: dict[str, tuple[int, int]] = {}
        for name in os.listdir(project_fd):
            uuid = _uuid_of(name)
            status = os.stat(name, dir_fd=project_fd, follow_symlinks=False) if uuid else None
            if status and stat.S_ISREG(status.st_mode):
                stored_usec, size_bytes = objects.get(uuid, (status.st_mtime_ns // 1000, 0))
                objects[uuid] = min(stored_usec, status.st_mtime_ns // 1000), size_bytes + status.st_size
        for uuid, (stored_usec, size_bytes) in objects.items():
            yield stored_usec, project, uuid, size_bytes


def _uuid_of(name: str) -> str:
    """Return the UUID that a file's name begins with; nothing where the file is not of this store's making."""
    uuid = name[:_UUID_LENGTH]
    return uuid if name[_UUID_LENGTH:].startswith(".") and is_uuid(uuid) else ""


def _remove(store_fd: int, project: str, uuid: str) -> None:
    """Remove what is stored under a UUID, the snapshot first: never is it there without what goes with it."""
    project_fd = durable.open_directory(project, store_fd)
    try:
        snapshot = f"{uuid}.{_SNAPSHOT}"
        for name in sorted(os.listdir(project_fd), key=lambda name: name != snapshot):
            if _uuid_of(name) == uuid and stat.S_ISREG(os.stat(name, dir_fd=project_fd, follow_symlinks=False).st_mode):
                durable.unlink(project_fd, name)
    finally:
        os.close(project_fd)


def _sweep(store_fd: int) -> None:
    """Remove what killed puts have left; whoever is putting now would hold the lock."""
    for _project, project_fd in _projects(store_fd):
        for name in os.listdir(project_fd):
            if name.startswith(".") and name.endswith(".put") and _uuid_of(name[1:]):
                durable.unlink(project_fd, name)
