#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""run.py - measure coresnap against peers on this machine

SYNOPSIS
    run.py [--runs N] [--only NAME] [--quick] [--strict] [--keep]

DESCRIPTION
    Prints each figure beside its bar, with `met`, `missed` or `not-run`. With --keep what was taken replaces what
    docs/benchmarks.json has of the same measures, and docs/benchmarks.md is written from that: all measures take hours.
    Temporary files, up to 2.5 GB, go to TMPDIR, else /var/tmp.

EXIT STATUS
    0 the figures are printed, whatever they are; 1 with --strict, where a bar is missed or a measure not taken.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench import backlog, copying, delivery, first_read, guests, hundred_thousand, listing, page, snapshots
from tests.bench.pairs import Figure, attempt

#: Each measure's name, its title and bar for where it cannot be taken, itself, and how often it is to be repeated.
_MEASURES: dict[str, tuple[str, str, Callable[[Path, int], list[Figure]], int]] = {
    "copying": (copying.MEASURE, copying.BAR, copying.measure, 7),
    "first-read": (first_read.MEASURE, first_read.BAR, first_read.measure, 31),
    "delivery": (delivery.MEASURE, delivery.BAR, delivery.measure, 15),
    "hundred-thousand": (hundred_thousand.MEASURE, hundred_thousand.BAR, hundred_thousand.measure, 7),
    "listing": (listing.MEASURE, listing.BAR, listing.measure, 15),
    "snapshot-1gb": (snapshots.LARGE, snapshots.BAR, snapshots.large, 15),
    "snapshot-threads": (snapshots.THREADS, snapshots.BAR, snapshots.threads, 9),
    "backlog": (backlog.MEASURE, backlog.BAR, backlog.measure, 1),
    "outage": (backlog.OUTAGE, backlog.OUTAGE_BAR, backlog.hour, 1),
    "pipe": (guests.MEASURE, guests.BAR, guests.through_a_pipe, 20),
    "socket": (guests.MEASURE, guests.BAR, guests.over_the_socket, 20),
}
_QUICK_RUNS = 3


def main() -> int:
    """Measure; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="run.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", metavar="N", type=_count, help="take N pairs of each measure")
    parser.add_argument("--only", metavar="NAME", choices=_MEASURES, help=f"one of {', '.join(_MEASURES)}")
    parser.add_argument("--quick", action="store_true", help=f"take {_QUICK_RUNS} pairs of each measure")
    parser.add_argument("--strict", action="store_true", help="end with status 1 where a bar is not met")
    parser.add_argument("--keep", action="store_true", help="into docs/benchmarks.json, and write docs/benchmarks.md")
    options = parser.parse_args()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="coresnap-bench-", dir=os.environ.get("TMPDIR", "/var/tmp")) as directory:
        tempfile.tempdir = directory  # for the crashes: their cores are renamed, not copied
        for name, (title, bar, measure, most_runs) in _MEASURES.items():
            if options.only in (None, name):
                runs = options.runs or (_QUICK_RUNS if options.quick else most_runs)
                work = Path(directory, name)
                work.mkdir()
                taken = attempt(title, bar, lambda: measure(work, runs))  # noqa: B023  # called at once
                print("\n".join(page.lines(taken)), flush=True)
                figures += taken
                if options.keep:
                    page.keep(name, taken, work, list(_MEASURES))
    return int(options.strict and any(figure.result != "met" for figure in figures))


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError("a number from 1 on expected")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
