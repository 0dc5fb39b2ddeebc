# SPDX-License-Identifier: Apache-2.0
"""What a store is to the sender.

put() either returns the store's own acknowledgement or raises one of three errors, and which one it is decides what
becomes of the dump:

* TryLater: nothing is known to be wrong with the dump or with the settings (transport errors; HTTP 408, 425, 429, 5xx; a
  full disk). The dump stays in sending and is tried again, later each time, or when `retry_after_usec` of a StoreBusy says.
  It is a NotTaken where the store can be reached, so that perhaps this one dump is why.
* Parked: the store or the project takes nothing until somebody mends it (HTTP 401, 403, 404; no token; a directory that
  may not be written). No dump is at fault: all of them wait in sending, no attempt counts against them, and the store is
  tried now and then.
* StoreRefused: the store says that it will never take this one snapshot (HTTP 400, 413, 422; another snapshot has its
  UUID; its bytes are not those on record). Its dump moves to failed; the others are not concerned.

The same snapshot put twice under one UUID is stored once: the second put returns a receipt with `already_there`. An
answer that was lost can therefore always be asked for again.

Another store is one module with a class that has the methods of Store, and one line in open.py.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol

from coresnap.ground.errors import BadInput, Refused, TryLater

RECEIPT_VERSION = 1
_TEXT_MAX = 1024
_INT_MAX = 2**63 - 1
_NAME_MAX = 64
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


class StoreBusy(TryLater):
    """The store asks to be left alone for a while."""

    def __init__(self, message: str, retry_after_usec: int | None = None) -> None:
        super().__init__(message)
        self.retry_after_usec = retry_after_usec


class NotTaken(TryLater):
    """The store was reached and has acknowledged nothing; this one dump may be why: HTTP 500, a time limit, a broken answer."""

    scope = "dump"


class Parked(TryLater):
    """The store or the project takes nothing until somebody has mended it; `scope` says which: "store" or "project"."""

    def __init__(self, message: str, *, hint: str = "", scope: str = "store") -> None:
        super().__init__(message, hint=hint)
        self.scope = scope


class StoreRefused(Refused):
    """The store takes this one snapshot never."""


class Secret:
    """A token. It shows in no repr, log line or traceback; reveal() is for the one request that needs it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the token itself."""
        return self._text

    def redact(self, text: str) -> str:
        """Return a text that somebody else wrote without the token, in whatever case."""
        return re.sub(re.escape(self._text), "…", text, flags=re.IGNORECASE) if self._text else text

    def __repr__(self) -> str:
        return "Secret(…)"


@dataclass(frozen=True)
class Attachment:
    """A file that goes with a snapshot."""

    name: str
    fd: int
    size_bytes: int


@dataclass(frozen=True)
class Delivery:
    """A snapshot to be delivered: its bytes at `fd`, from the start, with the checksum that they had when it was made."""

    uuid: str
    project: str
    fd: int
    size_bytes: int
    sha256: str
    attachments: tuple[Attachment, ...] = ()
    token: Secret | None = field(default=None, repr=False)
    #: Names and values that the store is told beside what the snapshot says; a store may have no place for them.
    attributes: tuple[tuple[str, str], ...] = ()
    #: The checksum of what an earlier attempt may have stored in place of this; empty: nothing else.
    before_sha256: str = ""
    #: The snapshot's format; empty: as its first bytes tell.
    format: str = ""


@dataclass(frozen=True)
class Receipt:
    """A store's acknowledgement. `object` is the store's own name for what it holds; `store` has no secrets in it."""

    uuid: str
    store: str
    project: str
    object: str
    acknowledged_usec: int
    size_bytes: int
    sha256: str
    already_there: bool
    version: int = RECEIPT_VERSION

    def to_json(self) -> dict[str, Any]:
        """Return the receipt as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Any) -> Receipt:
        """Read a receipt. Raises BadInput naming the key that is not as it must be."""
        if not isinstance(document, dict):
            raise BadInput("receipt: an object expected")
        kinds = {"int": int, "str": str, "bool": bool}
        names = {item.name: kinds[str(item.type)] for item in fields(cls)}
        if document.keys() != names.keys():
            raise BadInput(f"receipt: an object of {', '.join(names)} expected")
        for name, kind in names.items():
            value = document[name]
            if type(value) is not kind:
                raise BadInput(f"receipt: {name}: {kind.__name__} expected")
            if isinstance(value, str) and len(value) > _TEXT_MAX:
                raise BadInput(f"receipt: {name}: more than {_TEXT_MAX} characters")
            if isinstance(value, int) and not 0 <= value <= _INT_MAX:
                raise BadInput(f"receipt: {name}: out of range")
        if document["version"] != RECEIPT_VERSION:
            raise BadInput(f"receipt: version {document['version']}, {RECEIPT_VERSION} expected")
        return cls(**document)


class Store(Protocol):
    """A store that is open: one connection, many deliveries."""

    def put(self, delivery: Delivery) -> Receipt:
        """Deliver a snapshot and return the store's acknowledgement of it. Raises TryLater, Parked or StoreRefused."""

    def close(self) -> None:
        """End the connection."""


def is_name(text: str) -> bool:
    """Say whether the text can name a project or an attachment: it cannot name another directory, nor be hidden in one."""
    return 0 < len(text) <= _NAME_MAX and text[0] != "." and _NAME_CHARACTERS.issuperset(text)
