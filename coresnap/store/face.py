# SPDX-License-Identifier: Apache-2.0
"""What a store is to the sender.

put() either returns the store's own acknowledgement or raises one of three errors, and which one it is decides what
becomes of the dump:

* TryLater: nothing is known to be wrong with the dump or the store's settings (a store that is down, a full disk, a rate
  limit); the dump is tried again, later each time, or when the error's `retry_after_usec` says.
* Parked: the store or the project will take nothing until somebody mends it (no token, no such project, a wrong
  address); the dumps wait, and the store is tried now and then.
* StoreRefused: the store will never take this one snapshot; its dump is given up on.

The same snapshot put twice under one UUID is stored once: the second put returns a receipt with `already_there`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

from coresnap.ground.errors import BadInput, Refused, TryLater

RECEIPT_VERSION = 1
_TEXT_MAX = 1024


class StoreBusy(TryLater):
    """The store asks to be left alone for a while."""

    def __init__(self, message: str, retry_after_usec: int | None = None) -> None:
        super().__init__(message)
        self.retry_after_usec = retry_after_usec


class Parked(TryLater):
    """The store or the project takes nothing until somebody has mended it."""


class StoreRefused(Refused):
    """The store takes this one snapshot never."""


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


@dataclass(frozen=True)
class Receipt:
    """A store's acknowledgement. `object` is the store's own name for what it holds."""

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
            if type(value) is not kind or (isinstance(value, str) and len(value) > _TEXT_MAX):
                raise BadInput(f"receipt: {name}: {kind.__name__} expected")
        if document["version"] != RECEIPT_VERSION:
            raise BadInput(f"receipt: version {document['version']}, {RECEIPT_VERSION} expected")
        return cls(**document)


class Store(Protocol):
    """A store that is open: one connection, many deliveries."""

    def put(self, delivery: Delivery) -> Receipt:
        """Deliver a snapshot and return the store's acknowledgement of it. Raises TryLater, Parked or StoreRefused."""

    def close(self) -> None:
        """End the connection."""
