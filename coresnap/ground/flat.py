# SPDX-License-Identifier: Apache-2.0
"""The compiled settings, as archive reads them while it holds a crashed process.

`coresnap config --compile` and coresnapd write them (coresnap.ground.settings.compiled): a first line
`coresnap-settings 1`, then a line NAME, tab, value for each. A name that is missing keeps its default and an unknown
one is passed over, so that a file written before an upgrade, or after it, still says where the spool is.

Imported while a crashed process is held: nothing but os may be imported here.
"""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

PATH = "/var/cache/coresnap/archive.settings"
HEADER = "coresnap-settings 1"
_MAX_BYTES = 64 << 10
_ID_MAX = (1 << 32) - 2
_ENVIRON = (
    "PATH LANG LANGUAGE LC_* TERM SHELL HOME USER LOGNAME PWD TZ TMPDIR LD_LIBRARY_PATH LD_PRELOAD GOTRACEBACK"
    " INVOCATION_ID XDG_SESSION_ID XDG_SESSION_TYPE"
)
_REDACT_NAMES = (
    "*PASS* *_PWD *SECRET* *TOKEN* *CREDENTIAL* *APIKEY* *API_KEY* *ACCESS_KEY* *PRIVATE_KEY* *ENCRYPTION_KEY* *AUTHORIZATION*"
    " *COOKIE* *_DSN"
)
_REDACT_VALUES = (
    "AKIA* ASIA* ghp_* gho_* ghu_* ghs_* ghr_* github_pat_* glpat-* xoxb-* xoxp-* xoxa-* sk_live_* sk-* AIza* npm_* pypi-*"
    " hvs.* eyJ*.eyJ*.*"
)
_RANGES = {
    "mode": (0o600, 0o777),
    "uid": (-1, _ID_MAX),
    "gid": (-1, _ID_MAX),
    "quota_percent": (0, 100),
    "ceiling_bytes": (0, 1 << 62),
    "core_max_bytes": (0, 1 << 62),
    "evidence_budget_usec": (0, 1 << 40),
    "modules_max_bytes": (0, 1 << 40),
    "jobs": (1, 1024),
}
_WORDS = ("environ", "include", "exclude", "redact_names", "redact_values")
_RATES = ("limit_exe", "limit_unit", "limit_user")
_RATE_MOST, _WINDOW_MOST_USEC = 1_000_000, 1 << 50


class ArchiveSettings:
    """What archive has to know. A uid or gid of -1 stands for the caller's own; a ceiling of 0 bytes for none.

    A limit is how many are kept, 0 for all, and the microseconds within which they are counted.
    """

    __slots__ = (
        "ceiling_bytes",
        "core_max_bytes",
        "environ",
        "evidence_budget_usec",
        "exclude",
        "gid",
        "include",
        "jobs",
        "limit_exe",
        "limit_unit",
        "limit_user",
        "mode",
        "modules_max_bytes",
        "quota_percent",
        "redact_names",
        "redact_values",
        "rlimit_core",
        "root",
        "uid",
    )

    def __init__(self) -> None:
        """Take the built-in defaults; a test holds them equal to the table's."""
        self.root = "/var/lib/coresnap"
        self.mode = 0o600
        self.uid = -1
        self.gid = -1
        self.quota_percent = 10
        self.ceiling_bytes = 0
        self.environ = tuple(_ENVIRON.split())
        self.evidence_budget_usec = 1_000_000
        self.modules_max_bytes = 32 << 20
        self.rlimit_core = "ignore"
        self.jobs = 16
        self.redact_names = tuple(_REDACT_NAMES.split())
        self.redact_values = tuple(_REDACT_VALUES.split())
        self.include: tuple[str, ...] = ()
        self.exclude: tuple[str, ...] = ()
        self.core_max_bytes = 0
        self.limit_exe = (5, 3_600_000_000)
        self.limit_unit = (10, 3_600_000_000)
        self.limit_user = (50, 3_600_000_000)

    def owner(self) -> "tuple[int, int, int]":
        """Return mode, uid and gid of a dump's files, in the order that coresnap.ground.durable takes them."""
        return self.mode, self.uid, self.gid


def read(path: str = PATH) -> "tuple[ArchiveSettings, str]":
    """Return the compiled settings and what is wrong with them, in a line, empty when nothing is. Never raises.

    Settings that are missing, broken, or that somebody other than root and the caller could have written are not used
    at all: the built-in defaults hold.
    """
    settings = ArchiveSettings()
    try:
        for line in _lines(path):
            _take(settings, line)
    except FileNotFoundError:
        return ArchiveSettings(), f"no compiled settings at {path}: built-in defaults"
    except OSError as error:
        return ArchiveSettings(), f"compiled settings at {path}: {error.strerror}: built-in defaults"
    except ValueError as error:
        return ArchiveSettings(), f"compiled settings at {path}: {error}: built-in defaults"
    return settings, ""


class Compiled:
    """Compiled settings that are read again and again: anew only where the file is another one, or has been written to."""

    def __init__(self, path: str = PATH) -> None:
        self._path = path
        self._version: tuple[int, ...] | None = None
        self._read = ArchiveSettings(), ""

    def read(self) -> "tuple[ArchiveSettings, str]":
        """Return the settings and what is wrong with them, as the function of this name does. Never raises."""
        try:
            status = os.lstat(self._path)
        except OSError:
            return read(self._path)
        version = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if version != self._version:
            self._read = read(self._path)
            self._version = version
        return self._read


def _lines(path: str) -> "Iterator[str]":
    """Yield the lines after the header. Raises OSError, ValueError."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if status.st_mode & 0o170000 != 0o100000:
            raise ValueError("not a regular file")
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            raise ValueError("others can write it")
        data = os.read(fd, _MAX_BYTES + 1)
    finally:
        os.close(fd)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"more than {_MAX_BYTES} bytes")
    header, *lines, last = data.decode().split("\n") if b"\n" in data else ("", "")
    if header != HEADER:
        raise ValueError(f"the first line is not `{HEADER}`")
    if last:
        raise ValueError("the last line is cut short")
    yield from lines


def _take(settings: ArchiveSettings, line: str) -> None:
    """Put one line into the settings. Raises ValueError."""
    name, _tab, value = line.partition("\t")
    if name == "root":
        if not value.startswith("/") or "\0" in value:
            raise ValueError("root: not an absolute path")
        settings.root = value
    elif name in _WORDS:
        setattr(settings, name, tuple(value.split()))
    elif name in _RATES:
        most, _blank, window_usec = value.partition(" ")
        rate = _number(name, most, 0, _RATE_MOST), _number(name, window_usec, 1, _WINDOW_MOST_USEC)
        setattr(settings, name, rate)
    elif name == "rlimit_core":
        if value not in ("ignore", "honour"):
            raise ValueError("rlimit_core: not ignore or honour")
        settings.rlimit_core = value
    elif name in _RANGES:
        setattr(settings, name, _number(name, value, *_RANGES[name]))


def _number(name: str, text: str, low: int, high: int) -> int:
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20 and low <= int(text) <= high):
        raise ValueError(f"{name}: not a number from {low} to {high}")
    return int(text)
