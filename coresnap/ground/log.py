# SPDX-License-Identifier: Apache-2.0
"""The one face of logging: a structured journal entry where there is a journal, else syslog, else standard error.

Two packages speak to the journal: systemd-python, which distributions ship, and cysystemd, which comes as a wheel. Which
one is installed makes no difference here. A person at a terminal sees each line as well.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import sys
import syslog
from collections.abc import Callable, Mapping

from coresnap.ground.text import printable

IDENTIFIER = "coresnap"
JOURNAL_SOCKET = "/run/systemd/journal/socket"
SYSLOG_SOCKET = "/dev/log"
#: Where systemd is PID 1; see sd_booted(3).
SYSTEMD = "/run/systemd/system"
CRITICAL, ERROR, WARNING, INFO = 2, 3, 4, 6
_MESSAGE_MAX = 8192

#: Every field that a program may give an entry, and what it holds.
FIELDS = {
    "CORESNAP_DUMP": "UUID of the dump",
    "CORESNAP_STAGE": "the stage in which the dump is now",
    "MESSAGE_ID": "identifies the kind of message",
}

#: Fields that are systemd-coredump's, of which its manual page tells.
_SYSTEMDS = "COREDUMP_"

Backend = Callable[[int, str, Mapping[str, str]], None]


class Log:
    """Where a program's lines go."""

    def __init__(self, backends: list[Backend], journal: Backend | None = None) -> None:
        self._backends = backends
        self._journal = journal
        self._lost = 0

    @classmethod
    def open(cls, *, echo: bool = True) -> Log:
        """Choose the journal, syslog or standard error, in this order, by what is there; and the terminal beside it.

        Without `echo` neither: a command has told the person who gave it already.
        """
        journal = _journal()
        backend = journal or _syslog()
        if not echo:
            return cls([backend] if backend else [], journal)
        if backend is None:
            return cls([_standard_error])
        terminal = [_standard_error] if sys.stderr is not None and sys.stderr.isatty() else []
        return cls([backend, *terminal], journal)

    def info(self, message: str, **fields: str) -> None:
        """Log what went as it should."""
        self._send(INFO, message, fields)

    def warning(self, message: str, **fields: str) -> None:
        """Log what did not, and was dealt with."""
        self._send(WARNING, message, fields)

    def error(self, message: str, **fields: str) -> None:
        """Log what somebody has to look at."""
        self._send(ERROR, message, fields)

    def entry(self, priority: int, message: str, fields: Mapping[str, str]) -> bool:
        """Put an entry into the journal alone, its fields as they are, of several lines or not; say whether there is one."""
        _check(fields)
        if self._journal is None:
            return False
        try:
            self._journal(priority, message, {name: _storable(value) for name, value in fields.items() if value})
        except OSError:
            return False
        return True

    def _send(self, priority: int, message: str, fields: Mapping[str, str]) -> None:
        _check(fields)
        line = printable(message, _MESSAGE_MAX)
        clean = {name: printable(value, _MESSAGE_MAX) for name, value in fields.items() if value}
        for backend in self._backends:
            try:
                if self._lost:
                    backend(WARNING, f"{self._lost} lines before this one could not be logged here", {})
                    self._lost = 0
                backend(priority, line, clean)
            except OSError:  # nobody is kept waiting for a journal that does not read
                self._lost += 1
                _standard_error(priority, line, clean)


def _storable(value: str) -> str:
    """Return the value without what no field can hold: NUL, and halves of characters, which JSON can spell."""
    return value.replace("\0", "").encode("utf-8", "replace").decode()


def _check(fields: Mapping[str, str]) -> None:
    unknown = [name for name in fields if name not in FIELDS and not name.startswith(_SYSTEMDS)]
    if unknown:
        raise ValueError(f"undeclared fields: {', '.join(sorted(unknown))}")


def _takes() -> None:
    """Raise OSError where the journal is not there, or would have its sender wait: a datagram socket that is full."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        probe.connect(JOURNAL_SOCKET)
        poll = select.poll()
        poll.register(probe, select.POLLOUT)
        if not poll.poll(0):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), JOURNAL_SOCKET)


def _journal() -> Backend | None:
    if not os.path.exists(JOURNAL_SOCKET):
        return None
    return _systemd_python() or _cysystemd()


def has_journal() -> bool:
    """Say whether this machine has a journal that we can speak to, be it away just now."""
    return os.path.isdir(SYSTEMD) and (_systemd_python() or _cysystemd()) is not None


def _systemd_python() -> Backend | None:
    try:
        from systemd import journal
    except ImportError:
        return None

    def send(priority: int, message: str, fields: Mapping[str, str]) -> None:
        _takes()
        # Naming the caller's file and line is left out: they are this module's.
        journal.send(message, CODE_FUNC="", PRIORITY=str(priority), SYSLOG_IDENTIFIER=IDENTIFIER, **fields)

    return send


def _cysystemd() -> Backend | None:
    try:
        from cysystemd import journal
    except ImportError:
        return None

    def send(priority: int, message: str, fields: Mapping[str, str]) -> None:
        _takes()
        journal.send(message=message, PRIORITY=str(priority), SYSLOG_IDENTIFIER=IDENTIFIER, **fields)

    return send


def _syslog() -> Backend | None:
    if not os.path.exists(SYSLOG_SOCKET):
        return None
    syslog.openlog(IDENTIFIER, syslog.LOG_PID, syslog.LOG_DAEMON)

    def send(priority: int, message: str, _fields: Mapping[str, str]) -> None:
        syslog.syslog(priority, message)

    return send


def _standard_error(_priority: int, message: str, _fields: Mapping[str, str]) -> None:
    try:
        print(f"{IDENTIFIER}: {message}", file=sys.stderr, flush=True)
    except (OSError, ValueError, AttributeError):
        pass  # nobody is there to read it
