# SPDX-License-Identifier: Apache-2.0
"""Keep dumps: what is pinned purge never removes, neither by age nor for room. `coresnap unpin` takes it back.

`coresnap rm` removes a pinned dump, too: a person asks for that.

examples:
  coresnap pin 84605573
  coresnap pin failed/1b2c committed/84605573

Exit status 75: a worker is at it just now.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from coresnap.cli import dumps, terminal
from coresnap.ground import settings
from coresnap.ground.errors import CoresnapError
from coresnap.spool import record

if TYPE_CHECKING:
    import argparse

    from coresnap.ground.settings import Settings
    from coresnap.spool.stages import Spool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("dump", nargs="+", metavar="UUID", help="a dump, [STAGE/]BEGINNING-OF-UUID")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    return mark(args, pinned=True)


def mark(args: argparse.Namespace, *, pinned: bool) -> int:
    """Pin the dumps that are named, or take that back."""
    loaded = settings.load(args.settings)
    worst = 0
    with dumps.open_spool(loaded.dump_root) as spool:
        for text in args.dump:
            try:
                print(_mark(spool, text, loaded, pinned=pinned))
            except CoresnapError as error:
                terminal.note(error.line())
                worst = max(worst, error.exit_status)
    return worst


def _mark(spool: Spool, text: str, loaded: Settings, *, pinned: bool) -> str:
    word = "pinned" if pinned else "unpinned"
    with dumps.take(spool, text) as dump:
        document = dumps.load_record(dump)
        if (document["pinned_usec"] is not None) == pinned:
            return f"{dump.stage}/{dump.uuid}: {'pinned already' if pinned else 'was not pinned'}"
        document["pinned_usec"] = time.time_ns() // 1000 if pinned else None
        record.note(document, word, f"by user {os.getuid()}")
        record.store(dump, document, *loaded.dump_owner())
        return f"{dump.stage}/{dump.uuid}: {word}"
