# SPDX-License-Identifier: Apache-2.0
"""What the kernel's log tells of cores that it handed to nobody: /dev/kmsg, Documentation/ABI/testing/dev-kmsg.

Each read(2) returns one record, `priority,sequence,microseconds,flags;text` and lines of more fields. The text of a process's
name is escaped by the kernel. Which record was the last to be acted upon is kept for as long as core_pattern is ours, so that
what comes while coresnapd is being restarted is not missed, nor taken twice.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from coresnap.ground import durable
from coresnap.host.pattern import SOCKET, Host, is_ours

SEEN = "kernel_log.seen"
#: A log that is flooded is not worth a look at every line.
_EVERY_USEC = 1_000_000
_RECORD_BYTES = 8192
_NAMED = re.compile(r"coredump: (\d{1,10})\((.{0,64})\): (.{1,300})")
#: Linux before 6.10 has another form for each message.
_FORMER = (
    (re.compile(r"Pid (\d{1,10})\((.{0,64})\) over core_pipe_limit"), "over core_pipe_limit"),
    (re.compile(r"Process (\d{1,10})\((.{0,64})\) has RLIMIT_CORE set to 1"), "RLIMIT_CORE is set to 1"),
)
_FORMER_PIPE = re.compile(r"Core dump to (\|.{1,200}) pipe failed")
_SUPPRESSED = re.compile(r"(?:do|vfs)?_?coredump(?:_\w+)?: (\d{1,9}) callbacks suppressed")
_SKIPPED = re.compile(r"over core_pipe_limit|RLIMIT_CORE is set to 1|format_corename failed|failed to allocate memory")
_PIPE = re.compile(r"(\|.{1,200}) pipe failed")
_CONNECTION = re.compile(r"Coredump socket connection (\S{1,200}) failed (-?\d{1,5})")
_QUEUE = re.compile(r"Coredump socket (\S{1,200}) receive queue full")


@dataclass(frozen=True)
class Drop:
    """A crash whose core the kernel handed to nobody, or several that it did not name."""

    pid: int | None
    comm: str | None
    detail: str


def drop_of(text: str) -> Drop | None:
    """Return what a line of the kernel's log tells of a core that was meant for coresnap; None where it is about anything else."""
    named = _NAMED.match(text)
    if named:
        detail = _detail_of(named[3])
        return Drop(int(named[1]), named[2], detail) if detail else None
    for former, detail in _FORMER:
        found = former.match(text)
        if found:
            return Drop(int(found[1]), found[2], detail)
    pipe = _FORMER_PIPE.match(text)
    if pipe and is_ours(pipe[1]):
        return Drop(None, None, f"{pipe[1]} pipe failed")
    suppressed = _SUPPRESSED.match(text)
    if suppressed:
        return Drop(None, None, f"{suppressed[1]} more messages of this kind, whose processes the kernel did not name")
    return None


def _detail_of(said: str) -> str:
    """Return what the kernel said, where it means that a core of ours went nowhere."""
    pipe, connection = _PIPE.match(said), _CONNECTION.match(said)
    if pipe:
        return said if is_ours(pipe[1]) else ""
    if connection:
        number = abs(int(connection[2]))
        return f"{SOCKET}: {os.strerror(number)}" if connection[1] == SOCKET else ""
    queue = _QUEUE.match(said)
    if queue:
        return f"{SOCKET}: its queue was full" if queue[1] == SOCKET else ""
    return said if _SKIPPED.match(said) else ""


class KernelLog:
    """The kernel's log from now on, or from where a former coresnapd has read it. `fd` is to be polled when `due_usec` has come."""

    def __init__(self, host: Host) -> None:
        """Open it. Raises OSError where it may not be read."""
        self._state = host.state
        self._seen = _read_seen(host.state)
        self._newest = -1
        self.due_usec = 0
        self.fd = os.open(host.kernel_log, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if self._seen is None:
            for _record in self._records():
                pass
            self._keep()

    def __enter__(self) -> KernelLog:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self.fd)

    def drops(self) -> Iterator[Drop]:
        """Yield the drops that have come; what has been yielded is not told again. Raises OSError."""
        self.due_usec = time.monotonic_ns() // 1000 + _EVERY_USEC
        for number, text in self._records():
            drop = drop_of(text) if self._seen is None or number > self._seen else None
            if drop is not None:
                yield drop
                self._keep()

    def _records(self) -> Iterator[tuple[int, str]]:
        while True:
            try:
                data = os.read(self.fd, _RECORD_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.EPIPE:  # that is: records have been overwritten before we read them
                    raise
                continue
            if not data:
                return
            head, _semicolon, rest = data.partition(b";")
            fields = head.split(b",")
            if len(fields) > 2 and fields[1].isdigit() and len(fields[1]) < 20:
                self._newest = int(fields[1])
                yield self._newest, rest.partition(b"\n")[0].decode("utf-8", "replace")

    def _keep(self) -> None:
        """Remember how far it has been read."""
        self._seen = self._newest
        fd = durable.open_directory(self._state)
        try:
            durable.replace(fd, SEEN, b"%d\n" % self._newest, 0o644)
        finally:
            os.close(fd)


def forget(host: Host) -> None:
    """Forget how far it has been read: what comes while core_pattern is another's is none of ours. Raises nothing."""
    with suppress(OSError):
        os.unlink(os.path.join(host.state, SEEN))


def _read_seen(directory: str) -> int | None:
    """Return the last record that has been acted upon; None where core_pattern was not ours before."""
    try:
        with open(os.path.join(directory, SEEN), encoding="ascii", errors="replace") as file:
            text = file.read(32).strip()
    except OSError:
        return None
    return int(text) if text.lstrip("-").isdigit() else None
