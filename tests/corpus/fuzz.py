#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""fuzz.py - cores, modules, debug files and assets that lie, by the thousand, through the real coresnap-snapshot

SYNOPSIS
    fuzz.py [--count N] [--seed SEED] [--only NUMBER]

DESCRIPTION
    Each round mutates one to three things of a real crash and makes a snapshot of it, in a process forked from one that has
    all of it imported. It must end with status 0, or 65 where the core itself was mutated; write a report that is JSON (every
    eighth is held against its schema), and nothing on standard error but one line beside status 65; within 10 seconds and
    256 MB. A round depends on the seed, its number and the crash: --only NUMBER repeats one. What a round that went wrong was
    made of is kept in build/fuzz.

EXIT STATUS
    0 all rounds were as they must be; 1 some were not, and each is listed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from coresnap import take_snapshot
from tests.corpus.material import Material, Target, gather, mutate
from tests.crash import REPOSITORY

SECONDS = 10
MEMORY_BYTES = 256 << 20
#: Beyond this an allocation fails: what is far too much is not to take the machine down.
_ADDRESS_BYTES = 2 << 30
_SEED = 20261126
_SCHEMA_EVERY = 8
_KEPT = REPOSITORY / "build" / "fuzz"


@dataclass(frozen=True)
class Round:
    """What came of a round; `wrong` is empty where it was as it must be."""

    number: int
    what: str
    status: int
    seconds: float
    memory_bytes: int
    wrong: str


class Fuzzer:
    """Makes rounds in a directory of its own."""

    def __init__(self, directory: Path, seed: str) -> None:
        self._materials = gather(directory)
        self._report = directory / "report"
        self._core = directory / "core"
        self._seed = seed

    def round(self, number: int) -> Round:
        """Make the round of a number."""
        chance = random.Random(f"{self._seed}/{number}")
        material = chance.choice(self._materials)
        count = min(chance.choice((1, 1, 1, 2, 3)), len(material.targets))
        hit = chance.sample(material.targets, count)
        self._write(material, hit, chance)
        status, seconds, memory_bytes, said = self._snapshot(material)
        what = f"{material.name}: {', '.join(target.kind for target in hit)}"
        core_too = any(target.where is None for target in hit)
        wrong = self._judge(number, status, seconds, memory_bytes, said, core_too=core_too)
        if wrong:
            self._put_away(material, str(number))
        return Round(number, what, status, seconds, memory_bytes, wrong)

    def _write(self, material: Material, hit: list[Target], chance: random.Random) -> None:
        """Write everything where it is read, mutated or as it was; the core is the same for two of the targets."""
        core = bytearray(material.targets[0].data)
        for target in material.targets:
            if target.where is None:
                if target in hit and core:
                    mutate(core, target, chance)
                continue
            data = bytearray(target.data)
            if target in hit:
                mutate(data, target, chance)
            target.where.write_bytes(data)
        self._core.write_bytes(core)
        _mend_checksum(material)

    def _put_away(self, material: Material, name: str) -> None:
        """Keep what a round was made of."""
        place = _KEPT / name
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(self._core, place)
        for target in material.targets:
            if target.where and target.where.exists():
                shutil.copy(target.where, place / target.kind.replace(" ", "-"))

    def _snapshot(self, material: Material) -> tuple[int, float, int, str]:
        """Return exit status, seconds, largest resident set and what was said; status -9 where it was too slow."""
        argv = ["-o", str(self._report), "--core", str(self._core)]
        for target in material.targets:
            if target.kind == "asset":
                argv += ["--resource", str(target.where)]
        self._report.unlink(missing_ok=True)
        said_fd = os.memfd_create("said")
        started = time.monotonic()
        pid = os.fork()
        if not pid:
            _child([*argv, material.exe], said_fd)
        pidfd = os.pidfd_open(pid)
        try:
            if not select.select([pidfd], [], [], SECONDS)[0]:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)
        _pid, status, usage = os.wait4(pid, 0)
        seconds = time.monotonic() - started
        said = os.pread(said_fd, 65536, 0).decode(errors="replace")
        os.close(said_fd)
        return os.waitstatus_to_exitcode(status), seconds, usage.ru_maxrss << 10, said

    def _judge(self, number: int, status: int, seconds: float, memory_bytes: int, said: str, *, core_too: bool) -> str:
        if seconds > SECONDS:
            return f"it took more than {SECONDS} s"
        if status not in ((0, 65) if core_too else (0,)):
            return f"status {status}: {said[-1500:]}"
        if memory_bytes > MEMORY_BYTES:
            return f"{memory_bytes >> 20} MB"
        if "Traceback" in said or said.count("\n") != (status == 65):
            return f"status {status}, and it says {said[-1500:]}"
        return _fault_of(self._report.read_bytes(), number) if status == 0 else ""


def _child(argv: list[str], said_fd: int) -> None:
    """Be coresnap-snapshot; does not return."""
    status = 1
    try:
        os.dup2(said_fd, 1)
        os.dup2(said_fd, 2)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  # what pytest has put there is not inherited
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
        resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_BYTES, _ADDRESS_BYTES))
        status = take_snapshot.main(argv)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001  # the rest of this process is its parent's program
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


def _fault_of(report: bytes, number: int) -> str:
    """Say what is wrong with a report."""
    try:
        document: Any = json.loads(report)
    except ValueError as error:
        return f"the report is no JSON: {error}"
    if not document["threads"]:
        return "the report has no thread"
    if number % _SCHEMA_EVERY:
        return ""
    from tests.unit.test_snapshot import VALIDATOR

    return "; ".join(error.message[:200] for error in VALIDATOR.iter_errors(document))


def _mend_checksum(material: Material) -> None:
    """Have .gnu_debuglink tell the checksum of the debug file as it is now, where it is found at all."""
    files = {target.kind: target.where for target in material.targets if target.where}
    if "debug file" not in files or "module" not in files:
        return
    data = bytearray(files["module"].read_bytes())
    name = b"program.debug\0".ljust(16, b"\0")
    at = data.find(name)
    if at >= 0 and at + 20 <= len(data):
        struct.pack_into("<I", data, at + 16, zlib.crc32(files["debug file"].read_bytes()))
        files["module"].write_bytes(data)


def run(count: int, seed: str, jobs: int = 1) -> list[Round]:
    """Make rounds; each job has a directory and files of its own."""
    with tempfile.TemporaryDirectory(prefix="coresnap-fuzz-") as directory:
        shares = [(Path(directory, str(job)), seed, range(job, count, jobs)) for job in range(jobs)]
        if jobs == 1:
            return _share(shares[0])
        with multiprocessing.get_context("fork").Pool(jobs) as pool:
            return [one for rounds in pool.map(_share, shares) for one in rounds]


def _share(share: tuple[Path, str, range]) -> list[Round]:
    directory, seed, numbers = share
    directory.mkdir()
    fuzzer = Fuzzer(directory, seed)
    return [fuzzer.round(number) for number in numbers]


def summary(rounds: list[Round], seed: str) -> list[str]:
    """Return what is to be told of rounds."""
    slowest, largest = max(rounds, key=lambda one: one.seconds), max(rounds, key=lambda one: one.memory_bytes)
    statuses = ", ".join(
        f"{count} with {status}" for status, count in sorted(Counter(r.status for r in rounds).items())
    )
    kinds = Counter(one.what for one in rounds if one.status == 0)
    return [
        *(f"WRONG {one.number} ({one.what}): {one.wrong}" for one in rounds if one.wrong),
        f"seed {seed}: {len(rounds)} rounds, {sum(bool(one.wrong) for one in rounds)} wrong; ended {statuses}",
        f"slowest: {slowest.seconds:.2f} s ({slowest.number}, {slowest.what})",
        f"largest: {largest.memory_bytes >> 20} MB ({largest.number}, {largest.what})",
        f"reports by what was mutated: {len(kinds)} kinds, the rarest {min(kinds.values(), default=0)} times",
    ]


def main() -> int:
    """Fuzz; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="fuzz.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", metavar="N", type=int, default=1000, help="how many rounds (1000)")
    parser.add_argument("--seed", metavar="SEED", default=str(_SEED), help=f"what they depend on ({_SEED})")
    parser.add_argument("--only", metavar="NUMBER", type=int, help="this round alone")
    options = parser.parse_args()
    if options.only is None:
        rounds = run(options.count, options.seed, len(os.sched_getaffinity(0)))
    else:
        with tempfile.TemporaryDirectory(prefix="coresnap-fuzz-") as directory:
            rounds = [Fuzzer(Path(directory), options.seed).round(options.only)]
    print("\n".join(summary(rounds, options.seed)))
    return int(any(one.wrong for one in rounds))


if __name__ == "__main__":
    sys.exit(main())
