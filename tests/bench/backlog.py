# SPDX-License-Identifier: Apache-2.0
"""Ten thousand dumps that wait for a store on this machine, against one curl for each file; and a store's hour away."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coresnap.spool.stages import new_uuid
from tests.bench.pairs import Figure, Spread, verdict
from tests.bench.programs import Unmeasurable, python, run
from tests.bench.spool import REPOSITORY
from tests.support import outage, spools
from tests.support.deliveries import TOKEN
from tests.support.hours import HOUR, MINUTE

MEASURE = "10,000 waiting snapshots to a store on loopback, snapshots a second"
MEMORY = "most memory of the sender and its worker together, meanwhile"
OUTAGE = "a store that is down for an hour, 1,000 dumps waiting: most probes in a minute; all delivered after"
BAR = "≥ 0.5 × (one curl process a file)"
MEMORY_BAR = "< 64 MB"
OUTAGE_BAR = "≤ 1; ≤ 2 min"
_DUMPS, _FILES, _REPORT_BYTES = 10_000, 2_000, 8192
_MEMORY_BYTES = 64e6
_LOOK_MSEC = 200


def measure(work: Path, runs: int) -> list[Figure]:
    """Return the rate and the memory. Raises Unmeasurable."""
    del runs  # ten thousand are enough
    curl = shutil.which("curl")
    if curl is None:
        raise Unmeasurable("there is no curl")
    with _store(work) as address:
        coroner = work / "coroner.cf"
        coroner.write_text(f"[universe]\nname = u\nwrite = {address}\n[token]\nblackhole = {TOKEN}\n")
        coroner.chmod(0o600)
        made = spools.make(work, f"send.coroner = {coroner}")
        spools.fill(made, _DUMPS, report_bytes=_REPORT_BYTES)
        os.sync()
        before = _curl(curl, work / "before", address)
        seconds, memory = _send(made)
        after = _curl(curl, work / "after", address)
    committed = len(os.listdir(made.root / "committed"))
    if committed != _DUMPS:
        raise Unmeasurable(f"{committed} of {_DUMPS} were delivered")
    rate, peers = _DUMPS / seconds, (before, after)
    ratio = Spread.of([rate / peer for peer in peers])
    detail = (
        f"{rate:.0f} a second, in {seconds:.0f} s; curl {min(peers):.0f} and {max(peers):.0f} a second, {_FILES} files before "
        f"and after; reports of {_REPORT_BYTES} bytes; the sender's go with an asset, and it syncs each receipt"
    )
    noisy = max(peers) > 1.5 * min(peers)
    owner, *workers = memory
    told = f"{sum(memory) / 1e6:.1f} MB"
    each = f"sender {owner / 1e6:.1f} MB, {len(workers)} worker {max(workers) / 1e6:.1f} MB at most, by VmHWM of each process"
    return [
        Figure(MEASURE, BAR, verdict(ratio.low >= 0.5), f"{ratio} ×", detail, noisy),
        Figure(MEMORY, MEMORY_BAR, verdict(sum(memory) < _MEMORY_BYTES), told, each),
    ]


def hour(work: Path, runs: int) -> list[Figure]:
    """Return what a store saw of an hour's outage."""
    del runs
    seen = outage.suffer(work, 1000, "503")
    probes = seen.most_in_a_minute()
    after_usec = seen.acknowledged_usec[-1] - HOUR
    once = seen.offered == [1] * 1000
    figure = f"{probes}; {after_usec / 1e6:.0f} s"
    detail = (
        f"{seen.first_tries} requests until it was known to be down, {len(seen.asked_usec)} in the hour, each dump offered "
        f"once after it: {'yes' if once else 'NO'}; the hour is the test's (tests/support/outage.py), the deliveries after it "
        "take as long as they take"
    )
    return [Figure(OUTAGE, OUTAGE_BAR, verdict(probes <= 1 and once and after_usec <= 2 * MINUTE), figure, detail)]


@contextmanager
def _store(work: Path) -> Iterator[str]:
    """Have a store run in a process of its own; yield its address."""
    program = str(REPOSITORY / "tests/support/lying_store.py")
    with subprocess.Popen(
        python(program, "--listen", "127.0.0.1:0", "--log", os.devnull), stderr=subprocess.PIPE, cwd=work, text=True
    ) as store:
        assert store.stderr is not None
        try:
            yield store.stderr.readline().strip()
        finally:
            store.terminate()


def _curl(curl: str, directory: Path, address: str) -> float:
    """Have a shell run one curl for each of some files; return how many that were in a second."""
    directory.mkdir()
    for _ in range(_FILES):
        report = f'{{"uuid": "{new_uuid()}", "lang": "c", "threads": {{}}, "pad": "{"x" * _REPORT_BYTES}"}}'
        (directory / new_uuid()).write_text(report)
    url = f"{address}/post?format=json&token={TOKEN}"
    post = f'{curl} -sf -o /dev/null -H "Content-Type: application/json" --data-binary "@$f" "{url}"'
    loop = f"for f in {directory}/*; do {post}; done"
    return _FILES / (run(["/bin/sh", "-c", loop]).wall_usec / 1e6)


def _send(made: spools.Made) -> tuple[float, list[int]]:
    """Have the sender deliver all that waits; return the seconds, and the most memory of it and of its workers."""
    program = str(REPOSITORY / "coresnap/send.py")
    memory: dict[int, int] = {}
    pid = 0
    started = time.monotonic()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            python(program, "--settings", str(made.configuration), "--once"), stdout=said, stderr=said
        )
        pid = process.pid
        while True:
            try:
                process.wait(_LOOK_MSEC / 1000)
                break
            except subprocess.TimeoutExpired:
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                for one in (pid, *map(int, children)):
                    memory[one] = _most_bytes(one) or memory.get(one, 0)
    seconds = time.monotonic() - started
    if process.returncode != 0:
        raise Unmeasurable(f"the sender ended with status {process.returncode}")
    return seconds, [memory.pop(pid), *memory.values()]


def _most_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), 0)
