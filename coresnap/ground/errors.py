# SPDX-License-Identifier: Apache-2.0
"""The tree of errors. Library code raises; one place in each program turns an error into a line and an exit status.

The exit statuses are those of sysexits.h(3head): 65 bad input, 66 none, 69 refused, 75 try later, 78 configuration.
"""


class CoresnapError(Exception):
    """What failed and on what; `hint` says what to do about it. Both are one line of plain text."""

    exit_status = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def line(self) -> str:
        """Return the error as the one line that a person reads."""
        return f"{self}: {self.hint}" if self.hint else str(self)


class BadInput(CoresnapError):
    """Bytes from outside (a core, a record, an answer) are not what they must be. EX_DATAERR."""

    exit_status = 65


class NoInput(BadInput):
    """A file that was named is not there, or may not be read. EX_NOINPUT."""

    exit_status = 66


class Refused(CoresnapError):
    """A rule or a missing thing forbids it, and asking again changes nothing. EX_UNAVAILABLE."""

    exit_status = 69


class TryLater(CoresnapError):
    """It may go through later: a full disk, a lock that is held, a store that is down. EX_TEMPFAIL."""

    exit_status = 75


class BadSettings(CoresnapError):
    """The configuration is wrong or cannot be read. EX_CONFIG."""

    exit_status = 78


def unreadable(name: str, error: OSError) -> "NoInput | TryLater":
    """Return what it means that a file that was named cannot be opened or read: what is not of its path, as EIO, may pass."""
    from errno import EACCES, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, ENXIO, EPERM  # not while a process is held

    of_path = (ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG, ENXIO, EACCES, EPERM)
    return (NoInput if error.errno in of_path else TryLater)(f"{name}: {error.strerror}")
