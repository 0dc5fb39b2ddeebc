# SPDX-License-Identifier: Apache-2.0
"""The settings of archive: a flat file, written whole from settings that were found good. Reading it cannot fail.

A process is held while archive starts, so archive reads no configuration: `coresnap config --compile` and coresnapd write
this file, one `key TAB value` a line under a line with its version. Where there is none, or it is damaged, built-in
defaults hold, and archive says so.

Imported while a crashed process is held.
"""

import os

PATH = "/var/cache/coresnap/archive.settings"
VERSION_LINE = "coresnap-settings 1"
_LIMIT_BYTES = 64 << 10


class ArchiveSettings:
    """What archive goes by. Sizes in bytes, times in microseconds, uid and gid -1 where the caller's own are kept."""

    __slots__ = ("ceiling_bytes", "environ", "evidence_budget_usec", "gid", "mode", "quota_percent", "root", "uid")

    def __init__(self) -> None:
        self.root = "/var/lib/coresnap"
        self.mode = 0o600
        self.uid = -1
        self.gid = -1
        self.quota_percent = 10
        self.ceiling_bytes = 0
        self.environ: tuple[str, ...] = (
            *("PATH", "LANG", "LANGUAGE", "LC_*", "TERM", "SHELL", "HOME", "USER", "LOGNAME", "PWD", "TZ"),
            *("LD_LIBRARY_PATH", "LD_PRELOAD", "INVOCATION_ID", "XDG_*", "PYTHON*", "GOTRACEBACK", "RUST_BACKTRACE"),
        )
        self.evidence_budget_usec = 1_000_000

    def owner(self) -> "tuple[int, int, int]":
        """Return mode, uid and gid of a dump's files."""
        return self.mode, self.uid, self.gid


def write(settings: ArchiveSettings) -> bytes:
    """Return the flat file for these settings."""
    lines = [VERSION_LINE]
    for name in ArchiveSettings.__slots__:
        value = getattr(settings, name)
        lines.append(f"{name}\t{' '.join(value) if name == 'environ' else value}")
    return ("\n".join(lines) + "\n").encode()


def read(path: str) -> "tuple[ArchiveSettings, str]":
    """Read the flat file; return the settings and, in a line, what was wrong with it: nothing where all was well."""
    settings = ArchiveSettings()
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            text = os.read(fd, _LIMIT_BYTES).decode()
        finally:
            os.close(fd)
        _parse(text, settings)
    except OSError as error:
        return ArchiveSettings(), f"no settings in {path} ({error.strerror}): built-in defaults hold"
    except ValueError as error:
        return ArchiveSettings(), f"{path} is damaged ({error}): built-in defaults hold; `coresnap config --compile` mends it"
    return settings, ""


def _parse(text: str, settings: ArchiveSettings) -> None:
    lines = text.splitlines()
    if not lines or lines[0] != VERSION_LINE:
        raise ValueError(f"line 1 is not `{VERSION_LINE}`")
    values = dict(line.split("\t", 1) for line in lines[1:])
    if values.keys() != set(ArchiveSettings.__slots__):
        raise ValueError("its keys are not the expected ones")
    if not values["root"].startswith("/"):
        raise ValueError("root is no absolute path")
    for name, value in values.items():
        if name == "environ":
            settings.environ = tuple(value.split())
        else:
            setattr(settings, name, value if name == "root" else int(value))
