# SPDX-License-Identifier: Apache-2.0
"""How often each bug has been reported today: the first reports of a day are sent whole, the rest small.

    <dump.root>/sent.json     {"version": 1, "day": days since the epoch, "counts": {beginning of a fingerprint: count}}

A day is one of UTC, that of the delivery. The file is written every ten seconds at most: after a crash of the sender a few
more are sent whole. Where it is lost or broken the count begins anew.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from coresnap.ground import durable
from coresnap.ground.errors import BadInput

if TYPE_CHECKING:
    from coresnap.ground.clock import Clock

NAME = "sent.json"
VERSION = 1
LIMIT_BYTES = 512 << 10
BUGS_MAX = 8192
KEY_LENGTH = 16
_DAY_USEC = 86_400_000_000
_COUNT_MAX = 2**53
_EVERY_USEC = 10_000_000


def read(root_fd: int) -> tuple[int, dict[str, int]]:
    """Return the day and the counts, from the root of a spool. Raises BadInput, or OSError where it cannot be read."""
    try:
        document = json.loads(durable.read(root_fd, NAME, LIMIT_BYTES))
    except FileNotFoundError:
        return 0, {}
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{NAME}: {error}") from error
    if not isinstance(document, dict) or document.keys() != {"version", "day", "counts"}:
        raise BadInput(f"{NAME}: an object of version, day, counts expected")
    counts, day = document["counts"], document["day"]
    if document["version"] != VERSION or not _is_count(day) or not isinstance(counts, dict) or len(counts) > BUGS_MAX:
        raise BadInput(f"{NAME}: version {VERSION}, a day and at most {BUGS_MAX} counts expected")
    if not all(len(key) <= KEY_LENGTH and _is_count(count) for key, count in counts.items()):
        raise BadInput(f"{NAME}: counts: not as they must be")
    return day, counts


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _COUNT_MAX


class Tally:
    """The counts of today, as the sender has them."""

    def __init__(self, root_fd: int, owner: tuple[int, int, int], clock: Clock) -> None:
        self.root_fd = root_fd
        self.owner = owner
        self.clock = clock
        self._changed = False
        self._written_usec = clock.now_usec()
        self._under_way: dict[str, str] = {}
        try:
            self._day, self._counts = read(root_fd)
        except (BadInput, OSError):
            self._day, self._counts = 0, {}

    def begin(self, uuid: str, bug: str) -> int:
        """Note that a dump of this bug is being sent; return which one of the bug's it is today, from 1 on."""
        day = self.clock.wall_usec() // _DAY_USEC
        if day != self._day:
            self._day, self._counts = day, {}
        key = bug[:KEY_LENGTH]
        self._under_way.pop(uuid, None)
        number = self._counts.get(key, 0) + sum(other == key for other in self._under_way.values()) + 1
        self._under_way[uuid] = key
        return number

    def end(self, uuid: str, *, delivered: bool) -> None:
        """Note what has become of it: what was not delivered does not count."""
        key = self._under_way.pop(uuid, None)
        if key is None or not delivered:
            return
        count = self._counts.pop(key, 0) + 1
        if len(self._counts) >= BUGS_MAX:
            del self._counts[next(iter(self._counts))]  # the one that was not seen for longest
        self._counts[key] = count
        self._changed = True

    def write(self, *, now: bool = False) -> None:
        """Put it on the disk, if it has changed and that is due. Raises OSError."""
        if not self._changed or not (now or self.clock.now_usec() >= self._written_usec + _EVERY_USEC):
            return
        self._changed, self._written_usec = False, self.clock.now_usec()
        document = {"version": VERSION, "day": self._day, "counts": self._counts}
        durable.replace(self.root_fd, NAME, json.dumps(document, separators=(",", ":")).encode(), *self.owner)
