# SPDX-License-Identifier: Apache-2.0
"""The lines of `coresnap list`. There may be 100,000 of them: what is the same for many is made once."""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING

from coresnap.cli import terminal, words
from coresnap.cli.dumps import SHORT
from coresnap.ground.text import human_bytes
from coresnap.spool import index, stages

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from coresnap.spool.inventory import Inventory

_FLAGS = ((index.CORE, "c"), (index.SNAPSHOT, "s"), (index.ASSETS, "a"))
_AT_ONCE = 1000


def lines(found: Inventory, chosen: Sequence[int], *, whole: bool) -> Iterator[str]:
    """Yield the lines of these dumps in columns, many at a time, and the count; `whole` has the whole UUIDs in them."""
    stage_of, uuids, times = found.stage_numbers(), found.uuids, found["time_usec"]
    flags, exe, comm = (found[name] for name in ("flags", "exe", "comm"))
    keys = set(zip(flags, exe, comm, strict=True))
    if len(chosen) < len(found):
        keys = {(flags[number], exe[number], comm[number]) for number in chosen}
    names = {key: words.name(found.victim(*key[1:])) if key[0] & index.READABLE else "?" for key in keys}
    name_width = max(map(len, names.values()))
    middle = {key: f"{_flags(key[0])} {name:<{name_width}} " for key, name in names.items()}
    start, end = _places({stage_of[number] for number in chosen}, whole=whole)
    cut = None if whole else SHORT
    sizes = _sizes(found, chosen)
    size_width = max(map(len, sizes)) + 1
    moments = words.Moments()
    when_width = moments.width(times[number] for number in reversed(chosen))
    for at in range(0, len(chosen), _AT_ONCE):
        part = chosen[at : at + _AT_ONCE]
        whens = moments.when(map(times.__getitem__, part))
        if when_width > words.WHEN_WIDTH:
            whens = (when.ljust(when_width) for when in whens)
        ends = map(str.rjust, sizes[at : at + _AT_ONCE], repeat(size_width))
        yield "\n".join(
            [
                f"{start[(stage := stage_of[number])]}{uuids[number][:cut]}{end[stage]}"
                f"{middle[flags[number], exe[number], comm[number]]}{when}{size}"
                for number, when, size in zip(part, whens, ends, strict=True)
            ]
        )
    yield _footer(found, chosen, stage_of)


def _places(shown: set[int], *, whole: bool) -> tuple[dict[int, str], dict[int, str]]:
    """Return for each stage what stands before the UUID of a dump of it, and behind."""
    width = max(len(index.SEEN[number]) for number in shown)
    start, end = {}, {}
    for number in shown:
        stage = index.SEEN[number]
        behind = ("" if whole else "...") + " " * (width - len(stage))
        painted = (
            terminal.paint(f"{stage}/\0{behind}", terminal.RED) if stage == stages.FAILED else f"{stage}/\0{behind}"
        )
        start[number], _nul, rest = painted.partition("\0")
        end[number] = f"{rest} "
    return start, end


def _flags(flags: int) -> str:
    if not flags & index.KNOWN:
        return "???"
    return "".join(letter if flags & flag else "-" for flag, letter in _FLAGS)


def _sizes(found: Inventory, chosen: Sequence[int]) -> list[str]:
    sizes = list(map(human_bytes, map(found["recorded_bytes"].__getitem__, chosen)))
    flags = found["flags"]
    for at, number in enumerate(chosen) if any(not flag & index.READABLE for flag in flags) else ():
        if not flags[number] & index.READABLE:
            sizes[at] = "?"
    return sizes


def _footer(found: Inventory, chosen: Sequence[int], stage_of: bytes) -> str:
    recorded_bytes = found["recorded_bytes"]
    counts, totals = found.counts, [sum(recorded_bytes[found.part(stage)]) for stage in index.SEEN]
    if len(chosen) < len(found):
        counts, totals = [0] * len(index.SEEN), [0] * len(index.SEEN)
        for number in chosen:
            counts[stage_of[number]] += 1
            totals[stage_of[number]] += recorded_bytes[number]
    known = {stage: (counts[at], totals[at]) for at, stage in enumerate(index.SEEN) if counts[at]}
    return " ".join(
        f"[{stage}]/{known[stage][0]}O/{human_bytes(known[stage][1])}" for stage in stages.STAGES if stage in known
    )
