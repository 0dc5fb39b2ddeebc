# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: D102  # the methods of Kind, which says what they do
"""The kind of a setting that says how often something may be."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from coresnap.ground.settings.kinds import Duration, Kind
from coresnap.ground.settings.row import HOUR


@dataclass(frozen=True)
class Rate(Kind):
    """At most so many within a time, or 0 for no limit: (how many, microseconds)."""

    most: int
    window: Duration

    def parse(self, text: str) -> tuple[int, int]:
        if text == "0":
            return 0, HOUR
        count, slash, window = text.partition("/")
        if not slash or not re.fullmatch("[0-9]{1,9}", count.rstrip()):
            raise ValueError("not a number, a slash and a time")
        value = int(count)
        if not 1 <= value <= self.most:
            raise ValueError("out of range")
        return value, self.window.parse(window.lstrip())

    def show(self, value: tuple[int, int]) -> str:
        return f"{value[0]}/{self.window.show(value[1])}" if value[0] else "0"

    def json(self, value: tuple[int, int]) -> list[int]:
        return list(value)

    def schema(self) -> dict[str, Any]:
        count = {"type": "integer", "minimum": 0, "maximum": self.most}
        return {"type": "array", "prefixItems": [count, self.window.schema()], "minItems": 2, "maxItems": 2}

    def allowed(self) -> str:
        return f"a number up to {self.most}, a slash and {self.window.allowed()}; 0 for no limit"
