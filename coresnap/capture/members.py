# SPDX-License-Identifier: Apache-2.0
"""The members of the asset, read and sent one by one: what the child does that coresnap.capture.evidence starts.

Of the victim's mapped files nothing is read before the mark that ends its part; then, once it is told so, those that it has
pinned before.

Imported while a crashed process is held. Files and their layouts: proc(5), proc_pid(5).
"""

import os
import stat
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from coresnap.capture.reach import Pinned

    Pin = Callable[[int, bytes, list[bytes], int], list[Pinned]]

HEADER = struct.Struct("<HI")
#: The end of the victim's part, with the files that have been pinned; one of which all has been read; the end.
MARK, WHOLE, END = "-", "+", "."
MODULES = "modules/"
#: What is told once the process has been let go: that its files are to be read, or that there is no dump for them.
GO, STOP = b"+", b"-"
_MEMBER_MAX_BYTES = 4 << 20
_TOTAL_MAX_BYTES = 12 << 20
_LINKS_MAX = 4096
_F_SETPIPE_SZ = 1031
#: What lies below is the distribution's, but for one directory: everybody may read it, and it has build-ids.
_SYSTEM = (b"/usr/", b"/lib", b"/bin/", b"/sbin/")
_LOCAL = b"/usr/local/"
DELETED = b" (deleted)"

#: Files of /proc/PID in order of what they are worth, each with the most bytes of it that are kept. The first ones neither
#: touch the process's memory nor wait for a lock of it.
FIRST_FILES = (("status", 16 << 10), ("comm", 64))
VICTIM_FILES = (
    ("cmdline", 128 << 10),
    ("cgroup", 64 << 10),
    ("stat", 4 << 10),
    ("auxv", 4 << 10),
    ("limits", 8 << 10),
    ("maps", 4 << 20),
    ("environ", 256 << 10),
    ("io", 4 << 10),
)
VICTIM_LINKS = ("exe", "cwd", "root")
LATE_FILES = (("mountinfo", 512 << 10), ("smaps_rollup", 8 << 10))
HOST_FILES = (
    ("meminfo", "/proc/meminfo", 16 << 10),
    ("loadavg", "/proc/loadavg", 1 << 10),
    ("uptime", "/proc/uptime", 1 << 10),
    ("version", "/proc/version", 4 << 10),
    ("hostname", "/proc/sys/kernel/hostname", 1 << 10),
    ("stat", "/proc/stat", 64 << 10),
    ("vmstat", "/proc/vmstat", 32 << 10),
    ("os-release", "/etc/os-release", 16 << 10),
    ("cpuinfo", "/proc/cpuinfo", 8 << 10),
)


class Wish:
    """What is to be read beside what always is."""

    __slots__ = ("environ", "modules_bytes", "uid")

    def __init__(self, environ: "Sequence[str]" = (), modules_bytes: int = 0, uid: int = -1) -> None:
        """Take what the settings say.

        `environ` are the names of environment variables to keep; a trailing asterisk stands for any rest. Of mapped files that
        the user `uid`, where below 0 ourselves, will not reach `modules_bytes` are kept.
        """
        self.environ = environ
        self.modules_bytes = modules_bytes
        self.uid = uid


def send_members(fd: int, proc_fd: int, wish: Wish, pin: "Pin", told: "Callable[[], bytes]") -> None:
    """Read, and send what there is as it comes; a `proc_fd` below 0 is none. Raises OSError where nobody receives.

    `pin` is coresnap.capture.reach's, which few crashes need; `told` waits for GO or STOP, where there are files to be read.
    """
    left_bytes = _TOTAL_MAX_BYTES
    pinned: list[Pinned] = []
    for name, data in _members(proc_fd, wish, pin, pinned):
        kept = data[: min(_MEMBER_MAX_BYTES, left_bytes)]
        left_bytes -= len(kept)
        _send(fd, name, kept)
    if pinned and told() == GO:
        _send_modules(fd, pinned, wish.modules_bytes)
    for file in pinned:
        file.close()
    _send(fd, END, b"")


def _send_modules(fd: int, pinned: "Sequence[Pinned]", most_bytes: int) -> None:
    from coresnap.capture.modules import keep  # few crashes need it

    for start, offset, data in keep(pinned, most_bytes):
        if offset < 0:
            _send(fd, WHOLE, b"%b%x" % (MODULES.encode(), start))
        else:
            _send(fd, f"{MODULES}{start:x}/{offset:x}", data)


def widen(fd: int) -> None:
    """Let the pipe take most of what there is, so that the child need not wait for a capture that copies."""
    import fcntl

    try:
        fcntl.fcntl(fd, _F_SETPIPE_SZ, 1 << 20)
    except OSError:
        pass  # beyond /proc/sys/fs/pipe-max-size; the default does


def _send(fd: int, name: str, data: bytes) -> None:
    message = memoryview(HEADER.pack(len(name), len(data)) + name.encode() + data)
    while message:
        message = message[os.write(fd, message) :]


def _members(proc_fd: int, wish: Wish, pin: "Pin", pinned: "list[Pinned]") -> "Iterator[tuple[str, bytes]]":
    if proc_fd >= 0:
        yield from _victim(proc_fd, wish, pin, pinned)
    yield MARK, b" ".join(b"%b%x" % (MODULES.encode(), file.start) for file in pinned)
    for name, path, limit_bytes in HOST_FILES:
        data = read(path, limit_bytes)
        if data is not None:
            yield f"host/{name}", data
    pressure = [(name, read(f"/proc/pressure/{name}", 1024)) for name in ("cpu", "io", "memory")]
    lines = b"".join(
        name.encode() + b" " + line + b"\n" for name, data in pressure for line in (data or b"").splitlines()
    )
    if lines:
        yield "host/pressure", lines


def _victim(proc_fd: int, wish: Wish, pin: "Pin", pinned: "list[Pinned]") -> "Iterator[tuple[str, bytes]]":
    maps = b""
    for name, limit_bytes in VICTIM_FILES:
        data = read(name, limit_bytes, proc_fd)
        if data is not None:
            yield f"proc/{name}", filter_environ(data, wish.environ) if name == "environ" else data
            maps = data if name == "maps" else maps
    yield "proc/task", b"".join(_tasks(proc_fd))
    yield "proc/fd", b"".join(_descriptors(proc_fd))
    for name, limit_bytes in LATE_FILES:
        data = read(name, limit_bytes, proc_fd)
        if data is not None:
            yield f"proc/{name}", data
    suspects = suspected(proc_fd, maps) if wish.modules_bytes else []
    if suspects:
        pinned += pin(proc_fd, maps, suspects, wish.uid)


def suspected(proc_fd: int, maps: bytes) -> "list[bytes]":
    """Return the lines of /proc/PID/maps whose executable files may be out of the snapshot's reach: most often there are none.

    In PID 1's own mount namespace and root the system's files are as everybody finds them, where they have not been deleted.
    """
    lines = [line for line in maps.split(b"\n") if b"xp " in line and b" /" in line]
    try:
        usual = os.readlink("root", dir_fd=proc_fd) == "/"
        usual = usual and os.readlink("ns/mnt", dir_fd=proc_fd) == _machine_s_namespace()
    except OSError:
        return []
    return [line for line in lines if not (usual and is_the_system_s(line[line.index(b"/") :]))]


def is_the_system_s(path: bytes) -> bool:
    """Say whether a path in /proc/PID/maps is of a file of the distribution's, which everybody may read, and that is there."""
    return path.startswith(_SYSTEM) and not path.startswith(_LOCAL) and not path.endswith(DELETED)


def _machine_s_namespace() -> str:
    """Return the mount namespace of PID 1, as far as it may be known; our own is the same then."""
    try:
        return os.readlink("/proc/1/ns/mnt")
    except OSError:
        return os.readlink("/proc/self/ns/mnt")


def filter_environ(data: bytes, names: "Sequence[str]") -> bytes:
    """Keep the variables (NUL-separated, NAME=value) whose names are listed; a listed name may end in an asterisk."""
    whole = {name.encode() for name in names if not name.endswith("*")}
    prefixes = tuple(name[:-1].encode() for name in names if name.endswith("*"))
    kept = []
    for variable in data.split(b"\0"):
        name = variable.partition(b"=")[0]
        if name and (name in whole or (prefixes and name.startswith(prefixes))):
            kept.append(variable + b"\0")
    return b"".join(kept)


def _tasks(proc_fd: int) -> "Iterator[bytes]":
    """Yield a line for each thread: its id, the kernel function that it waits in, its name."""
    try:
        task_fd = os.open("task", os.O_RDONLY | os.O_DIRECTORY, dir_fd=proc_fd)
    except OSError:
        return
    for tid in sorted(os.listdir(task_fd), key=int)[:65536]:
        comm = (read(f"{tid}/comm", 64, task_fd) or b"").removesuffix(b"\n")
        wchan = read(f"{tid}/wchan", 128, task_fd) or b""
        escaped = comm.decode("utf-8", "replace").encode("unicode_escape")
        yield (
            b"\t".join(
                (tid.encode(), wchan if wchan.isalnum() else wchan.replace(b"\t", b" ").replace(b"\n", b" "), escaped)
            )
            + b"\n"
        )


def _descriptors(proc_fd: int) -> "Iterator[bytes]":
    """Yield a line for each open file descriptor: its number and what it is, as readlink(2) tells."""
    try:
        fd_fd = os.open("fd", os.O_RDONLY | os.O_DIRECTORY, dir_fd=proc_fd)
        numbers = sorted(os.listdir(fd_fd), key=int)
    except OSError:
        return
    for number in numbers[:_LINKS_MAX]:
        target = link(number, fd_fd) or b""
        yield number.encode() + b"\t" + target.decode("utf-8", "replace").encode("unicode_escape") + b"\n"


def link(name: str, dir_fd: int) -> "bytes | None":
    """Return what a symbolic link says, None where it cannot be read."""
    try:
        return os.readlink(os.fsencode(name), dir_fd=dir_fd)
    except OSError:
        return None


def read(path: str, limit_bytes: int, dir_fd: "int | None" = None) -> "bytes | None":
    """Return the first `limit_bytes` of a regular file, None where it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        blocks: list[bytes] = []
        while limit_bytes > 0 and (block := os.read(fd, min(limit_bytes, 1 << 16))):
            blocks.append(block)
            limit_bytes -= len(block)
        return b"".join(blocks)
    except OSError:
        return None
    finally:
        os.close(fd)
