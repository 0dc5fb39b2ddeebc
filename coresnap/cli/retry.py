# SPDX-License-Identifier: Apache-2.0
"""Try again: what has failed goes back to work, what waits for its next attempt is due now.

A dump without a snapshot goes to pending, one with its snapshot to sending; its failure and its attempts are forgotten,
its history is not.

examples:
  coresnap retry pending/84605573      do not wait for its next attempt
  coresnap retry --all-failed          after what made them fail has been mended

Exit status 75: a worker is at it just now.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from coresnap.cli import dumps, terminal
from coresnap.ground import catalog, durable, settings
from coresnap.ground.errors import CoresnapError, Refused
from coresnap.ground.log import Log
from coresnap.spool import record, stages

if TYPE_CHECKING:
    import argparse

    from coresnap.ground.settings import Settings
    from coresnap.spool.stages import Dump, Spool

_BY_HAND = "`coresnap dump --identity KEY` writes the core out, `coresnap import` takes it as a new dump"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("dump", nargs="*", metavar="UUID", help="a dump, [STAGE/]BEGINNING-OF-UUID")
    parser.add_argument("--all-failed", action="store_true", help="all dumps in failed")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if bool(args.dump) == args.all_failed:
        terminal.note("retry: name some dumps, or --all-failed")
        return 2
    loaded = settings.load(args.settings)
    worst = 0
    with dumps.open_spool(loaded.dump_root) as spool:
        failed = [f"{stages.FAILED}/{uuid}" for uuid in sorted(spool.uuids(stages.FAILED))]
        named = failed if args.all_failed else args.dump
        if not named:
            terminal.note("nothing has failed")
        for text in named:
            try:
                _retry(spool, text, loaded)
            except CoresnapError as error:
                terminal.note(error.line())
                worst = max(worst, error.exit_status)
    return worst


def _retry(spool: Spool, text: str, loaded: Settings) -> None:
    with dumps.take(spool, text) as dump:
        before = dump.stage
        if before == stages.COMMITTED:
            raise Refused(f"{before}/{dump.uuid} is delivered", hint=f"`coresnap info {dump.uuid[:8]}` has its receipt")
        _renew(spool, dump, loaded)
    # Its owner looks again at a dump that is touched, and finds it unlocked.
    try:
        os.utime(dump.uuid, dir_fd=spool.stage_fds[dump.stage], follow_symlinks=False)
    except FileNotFoundError:
        pass  # it has been seen already, and moved on
    print(f"{dump.uuid}: due now in {dump.stage}" if dump.stage == before else f"{dump.uuid}: {before} -> {dump.stage}")


def _renew(spool: Spool, dump: Dump, loaded: Settings) -> None:
    """Make a locked dump due, in the stage whose work it lacks."""
    document = dumps.load_record(dump)
    if not durable.exists(dump.fd, dumps.SNAPSHOT):
        if not durable.exists(dump.fd, dumps.CORE):
            hint = f"`coresnap rm {dump.uuid[:8]}` removes what is left of it"
            if document["encrypted"]:
                raise Refused(f"{dump.stage}/{dump.uuid} has no snapshot, and its core is encrypted", hint=_BY_HAND)
            if durable.exists(dump.fd, stages.COMPRESSED):
                hint = f"`coresnap dump {dump.uuid[:8]} -o core` and `coresnap import core` make it a new dump"
                raise Refused(f"{dump.stage}/{dump.uuid}: its snapshot is gone, and its core compressed", hint=hint)
            raise Refused(f"{dump.stage}/{dump.uuid} has neither core nor snapshot", hint=hint)
        document["snapshot"] = None
    document["attempts"] = {"process": 0, "send": 0}
    document["failure"] = document["next_try_usec"] = None
    record.note(document, "retried", f"by user {os.getuid()}, in {dump.stage}")
    record.store(dump, document, *loaded.dump_owner())
    target = stages.SENDING if document["snapshot"] else stages.PENDING
    if target != dump.stage:
        before = dump.stage
        spool.move(dump, target)
        line = f"{dump.uuid}: taken from {before} by user {os.getuid()}; now in {target}"
        fields = {"MESSAGE_ID": catalog.RETRIED.id, "CORESNAP_DUMP": dump.uuid, "CORESNAP_STAGE": target}
        Log.open(echo=False).info(line, **fields)
