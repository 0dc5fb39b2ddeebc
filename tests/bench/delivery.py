# SPDX-License-Identifier: Apache-2.0
"""From archive's start to the receipt under a running `coresnapd -f`, against archive and coresnap-snapshot by hand."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench import cores
from tests.bench.pairs import Figure, alternate, judge
from tests.bench.programs import Unmeasurable, python, run, start
from tests.bench.spool import REPOSITORY, STAGES, Spool
from tests.bench.watch import IN_CREATE, IN_MOVED_TO, Watch

MEASURE = "start of archive to receipt.json under `coresnapd -f`"
PEER = "(archive + coresnap-snapshot by hand on the same core)"
BAR = f"≤ 2 × {PEER}"


@dataclass(frozen=True)
class _Delivery:
    core_fd: int
    executable: str
    watched: Spool
    by_hand: Spool

    def deliver(self) -> int:
        """Start archive in the spool that coresnapd looks after; return the microseconds until there is a receipt."""
        with Watch() as watch:
            watch.add(self.watched.root / "staging", IN_CREATE)
            os.lseek(self.core_fd, 0, os.SEEK_SET)
            archive = start(self.watched.archive(), stdin=self.core_fd)
            uuid = _new_dump(watch)
            _add_dump(watch, self.watched, uuid)
            names: list[str] = []
            while "receipt.json" not in names:
                receipt_nsec, names = watch.wait()
                if uuid in {dump.name for dump in self.watched.dumps("failed")}:
                    raise Unmeasurable("coresnapd moved the dump to failed")
            archive.wait()
            while not (self.watched.root / "committed" / uuid).exists():
                watch.wait()
        return (receipt_nsec - archive.started_nsec) // 1000

    def do_by_hand(self) -> int:
        """Run both programs, one after the other; return the microseconds that they took together."""
        os.lseek(self.core_fd, 0, os.SEEK_SET)
        archive = run(self.by_hand.archive(), stdin=self.core_fd)
        dump = self.by_hand.only_dump("pending")
        outcome = [f"-o{dump}/snapshot", f"--kv=coresnap.object:{dump.name}", f"--resource={dump}/assets.tar"]
        program = str(REPOSITORY / "coresnap/take_snapshot.py")
        snapshot = run(python("-IS", program, *outcome, "--core", f"{dump}/core", self.executable))
        if not (dump / "snapshot").stat().st_size:
            raise Unmeasurable("coresnap-snapshot left an empty snapshot")
        shutil.rmtree(dump)
        return archive.wall_usec + snapshot.wall_usec


def _new_dump(watch: Watch) -> str:
    """Wait for archive's dump in staging; the probes of coresnapd, which start with a dot, are none."""
    while True:
        for name in watch.wait()[1]:
            if not name.startswith("."):
                return name


def _add_dump(watch: Watch, spool: Spool, uuid: str) -> None:
    """Watch the dump in whatever stage it is by now; the watch is of the directory and goes with it."""
    for stage in STAGES:
        try:
            watch.add(spool.root / stage / uuid, IN_MOVED_TO)
        except FileNotFoundError:
            continue
        for stage_later in STAGES:
            watch.add(spool.root / stage_later, IN_MOVED_TO)
        return
    raise Unmeasurable(f"dump {uuid} is in no stage")


@contextmanager
def _coresnapd(spool: Spool) -> Iterator[None]:
    """Have coresnapd run in the foreground; a failure shows the last that it said."""
    daemon = start(spool.daemon("-f"))
    try:
        yield
    except Unmeasurable as error:
        raise Unmeasurable(f"{error}; coresnapd: {daemon.said()}") from error
    finally:
        os.kill(daemon.pid, signal.SIGTERM)
        daemon.wait(0, -signal.SIGTERM, 69, 78)


def measure(work: Path, runs: int) -> list[Figure]:
    """Return the figure. Raises Unmeasurable."""
    watched, by_hand = Spool.make(work / "watched"), Spool.make(work / "by-hand")
    with cores.small() as crashed, crashed.core.open("rb") as core, _coresnapd(watched):
        delivery = _Delivery(core.fileno(), crashed.exe, watched, by_hand)
        pairs = alternate(runs, delivery.deliver, delivery.do_by_hand)
        core_bytes = os.fstat(core.fileno()).st_size
    detail = f"core of {core_bytes / 1e6:.1f} MB, a real crash; {pairs.detail('to the receipt', 'by hand')}"
    return [judge(MEASURE, PEER, 2, pairs, detail)]
