# SPDX-License-Identifier: Apache-2.0
"""coroner.cf: where an object store is, and the token of each project.

    [universe]
    name = UNIVERSE
    write = https://HOST:6098
    [token]
    PROJECT = TOKEN

The oldest files have the same keys and no sections. Beside coroner's own keys, of which those that concern reading are
passed over, these are coresnap's, in any section but [token]:

    ssl.ca_file = FILE        trust the authorities in this file alone
    ssl.certificate = FILE    show this certificate
    ssl.key = FILE            and its key, where it is not in the same file
    proxy = http://HOST:PORT  go through this proxy, whatever the environment says; `none`: through none
    connect_timeout, idle_timeout = SECONDS

A relative path is one beside the coroner.cf, in a service among its credentials. No message quotes a value: any could be
a token.
"""

from __future__ import annotations

import codecs
import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from coresnap.ground.errors import BadSettings
from coresnap.ground.text import printable
from coresnap.store.face import Parked, Secret

NAME = "coroner.cf"
SYSTEM = f"/usr/local/etc/{NAME}"
_MAX_BYTES, _LINE_MAX, _KEY_MAX = 1 << 18, 4096, 200
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,256}")
_HEX_TOKEN = re.compile(r"[0-9A-Fa-f]{16,256}")
_FLAGS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "2": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
_SECONDS = range(1, 3601)
#: The sections with keys that count; None stands for what comes before the first.
_SECTIONS = (None, "universe", "coresnap")
_OWN = {
    "name",
    "write",
    "curl.ssl_verifyhost",
    "curl.ssl_verifypeer",
    "ssl.ca_file",
    "ssl.certificate",
    "ssl.key",
    "proxy",
    "connect_timeout",
    "idle_timeout",
}


@dataclass(frozen=True)
class Coroner:
    """What a coroner.cf says. `warnings` are lines for people."""

    path: str
    universe: str = ""
    write: str = field(default="", repr=False)
    tokens: dict[str, Secret] = field(default_factory=dict)
    verify_peer: bool = True
    verify_host: bool = True
    ca_file: str = ""
    certificate: str = ""
    key: str = ""
    proxy: str = field(default="", repr=False)
    connect_usec: int = 10_000_000
    idle_usec: int = 60_000_000
    warnings: tuple[str, ...] = ()


def is_hex_token(text: str) -> bool:
    """Say whether the text is a token itself and not one's name."""
    return _HEX_TOKEN.fullmatch(text) is not None


def for_service(named: str) -> str:
    """Return the path of the coroner.cf of a service: its credential, where it has one, else the one that is named.

    The credential is the same file; the service's user need not be able to open it where it lies. One that is a lone #,
    the unit's default, stands for none.
    """
    credential = os.path.join(os.environ.get("CREDENTIALS_DIRECTORY") or "/nonexistent", NAME)
    try:
        with open(credential, "rb") as file:
            return named if file.read(8).strip() in (b"", b"#") else credential
    except OSError:
        return named


def is_outdated(named: str) -> bool:
    """Say whether the file that is named has changed since the service got its credential, which stays as it was."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        return False
    try:
        changed_nsec = os.stat(named).st_ctime_ns
        given_nsec = os.stat(os.path.join(directory, NAME)).st_mtime_ns
    except OSError:
        return False
    return given_nsec < changed_nsec <= time.time_ns()  # what has changed in the future tells of the clock


def for_person(named: str | None) -> str:
    """Return the path of the coroner.cf of somebody at work: the one named, theirs, or the system's. Raises Parked."""
    if named:
        return named
    home = os.environ.get("HOME", "")
    theirs = [os.path.join(home, f".{NAME}")] if home.startswith("/") else []
    for path in [for_service(""), *theirs, SYSTEM]:
        if path and os.path.lexists(path):
            return path
    raise Parked(f"no {NAME}", hint=f"name the store and its tokens in {SYSTEM}, or with -c FILE")


def read(path: str, original: str = "") -> Coroner:
    """Read a coroner.cf, of which `path` may be a copy for a service alone: the `original` is what is told of, and its mode counts.

    Raises Parked where it cannot be read, BadSettings naming the line that is wrong.
    """
    try:
        told = original or path
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise Parked(f"{told} is not a regular file")
            data = os.read(fd, _MAX_BYTES + 1)
            mode = _mode(told, status.st_mode)
        finally:
            os.close(fd)
    except OSError as error:
        hint = "a service reads it as a credential: LoadCredential= of systemd.exec(5)"
        raise Parked(f"{told}: {error.strerror}", hint=hint if isinstance(error, PermissionError) else "") from error
    if len(data) > _MAX_BYTES:
        raise BadSettings(f"{told}: more than {_MAX_BYTES} bytes")
    return parse(data, told, mode, os.path.dirname(path))


def _mode(path: str, default: int) -> int:
    try:
        return os.stat(path).st_mode
    except OSError:
        return default


def parse(data: bytes, path: str, mode: int = 0, beside: str = "") -> Coroner:
    """Read the bytes of the coroner.cf `path`, of this file mode; relative paths in it are ones in `beside`, else beside it."""
    values: dict[str, tuple[str, int]] = {}
    tokens: dict[str, Secret] = {}
    for number, section, key, value in _lines(data, path):
        where = f"{path}:{number}"
        token = section == "token" or (section is None and key not in _OWN and is_hex_token(value))
        if not token and (key not in _OWN or section not in _SECTIONS):
            continue
        if (token and key in tokens) or (not token and key in values):
            raise BadSettings(f"{where}: {printable(key)} stands there a second time")
        if not token:
            values[key] = (value, number)
        elif _TOKEN.fullmatch(value):
            tokens[key] = Secret(value)
        else:
            raise BadSettings(f"{where}: the token of {printable(key)} is none: hexadecimal digits expected")
    reader = _Values(values, path, beside or os.path.dirname(path))
    verify_peer, verify_host = reader.flag("curl.ssl_verifypeer"), reader.flag("curl.ssl_verifyhost")
    warnings = []
    if mode & 0o004 and tokens:
        warnings.append(f"{path} has tokens, and every user of this machine can read it: chmod 600 {path}")
    if not (verify_peer and verify_host):
        warnings.append(
            f"{path} forbids to verify who the store is: whoever stands between can read tokens and reports"
        )
    return Coroner(
        path=path,
        universe=reader.text("name"),
        write=reader.text("write"),
        tokens=tokens,
        verify_peer=verify_peer,
        verify_host=verify_host,
        ca_file=reader.file("ssl.ca_file"),
        certificate=reader.file("ssl.certificate"),
        key=reader.file("ssl.key"),
        proxy=reader.text("proxy"),
        connect_usec=reader.usec("connect_timeout", Coroner.connect_usec),
        idle_usec=reader.usec("idle_timeout", Coroner.idle_usec),
        warnings=tuple(warnings),
    )


def _lines(data: bytes, path: str) -> Iterator[tuple[int, str | None, str, str]]:
    """Yield number, section, key and value of each line that has them; the section is None before the first."""
    section = None
    for number, raw in enumerate(data.removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        if raw.lstrip()[:1] in (b"#", b";"):
            continue
        try:
            line = raw.decode("ascii").strip()
        except UnicodeDecodeError:
            raise BadSettings(f"{path}:{number}: not ASCII") from None
        if len(line) > _LINE_MAX or "\0" in line:
            raise BadSettings(f"{path}:{number}: a line of more than {_LINE_MAX} characters, or with a NUL")
        if not line:
            continue
        if line[0] == "[":
            if not re.fullmatch(r"\[[A-Za-z0-9_. -]{1,64}\]", line):
                raise BadSettings(f"{path}:{number}: not the name of a section")
            section = line[1:-1].strip().lower()
            continue
        key, equals, value = line.partition("=")
        key, value = key.strip(), value.strip()
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        if not equals or not key or len(key) > _KEY_MAX or not key.isprintable():
            raise BadSettings(f"{path}:{number}: KEY = VALUE expected")
        yield number, section, key, value


class _Values:
    """The values of a file, by their keys, each read as what it must be."""

    def __init__(self, values: dict[str, tuple[str, int]], path: str, beside: str) -> None:
        self._values = values
        self._path = path
        self._beside = beside

    def text(self, key: str) -> str:
        return self._values.get(key, ("", 0))[0]

    def flag(self, key: str) -> bool:
        value, number = self._values.get(key, ("true", 0))
        if value.lower() not in _FLAGS:
            raise BadSettings(f"{self._path}:{number}: {key}: true or false expected")
        return _FLAGS[value.lower()]

    def file(self, key: str) -> str:
        value = self.text(key)
        return os.path.join(self._beside, value) if value else ""

    def usec(self, key: str, default: int) -> int:
        value, number = self._values.get(key, ("", 0))
        if not number:
            return default
        if not re.fullmatch("[0-9]{1,4}", value) or int(value) not in _SECONDS:
            raise BadSettings(
                f"{self._path}:{number}: {key}: seconds expected, {_SECONDS.start} to {_SECONDS.stop - 1}"
            )
        return int(value) * 1_000_000
