# SPDX-License-Identifier: Apache-2.0
"""Whom cores are encrypted to: public keys of age(1), or of ssh, as encrypt.recipients names them or files of them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import stat
from typing import NamedTuple

from coresnap.ground.errors import BadSettings

AGE = re.compile(r"age1[0-9a-z]{10,200}")
_SSH = re.compile(r"(ssh-ed25519|ssh-rsa) ([A-Za-z0-9+/]{40,1600}={0,2})(?: .*)?")
_FILE_MAX_BYTES = 64 << 10
MOST = 32


class Recipient(NamedTuple):
    """A public key as age takes it, and the fingerprint by which people know it: an age key's is itself, ssh's SHA256:..."""

    key: str
    fingerprint: str


def read(words: tuple[str, ...]) -> list[Recipient]:
    """Return the recipients of the setting's words, keys or paths of files with one key a line. Raises BadSettings."""
    found = [one for word in words for one in ([Recipient(word, word)] if AGE.fullmatch(word) else _of_file(word))]
    if len(found) > MOST:
        raise BadSettings(f"encrypt.recipients: more than {MOST} keys")
    return found


def _of_file(path: str) -> list[Recipient]:
    lines = [line.strip() for line in _read(path).splitlines()]
    known = [(number, line) for number, line in enumerate(lines, 1) if line and not line.startswith("#")]
    if not known:
        raise BadSettings(f"encrypt.recipients: {path} has no key")
    return [_parse(line, f"encrypt.recipients: {path}:{number}") for number, line in known]


def _read(path: str) -> str:
    """Return the file's text. Whoever could write it could read all cores: nobody but root and ourselves may."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise BadSettings(f"encrypt.recipients: {path} is not a regular file")
            if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
                raise BadSettings(f"encrypt.recipients: {path}: others can write it", hint="chown root, chmod 644")
            data = file.read(_FILE_MAX_BYTES + 1)
    except OSError as error:
        raise BadSettings(f"encrypt.recipients: {path}: {error.strerror}") from error
    if len(data) > _FILE_MAX_BYTES:
        raise BadSettings(f"encrypt.recipients: {path} has more than {_FILE_MAX_BYTES} bytes")
    return data.decode("ascii", "replace")


def _parse(line: str, where: str) -> Recipient:
    if AGE.fullmatch(line):
        return Recipient(line, line)
    found = _SSH.fullmatch(line)
    try:
        if found:
            digest = hashlib.sha256(base64.b64decode(found[2], validate=True)).digest()
            mark = base64.b64encode(digest).decode().rstrip("=")
            return Recipient(f"{found[1]} {found[2]}", f"SHA256:{mark}")
    except binascii.Error:
        pass
    raise BadSettings(f"{where}: no public key of age, ssh-ed25519 or ssh-rsa", hint="a private one never belongs here")
