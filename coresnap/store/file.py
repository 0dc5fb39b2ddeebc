# SPDX-License-Identifier: Apache-2.0
"""The file: store: snapshots in a directory of this machine, so that a fresh installation works with no account.

    <directory>/<project>/<uuid>.json       the snapshot
    <directory>/<project>/<uuid>.<name>     what goes with it

A snapshot is written under another name, synced, read back against its checksum, and then linked to its own, which is
what makes it stored: a name ending in .json is always whole. The store is capped: the oldest give way to a new one.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator

from coresnap.ground import durable
from coresnap.ground.errors import BadInput, TryLater
from coresnap.store.face import Attachment, Delivery, Parked, Receipt, StoreRefused

_SNAPSHOT_SUFFIX = ".json"
_TEMPORARY = ".put-"
_MODE = 0o600
_BLOCK_BYTES = 1 << 20
_STALE_SECONDS = 3600
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


class FileStore:
    """An open file: store."""

    def __init__(self, path: str, *, max_bytes: int, max_age_usec: int) -> None:
        """Open the store, making its directory. Raises Parked where that cannot be done."""
        self.path = path
        self.max_bytes = max_bytes
        self.max_age_usec = max_age_usec
        try:
            os.makedirs(path, 0o700, exist_ok=True)
            self._fd = durable.open_directory(path)
        except OSError as error:
            raise Parked(
                f"store file:{path}: {error.strerror}", hint="make the directory, or set send.store"
            ) from error

    def close(self) -> None:
        """Close the directory."""
        os.close(self._fd)

    def put(self, delivery: Delivery) -> Receipt:
        """Store the snapshot durably and verify it; see face.Store."""
        if not is_name(delivery.project):
            raise StoreRefused(f"project {delivery.project!r}: not a name for a directory")
        total_bytes = delivery.size_bytes + sum(attachment.size_bytes for attachment in delivery.attachments)
        if total_bytes > self.max_bytes:
            raise StoreRefused(f"{total_bytes} bytes are more than store.max_bytes, {self.max_bytes}")
        try:
            project_fd = self._project(delivery.project)
            try:
                return self._put(project_fd, delivery, total_bytes)
            finally:
                os.close(project_fd)
        except OSError as error:
            raise TryLater(f"store file:{self.path}: {error.strerror}") from error

    def _project(self, project: str) -> int:
        try:
            fd = durable.open_directory(project, self._fd)
        except FileNotFoundError:
            try:
                fd = durable.mkdir(self._fd, project, 0o700)
            except FileExistsError:
                return durable.open_directory(project, self._fd)
            durable.sync(self._fd)
        return fd

    def _put(self, project_fd: int, delivery: Delivery, total_bytes: int) -> Receipt:
        name = delivery.uuid + _SNAPSHOT_SUFFIX
        already_there = durable.exists(project_fd, name)
        if not already_there:
            self._make_room(total_bytes)
            for attachment in delivery.attachments:
                self._put_attachment(project_fd, delivery.uuid, attachment)
            already_there = not _write(project_fd, name, delivery.fd, delivery.size_bytes)
            durable.sync(project_fd)
        stored = _digest(project_fd, name)
        if stored != delivery.sha256:
            if not already_there:
                durable.unlink(project_fd, name)
                raise TryLater(f"store file:{self.path}: {name} reads back as {stored}, not {delivery.sha256}")
            raise StoreRefused(
                f"store file:{self.path} has another snapshot of {delivery.uuid}: {stored}, not {delivery.sha256}"
            )
        return Receipt(
            uuid=delivery.uuid,
            store=f"file:{self.path}",
            project=delivery.project,
            object=f"{delivery.project}/{name}",
            acknowledged_usec=time.time_ns() // 1000,
            size_bytes=delivery.size_bytes,
            sha256=stored,
            already_there=already_there,
        )

    def _put_attachment(self, project_fd: int, uuid: str, attachment: Attachment) -> None:
        if not is_name(attachment.name):
            raise StoreRefused(f"attachment {attachment.name!r}: not a name for a file")
        _write(project_fd, f"{uuid}.{attachment.name}", attachment.fd, attachment.size_bytes)

    def _make_room(self, wanted_bytes: int) -> None:
        """Remove what is too old, then the oldest, until the new one fits under the cap."""
        stored = sorted(self._stored())
        total_bytes = sum(size_bytes for _time, _project, _uuid, size_bytes in stored) + wanted_bytes
        oldest_usec = time.time_ns() // 1000 - self.max_age_usec
        for stored_usec, project, uuid, size_bytes in stored:
            if total_bytes <= self.max_bytes and stored_usec >= oldest_usec:
                return
            self._remove(project, uuid)
            total_bytes -= size_bytes

    def _stored(self) -> Iterator[tuple[int, str, str, int]]:
        """Yield (time in usec, project, UUID, bytes) of each stored snapshot; sweep what a killed put left behind."""
        for project in os.listdir(self._fd):
            try:
                project_fd = durable.open_directory(project, self._fd)
            except OSError:
                continue
            try:
                sizes: dict[str, int] = {}
                times: dict[str, int] = {}
                for name in os.listdir(project_fd):
                    status = os.stat(name, dir_fd=project_fd, follow_symlinks=False)
                    if name.startswith(_TEMPORARY):
                        if time.time() - status.st_mtime > _STALE_SECONDS:
                            durable.unlink(project_fd, name)
                        continue
                    uuid = name.partition(".")[0]
                    sizes[uuid] = sizes.get(uuid, 0) + status.st_size
                    times[uuid] = min(times.get(uuid, status.st_mtime_ns // 1000), status.st_mtime_ns // 1000)
            finally:
                os.close(project_fd)
            for uuid, size_bytes in sizes.items():
                yield times[uuid], project, uuid, size_bytes

    def _remove(self, project: str, uuid: str) -> None:
        project_fd = durable.open_directory(project, self._fd)
        try:
            for name in os.listdir(project_fd):
                if name.partition(".")[0] == uuid:
                    durable.unlink(project_fd, name)
        finally:
            os.close(project_fd)


def is_name(text: str) -> bool:
    """Say whether a project or attachment can be the name of a directory entry."""
    return 0 < len(text) <= 64 and text[0] != "." and _NAME_CHARACTERS.issuperset(text)


def _write(dir_fd: int, name: str, source_fd: int, size_bytes: int) -> bool:
    """Write a copy of `source_fd` durably under `name`; return whether the name was free."""
    temporary = f"{_TEMPORARY}{os.getpid()}-{name}.tmp"
    if durable.exists(dir_fd, temporary):
        durable.unlink(dir_fd, temporary)
    fd = durable.create(dir_fd, temporary, _MODE)
    try:
        offset = 0
        while block := os.pread(source_fd, _BLOCK_BYTES, offset):
            durable.write(fd, block)
            offset += len(block)
        if offset != size_bytes:
            raise BadInput(f"{name}: {offset} bytes, {size_bytes} were announced")
        durable.sync(fd)
        durable.link(dir_fd, temporary, name)
    except FileExistsError:
        return False
    finally:
        os.close(fd)
        os.unlink(temporary, dir_fd=dir_fd)
    return True


def _digest(dir_fd: int, name: str) -> str:
    """Return the checksum of what is stored, read back from the file system."""
    with os.fdopen(durable.open_regular(dir_fd, name), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
