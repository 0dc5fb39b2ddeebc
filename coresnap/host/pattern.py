# SPDX-License-Identifier: Apache-2.0
"""core_pattern, and the two settings of the kernel that go with it: claimed, held, and given back as they were.

What was in force before is kept in BEFORE, and ours in SYSCTL, which systemd-sysctl(8) applies after everybody else's
when it is restarted; both have the form of sysctl.d(5), and neither outlives a boot. See core(5).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass

from coresnap.ground import durable
from coresnap.ground.errors import Refused

PATTERN = "kernel.core_pattern"
PIPE_LIMIT = "kernel.core_pipe_limit"
SUID_DUMPABLE = "fs.suid_dumpable"
_NAMES = (PIPE_LIMIT, SUID_DUMPABLE, PATTERN)  #: in the order in which they are written
SOCKET = "/run/coresnap/kernel"
BEFORE = "core_pattern.before"
SYSCTL = "99-coresnap.conf"
_PATTERN_MAX = 127
_PIPE_LIMITS = (64, 1024)
_HELPER_BYTES = 8 << 20
#: Where /proc/sys cannot be written.
_CONTAINER = "in a container core_pattern is the host's: the coresnapd there gets the crashes of its containers, too"
_KERNEL_DEFAULT = {PATTERN: "core", PIPE_LIMIT: "0", SUID_DUMPABLE: "0"}


@dataclass(frozen=True)
class Host:
    """Where the machine keeps what coresnap changes."""

    sys: str = "/proc/sys"
    state: str = "/run/coresnap"
    sysctl: str = "/run/sysctl.d"
    units: str = "/run/systemd/system"
    memory: str = "/proc/meminfo"
    kernel_log: str = "/dev/kmsg"


def socket_pattern() -> str:
    """Return the core_pattern by which the kernel asks the capture service itself."""
    return f"@@{SOCKET}"


def pipe_pattern(specifiers: str) -> str:
    """Return the core_pattern by which the kernel starts archive with these arguments. Raises Refused if it is too long."""
    package = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    installed = os.path.join(os.path.dirname(os.path.dirname(package)), "archive")
    archive = installed if os.access(installed, os.X_OK) else os.path.join(package, "archive.py")
    pattern = f"|{archive} {specifiers}"
    if len(pattern) > _PATTERN_MAX or len(archive.split()) != 1:
        raise Refused(
            f"core_pattern cannot be `{pattern}`", hint="install coresnap where the path is short, without blanks"
        )
    return pattern


def is_ours(pattern: str) -> bool:
    """Say whether this core_pattern gives the cores to coresnap: to its helper or to its socket."""
    if pattern.startswith("@"):
        return pattern == socket_pattern()
    helper = pattern[1:].split()[:1] if pattern.startswith("|") else []
    return any("coresnap" in path and os.path.basename(path) in ("archive", "archive.py") for path in helper)


def read(host: Host) -> dict[str, str]:
    """Return the three settings as they are now. Raises Refused."""
    values = {}
    for name in _NAMES:
        path = _path(host, name)
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                values[name] = file.read(4096).removesuffix("\n")
        except OSError as error:
            raise Refused(f"{path}: {error.strerror}") from error
    return values


def wanted(host: Host, pattern: str) -> dict[str, str]:
    """Return the settings that go with one of our patterns: as many helpers at once as memory allows, set-uid programs too."""
    limit = min(max(_memory_bytes(host) // _HELPER_BYTES, _PIPE_LIMITS[0]), _PIPE_LIMITS[1])
    return {PIPE_LIMIT: str(limit), SUID_DUMPABLE: "2", PATTERN: pattern}


def claim(host: Host, pattern: str) -> str:
    """Put our pattern in force, for now and against a restart of systemd-sysctl; return the one before. Raises Refused."""
    now = read(host)
    if not is_ours(now[PATTERN]):
        _save(host.state, BEFORE, now, "What was in force before coresnapd; `coresnapd --release` brings it back.")
    values = wanted(host, pattern)
    _save(host.sysctl, SYSCTL, values, "Written by coresnapd, which takes it away when it is stopped.")
    _write(host, values, now)
    return before(host)[PATTERN]


def release(host: Host) -> str:
    """Bring back what was in force before; return the pattern that is in force now. Raises Refused.

    A pattern that is not ours stays: somebody has changed it meanwhile.
    """
    now = read(host)
    former = before(host)
    _remove(host.sysctl, SYSCTL)
    if is_ours(now[PATTERN]):
        order = {name: former[name] for name in (PATTERN, PIPE_LIMIT, SUID_DUMPABLE)}
        _write(host, order, now)
        now = former
    _remove(host.state, BEFORE)
    return now[PATTERN]


def before(host: Host) -> dict[str, str]:
    """Return what was in force before the claim; the kernel's defaults where that is not known."""
    values = dict(_KERNEL_DEFAULT)
    try:
        with open(os.path.join(host.state, BEFORE), encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                name, separator, value = line.removesuffix("\n").partition("=")
                if separator and name in values:
                    values[name] = value
    except OSError:
        pass  # the defaults hold
    return values


def _write(host: Host, values: Mapping[str, str], now: Mapping[str, str]) -> None:
    for name, value in values.items():
        if now[name] == value:
            continue
        path = _path(host, name)
        try:
            with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(value)
        except OSError as error:
            hint = _CONTAINER if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM) else ""
            raise Refused(f"{path} does not take `{value}`: {error.strerror}", hint=hint) from error
    found = read(host)
    for name, value in values.items():
        if found[name] != value:
            raise Refused(f"{_path(host, name)} reads `{found[name]}` after `{value}` was written")


def _save(directory: str, name: str, values: Mapping[str, str], why: str) -> None:
    lines = [f"# {why}", *(f"{key}={value}" for key, value in values.items()), ""]
    try:
        os.makedirs(directory, 0o755, exist_ok=True)
        fd = durable.open_directory(directory)
        try:
            durable.replace(fd, name, "\n".join(lines).encode("utf-8", "surrogateescape"), 0o644)
        finally:
            os.close(fd)
    except OSError as error:
        raise Refused(f"{directory}/{name}: {error.strerror}") from error


def _remove(directory: str, name: str) -> None:
    try:
        os.unlink(os.path.join(directory, name))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise Refused(f"{directory}/{name}: {error.strerror}") from error


def _path(host: Host, name: str) -> str:
    return os.path.join(host.sys, name.replace(".", "/"))


def _memory_bytes(host: Host) -> int:
    """Return the machine's memory; 0 where it is not told."""
    try:
        with open(host.memory, encoding="ascii", errors="replace") as file:
            first = file.readline(200).split()
    except OSError:
        return 0
    return int(first[1]) << 10 if len(first) > 1 and first[0] == "MemTotal:" and first[1].isdigit() else 0
