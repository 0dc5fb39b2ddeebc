# SPDX-License-Identifier: Apache-2.0
"""The one face of logging: a structured journal entry where there is a journal, else syslog, else standard error.

Two packages speak to the journal: systemd-python, which distributions ship, and cysystemd, which comes as a wheel. Which
one is installed makes no difference here. A person at a terminal sees each line as well.
"""

from __future__ import annotations

import os
import sys
import syslog
from collections.abc import Callable, Mapping

from coresnap.ground.text import printable

IDENTIFIER = "coresnap"
JOURNAL_SOCKET = "/run/systemd/journal/socket"
SYSLOG_SOCKET = "/dev/log"
ERROR, WARNING, INFO = 3, 4, 6
_MESSAGE_MAX = 8192

#: Every field that a program may give an entry, and what it holds.
FIELDS = {
    "CORESNAP_DUMP": "UUID of the dump",
    "CORESNAP_STAGE": "the stage in which the dump is now",
    "MESSAGE_ID": "identifies the kind of message",
}

Backend = Callable[[int, str, Mapping[str, str]], None]


class Log:
    """Where a program's lines go."""

    def __init__(self, backends: list[Backend]) -> None:
        self._backends = backends

    @classmethod
    def open(cls) -> Log:
        """Choose the journal, syslog or standard error, in this order, by what is there; and the terminal beside it."""
        backend = _journal() or _syslog()
        if backend is None:
            return cls([_standard_error])
        return cls([backend, _standard_error] if sys.stderr is not None and sys.stderr.isatty() else [backend])

    def info(self, message: str, **fields: str) -> None:
        """Log what went as it should."""
        self._send(INFO, message, fields)

    def warning(self, message: str, **fields: str) -> None:
        """Log what did not, and was dealt with."""
        self._send(WARNING, message, fields)

    def error(self, message: str, **fields: str) -> None:
        """Log what somebody has to look at."""
        self._send(ERROR, message, fields)

    def _send(self, priority: int, message: str, fields: Mapping[str, str]) -> None:
        unknown = fields.keys() - FIELDS.keys()
        if unknown:
            raise ValueError(f"undeclared fields: {', '.join(sorted(unknown))}")
        line = printable(message, _MESSAGE_MAX)
        clean = {name: printable(value, _MESSAGE_MAX) for name, value in fields.items() if value}
        for backend in self._backends:
            backend(priority, line, clean)


def _journal() -> Backend | None:
    if not os.path.exists(JOURNAL_SOCKET):
        return None
    return _systemd_python() or _cysystemd()


def _systemd_python() -> Backend | None:
    try:
        from systemd import journal
    except ImportError:
        return None

    def send(priority: int, message: str, fields: Mapping[str, str]) -> None:
        # Naming the caller's file and line is left out: they are this module's.
        journal.send(message, CODE_FUNC="", PRIORITY=str(priority), SYSLOG_IDENTIFIER=IDENTIFIER, **fields)

    return send


def _cysystemd() -> Backend | None:
    try:
        from cysystemd import journal
    except ImportError:
        return None

    def send(priority: int, message: str, fields: Mapping[str, str]) -> None:
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
