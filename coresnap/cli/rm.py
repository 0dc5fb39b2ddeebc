# SPDX-License-Identifier: Apache-2.0
"""Remove dumps: core, asset, snapshot and record. On a terminal it asks first.

All dumps have to be named well before the first one goes. One that a worker is at stays, with exit status 75.

examples:
  coresnap rm 84605573 failed/1b2c
  coresnap rm -y committed/84605573
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from coresnap.cli import dumps, terminal, words
from coresnap.ground.errors import CoresnapError
from coresnap.ground.text import human_bytes
from coresnap.spool import removal, stages

if TYPE_CHECKING:
    import argparse

    from coresnap.spool.stages import Spool

_DELIVERED = (stages.COMMITTED,)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("dump", nargs="+", metavar="UUID", help="a dump, [STAGE/]BEGINNING-OF-UUID")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    worst = 0
    with dumps.open_spool(dumps.dump_root(args.settings)) as spool:
        found = list(dict.fromkeys(dumps.resolve(spool, text) for text in args.dump))
        if not args.yes and sys.stdin.isatty() and not _confirmed(spool, found):
            return 0
        for stage, uuid in found:
            try:
                freed_bytes = removal.remove(spool, dumps.take(spool, f"{stage}/{uuid}"))
            except CoresnapError as error:
                terminal.note(error.line())
                worst = max(worst, error.exit_status)
            else:
                print(f"{stage}/{uuid}: removed, {human_bytes(freed_bytes)} freed")
    return worst


def _confirmed(spool: Spool, found: list[tuple[str, str]]) -> bool:
    for stage, uuid in found:
        entry = dumps.look(spool, stage, uuid)
        victim = entry.record["victim"] if entry and entry.record else {}
        undelivered = "" if stage in _DELIVERED else ", NOT delivered"
        pinned = ", PINNED" if entry and entry.record and entry.record["pinned_usec"] is not None else ""
        print(f"  {stage}/{uuid} {words.name(victim)}{undelivered}{pinned}", file=sys.stderr)
    what = "this dump" if len(found) == 1 else f"these {len(found)} dumps"
    print(f"Remove {what}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
