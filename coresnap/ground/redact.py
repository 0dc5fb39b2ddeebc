# SPDX-License-Identifier: Apache-2.0
"""Secrets in command lines, environments and messages: a value with a telling name, or of a telling shape, becomes `***`.

    --password=S  --token S  API_KEY=S  {"secret": "S"}  Authorization: Bearer S      by name
    AKIA...  ghp_...  eyJ....eyJ....                                                  by shape
    https://user:S@host/                                                              always

Names are compared without regard to case, dashes, dots and underscores. Text is gone through once, piece by piece: it is of a
process that may have chosen it to be slow. What no name and no shape tells of (`-pS`, a bare argument) stays.
"""

import re

from coresnap.ground.asterisk import matches

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

MARK = "***"
#: A run without blanks, quotes and what divides lists, or one of these. No part of it can be read in two ways.
_PIECE = re.compile(r"[^\s\"'`;&?,{}()\[\]|<>]+|.", re.DOTALL)
_NAME = re.compile(r"[-A-Za-z0-9_.$%@]{1,256}")
_ALIKE = str.maketrans("-.", "__")
_QUOTES = "\"'`"
#: What ends a value that stands for itself, beside blanks: its quote, or the next member of a query.
_ENDS = "\"'`&;"
_SCHEMES = ("basic", "bearer", "digest", "token", "negotiate")
_ASSIGN = re.compile(r"([=:])")
_PARTS = re.compile(r"([=:/@])")
#: What is shorter is a word, not a key.
_VALUE_LEAST = 16
_CODEC = "utf-8", "surrogateescape"


class Redaction:
    """What is told of, by patterns in which an asterisk is any text."""

    def __init__(self, names: "Sequence[str]" = (), values: "Sequence[str]" = ()) -> None:
        """`names` are of variables, options and members; `values` the shapes of keys that have a mark of their own."""
        self._names = tuple(_alike(name) for name in names)
        self._values = tuple(values)

    def argv(self, data: bytes) -> bytes:
        """Return a command line, its words ended by NUL as in /proc/PID/cmdline, without its secrets."""
        words = []
        hide = False
        for word in data.decode(*_CODEC).split("\0"):
            if hide and word and not word.startswith("-"):
                words.append(MARK)
                hide = False
                continue
            words.append(self._assigned(word))
            hide = word.startswith("-") and self._is_secret(word)
        return "\0".join(words).encode(*_CODEC)

    def environ(self, data: bytes) -> bytes:
        """Return an environment, its variables ended by NUL as in /proc/PID/environ, without its secrets."""
        return "\0".join(map(self._assigned, data.decode(*_CODEC).split("\0"))).encode(*_CODEC)

    def value(self, name: str, value: str) -> str:
        """Return a variable's value, without its secrets."""
        return MARK if value and self._is_secret(name) else self.text(value)

    def text(self, text: str) -> str:
        """Return a text without its secrets."""
        scan = _Scan(self)
        return "".join(map(scan.take, _PIECE.findall(text)))

    def _assigned(self, word: str) -> str:
        """Return NAME=value: the whole value is one where the name tells of it, whatever is in it."""
        name, equals, value = word.partition("=")
        if equals and _NAME.fullmatch(name):
            return f"{name}={self.value(name, value)}"
        name, colon, value = word.partition(": ")
        if colon and self._is_secret(name):  # a header's value has blanks
            return f"{name}: {MARK}"
        return self.text(word)

    def _is_secret(self, name: str) -> bool:
        alike = _alike(name)
        return bool(_NAME.fullmatch(name)) and any(matches(pattern, alike) for pattern in self._names)

    def piece(self, piece: str, before: str) -> "tuple[str, bool]":
        """Return a piece without its secrets, and whether the next one is one. `before` is the name that came before."""
        parts = _ASSIGN.split(piece)
        at = 0
        for name, _sign in zip(parts[::2], parts[1::2], strict=False):
            at += len(name) + 1
            if self._is_secret(name or (before if at == 1 else "")):
                rest = piece[at:]
                waits = not rest or rest.lower() in _SCHEMES
                return (piece if waits else piece[:at] + MARK), waits
        if len(parts) == 1 and (piece.lower() == "bearer" or (piece.startswith("-") and self._is_secret(piece))):
            return piece, True
        return self._shaped(_without_password(piece)), False

    def _shaped(self, piece: str) -> str:
        if len(piece) < _VALUE_LEAST:
            return piece
        return "".join(
            MARK if len(part) >= _VALUE_LEAST and any(matches(value, part) for value in self._values) else part
            for part in _PARTS.split(piece)
        )


class _Scan:
    """A text, gone through piece by piece."""

    def __init__(self, redaction: Redaction) -> None:
        self._redaction = redaction
        self._waits = False  #: a secret comes next
        self._quote = ""  #: it is in quotes, up to this one
        self._hides = False  #: what comes without a blank still belongs to it
        self._before = ""

    def take(self, piece: str) -> str:
        """Return what stands for the next piece."""
        divides = len(piece) == 1 and not _NAME.fullmatch(piece) and piece not in "=:/"
        if self._quote:
            if piece != self._quote:
                return ""
            self._quote = ""
            return piece
        if self._hides:
            if not (piece.isspace() or piece in _ENDS):
                return ""
            self._hides = False
        if self._waits:
            if divides:
                if piece in _QUOTES:
                    self._waits, self._quote = False, piece
                    return piece + MARK
                self._waits = piece.isspace()
                return piece
            if piece.lower() in _SCHEMES:
                return piece
            if piece in "=:":
                return piece
            self._waits = False
            if not piece.startswith("-"):
                self._hides = True
                return MARK
        if divides:
            return piece
        kept, self._waits = self._redaction.piece(piece, self._before)
        self._before = piece
        self._hides = kept.endswith(MARK)
        return kept


def _alike(name: str) -> str:
    return name.lstrip("-").upper().translate(_ALIKE)


def _without_password(piece: str) -> str:
    """Return a piece in which URLs have no passwords: RFC 3986, 3.2.1."""
    first, *others = piece.split("://")
    for at, other in enumerate(others):
        authority, slash, path = other.partition("/")
        user, sign, host = authority.rpartition("@")
        name, colon, password = user.partition(":")
        if sign and colon and password:
            others[at] = f"{name}:{MARK}@{host}{slash}{path}"
    return "://".join([first, *others])
