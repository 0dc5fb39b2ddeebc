# SPDX-License-Identifier: Apache-2.0
"""How the report is written, and the room that is left in it while it is put together."""

from __future__ import annotations

import json
from typing import Any

_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)


def encode(value: Any) -> bytes:
    """Return the value as JSON. What is no Unicode, as half of a surrogate pair in somebody's note, becomes a question mark."""
    return _ENCODER.encode(value).encode("utf-8", "replace")


class Room:
    """The bytes that the report may still take."""

    def __init__(self, left_bytes: int) -> None:
        self.left_bytes = left_bytes

    def take(self, value: Any, key: str | None = None, *, leave_bytes: int = 0) -> bool:
        """Take the room of one more item of a list, or of an object, with its key.

        Say whether there was enough of it, so that `leave_bytes` are left for others.
        """
        size_bytes = len(encode(value)) + 1 + (0 if key is None else len(encode(key)) + 1)
        if size_bytes > self.left_bytes - leave_bytes:
            return False
        self.left_bytes -= size_bytes
        return True
