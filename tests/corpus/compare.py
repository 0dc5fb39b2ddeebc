#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""compare.py - hold the snapshots of the corpus against gdb, frame by frame

SYNOPSIS
    compare.py [--quick] [--verbose] [NAME ...]

DESCRIPTION
    Builds and crashes the cases, all of them or those whose names begin so, and compares coresnap-snapshot's stacks with
    gdb's: the program counters of all threads, the names of the functions, and, of the thread that died, whether the
    functions that the program said it was in are there. Prints a table, and every thread that differs.

    A stack is sound, as gdb has it, if it goes to where the thread began and every return address is in code. Where gdb loses
    its way, as it does where there are no unwind tables, it lists the program's data, or 0, as return addresses. Two stacks
    agree if gdb's is ours up to the first of those; each that is not equal to its last word is listed all the same.

EXIT STATUS
    0 at least 99 of 100 threads agree with gdb, and as many of those with sound stacks are equal; 1 fewer are, a snapshot
    failed, or a difference is not judged in docs/snapshot.md.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.corpus import debugger, names
from tests.corpus.cases import CASES, Case
from tests.corpus.crashes import CannotBuild, Crashed, crashed
from tests.crash import REPOSITORY

_PROGRAM = (sys.executable, "-I", str(REPOSITORY / "coresnap" / "take_snapshot.py"))
_JUDGED = REPOSITORY / "docs" / "snapshot.md"
_SECONDS = 120
_LEAST = 0.99
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


@dataclass(frozen=True)
class Thread:
    """A thread as both see it. `said` are the functions that it said it was in; `witness` the program counters of eu-stack."""

    case: str
    tid: int
    ours: list[dict[str, Any]]
    theirs: debugger.Stack
    said: list[str] | None
    end: str
    witness: list[int] | None = None

    @property
    def kind(self) -> str:
        """Return how the program counters compare: equal, ours are the first of gdb's, gdb's the first of ours, or neither."""
        ours, theirs = self.pcs()
        if ours == theirs:
            return "equal"
        if ours == theirs[: len(ours)]:
            return "shorter"
        return "longer" if theirs == ours[: len(theirs)] else "other"

    @property
    def agrees(self) -> bool:
        """Say whether gdb's program counters, as far as they are of code, are ours; where they are sound ours end with them."""
        (ours, theirs), in_code = self.pcs(), self.theirs.in_code
        return ours == theirs or (not self.theirs.sound and ours[:in_code] == theirs[:in_code])

    def pcs(self) -> tuple[list[int], list[int]]:
        """Return the program counters, ours and theirs."""
        return [int(frame["address"], 0) for frame in self.ours], [frame.address for frame in self.theirs.frames]

    def testimony(self) -> str:
        """Say whose stack eu-stack has."""
        ours, theirs = self.pcs()
        sides = [side for side, pcs in (("ours", ours), ("gdb's", theirs)) if pcs == self.witness]
        return " and ".join(sides) or "neither"

    def differing_names(self) -> list[tuple[str, str]]:
        """Return our name and gdb's of each frame that both have and do not name alike; a frame that gdb cannot name is none."""
        return [
            (ours.get("funcName", ""), theirs.name)
            for ours, theirs in zip(self.ours, self.theirs.frames, strict=False)
            if int(ours["address"], 0) == theirs.address and theirs.name
            if not names.same(
                *(ours.get("funcName", ""), theirs.name, ours.get("library", ""), ours.get("debug_identifier", ""))
            )
        ]

    def truth(self) -> tuple[bool, bool] | None:
        """Say whether ours and gdb's stack have the functions that the program said; None where it said none."""
        if not self.said:
            return None
        ours = [frame.get("funcName", "") for frame in self.ours]
        return has(ours, self.said), has([frame.name for frame in self.theirs.frames], self.said)


@dataclass
class Outcome:
    """What became of some cases."""

    threads: list[Thread] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def agree(self) -> float:
        """Return the share of threads whose stack agrees with gdb's."""
        return sum(thread.agrees for thread in self.threads) / max(1, len(self.threads))

    def equal(self, *, sound: bool = False) -> float:
        """Return the share of threads with gdb's program counters, of all or of those whose stack is sound as gdb has it."""
        threads = [thread for thread in self.threads if thread.theirs.sound or not sound]
        return sum(thread.kind == "equal" for thread in threads) / max(1, len(threads))


def has(found: Sequence[str], said: Sequence[str]) -> bool:
    """Say whether these functions are there, in this order; their names may be said without what they are in or are made for."""
    left = iter([names.generic(names.plain(name)) for name in found])
    return all(any(name == word or name.endswith(f"::{word}") for name in left) for word in said)


def snapshot(dead: Crashed, directory: Path) -> dict[str, Any]:
    """Return the report of a crash. Raises CalledProcessError."""
    out = directory / "report"
    resource = ["--resource", str(dead.asset)] if dead.asset else []
    argv = [*_PROGRAM, "-o", str(out), *resource, "--core", str(dead.core), dead.exe]
    subprocess.run(argv, check=True, capture_output=True, text=True, timeout=_SECONDS, env=_ENVIRONMENT)
    report: dict[str, Any] = json.loads(out.read_bytes())
    return report


def compare(case: Case, directory: Path) -> list[Thread]:
    """Return the threads of a case. Raises CannotBuild, CalledProcessError."""
    dead = crashed(case)
    report = snapshot(dead, directory)
    theirs = debugger.gdb(dead.core, dead.program)
    # Nobody can name the functions of a stripped program, but for Go's, by its own table.
    said = None if "stripped" in case.name and case.compiler[0] != "go" else dead.functions
    threads = [_thread(case, report, tid, stack, said if tid == dead.tid else None) for tid, stack in theirs.items()]
    if any(thread.kind != "equal" for thread in threads):
        other = debugger.eu_stack(dead.core, dead.program)
        stacks = {tid: [frame.address for frame in stack.frames] for tid, stack in other.items()}
        threads = [replace(thread, witness=stacks.get(thread.tid)) for thread in threads]
    return threads


def _thread(case: Case, report: dict[str, Any], tid: int, theirs: debugger.Stack, said: list[str] | None) -> Thread:
    """Put a thread's stacks side by side. Of very many frames the report has the innermost and the outermost."""
    ours = report["threads"].get(str(tid), {"stack": []})["stack"]
    notes = report["annotations"].get("stacks", [])
    note: dict[str, Any] = next((note for note in notes if str(tid) in note["threads"]), {"end": "?", "found": []})
    physical = [
        frame for frame, found in zip(ours, note["found"] or [""] * len(ours), strict=True) if found != "inlined"
    ]
    end, left_out = note["end"], note.get("left_out", 0)
    if left_out:
        first, rest = note["left_out_at"], len(physical) - note["left_out_at"]
        end = f"{end}, {left_out} frames left out"
        if len(theirs.frames) == len(physical) + left_out:
            theirs = replace(theirs, frames=[*theirs.frames[:first], *theirs.frames[len(theirs.frames) - rest :]])
    return Thread(case.name, tid, physical, theirs, said, end)


def run(cases: Sequence[Case], progress: bool = False) -> Outcome:
    """Compare the cases, as many at once as there are processors."""
    outcome = Outcome()
    with (
        tempfile.TemporaryDirectory(prefix="coresnap-compare-") as directory,
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as executor,
    ):
        places = [Path(directory, str(number)) for number in range(len(cases))]
        for number, (case, compared) in enumerate(zip(cases, executor.map(_attempt, cases, places), strict=True), 1):
            if isinstance(compared, list):
                outcome.threads += compared
            elif isinstance(compared, CannotBuild):
                outcome.skipped[case.name] = str(compared)
            else:
                outcome.failed[case.name] = f"{compared} {getattr(compared, 'stderr', '')}"[-2000:]
            if progress and sys.stderr.isatty():
                print(f"\r{number}/{len(cases)} {case.name:40}", end="", file=sys.stderr, flush=True)
    if progress and sys.stderr.isatty():
        print(file=sys.stderr)
    return outcome


def _attempt(case: Case, directory: Path) -> list[Thread] | Exception:
    directory.mkdir()
    try:
        return compare(case, directory)
    except (CannotBuild, subprocess.SubprocessError) as error:
        return error


def unjudged(outcome: Outcome) -> list[str]:
    """Return the cases that differ from gdb and are not in the table of docs/snapshot.md, whose first column names them."""
    rows = re.findall(r"^\| (`[^|]*) \|", _JUDGED.read_text(), re.MULTILINE)
    patterns = [pattern for row in rows for pattern in re.findall(r"`([^`]*[/*][^`]*)`", row)]
    differing = dict.fromkeys(thread.case for thread in outcome.threads if thread.kind != "equal")
    return [case for case in differing if not any(fnmatch.fnmatchcase(case, pattern) for pattern in patterns)]


def lines(outcome: Outcome) -> Iterator[str]:
    """Yield the table, by how cases were compiled."""
    groups: dict[str, list[Thread]] = {}
    for thread in outcome.threads:
        groups.setdefault(thread.case.partition("/")[0], []).append(thread)
    heads = "".join(
        f"{word:>8}" for word in ("threads", "agree", "equal", "shorter", "longer", "other", "sound", "differ")
    )
    yield f"{'':24}{heads}{'names':>14}{'said':>12}{'gdb':>6}"
    for group, threads in [*groups.items(), ("all", outcome.threads)]:
        kinds = [thread.kind for thread in threads]
        named = sum(bool(frame.name) for thread in threads for frame in thread.theirs.frames)
        wrong = sum(len(thread.differing_names()) for thread in threads)
        truths = [truth for thread in threads if (truth := thread.truth())]
        ours, theirs = (sum(truth[side] for truth in truths) for side in (0, 1))
        counts = "".join(f"{kinds.count(kind):8}" for kind in ("equal", "shorter", "longer", "other"))
        sound = [thread for thread in threads if thread.theirs.sound]
        counts = f"{sum(thread.agrees for thread in threads):8}{counts}"
        counts += f"{len(sound):8}{sum(thread.kind != 'equal' for thread in sound):8}"
        yield f"{group:24}{len(threads):8}{counts}{f'{named - wrong}/{named}':>14}{f'{ours}/{len(truths)}':>12}{theirs:6}"
    yield f"{100 * outcome.agree():.2f}% of the threads have gdb's program counters as far as those are of code,"
    yield f"{100 * outcome.equal():.2f}% to its last word, be it data or 0,"
    yield f"{100 * outcome.equal(sound=True):.2f}% of those whose stack is sound as gdb has it"
    yield from (f"NOT JUDGED in docs/snapshot.md: {case}" for case in unjudged(outcome))
    yield from (f"skipped: {name}: {why}" for name, why in outcome.skipped.items())
    yield from (f"FAILED: {name}: {why}" for name, why in outcome.failed.items())


def details(outcome: Outcome, verbose: bool) -> Iterator[str]:
    """Yield what differs, thread by thread."""
    for thread in outcome.threads:
        truth, wrong = thread.truth(), thread.differing_names()
        if thread.kind != "equal" or (truth and not truth[0]) or (verbose and wrong):
            judged = "sound" if thread.theirs.sound else f"lost: {thread.theirs.end}"
            named = "" if truth is None else f"; said: ours {truth[0]}, gdb's {truth[1]}"
            agrees = "agrees" if thread.agrees else "DISAGREES"
            compared = f"{thread.case} {thread.tid}: {thread.kind}, {agrees}"
            yield f"{compared}; {thread.end}; gdb {judged}; eu-stack {thread.testimony()}{named}"
            yield from _beside(thread)
        if verbose:
            yield from (f"    {ours or '-'} | {theirs}" for ours, theirs in wrong)


def _beside(thread: Thread) -> Iterator[str]:
    """Yield the frames from before the first difference on."""
    ours, theirs = thread.pcs()
    first = next(
        (at for at, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
    )
    for at in range(max(0, first - 2), min(max(len(ours), len(theirs)), first + 4)):
        mine = f"{ours[at]:#x} {_described(thread.ours[at])}" if at < len(ours) else "-"
        other = f"{theirs[at]:#x} {thread.theirs.frames[at].name}" if at < len(theirs) else "-"
        yield f"    #{at} {mine} | {other}"


def _described(frame: dict[str, Any]) -> str:
    place = frame.get("funcName") or os.path.basename(frame.get("library", "?"))
    return f"{place}{' (guessed)' if frame.get('guessed_frame') else ''}"


def main() -> int:
    """Compare; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="compare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="those cases alone that `make test` runs")
    parser.add_argument("--verbose", action="store_true", help="every name that differs, too")
    parser.add_argument("names", metavar="NAME", nargs="*", help="the beginning of a case's name")
    options = parser.parse_args()
    chosen = [
        case
        for case in CASES
        if (case.quick or not options.quick) and (not options.names or case.name.startswith(tuple(options.names)))
    ]
    outcome = run(chosen, progress=True)
    for line in (*details(outcome, options.verbose), *lines(outcome)):
        print(line)
    share = min(outcome.agree(), outcome.equal(sound=True))
    return int(share < _LEAST or bool(outcome.failed or unjudged(outcome)))


if __name__ == "__main__":
    sys.exit(main())
