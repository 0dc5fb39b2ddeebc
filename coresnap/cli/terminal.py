# SPDX-License-Identifier: Apache-2.0
"""The terminal: colour where it is wanted, progress where it takes long, notes that are no output."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Self

from coresnap.ground.text import human_bytes, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType

_AFTER_SECONDS, _EVERY_SECONDS = 1.0, 0.5
RED = "31"
_LINE_MOST = 4000


def paint(text: str, colour: str) -> str:
    """Return the text in a colour (an SGR number) where standard output is a terminal that may have it."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty():
        return text
    return f"\x1b[{colour}m{text}\x1b[m"


def note(line: str) -> None:
    """Say something that is not the output asked for. What may stand in it is escaped here."""
    tell(f"coresnap: {line}")


def tell(line: str) -> None:
    """Print a line to standard error, escaped: it may quote a file, or an argument."""
    print(printable(line, _LINE_MOST), file=sys.stderr)


def print_json(document: Any) -> None:
    """Print JSON. It is plain ASCII, so that no text in it needs to be escaped for a terminal."""
    print(json.dumps(document, indent=1))


def print_json_array(documents: Iterable[Any]) -> None:
    """Print a JSON array as print_json would, one document at a time: all of them might not fit into memory."""
    separator = "[\n "
    for document in documents:
        print(separator + json.dumps(document, indent=1).replace("\n", "\n "), end="")
        separator = ",\n "
    print("[]" if separator.startswith("[") else "\n]")


def fields(rows: list[tuple[str, str]]) -> None:
    """Print names and values, the names right-aligned; rows without a value are left out."""
    shown = [row for row in rows if row[1]]
    width = max(len(label) for label, _value in shown)
    for label, value in shown:
        print(f"{label:>{width}}: {value}")


class Progress:
    """Shows how far something has come, on a terminal's standard error, once it has taken a second.

    A timer's signal does it, so that the work itself needs to know nothing of it. `total_bytes`, 0 where it is not known, may
    become known while it lasts.
    """

    def __init__(self, what: str, total_bytes: int, position: Callable[[], int]) -> None:
        self._what = printable(what, 200)
        self.total_bytes = total_bytes
        self._position = position
        self._shown = False
        self._former: signal.Handlers | Callable[[int, FrameType | None], object] | int | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._former = signal.signal(signal.SIGALRM, self._show)
            signal.setitimer(signal.ITIMER_REAL, _AFTER_SECONDS, _EVERY_SECONDS)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._former is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._former)
        if self._shown:
            os.write(2, b"\r\x1b[K")

    def _show(self, _number: int, _frame: FrameType | None) -> None:
        done_bytes = self._position()
        total = self.total_bytes
        of = f" of {human_bytes(total)} {done_bytes * 100 // total}%" if total else ""
        line = f"{self._what}: {human_bytes(done_bytes)}{of}"
        os.write(2, b"\r" + line.encode("utf-8", "backslashreplace") + b"\x1b[K")
        self._shown = True
