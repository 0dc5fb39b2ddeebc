# SPDX-License-Identifier: Apache-2.0
"""Which mapped files of a crashed process will not be reached when its snapshot is made; they are pinned while it is held.

The snapshot is made by dump.user, in the mount namespace of PID 1. Of a process in the same namespace and root a file is reached
under its path unless it has been deleted or replaced, or that user may not read it; of any other process the file under that
path may be the same, or another, or none. Nothing is read here, and opened with O_PATH alone: neither a driver nor a file
server is asked about the file. Layouts: proc_pid_maps(5), proc_pid_map_files(5).

Run by the child that reads evidence, while the crashed process is held.
"""

import os

from coresnap.capture.members import DELETED, is_the_system_s

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

#: More files than that are not looked at, or not pinned: each costs some microseconds, or a descriptor.
_LOOKED_AT_MAX = 2048
PINNED_MAX = 256
_PID_1_ROOT = "/proc/1/root"


def machine_s_root() -> str:
    """Return where the machine's file systems are as PID 1 has them; empty where this process has the same.

    A file system that is unmounted stays in a mount namespace of a service's own: nobody would see what is put there.
    """
    try:
        os.stat(f"{_PID_1_ROOT}/.")
        same = os.readlink("/proc/1/ns/mnt") == os.readlink("/proc/self/ns/mnt")
    except OSError:
        return ""  # an ordinary user's, say
    return "" if same else _PID_1_ROOT


class Pinned:
    """A mapped file. `start` is the address where its first page is mapped, `fd` a descriptor with O_PATH.

    `reached` is device and inode of the file that will be found under its path, where that may be the same one.
    """

    __slots__ = ("fd", "reached", "start")

    def __init__(self, start: int, fd: int, reached: "tuple[int, int] | None") -> None:
        self.start = start
        self.fd = fd
        self.reached = reached

    def close(self) -> None:
        """Let the file go."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class _View:
    """What the process's paths lead to, for the user `uid` in the mount namespace of PID 1."""

    __slots__ = ("_open", "_uid", "_within", "root")

    def __init__(self, proc_fd: int, uid: int) -> None:
        """Raises OSError where the process is gone."""
        self._within = os.fsencode(machine_s_root())
        self.root = os.readlink(b"root", dir_fd=proc_fd).rstrip(b"/")
        self._uid = os.geteuid() if uid < 0 else uid
        self._open: dict[bytes, bool] = {b"": True}

    def find(self, path: bytes) -> "os.stat_result | None":
        """Return what is found under a path that /proc/PID/maps names; None where nothing is, or it may not be read."""
        if not path.startswith(self.root + b"/"):
            return None
        path = path[len(self.root) :]
        try:
            status = os.stat(self._within + path)
            return status if self._allows(status, 4) and self._opens(os.path.dirname(path).rstrip(b"/")) else None
        except OSError:
            return None

    def _opens(self, directory: bytes) -> bool:
        known = self._open.get(directory)
        if known is None:
            above = self._opens(os.path.dirname(directory).rstrip(b"/"))
            known = above and self._allows(os.stat(self._within + directory), 1)
            self._open[directory] = known
        return known

    def _allows(self, status: os.stat_result, bit: int) -> bool:
        """Groups and access control lists are left out: what they allow is kept needlessly."""
        mode = status.st_mode >> 6 if status.st_uid == self._uid else status.st_mode
        return not self._uid or bool(mode & bit)


def pin(proc_fd: int, maps: bytes, suspects: "list[bytes]", uid: int) -> "list[Pinned]":
    """Open the executable files that `uid` may not reach, of those in the lines `suspects` of `maps`, /proc/PID/maps.

    What cannot be told or opened is left out.
    """
    try:
        wanted = _out_of_reach(suspects, _View(proc_fd, uid))
    except OSError:
        return []
    return list(_open(proc_fd, maps.split(b"\n"), wanted)) if wanted else []


def _out_of_reach(lines: "list[bytes]", view: _View) -> "dict[bytes, tuple[int, int] | None]":
    """Return, by device and inode as maps has them, the files to be pinned, each with what is found under its path."""
    wanted: dict[bytes, tuple[int, int] | None] = {}
    seen: set[bytes] = set()
    for line in lines:
        fields = line.split(None, 5)
        if len(fields) < 6 or fields[1][2:3] != b"x" or fields[5][:1] != b"/":
            continue
        path, file = fields[5], b"%b %b" % (fields[3], fields[4])
        if file in seen:
            continue
        seen.add(file)
        if len(seen) > _LOOKED_AT_MAX:
            break
        found = None if path.endswith(DELETED) else view.find(path)
        if found is None:
            wanted[file] = None
        elif not is_the_system_s(path.removeprefix(view.root)) or file != b"%02x:%02x %d" % (
            os.major(found.st_dev),
            os.minor(found.st_dev),
            found.st_ino,
        ):
            # Some file systems have another device in maps than stat(2) tells, and some files no build-id to be known by
            # later: that is looked at once nothing is held.
            wanted[file] = (found.st_dev, found.st_ino)
    return wanted


def _open(proc_fd: int, lines: "list[bytes]", wanted: "dict[bytes, tuple[int, int] | None]") -> "Iterator[Pinned]":
    """Yield each file that is wanted where its first page is mapped."""
    left = PINNED_MAX
    for line in lines:
        fields = line.split(None, 5)
        if len(fields) < 6 or fields[2].strip(b"0"):
            continue
        file = b"%b %b" % (fields[3], fields[4])
        if file not in wanted:
            continue
        start, _hyphen, end = fields[0].partition(b"-")
        try:
            fd = os.open(b"map_files/%x-%x" % (int(start, 16), int(end, 16)), os.O_PATH | os.O_CLOEXEC, dir_fd=proc_fd)
        except (OSError, ValueError):
            continue
        yield Pinned(int(start, 16), fd, wanted.pop(file))
        left -= 1
        if not (left and wanted):
            return
