# SPDX-License-Identifier: Apache-2.0
"""Retention: what may go, in which order, and no more of it than has to. A plan, which touches nothing.

Only dumps that nobody waits for any more: delivered ones, and those that have been given up on. Never one that is pinned, and
never one whose record cannot be read.

By age: a core once it is purge.age old, the rest of its dump at purge.snapshot_age; of the first and the latest dump of each
bug both only at purge.protected_age.

For room (purge.max_bytes, purge.min_free), the oldest first: cores of delivered dumps, cores of given-up ones, the rest of
delivered dumps, the rest of given-up ones. Then, last, cores of each bug's first and latest dump; what else there is of these
is never removed for room. A dump without a snapshot is nothing without its core: it goes whole, where the rest of others does.
"""

import bisect
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from coresnap.spool import index, inventory, stages
from coresnap.spool.inventory import Inventory
from coresnap.spool.stages import Spool

if TYPE_CHECKING:
    from coresnap.ground.settings import Settings

CORE, DUMP = "core", "dump"
BEGUN = "its removal had begun"
_OF_CEILING = 9, 10


@dataclass(frozen=True)
class Policy:
    """What the settings say of retention. An age of 0 is never; no limit on the bytes is 0, too."""

    core_age_usec: int
    rest_age_usec: int
    protected_age_usec: int
    max_bytes: int
    min_free_percent: int

    @classmethod
    def of(cls, settings: "Settings") -> "Policy":
        """Return the policy that the settings ask for. With dump.ceiling alone, nine tenths of it are to be held."""
        part, whole = _OF_CEILING
        return cls(
            settings.purge_age_usec,
            max(settings.purge_age_usec, settings.purge_snapshot_age_usec),
            settings.purge_protected_age_usec,
            settings.purge_max_bytes or settings.dump_ceiling_bytes * part // whole,
            settings.purge_min_free_percent,
        )


class Step(NamedTuple):
    """A removal: of a dump's core, or of the whole dump. `for_room` says that age is no reason for it."""

    stage: str
    uuid: str
    what: str
    size_bytes: int
    time_usec: int
    why: str
    for_room: bool = False


@dataclass(frozen=True)
class Plan:
    """What is to go, in this order. `kept` counts what may not go, by reason.

    `need_bytes` is what has to be freed in all. Where only free space is wanting, `until_free_bytes` is where that ends.
    """

    steps: list[Step]
    need_bytes: int
    until_free_bytes: int | None
    kept: dict[str, int]

    @property
    def frees_bytes(self) -> int:
        """Return what all steps together free."""
        return sum(step.size_bytes for step in self.steps)


def plan(found: Inventory, policy: Policy, *, now_usec: int, free_bytes: int, total_bytes: int) -> Plan:
    """Plan what is to go of these dumps; `free_bytes` and `total_bytes` are the file system's."""
    used_bytes = sum(found["disk_bytes"])
    over_bytes = max(0, used_bytes - policy.max_bytes) if policy.max_bytes else 0
    until_free_bytes = total_bytes * policy.min_free_percent // 100
    short_bytes = max(0, until_free_bytes - free_bytes)
    need_bytes = max(over_bytes, short_bytes)
    why = "purge.min_free" if short_bytes >= over_bytes else "purge.max_bytes"
    choice = _Choice(found, policy, now_usec)
    steps = list(choice.by_age())
    still_bytes = need_bytes - sum(step.size_bytes for step in steps)
    if still_bytes > 0:
        steps += choice.for_room(still_bytes, f"to make room: {why}")
    return Plan(steps, need_bytes, None if over_bytes else until_free_bytes, choice.kept)


class _Choice:
    """Chooses among dumps."""

    def __init__(self, found: Inventory, policy: Policy, now_usec: int) -> None:
        self._found = found
        self._policy = policy
        self._before = [
            now_usec - age_usec if age_usec else -1
            for age_usec in (policy.core_age_usec, policy.rest_age_usec, policy.protected_age_usec)
        ]
        self._stage_of = found.stage_numbers()
        self._protected = _first_and_latest(found)
        self.kept: dict[str, int] = {}
        self._left = self._may_go()
        self._planned_bytes: dict[int, int] = {}  #: of cores that go by age

    def _may_go(self) -> list[int]:
        """Return the numbers of the dumps that may go, oldest first; count the others."""
        flags, order = self._found["flags"], self._found.oldest_first()
        start, end = self._found.part(stages.COMMITTED).start, self._found.part(stages.FAILED).stop
        both = index.PINNED | index.READABLE
        may_go = [number for number in order if start <= number < end and flags[number] & both == index.READABLE]
        pinned = sum(1 for flag in flags[start:end] if flag & index.PINNED)
        self.kept = {
            "waiting": len(order) - (end - start),
            "pinned": pinned,
            "unreadable": end - start - pinned - len(may_go),
            "protected": len(self._protected.intersection(may_go)),
        }
        return may_go

    def _step(self, number: int, what: str, why: str, *, for_room: bool = False) -> Step:
        found = self._found
        size_bytes = found["core_bytes" if what == CORE else "disk_bytes"][number]
        stage = index.SEEN[self._stage_of[number]]
        return Step(stage, found.uuids[number], what, size_bytes, found["time_usec"][number], why, for_room)

    def by_age(self) -> Iterator[Step]:
        """Yield what is too old, and what had been begun; `for_room` chooses among the rest."""
        times, flags = self._found["time_usec"], self._found["flags"]
        core_before, rest_before, protected_before = self._before
        half_gone = index.CORE | index.SHED
        young = bisect.bisect_left(self._left, max(self._before), key=times.__getitem__)
        left = []
        for number in self._left[:young]:
            time_usec, has = times[number], flags[number]
            limits = (protected_before, protected_before) if number in self._protected else (core_before, rest_before)
            alone = not has & index.SNAPSHOT
            if time_usec < limits[1] or (alone and time_usec < limits[0]):
                yield self._step(number, DUMP, self._too_old(number, whole=not alone))
                continue
            left.append(number)
            if has & half_gone == half_gone:
                yield self._begun(number)
            elif has & index.CORE and time_usec < limits[0]:
                self._planned_bytes[number] = self._found["core_bytes"][number]
                yield self._step(number, CORE, self._too_old(number, whole=False))
        for number in self._left[young:]:
            if flags[number] & half_gone == half_gone:
                yield self._begun(number)
        self._left = left + self._left[young:]

    def _begun(self, number: int) -> Step:
        self._planned_bytes[number] = self._found["core_bytes"][number]
        return self._step(number, CORE, BEGUN)

    def _too_old(self, number: int, *, whole: bool) -> str:
        if number in self._protected:
            return "older than purge.protected_age"
        return "older than purge.snapshot_age" if whole else "older than purge.age"

    def for_room(self, need_bytes: int, why: str) -> list[Step]:
        """Return what has to go so that so many bytes more are free, or all that may."""
        chosen: dict[int, Step] = {}
        for number, what in self._for_room():
            if need_bytes <= 0:
                break
            step = self._step(number, what, why, for_room=True)
            step = step._replace(size_bytes=step.size_bytes - self._planned_bytes.get(number, 0))
            more_bytes = step.size_bytes - (chosen[number].size_bytes if number in chosen else 0)
            if more_bytes > 0:
                chosen[number] = step
                need_bytes -= more_bytes
        return list(chosen.values())

    def _for_room(self) -> Iterable[tuple[int, str]]:
        """Yield what may go for room, what is least missed first."""
        flags = self._found["flags"]
        committed = index.SEEN.index(stages.COMMITTED)
        common = [number for number in self._left if number not in self._protected]
        delivered = [number for number in common if self._stage_of[number] == committed]
        given_up = [number for number in common if self._stage_of[number] != committed]
        protected = [number for number in self._left if number in self._protected]
        both = index.CORE | index.SNAPSHOT
        yield from ((number, CORE) for number in delivered if flags[number] & both == both)
        yield from ((number, CORE) for number in given_up if flags[number] & both == both)
        yield from ((number, DUMP) for number in (*delivered, *given_up))
        protected.sort(key=lambda number: self._stage_of[number] != committed)  # oldest first still
        yield from ((number, CORE) for number in protected if flags[number] & both == both)


def _first_and_latest(found: Inventory) -> set[int]:
    """Return the first and the latest dump of each bug: by fingerprint, or without one by executable and signal."""
    flags, fingerprint, exe, signal = (found[name] for name in ("flags", "fingerprint", "exe", "signal"))
    order = [number for number in found.oldest_first() if flags[number] & index.READABLE]
    bugs = [fingerprint[number] or (exe[number], signal[number]) for number in order]
    latest = dict(zip(bugs, order, strict=True))
    first = dict(zip(reversed(bugs), reversed(order), strict=True))
    return {*first.values(), *latest.values()}


def plan_for(spool: Spool, settings: "Settings", *, each: bool = False) -> Plan:
    """Look at the spool and plan what is to go by these settings; `each` is inventory's. Raises OSError."""
    disk = os.fstatvfs(spool.root_fd)
    found = inventory.take(spool, each=each)
    free_bytes, total_bytes = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    now_usec = time.time_ns() // 1000
    return plan(found, Policy.of(settings), now_usec=now_usec, free_bytes=free_bytes, total_bytes=total_bytes)
