# SPDX-License-Identifier: Apache-2.0
"""What is in the stages, read without locks while dumps move: of 100,000 dumps in little more than the time to look at each.

The directories are listed and each dump's is looked at, every time. What has changed since the index was written is
read, all else comes from there (coresnap.spool.index says when that can be relied on). The one change that a directory
does not show is a record that is written over in place, which nothing of coresnap's does: where there are more than
EACH_MOST dumps only a look with `each` sees it.
"""

import os
import time
from array import array
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from coresnap.ground import durable
from coresnap.spool import index, record, sight, stages
from coresnap.spool.index import COLUMNS, INDEXED, READABLE, SEEN, STRINGS, Columns
from coresnap.spool.stages import Spool

#: Up to so many dumps each record is looked at, too, where it takes no time to speak of.
EACH_MOST = 10_000
#: With fewer dumps there is no index: they are read in no time.
_INDEX_LEAST = 64
#: So many dumps one process looks at alone.
_ALONE_MOST = 5_000
#: So many changes make a new index worth its writing.
_CHANGES_LEAST = 32


class Row(NamedTuple):
    """A dump as it was found. Numbers are None, and texts empty, where they are not known."""

    stage: str
    uuid: str
    time_usec: int
    disk_bytes: int
    core_bytes: int
    recorded_bytes: int
    pid: int | None
    uid: int | None
    signal: int | None
    flags: int
    exe: str
    comm: str
    fingerprint: str
    problem: str

    @property
    def victim(self) -> dict[str, str]:
        """Return who crashed, with the keys that a record has for it."""
        return {"exe": self.exe, "comm": self.comm}

    @property
    def is_readable(self) -> bool:
        """Say whether the dump's record can be read."""
        return bool(self.flags & READABLE)


class Inventory(Columns):
    """The dumps of some stages, of SEEN and in that order. `foreign` is what lies there and is no dump, as stage/name."""

    __slots__ = ("_numbers", "foreign", "fresh_nsec", "reread")

    def __init__(self) -> None:
        super().__init__()
        self.counts = [0] * len(SEEN)
        self.foreign: list[str] = []
        self.reread = 0
        self.fresh_nsec: list[int] = []  #: when what has been read anew had last changed
        self._numbers: dict[str, int] = {}

    @classmethod
    def of(cls, old: Columns) -> "Inventory":
        """Return what an index has."""
        found = cls()
        found.columns, found.order, found.uuids, found.strings = old.columns, old.order, old.uuids, old.strings
        found.counts = [*old.counts, 0]
        return found

    def add(self, rows: Columns, stage: str, numbers: Iterable[int]) -> None:
        """Add some rows of others, all of one stage, which have their strings in common with these."""
        mine = list(numbers)
        for run in _runs(mine):  # where little has changed they are few, and long
            self.uuids += rows.uuids[run]
            for name, column in self.columns.items():
                column.extend(rows[name][run])
        self.counts[SEEN.index(stage)] += len(mine)

    def put(self, stage: str, uuid: str, values: dict[str, Any]) -> None:
        """Add a dump. Those of a stage follow each other, and the stages SEEN."""
        self.put_into(self, uuid, values)
        self.counts[SEEN.index(stage)] += 1

    def put_into(self, rows: Columns, uuid: str, values: dict[str, Any]) -> None:
        """Add a dump to rows that have their strings in common with these."""
        if not self._numbers:
            self._numbers = {text: number for number, text in enumerate(self.strings)}
        for name, column in rows.columns.items():
            value = values[name]
            if name in STRINGS:
                if value not in self._numbers:
                    self._numbers[value] = len(self.strings)
                    self.strings.append(value)
                value = self._numbers[value]
            column.append(value)
        rows.uuids.append(uuid)

    def part(self, stage: str) -> slice:
        """Return which rows are the stage's."""
        at = SEEN.index(stage)
        start = sum(self.counts[:at])
        return slice(start, start + self.counts[at])

    def stage_numbers(self) -> bytes:
        """Return for each dump the number of its stage in SEEN."""
        return b"".join(bytes([number]) * count for number, count in enumerate(self.counts))

    def oldest_first(self) -> "array[int]":
        """Return the dumps' numbers in the order of their crashes."""
        if len(self.order) != len(self):
            times = self["time_usec"]
            numbers: Iterable[int] = range(len(self))
            if len(set(times)) < len(times):  # those of one moment stand in the order of their names
                numbers = sorted(numbers, key=self.uuids.__getitem__)
            self.order = array("I", sorted(numbers, key=times.__getitem__))
        return self.order

    def victim(self, exe: int, comm: int) -> dict[str, str]:
        """Return who crashed, with the keys that a record has for it; `exe` and `comm` are numbers of strings."""
        return {"exe": self.strings[exe], "comm": self.strings[comm]}

    def row(self, number: int) -> Row:
        """Return one dump."""
        at, stage = number, 0
        while at >= self.counts[stage]:
            at -= self.counts[stage]
            stage += 1
        values = [self[name][number] for name in COLUMNS]
        _changed, _recorded, time_usec, disk_bytes, core_bytes, recorded_bytes, *numbers = values
        pid, uid, signal = (None if value == 0 else value - 1 for value in numbers[:3])
        texts = [self.strings[value] for value in numbers[4:]]
        known = (time_usec, disk_bytes, core_bytes, recorded_bytes, pid, uid, signal, numbers[3])
        return Row(SEEN[stage], self.uuids[number], *known, *texts)


def _runs(numbers: list[int]) -> list[slice]:
    """Return the numbers as runs of numbers that follow each other."""
    breaks = [at for at in range(1, len(numbers)) if numbers[at] != numbers[at - 1] + 1]
    starts, ends = [0, *breaks], [*breaks, len(numbers)]
    return (
        [slice(numbers[start], numbers[end - 1] + 1) for start, end in zip(starts, ends, strict=True)]
        if numbers
        else []
    )


def take(spool: Spool, wanted: Sequence[str] = INDEXED, *, each: bool = False) -> Inventory:
    """Look at all dumps of these stages, of SEEN. With `each` every record is looked at, however many there are."""
    since_nsec = time.time_ns()
    listed = {stage: spool.listing(stage) for stage in INDEXED if stage in wanted}
    total = sum(map(len, listed.values()))
    old: Columns | None = None
    seen: _Seen | None = None
    recorded: _Seen | None = None
    if total >= _INDEX_LEAST and durable.exists(spool.root_fd, index.NAME):
        glance = _Glance(spool, listed)
        old = index.load(spool, [name for names in listed.values() for name in names])  # while the child is at work
        seen = glance.take()
        recorded = _Glance(spool, listed, f"/{record.NAME}").take() if each or total <= EACH_MOST else None
    found = _unchanged(listed, old, seen, recorded) if old and seen else None
    if found is None:
        found = _Look(spool, listed, old, seen, recorded).run()
    gone = len(old) - (len(found) - found.reread) if old else 0
    settled_nsec = index.settled_nsec(since_nsec)
    news = gone + sum(1 for nsec in found.fresh_nsec if 0 < nsec <= settled_nsec)
    if news >= _CHANGES_LEAST and len(found) >= _INDEX_LEAST and set(wanted) >= set(INDEXED):
        found.oldest_first()
        index.save(spool, found, since_nsec)
    if stages.STAGING in wanted:
        staging = _Look(spool, {stages.STAGING: spool.listing(stages.STAGING)}, strings=found.strings).run()
        found.add(staging, stages.STAGING, range(len(staging)))
        found.foreign += staging.foreign
    return found


#: When the dumps of each stage last changed, in the order of their listing; 0 where that cannot be seen.
_Seen = dict[str, "array[int]"]


def _unchanged(listed: dict[str, list[str]], old: Columns, seen: _Seen, recorded: _Seen | None) -> Inventory | None:
    """Return what the index has, if not a thing in these stages has changed. `seen` and `recorded` are change times."""
    start = 0
    if len(listed) < len(INDEXED):
        return None
    for stage, count in zip(INDEXED, old.counts, strict=True):
        part = slice(start, start := start + count)
        if listed[stage] != old.uuids[part] or seen[stage] != old["changed_nsec"][part]:
            return None
        if recorded and recorded[stage] != old["recorded_nsec"][part]:
            return None
    return Inventory.of(old)


class _Glance:
    """A look when each directory, or a file in it, last changed. Most of that is the kernel's work: a child does its part of it."""

    def __init__(self, spool: Spool, listed: dict[str, list[str]], file: str = "") -> None:
        """Have a child begin with its part."""
        self._fds = spool.stage_fds
        self._names = {stage: [uuid + file for uuid in uuids] if file else uuids for stage, uuids in listed.items()}
        self._pid, self._pipe_fd = 0, -1
        alone = sum(map(len, listed.values())) < _ALONE_MOST or len(os.sched_getaffinity(0)) < 2
        self._mine = {stage: len(names) if alone else len(names) * 3 // 8 for stage, names in self._names.items()}
        if not alone:
            self._fork()

    def _fork(self) -> None:
        self._pipe_fd, write_fd = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                theirs = [self._look(stage, self._mine[stage], None).tobytes() for stage in self._names]
                durable.write(write_fd, b"".join(theirs))
                os._exit(0)
            finally:
                os._exit(1)
        os.close(write_fd)

    def _look(self, stage: str, start: int | None, end: int | None) -> "array[int]":
        return _changes(self._fds[stage], self._names[stage][start:end])

    def take(self) -> _Seen:
        """Do the rest of the work; return what both have seen."""
        seen = {stage: self._look(stage, None, self._mine[stage]) for stage in self._names}
        if not self._pid:
            return seen
        with open(self._pipe_fd, "rb") as pipe:
            for stage, names in self._names.items():
                size_bytes = 8 * (len(names) - self._mine[stage])
                data = pipe.read(size_bytes)
                whole = len(data) == size_bytes  # else it was killed
                seen[stage] += array("Q", data) if whole else self._look(stage, self._mine[stage], None)
        with suppress(ChildProcessError):  # where SIGCHLD is ignored
            os.waitpid(self._pid, 0)
        return seen


def _changes(stage_fd: int, names: list[str]) -> "array[int]":
    look = os.stat
    try:
        return array("Q", [look(name, dir_fd=stage_fd, follow_symlinks=False).st_ctime_ns for name in names])
    except OSError:
        return array("Q", [sight.changed_nsec(stage_fd, name) for name in names])


class _Look:
    """A look at stages in which something has changed."""

    def __init__(
        self,
        spool: Spool,
        listed: dict[str, list[str]],
        old: Columns | None = None,
        seen: _Seen | None = None,
        recorded: _Seen | None = None,
        strings: list[str] | None = None,
    ) -> None:
        self._spool = spool
        self._listed = listed
        self._old = old or Columns()
        self._seen = seen or {}
        self._recorded = recorded or {}
        self._found = Inventory()
        self._found.strings = self._old.strings if strings is None else strings
        #: What has been read, by stage; and where each of them was seen last.
        self._fresh = {stage: Columns() for stage in listed}
        self._where: dict[str, str] = {}

    def run(self) -> Inventory:
        """Return what there is. A dump that moves meanwhile is looked up again, once."""
        numbers = dict(zip(self._old.uuids, range(len(self._old)), strict=True))
        kept: list[list[int]] = []
        gone: list[str] = []
        for stage, names in self._listed.items():
            old = [numbers.get(name, -1) for name in names]
            same = self._same(stage, names, old)
            kept.append([number for number, is_same in zip(old, same, strict=True) if is_same])
            gone += [name for name, is_same in zip(names, same, strict=True) if not is_same and self._read(stage, name)]
        for uuid in gone:
            for stage in self._listed:
                if uuid not in self._where:
                    self._read(stage, uuid)
        for stage, unchanged in zip(self._listed, kept, strict=True):
            self._found.add(self._old, stage, (at for at in unchanged if self._old.uuids[at] not in self._where))
            fresh = self._fresh[stage]
            self._found.fresh_nsec += fresh["changed_nsec"]
            self._found.add(fresh, stage, (at for at, uuid in enumerate(fresh.uuids) if self._where[uuid] == stage))
        self._found.reread = len(self._where)
        return self._found

    def _same(self, stage: str, names: list[str], old: list[int]) -> list[bool]:
        """Say for each dump whether the index is right about it; `old` are its numbers there."""
        if not self._seen:
            return [False] * len(names)
        same = [
            at >= 0 and self._old["changed_nsec"][at] == nsec for at, nsec in zip(old, self._seen[stage], strict=True)
        ]
        if self._recorded:
            recorded, now = self._old["recorded_nsec"], self._recorded[stage]
            same = [is_same and recorded[at] == nsec for is_same, at, nsec in zip(same, old, now, strict=True)]
        return same

    def _read(self, stage: str, name: str) -> bool:
        """Read a dump, unless it is something else; say whether it has gone from there."""
        values = sight.read(self._spool, stage, name) if stages.is_uuid(name) else None
        if values is not None:
            self._found.put_into(self._fresh[stage], name, values)
            self._where[name] = stage
            return False
        if durable.exists(self._spool.stage_fds[stage], name) and not (
            stages.is_uuid(name) and self._spool.holds(stage, name)
        ):
            self._found.foreign.append(f"{stage}/{name}")
            return False
        return True
