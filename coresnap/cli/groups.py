# SPDX-License-Identifier: Apache-2.0
"""Dumps of one bug together, by the fingerprint that is on record; without one each executable and signal is a group."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from coresnap.cli import words
from coresnap.cli.dumps import SHORT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from coresnap.spool.inventory import Row

_FINGERPRINT_SHORT = 12


@dataclass
class Group:
    """Dumps with the same fingerprint, oldest first; it is None where they have none yet, or none at all."""

    fingerprint: str | None
    entries: list[Row] = field(default_factory=list)

    def row(self) -> tuple[str, str, str, str, str, str]:
        """Return how many they are, who, of what, the time of the latest, the fingerprint and the latest, to be printed."""
        latest = self.entries[-1]
        return (
            str(len(self.entries)),
            words.name(latest.victim),
            words.signal_name(latest.signal),
            words.when(latest.time_usec),
            (self.fingerprint or "-")[:_FINGERPRINT_SHORT],
            f"{latest.stage}/{latest.uuid[:SHORT]}...",
        )

    def as_json(self) -> dict[str, Any]:
        """Return the group as `--json` prints it."""
        return {
            "fingerprint": self.fingerprint,
            "count": len(self.entries),
            "first_usec": self.entries[0].time_usec,
            "last_usec": self.entries[-1].time_usec,
            "executables": sorted({words.executable(row.victim) for row in self.entries if row.is_readable}),
            "signals": sorted({row.signal or 0 for row in self.entries if row.is_readable}),
            "uuids": [entry.uuid for entry in self.entries],
        }


def group(entries: Iterable[Row]) -> list[Group]:
    """Return the groups of these dumps, which are oldest first; the largest group comes first, then the latest."""
    groups: dict[tuple[Any, ...], Group] = {}
    for entry in entries:
        mark = entry.fingerprint or None
        key = (mark,) if mark else (None, words.executable(entry.victim), entry.signal)
        groups.setdefault(key, Group(mark)).entries.append(entry)
    return sorted(groups.values(), key=lambda one: (-len(one.entries), -one.entries[-1].time_usec))
