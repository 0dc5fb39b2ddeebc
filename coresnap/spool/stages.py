# SPDX-License-Identifier: Apache-2.0
"""The five stages of a dump, and the only code that renames a dump from one to another.

    <dump.root>/staging/<uuid>/     being written; only its writer and the sweep look here
    <dump.root>/pending/<uuid>/     core complete, waiting for its snapshot
    <dump.root>/sending/<uuid>/     snapshot complete, waiting for delivery
    <dump.root>/committed/<uuid>/   delivered; kept until retention takes it
    <dump.root>/failed/<uuid>/      given up on; dump.json says why

A dump directory holds files only. Whoever works on a dump holds flock(2) on its directory; the lock goes with its holder.
The last file written before a transition is dump.json, whose replacement syncs the directory; the transition is then
one rename and the sync of both stages, so after a crash at any instruction a dump lies in one stage, whole.

Imported while a crashed process is held: see coresnap.ground.durable for what that forbids.
"""

import errno
import fcntl
import os
import stat

from coresnap.ground import durable
from coresnap.ground.errors import Refused, TryLater

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

STAGING, PENDING, SENDING, COMMITTED, FAILED = STAGES = ("staging", "pending", "sending", "committed", "failed")

#: Where a core has a name that stays, whichever stage its dump is in.
LINKS = "by-uuid"
_SHARE_SECONDS = 3.0
#: What is encrypted has this at its end.
AGE = ".age"
#: A dump has one of them; more for the moment between the one and the other.
CORE, COMPRESSED = "core", "core.zst"
CORES = (CORE, COMPRESSED, CORE + AGE, COMPRESSED + AGE)
ASSETS = "assets.tar"
#: What is being removed lies in staging under this prefix.
REMOVED = ".removed-"

_HINTS = {
    errno.ENOENT: "`coresnapd --prepare` makes it",
    errno.EACCES: "ask as root, or as the user that the spool belongs to",
    errno.ENOTDIR: "it has to be a directory",
}
_HEX = frozenset("0123456789abcdef")


def new_uuid() -> str:
    """Return a random UUID (RFC 9562, version 4) in lower case."""
    raw = bytearray(os.urandom(16))
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    text = raw.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def is_uuid(name: str) -> bool:
    """Say whether `name` is a UUID in the lower-case form that names a dump."""
    parts = name.split("-")
    return [len(part) for part in parts] == [8, 4, 4, 4, 12] and _HEX.issuperset("".join(parts))


class Dump:
    """One dump, open and locked by this process. Close it when done; closing gives the lock back."""

    __slots__ = ("fd", "stage", "uuid")

    def __init__(self, uuid: str, stage: str, fd: int) -> None:
        self.uuid = uuid
        self.stage = stage
        self.fd = fd

    def __enter__(self) -> "Dump":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the lock back."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def disk_bytes(self) -> int:
        """Return the bytes of disk that the dump's files take; its owner may be replacing them meanwhile."""
        blocks = 0
        for name in os.listdir(self.fd):
            try:
                blocks += os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_blocks
            except FileNotFoundError:
                continue
        return blocks * 512


def _is_dump(entry: "os.DirEntry[str]") -> bool:
    return is_uuid(entry.name) and entry.is_dir(follow_symlinks=False)


class Spool:
    """An open spool. Its descriptors stay valid whatever happens to the path."""

    __slots__ = ("gid", "path", "root_fd", "stage_fds", "uid")

    def __init__(self, path: str, within: str = "") -> None:
        """Open the spool at `path`, as it is in the tree at `within`. Raises Refused where there is none."""
        self.path = path
        self.stage_fds: dict[str, int] = {}
        try:
            self.root_fd = durable.open_directory(within + path)
        except OSError as error:
            raise Refused(f"dump.root {path}: {error.strerror}", hint=_HINTS.get(error.errno or 0, "")) from error
        try:
            for stage in STAGES:
                self.stage_fds[stage] = durable.open_directory(stage, self.root_fd)
        except OSError as error:
            self.close()
            raise Refused(
                f"dump.root {path} is not a spool: {stage}: {error.strerror}",
                hint="is its file system mounted? `coresnapd --prepare` makes a new spool",
            ) from error
        status = os.fstat(self.root_fd)
        self.uid, self.gid = status.st_uid, status.st_gid

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptors."""
        for fd in (self.root_fd, *self.stage_fds.values()):
            os.close(fd)
        self.stage_fds.clear()

    def new(self, uuid: str = "") -> Dump:
        """Make an empty dump in staging, locked; `uuid` is one of `new_uuid`. Raises OSError."""
        staging = self.stage_fds[STAGING]
        durable.within(_SHARE_SECONDS, lambda: _share(staging))
        try:
            uuid = uuid or new_uuid()
            dump = Dump(uuid, STAGING, durable.mkdir(staging, uuid, 0o700, self.uid, self.gid))
            fcntl.flock(dump.fd, fcntl.LOCK_EX)
        finally:
            fcntl.flock(staging, fcntl.LOCK_UN)
        return dump

    def abandoned(self) -> "Iterator[Dump]":
        """Yield the dumps in staging whose writer has died, locked; remove what was half removed.

        A new dump is made and locked under a shared lock of staging, so one moment of the exclusive lock, after the
        listing, is enough to know that a listed dump without a lock has lost its writer. Who is stopped in that moment
        has listed before: a capture that goes on without the lock, after a few seconds, makes a dump that is not listed.
        """
        staging = self.stage_fds[STAGING]
        names = os.listdir(staging)
        fcntl.flock(staging, fcntl.LOCK_EX)
        fcntl.flock(staging, fcntl.LOCK_UN)
        for name in names:
            if name.startswith(REMOVED):
                durable.remove_tree(staging, name)
            elif dump := self.take(STAGING, name):
                yield dump

    def _lock(self, dump: Dump) -> bool:
        """Lock the dump unless another holds it; then look whether it still lies where it was found."""
        try:
            fcntl.flock(dump.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            there = os.stat(dump.uuid, dir_fd=self.stage_fds[dump.stage], follow_symlinks=False)
        except (BlockingIOError, FileNotFoundError):
            return False
        here = os.fstat(dump.fd)
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)

    def take(self, stage: str, uuid: str) -> "Dump | None":
        """Open and lock the dump; None where another works on it or it is no longer in that stage."""
        if not is_uuid(uuid):
            return None
        try:
            dump = Dump(uuid, stage, durable.open_directory(uuid, self.stage_fds[stage]))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return None
            raise TryLater(f"{stage}/{uuid}: {error.strerror}") from error
        if self._lock(dump):
            return dump
        dump.close()
        return None

    def uuids(self, stage: str) -> "list[str]":
        """Return the dumps of a stage; what else lies there is left out (see foreign)."""
        with os.scandir(self.stage_fds[stage]) as entries:
            return [entry.name for entry in entries if _is_dump(entry)]

    def listing(self, stage: str) -> "list[str]":
        """Return the names of all that lies in a stage."""
        return os.listdir(self.stage_fds[stage])

    def holds(self, stage: str, uuid: str) -> bool:
        """Say whether the dump is in that stage now."""
        try:
            found = os.stat(uuid, dir_fd=self.stage_fds[stage], follow_symlinks=False)
        except FileNotFoundError:
            return False
        return stat.S_ISDIR(found.st_mode)

    def foreign(self) -> "Iterator[str]":
        """Yield the entries of the stages that are no dumps, as stage/name."""
        for stage in STAGES:
            with os.scandir(self.stage_fds[stage]) as entries:
                yield from (f"{stage}/{entry.name}" for entry in entries if not _is_dump(entry))

    def move(self, dump: Dump, stage: str, *, sync: bool = True) -> None:
        """Move a locked dump to another stage, and give it up: the next stage's owner may take it from the rename on.

        Its files, and its directory, have been synced by their writers. Without `sync` the caller syncs both stages
        later; a crash before that may show the dump where it was.
        """
        source, target = self.stage_fds[dump.stage], self.stage_fds[stage]
        durable.rename(source, dump.uuid, target, dump.uuid)
        dump.stage = stage
        dump.close()
        if sync:
            durable.sync(target)
            durable.sync(source)

    def sync(self, *names: str) -> None:
        """Have on the disk which dumps are in these stages. Raises OSError."""
        for stage in names:
            durable.sync(self.stage_fds[stage])

    def link_core(self, dump: Dump, core: str) -> str:
        """Give the core, one of CORES, the name by which the journal knows it, wherever its dump moves; return that path."""
        name = f"{dump.uuid}.{core}"
        links_fd = self._links()
        try:
            if durable.exists(links_fd, name):  # an earlier attempt has come as far, with a file of its own
                durable.unlink(links_fd, name)
            durable.link(dump.fd, core, name, links_fd)
            durable.sync(links_fd)
        finally:
            os.close(links_fd)
        return self.link_path(dump.uuid, core)

    def link_path(self, uuid: str, core: str) -> str:
        """Return the name by which the journal knows the core, one of CORES, whether it is there or not."""
        return os.path.join(self.path, LINKS, f"{uuid}.{core}")

    def _links(self) -> int:
        if not durable.exists(self.root_fd, LINKS):
            return durable.mkdir(self.root_fd, LINKS, 0o700, self.uid, self.gid)
        return durable.open_directory(LINKS, self.root_fd)

    def unlink_orphans(self, uuid: str = "") -> None:
        """Unlink the journal's names of cores that are in no dump any more; of one dump's alone where that is given."""
        links_fd = self._links()
        try:
            for name in [f"{uuid}.{core}" for core in CORES] if uuid else os.listdir(links_fd):
                try:
                    alone = os.stat(name, dir_fd=links_fd, follow_symlinks=False).st_nlink == 1
                except FileNotFoundError:
                    continue
                if alone:
                    durable.unlink(links_fd, name)
        finally:
            os.close(links_fd)

    def remove(self, dump: Dump) -> None:
        """Remove a locked dump: one rename takes it out of its stage, and the sweep ends what a crash interrupts."""
        staging = self.stage_fds[STAGING]
        doomed = REMOVED + dump.uuid
        durable.rename(self.stage_fds[dump.stage], dump.uuid, staging, doomed)
        durable.sync(self.stage_fds[dump.stage])
        durable.remove_tree(staging, doomed)
        durable.sync(staging)
        if durable.exists(self.root_fd, LINKS):
            self.unlink_orphans(dump.uuid)
        dump.close()


def _share(staging: int) -> bool:
    """Lock staging with others that make dumps there; say no where a sweep has it."""
    try:
        fcntl.flock(staging, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def prepare(path: str, uid: int, gid: int) -> None:
    """Make the spool's directories where they are missing, and rename a probe through all stages.

    Raises Refused where the directories are not of one file system: rename(2) could not move a dump then.
    """
    try:
        os.makedirs(path, 0o700, exist_ok=True)
        root_fd = durable.open_directory(path)
    except OSError as error:
        raise Refused(f"dump.root {path}: {error.strerror}", hint="make it a directory of coresnap's own") from error
    try:
        _own(root_fd, uid, gid)
        for stage in STAGES:
            if durable.exists(root_fd, stage):
                stage_fd = durable.open_directory(stage, root_fd)
                _own(stage_fd, uid, gid)
            else:
                stage_fd = durable.mkdir(root_fd, stage, 0o700, uid, gid)
            os.close(stage_fd)
        durable.sync(root_fd)
    except OSError as error:
        raise Refused(f"dump.root {path}: {error.strerror}") from error
    finally:
        os.close(root_fd)
    with Spool(path) as spool:
        probe(spool)


def _own(fd: int, uid: int, gid: int) -> None:
    status = os.fstat(fd)
    if uid not in (-1, status.st_uid) or gid not in (-1, status.st_gid):
        os.fchown(fd, uid, gid)


def probe(spool: Spool) -> None:
    """Rename a directory through all stages. Raises Refused where that fails: no dump could go its way then."""
    name = f".probe-{os.getpid()}"
    os.close(durable.mkdir(spool.stage_fds[STAGING], name, 0o700))
    at = STAGING
    try:
        for stage in (*STAGES[1:], STAGING):
            durable.rename(spool.stage_fds[at], name, spool.stage_fds[stage], name)
            at = stage
    except OSError as error:
        raise Refused(
            f"dump.root {spool.path}: a dump cannot be renamed from {at} to {stage}: {error.strerror}",
            hint="the five stages have to be plain directories of one file system",
        ) from error
    finally:
        durable.rmdir(spool.stage_fds[at], name)
