# SPDX-License-Identifier: Apache-2.0
"""Two things measured in turns, ours and a peer's: the ratio that results, and how far it can be trusted."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.bench.programs import Unmeasurable

#: The slowest run of a peer may take this many times its fastest before the machine is called noisy.
_NOISY = 1.5


@dataclass(frozen=True)
class Spread:
    """The median of some runs, and the extremes."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of the values, of which there is at least one."""
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{_digits(self.median)} ({_digits(self.low)}–{_digits(self.high)})"


@dataclass(frozen=True)
class Pairs:
    """The times of both, pair by pair, in microseconds."""

    ours_usec: list[int]
    peer_usec: list[int]

    def ratio(self) -> Spread:
        """Return the spread of the pairs' ratios: what slows a whole pair down leaves its ratio alone."""
        return Spread.of([ours / peer for ours, peer in zip(self.ours_usec, self.peer_usec, strict=True)])

    def noisy(self) -> bool:
        """Say whether the peer's runs, which all do the same, are too far apart to trust a ratio near its bar."""
        return max(self.peer_usec) > _NOISY * min(self.peer_usec)

    def detail(self, ours: str, peer: str) -> str:
        """Return in words both sides' spreads and how many pairs they come from."""
        sides = ((ours, self.ours_usec), (peer, self.peer_usec))
        times = ", ".join(f"{name} {Spread.of([usec / 1000 for usec in usecs])} ms" for name, usecs in sides)
        return f"{times}, of {len(self.ours_usec)} pairs"


def alternate(runs: int, ours: Callable[[], int], peer: Callable[[], int]) -> Pairs:
    """Call both in turns, once to warm up and then `runs` times; each returns the microseconds that count."""
    ours(), peer()
    pairs = Pairs([], [])
    for _ in range(runs):
        pairs.ours_usec.append(ours())
        pairs.peer_usec.append(peer())
    return pairs


@dataclass(frozen=True)
class Figure:
    """One line of the result: what was measured, the bar, the figure and whether it is met."""

    measure: str
    bar: str
    result: str
    figure: str
    detail: str = ""
    noisy: bool = False


def judge(measure: str, peer: str, most: float, pairs: Pairs, detail: str) -> Figure:
    """Hold the median ratio of the pairs against the bar `most`."""
    ratio = pairs.ratio()
    return Figure(measure, f"≤ {most:g} × {peer}", verdict(ratio.median <= most), f"{ratio} ×", detail, pairs.noisy())


def verdict(met: bool) -> str:
    """Return the word for a bar that is met, or not."""
    return "met" if met else "missed"


def attempt(measure: str, bar: str, take: Callable[[], list[Figure]]) -> list[Figure]:
    """Take a measure; one that cannot be taken here becomes a line that says why."""
    try:
        return take()
    except Unmeasurable as error:
        return [Figure(measure, bar, "not-run", "–", str(error))]


def _digits(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
