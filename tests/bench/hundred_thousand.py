# SPDX-License-Identifier: Apache-2.0
"""`coresnap list`, `coresnap status` and a purge plan of 100,000 dumps, against the least that reads all their records."""

from __future__ import annotations

import json
import os
import random
import time
import uuid
from pathlib import Path

from tests.bench import cores
from tests.bench.listing import CONSOLE_SCRIPT, LOOP
from tests.bench.pairs import Figure, Pairs, Spread, judge, verdict
from tests.bench.programs import Unmeasurable, Usage, python, run
from tests.bench.spool import REPOSITORY, Spool

PEER = "a bare loop of os.scandir and json.load over them"
MEASURE = "100,000 dumps: list, purge plan, status"
BAR = f"≤ 0.25 × {PEER}, < 100 MB each"
_DUMPS = 100_000
_MOST_BYTES = 100_000_000
_LINKS_MOST = 50_000  # a file of ext4 may have 65,000 names
_COMMANDS = {
    "coresnap list": ["list"],
    "coresnap purge --dry-run": ["purge", "--dry-run"],
    "coresnap status": ["status"],
}
_CHANGED = 30


def measure(work: Path, runs: int) -> list[Figure]:
    """Return the figures. Raises Unmeasurable."""
    spool = Spool.make(work / "many")
    _fill(spool)
    os.chdir(REPOSITORY)
    loop = python("-c", LOOP, *spool.stages)
    (work / "told").touch()
    with (work / "told").open("r+b") as file:

        def ours(words: list[str]) -> Usage:
            file.seek(0)
            file.truncate()
            argv = python("-c", CONSOLE_SCRIPT, *words, "--settings", str(spool.configuration))
            return run(argv, stdout=file.fileno())

        first = ours(["list"])
        ours(["list"])  # what had changed within the last two seconds is in the index now
        taken: dict[str, list[Usage]] = {name: [] for name in _COMMANDS}
        peer: list[int] = []
        run(loop)
        for _ in range(runs):
            for name, words in _COMMANDS.items():
                taken[name].append(ours(words))
                _check(work / "told", name)
            peer.append(run(loop).wall_usec)
        _change(spool)
        changed = ours(["list"])
    about = f"the first look, which makes the index: {_of(first)}; a list after {_CHANGED} dumps have changed: {_of(changed)}"
    return [figure for name in _COMMANDS for figure in _judge(name, taken[name], peer, about)]


def _judge(name: str, taken: list[Usage], peer: list[int], about: str) -> list[Figure]:
    pairs = Pairs([usage.wall_usec for usage in taken], peer)
    cpu = Spread.of([(usage.user_usec + usage.system_usec) / 1000 for usage in taken])
    detail = f"{pairs.detail('ours', 'the loop')}; {cpu} ms of processors, two of which may be at it; {about}"
    memory = Spread.of([usage.maxrss_bytes / 1e6 for usage in taken])
    met = memory.high * 1e6 < _MOST_BYTES
    return [
        judge(f"`{name}` of 100,000 dumps", PEER, 0.25, pairs, detail),
        Figure("its memory", f"< {_MOST_BYTES // 10**6} MB", verdict(met), f"{memory} MB", "largest resident set"),
    ]


def _of(usage: Usage) -> str:
    return f"{usage.wall_usec / 1e6:.1f} s, {usage.maxrss_bytes / 1e6:.0f} MB"


def _fill(spool: Spool) -> None:
    """Have a real crash go all the way once, and make it 100,000 of many programs and bugs, over 33 days: a tenth of the
    cores are old enough to go."""
    with cores.small() as crashed, crashed.core.open("rb") as core:
        run(spool.archive(*crashed.core_pattern()), stdin=core.fileno())
    run(spool.daemon("--once"))
    first = spool.only_dump("committed")
    document = json.loads((first / "dump.json").read_bytes())
    chance = random.Random(1)
    now_usec = time.time_ns() // 1000
    source = first
    for number in range(1, _DUMPS):
        stage = chance.choices(["pending", "sending", "committed", "failed"], [1, 4, 90, 5])[0]
        document["uuid"] = str(uuid.uuid4())
        document["victim"] |= {
            "exe": f"/opt/services/bin/service{chance.randrange(300)}",
            "pid": chance.randrange(4 << 20),
        }
        document["captured"]["time_usec"] = now_usec - chance.randrange(33 * 86_400_000_000)
        document["fingerprint"] = f"{chance.randrange(3000):064x}"
        document["core"]["disk_bytes"] = chance.randrange(100, 50_000) * 4096
        dump = spool.root / stage / document["uuid"]
        dump.mkdir(0o700)
        (dump / "dump.json").write_text(json.dumps(document, separators=(",", ":")))
        for name in ("core.zst", "assets.tar", "snapshot", "receipt.json"):
            if number % _LINKS_MOST:
                os.link(source / name, dump / name)
            else:
                (dump / name).write_bytes((source / name).read_bytes())
        if not number % _LINKS_MOST:
            source = dump
    os.sync()


def _change(spool: Spool) -> None:
    """Have some dumps change, as many as do not make a new index worth its writing."""
    for path in spool.dumps("committed")[:: 90_000 // _CHANGED]:
        document = (path / "dump.json").read_bytes()
        (path / "new").write_bytes(document)
        (path / "new").rename(path / "dump.json")


def _check(told: Path, name: str) -> None:
    """See that all dumps are told of: a fast program that tells nothing has not met its bar."""
    text = told.read_bytes()
    right = {
        "coresnap list": text.count(b"\n") == _DUMPS + 1,
        "coresnap purge --dry-run": text.count(b"older than purge.age") > _DUMPS // 20,
        "coresnap status": b"committed: 9" in text or b"committed: 8" in text,
    }
    if not right[name]:
        raise Unmeasurable(f"{name} did not tell of {_DUMPS} dumps: {text[-300:]!r}")
