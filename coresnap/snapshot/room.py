# SPDX-License-Identifier: Apache-2.0
"""How the report is written, and the room that is left in it while it is put together.

Each part is encoded once, when it is made, and counted as it is then; the report is the parts, joined.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)


def encode(value: Any) -> bytes:
    """Return the value as JSON. What is no Unicode, as half of a surrogate pair in somebody's note, becomes a question mark."""
    return _ENCODER.encode(value).encode("utf-8", "replace")


def member(key: str, value: bytes) -> bytes:
    """Return a member of an object, of a key and a value that is encoded."""
    return encode(key) + b":" + value


def array(items: Iterable[bytes]) -> bytes:
    """Return an array of encoded items."""
    return b"[" + b",".join(items) + b"]"


def object_of(members: Iterable[bytes]) -> bytes:
    """Return an object of encoded members."""
    return b"{" + b",".join(members) + b"}"


class Room:
    """The bytes that the report may still take."""

    def __init__(self, left_bytes: int) -> None:
        self.left_bytes = left_bytes

    def take(self, item: bytes, *, leave_bytes: int = 0) -> bool:
        """Take the room of one more encoded item of a list, or member of an object, and of the comma behind it.

        Say whether there was enough of it, so that `leave_bytes` are left for others.
        """
        if len(item) + 1 > self.left_bytes - leave_bytes:
            return False
        self.left_bytes -= len(item) + 1
        return True
