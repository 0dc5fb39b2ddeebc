# SPDX-License-Identifier: Apache-2.0
"""The process that crashed, as the kernel's core_pattern describes it. Imported while that process is held."""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

#: The arguments of archive, in core_pattern's specifiers; see core(5). %F is a pidfd, by its number.
CORE_PATTERN = "%P %I %u %g %s %t %c %d %F %E"
_INT_MAX = 2**64 - 1


class Victim:
    """What is known of the process; None stands for unknown. `exe` and `comm` are text that the process chose."""

    __slots__ = (
        "cmdline",
        "comm",
        "dumpable",
        "exe",
        "gid",
        "pid",
        "pidfd",
        "rlimit_core",
        "signal",
        "tid",
        "time",
        "uid",
    )

    def __init__(self) -> None:
        self.pid: int | None = None
        self.tid: int | None = None
        self.uid: int | None = None
        self.gid: int | None = None
        self.signal: int | None = None
        self.time: int | None = None
        self.rlimit_core: int | None = None
        self.dumpable: int | None = None
        self.pidfd: int | None = None
        self.comm: str | None = None
        self.exe: str | None = None
        self.cmdline: str | None = None


_ORDER = ("pid", "tid", "uid", "gid", "signal", "time", "rlimit_core", "dumpable", "pidfd")


def from_core_pattern(arguments: "Sequence[str]") -> Victim:
    """Read archive's positional arguments; one that the kernel left empty, or that is no number, is unknown."""
    victim = Victim()
    for name, text in zip(_ORDER, arguments, strict=False):
        if text.isascii() and text.isdigit() and len(text) <= 20 and int(text) <= _INT_MAX:
            setattr(victim, name, int(text))
    if len(arguments) > len(_ORDER):
        path = arguments[len(_ORDER)].replace("!", "/")
        victim.exe = os.fsencode(path).decode("utf-8", "replace") or None
    return victim


def comm_of(proc: str) -> "str | None":
    """Return the name in a process's directory of /proc, None where it cannot be read; proc_pid_comm(5)."""
    try:
        fd = os.open(f"{proc}/comm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(fd, 64).removesuffix(b"\n").decode("utf-8", "replace")
    except OSError:
        return None
    finally:
        os.close(fd)


def exe_of(proc: str) -> "str | None":
    """Return the executable's path by a process's directory of /proc, None where it cannot be read; proc_pid_exe(5)."""
    try:
        return os.readlink(os.fsencode(f"{proc}/exe")).decode("utf-8", "replace")
    except OSError:
        return None
