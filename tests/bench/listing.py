# SPDX-License-Identifier: Apache-2.0
"""`coresnap list` of a thousand dumps, against the least that any Python program could do to read them."""

from __future__ import annotations

import json
import os
import time
import uuid
from pathlib import Path

from tests.bench import cores
from tests.bench.pairs import Figure, alternate, judge
from tests.bench.programs import Unmeasurable, python, run
from tests.bench.spool import REPOSITORY, Spool

MEASURE = "`coresnap list` of 1,000 dumps"
PEER = "a bare loop of os.scandir and json.load over them"
BAR = f"≤ 3 × {PEER}"
_DUMPS = 1000
#: What has just changed the index does not vouch for; a spool is seldom two seconds old.
_SETTLED_SECONDS = 3
#: What an installed console script consists of.
CONSOLE_SCRIPT = "import sys; from coresnap.cli import main; sys.exit(main())"
#: The least that reads all records.
LOOP = """
import json, os, sys
for stage in sys.argv[1:]:
    for dump in os.scandir(stage):
        with open(dump.path + "/dump.json") as file:
            json.load(file)
"""


def measure(work: Path, runs: int) -> list[Figure]:
    """Return the figure. Raises Unmeasurable."""
    spool = Spool.make(work / "listing")
    _fill(spool)
    command = python("-c", CONSOLE_SCRIPT, "list", "--settings", str(spool.configuration))
    loop = python("-c", LOOP, *spool.stages)
    os.chdir(REPOSITORY)
    _check(command, work)
    time.sleep(_SETTLED_SECONDS)
    pairs = alternate(runs, lambda: run(command).wall_usec, lambda: run(loop).wall_usec)
    return [judge(MEASURE, PEER, 3, pairs, pairs.detail("list", "the loop"))]


def _fill(spool: Spool) -> None:
    """Have a real crash go all the way once, and copy its dump to a thousand in all."""
    with cores.small() as crashed, crashed.core.open("rb") as core:
        run(spool.archive(*crashed.core_pattern()), stdin=core.fileno())
    run(spool.daemon("--once"))
    first = spool.only_dump("committed")
    document = json.loads((first / "dump.json").read_bytes())
    names = [entry.name for entry in first.iterdir() if entry.name != "dump.json"]
    for _ in range(_DUMPS - 1):
        document["uuid"] = str(uuid.uuid4())
        dump = first.parent / document["uuid"]
        dump.mkdir(0o700)
        (dump / "dump.json").write_text(json.dumps(document))
        for name in names:
            os.link(first / name, dump / name)
    os.sync()


def _check(command: list[str], work: Path) -> None:
    """See that the list has the dumps: a fast program that lists nothing has not met its bar."""
    with (work / "list").open("w+b") as file:
        run(command, stdout=file.fileno())
        lines = (work / "list").read_bytes().count(b"\n")
    if lines < _DUMPS:
        raise Unmeasurable(f"coresnap list printed {lines} lines for {_DUMPS} dumps")
