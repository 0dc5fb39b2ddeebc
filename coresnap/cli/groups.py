# SPDX-License-Identifier: Apache-2.0
"""Dumps of one bug together, by the fingerprint that is on record; without one each executable and signal is a group."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from coresnap.cli import words
from coresnap.cli.dumps import SHORT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from coresnap.cli.dumps import Entry

_FINGERPRINT_SHORT = 12


@dataclass
class Group:
    """Dumps with the same fingerprint, oldest first; it is None where they have none yet, or none at all."""

    fingerprint: str | None
    entries: list[Entry] = field(default_factory=list)

    def row(self) -> tuple[str, str, str, str, str, str]:
        """Return how many they are, who, of what, the time of the latest, the fingerprint and the latest, to be printed."""
        latest = self.entries[-1]
        victim = latest.record["victim"] if latest.record else {}
        return (
            str(len(self.entries)),
            words.name(victim),
            words.signal_name(victim.get("signal")),
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
            "executables": sorted({words.executable(e.record["victim"]) for e in self.entries if e.record}),
            "signals": sorted({e.record["victim"]["signal"] or 0 for e in self.entries if e.record}),
            "uuids": [entry.uuid for entry in self.entries],
        }


def group(entries: Iterable[Entry]) -> list[Group]:
    """Return the groups of these dumps, which are oldest first; the largest group comes first, then the latest."""
    groups: dict[tuple[Any, ...], Group] = {}
    for entry in entries:
        record = entry.record
        mark = record["fingerprint"] if record else None
        victim = record["victim"] if record else {}
        key = (mark,) if mark else (None, words.executable(victim), victim.get("signal"))
        groups.setdefault(key, Group(mark)).entries.append(entry)
    return sorted(groups.values(), key=lambda one: (-len(one.entries), -one.entries[-1].time_usec))
