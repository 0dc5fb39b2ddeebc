# SPDX-License-Identifier: Apache-2.0
"""Durable file operations: the only place from which coresnap creates, writes, syncs, renames and unlinks what it keeps.

Paths are reached from directory descriptors and never follow a symbolic link; files are created exclusively; owner and
mode are set on the descriptor. Each operation passes a point just before it acts: there a test may kill the process,
raise an OSError, or shorten a write, and so walk through every state that a crash of coresnap itself can leave.

Imported while a crashed process is held: nothing heavier than os, stat and fcntl may be imported here.
"""

import fcntl
import os
import stat
import time

from coresnap.ground.errors import BadInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TypeVar

    T = TypeVar("T")
    Bytes = bytes | bytearray | memoryview

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PAUSE_SECONDS, _PAUSE_MOST_SECONDS = 0.001, 0.03
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

#: What a test puts here is called with (operation, name) before each operation; an integer that it returns is the
#: most bytes that this one write may take.
fault: "Callable[[str, str], int | None] | None" = None


def point(operation: str, name: str) -> "int | None":
    """Pass a fault point."""
    return fault(operation, name) if fault is not None else None


def _call(operation: str, name: str, function: "Callable[..., T]", *arguments: object, **keywords: object) -> "T":
    """Pass the point, then call; an interrupted call is made again."""
    while True:
        try:
            point(operation, name)
            return function(*arguments, **keywords)
        except InterruptedError:
            continue


def within(seconds: float, take: "Callable[[], bool]") -> bool:
    """Try to take a lock until that succeeds, or so long; say whether it did. Who has it for longer has been stopped."""
    end, pause_seconds = time.monotonic() + seconds, _PAUSE_SECONDS
    while not take():
        if time.monotonic() >= end:
            return False
        time.sleep(pause_seconds)
        pause_seconds = min(2 * pause_seconds, _PAUSE_MOST_SECONDS)
    return True


def open_directory(path: "str | bytes", dir_fd: "int | None" = None) -> int:
    """Return a descriptor of the directory at `path`. Raises OSError, also where the last name is a symbolic link."""
    return os.open(path, DIRECTORY, dir_fd=dir_fd)


def create(dir_fd: int, name: str, mode: int, uid: int = -1, gid: int = -1) -> int:
    """Create the file `name`, which must not exist; return its descriptor, open for reading and writing."""
    fd = _call("create", name, os.open, name, _CREATE, 0o600, dir_fd=dir_fd)
    try:
        _own(fd, name, mode, uid, gid)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _own(fd: int, name: str, mode: int, uid: int, gid: int) -> None:
    status = os.fstat(fd)
    if uid not in (-1, status.st_uid) or gid not in (-1, status.st_gid):
        _call("chown", name, os.fchown, fd, uid, gid)
    if stat.S_IMODE(status.st_mode) != mode:
        _call("chmod", name, os.fchmod, fd, mode)


def mkdir(dir_fd: int, name: str, mode: int, uid: int = -1, gid: int = -1) -> int:
    """Make the directory `name`, which must not exist; return its descriptor."""
    _call("mkdir", name, os.mkdir, name, 0o700, dir_fd=dir_fd)
    fd = open_directory(name, dir_fd)
    try:
        _own(fd, name, mode, uid, gid)
    except BaseException:
        os.close(fd)
        raise
    return fd


def write(fd: int, data: "Bytes") -> None:
    """Write all of `data` at the descriptor's offset."""
    view = memoryview(data)
    while view:
        try:
            limit = point("write", str(fd))
            view = view[os.write(fd, view[:limit]) :]
        except InterruptedError:
            continue


def pwrite(fd: int, data: "Bytes", offset: int) -> None:
    """Write all of `data` at `offset` bytes from the start of the file."""
    view = memoryview(data)
    while view:
        try:
            limit = point("write", str(fd))
            count = os.pwrite(fd, view[:limit], offset)
        except InterruptedError:
            continue
        view = view[count:]
        offset += count


def truncate(fd: int, length_bytes: int) -> None:
    """Set the length of the file; what is added is a hole."""
    _call("truncate", str(fd), os.ftruncate, fd, length_bytes)


def sync(fd: int) -> None:
    """Have the file, or the directory's entries, on the disk before returning."""
    _call("fsync", str(fd), os.fsync, fd)


def replace(
    dir_fd: int, name: str, data: "Bytes", mode: int, uid: int = -1, gid: int = -1, *, sync_entry: bool = True
) -> None:
    """Put `data` durably in place of the whole file `name`: a reader, or a crash, sees the old or the new, never a part.

    The caller is alone with this name (it holds the dump's lock, or the file is its own). Without `sync_entry` the caller
    syncs the directory; until then a crash may show the old.
    """
    temporary = f".{name}.new"
    if exists(dir_fd, temporary):
        unlink(dir_fd, temporary)
    fd = create(dir_fd, temporary, mode, uid, gid)
    try:
        write(fd, data)
        sync(fd)
    except BaseException:
        os.unlink(temporary, dir_fd=dir_fd)
        raise
    finally:
        os.close(fd)
    _call("rename", name, os.rename, temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    if sync_entry:
        sync(dir_fd)


def replace_cache(dir_fd: int, name: str, parts: "Iterable[Bytes]", mode: int, uid: int = -1, gid: int = -1) -> bool:
    """Put `parts` in place of the whole file `name`, without a sync: it can be made anew. False where another is at it.

    After a power cut it may have any content. Whoever writes it holds flock(2) on the file that is to take its place.
    """
    temporary = f".{name}.new"
    fd = os.open(temporary, _CREATE & ~os.O_EXCL | os.O_NONBLOCK, 0o600, dir_fd=dir_fd)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            there = os.stat(temporary, dir_fd=dir_fd, follow_symlinks=False)
        except (BlockingIOError, FileNotFoundError):
            return False
        status = os.fstat(fd)
        if (there.st_dev, there.st_ino) != (status.st_dev, status.st_ino) or not stat.S_ISREG(status.st_mode):
            return False
        if status.st_nlink != 1 or status.st_uid not in (os.geteuid(), os.fstat(dir_fd).st_uid):
            return False  # it is something else's, which whoever owns the directory has put there
        _own(fd, name, mode, uid, gid)
        truncate(fd, 0)
        for part in parts:
            write(fd, part)
        _call("rename", name, os.rename, temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    finally:
        os.close(fd)
    return True


def rename(src_dir_fd: int, src: str, dst_dir_fd: int, dst: str) -> None:
    """Rename; the target must not exist (FileExistsError). The caller syncs both directories."""
    if exists(dst_dir_fd, dst):
        raise FileExistsError(17, "the target of a rename exists", dst)
    _call("rename", dst, os.rename, src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)


def link(dir_fd: int, name: str, new_name: str, new_dir_fd: "int | None" = None) -> None:
    """Give a file another name, in its directory or another; raises FileExistsError where that is taken. The caller syncs."""
    target_fd = dir_fd if new_dir_fd is None else new_dir_fd
    _call("link", new_name, os.link, name, new_name, src_dir_fd=dir_fd, dst_dir_fd=target_fd, follow_symlinks=False)


def unlink(dir_fd: int, name: str) -> None:
    """Unlink the file `name`."""
    _call("unlink", name, os.unlink, name, dir_fd=dir_fd)


def rmdir(dir_fd: int, name: str) -> None:
    """Remove the empty directory `name`."""
    _call("rmdir", name, os.rmdir, name, dir_fd=dir_fd)


def remove_tree(dir_fd: int, name: str) -> None:
    """Remove the directory `name` with the files in it; a dump has no directories inside, so one level is all.

    Two may be at it, a purge and a sweep, say: what the other one has removed is no error.
    """
    try:
        fd = open_directory(name, dir_fd)
    except FileNotFoundError:
        return
    try:
        for entry in os.listdir(fd):
            try:
                unlink(fd, entry)
            except FileNotFoundError:
                continue
    finally:
        os.close(fd)
    try:
        rmdir(dir_fd, name)
    except FileNotFoundError:
        pass


def exists(dir_fd: int, name: str) -> bool:
    """Say whether the directory has an entry `name`, of whatever kind."""
    try:
        os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def open_regular(dir_fd: int, name: str) -> int:
    """Open the regular file `name` for reading. Raises OSError, or BadInput where it is something else."""
    fd = os.open(name, _READ, dir_fd=dir_fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise BadInput(f"{name} is not a regular file")
    return fd


def read(dir_fd: int, name: str, limit_bytes: int) -> bytes:
    """Return the whole of the regular file `name`. Raises OSError, or BadInput where it has more than the limit."""
    fd = open_regular(dir_fd, name)
    try:
        data = b"".join(_blocks(fd, limit_bytes + 1))
    finally:
        os.close(fd)
    if len(data) > limit_bytes:
        raise BadInput(f"{name} has more than {limit_bytes} bytes")
    return data


def _blocks(fd: int, limit_bytes: int) -> "Iterator[bytes]":
    while limit_bytes > 0 and (block := os.read(fd, min(limit_bytes, 1 << 20))):
        limit_bytes -= len(block)
        yield block
