# SPDX-License-Identifier: Apache-2.0
"""Evidence: what /proc tells of the crashed process and of the host, read before it is gone.

What cannot block, and is wanted before the core, the capture reads itself: status and the names. The rest is read in a
child process that holds no pipe, no lock and no file of the dump: a read that blocks (an environ or an executable behind a
FUSE server that does not answer) then costs the asset what has not been read by the deadline, and never the core. The child
sends each member as it has it; what dies with the process comes first, and a mark follows it, after which the process need
not be held any longer.

Imported while a crashed process is held. Files and their layouts: proc(5), proc_pid(5).
"""

import os
import select
import stat
import struct
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_HEADER = struct.Struct("<HI")
_MARK, _END = "-", "."
_MEMBER_MAX_BYTES = 4 << 20
_TOTAL_MAX_BYTES = 12 << 20
_LINKS_MAX = 4096
_F_SETPIPE_SZ = 1031

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


class Reader:
    """The child that reads for one capture. capture_service's heir of it reads for one after another."""

    def __init__(self, held_fds: "Sequence[int]") -> None:
        """`held_fds` are what the child must not hold: the crashed process would be held with them."""
        self._held_fds = held_fds
        self._pid = -1
        self._fd = -1

    def start(self, proc_fd: int, environ: "Sequence[str]") -> int:
        """Start reading; return the descriptor that the members come from. Raises OSError."""
        self._fd, write_fd = os.pipe()
        try:
            self._pid = os.fork()
            if self._pid == 0:
                self._be_the_child(proc_fd, environ, write_fd)
        finally:
            os.close(write_fd)
        return self._fd

    def _be_the_child(self, proc_fd: int, environ: "Sequence[str]", write_fd: int) -> None:
        try:
            for fd in (*self._held_fds, self._fd):
                os.close(fd)
            widen(write_fd)
            send_members(write_fd, proc_fd, environ)
        except OSError:
            pass  # the parent has gone on without us
        finally:
            os._exit(0)

    def end(self, *, whole: bool) -> None:
        """Be done with the child: it is killed, not waited for, where it has not read all."""
        if self._fd >= 0:
            os.close(self._fd)
        if self._pid > 0:
            if not whole:
                os.kill(self._pid, 9)
            os.waitpid(self._pid, 0 if whole else os.WNOHANG)


class Evidence:
    """The members read so far, in their order, and the child that reads more."""

    __slots__ = ("_buffer", "_fd", "_forgotten", "_reader", "members", "read_whole", "victim_read")

    def __init__(self, proc: "str | None", environ: "Sequence[str]", reader: "Reader | None") -> None:
        """Start reading. `proc` is the directory of the process in /proc, None where it is not known.

        `environ` are the names of environment variables to keep; a trailing asterisk stands for any rest. Without a reader
        nothing but its names is read.
        """
        self.members: dict[str, bytes] = {}
        self.victim_read = self.read_whole = reader is None
        self._forgotten = False
        self._buffer = bytearray()
        self._reader = reader
        proc_fd = _directory(proc)
        try:
            self._fd = reader.start(proc_fd, environ) if reader else -1
        except OSError:  # no process, or no descriptor, to be had: the core is still taken
            self._fd = -1
            self.victim_read = self.read_whole = True
        if proc_fd >= 0:
            self.members.update(_first(proc_fd) if reader else _names(proc_fd))
            os.close(proc_fd)

    def wait_for_victim(self, budget_usec: int) -> None:
        """Return once the victim's part has been read, or after `budget_usec` with what there is by then."""
        self._receive(time.monotonic() + budget_usec / 1e6, until_mark=True)

    def wait_for_host(self, budget_usec: int) -> None:
        """Take the rest, and be done with the child, in time or not. Once is enough."""
        if self._reader is None:
            return
        self._receive(time.monotonic() + budget_usec / 1e6, until_mark=False)
        self._reader.end(whole=self.read_whole)
        self._reader = None

    def forget_victim(self) -> None:
        """Drop the victim's part, and what is still to come of it: it may be another process's."""
        self._forgotten = True
        self.members = {name: data for name, data in self.members.items() if name.startswith("host/")}

    def missing(self) -> "list[str]":
        """Return the names of the members that could not be read, or not in time."""
        victim = [f"proc/{name}" for name, _limit in (*FIRST_FILES, *VICTIM_FILES, *LATE_FILES)]
        links = [f"proc/{name}" for name in (*VICTIM_LINKS, "fd", "task")]
        host = [f"host/{name}" for name, _path, _limit in HOST_FILES]
        return [name for name in (*victim, *links, *host) if name not in self.members]

    def _receive(self, deadline: float, until_mark: bool) -> None:
        if self.read_whole:
            return
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        while not self.read_whole and not (until_mark and self.victim_read):
            left_msec = int((deadline - time.monotonic()) * 1000)
            if left_msec <= 0 or not poll.poll(left_msec):
                return
            block = os.read(self._fd, 1 << 18)
            self.read_whole = not block
            self._buffer += block
            self._split()

    def _split(self) -> None:
        """Take the whole members off the buffer."""
        at = 0
        while len(self._buffer) - at >= _HEADER.size:
            name_bytes, data_bytes = _HEADER.unpack_from(self._buffer, at)
            end = at + _HEADER.size + name_bytes + data_bytes
            if end > len(self._buffer):
                break
            name = self._buffer[at + _HEADER.size : at + _HEADER.size + name_bytes].decode()
            if name == _MARK:
                self.victim_read = True
            elif name == _END:
                self.read_whole = True
            elif not self._forgotten or name.startswith("host/"):
                self.members[name] = bytes(self._buffer[end - data_bytes : end])
            at = end
        del self._buffer[:at]


def send_members(fd: int, proc_fd: int, environ: "Sequence[str]") -> None:
    """Read, and send what there is as it comes; a `proc_fd` below 0 is none. Raises OSError where nobody receives."""
    left_bytes = _TOTAL_MAX_BYTES
    for name, data in _members(proc_fd, environ):
        kept = data[: min(_MEMBER_MAX_BYTES, left_bytes)]
        left_bytes -= len(kept)
        _send(fd, name, kept)
    _send(fd, _END, b"")


def widen(fd: int) -> None:
    """Let the pipe take most of what there is, so that the child need not wait for a capture that copies."""
    import fcntl

    try:
        fcntl.fcntl(fd, _F_SETPIPE_SZ, 1 << 20)
    except OSError:
        pass  # beyond /proc/sys/fs/pipe-max-size; the default does


def _send(fd: int, name: str, data: bytes) -> None:
    message = memoryview(_HEADER.pack(len(name), len(data)) + name.encode() + data)
    while message:
        message = message[os.write(fd, message) :]


def _members(proc_fd: int, environ: "Sequence[str]") -> "Iterator[tuple[str, bytes]]":
    if proc_fd >= 0:
        yield from _victim(proc_fd, environ)
    yield _MARK, b""
    for name, path, limit_bytes in HOST_FILES:
        data = _read(path, limit_bytes)
        if data is not None:
            yield f"host/{name}", data
    pressure = [(name, _read(f"/proc/pressure/{name}", 1024)) for name in ("cpu", "io", "memory")]
    lines = b"".join(
        name.encode() + b" " + line + b"\n" for name, data in pressure for line in (data or b"").splitlines()
    )
    if lines:
        yield "host/pressure", lines


def _directory(proc: "str | None") -> int:
    if proc is None:
        return -1
    try:
        return os.open(proc, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return -1


def _first(proc_fd: int) -> "Iterator[tuple[str, bytes]]":
    for name, limit_bytes in FIRST_FILES:
        data = _read(name, limit_bytes, proc_fd)
        if data is not None:
            yield f"proc/{name}", data
    for link in VICTIM_LINKS:
        target = _link(link, proc_fd)
        if target is not None:
            yield f"proc/{link}", target


def _names(proc_fd: int) -> "Iterator[tuple[str, bytes]]":
    """Yield what the ledger calls the process by."""
    comm, exe = _read("comm", 64, proc_fd), _link("exe", proc_fd)
    if comm is not None:
        yield "proc/comm", comm
    if exe is not None:
        yield "proc/exe", exe


def _victim(proc_fd: int, environ: "Sequence[str]") -> "Iterator[tuple[str, bytes]]":
    for name, limit_bytes in VICTIM_FILES:
        data = _read(name, limit_bytes, proc_fd)
        if data is not None:
            yield f"proc/{name}", filter_environ(data, environ) if name == "environ" else data
    yield "proc/task", b"".join(_tasks(proc_fd))
    yield "proc/fd", b"".join(_descriptors(proc_fd))
    for name, limit_bytes in LATE_FILES:
        data = _read(name, limit_bytes, proc_fd)
        if data is not None:
            yield f"proc/{name}", data


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
        comm = (_read(f"{tid}/comm", 64, task_fd) or b"").removesuffix(b"\n")
        wchan = _read(f"{tid}/wchan", 128, task_fd) or b""
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
        target = _link(number, fd_fd) or b""
        yield number.encode() + b"\t" + target.decode("utf-8", "replace").encode("unicode_escape") + b"\n"


def _link(name: str, dir_fd: int) -> "bytes | None":
    try:
        return os.readlink(os.fsencode(name), dir_fd=dir_fd)
    except OSError:
        return None


def _read(path: str, limit_bytes: int, dir_fd: "int | None" = None) -> "bytes | None":
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
