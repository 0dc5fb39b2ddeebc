# SPDX-License-Identifier: Apache-2.0
"""What the two stage owners, process and send, have in common as programs: options, signals, log lines, exit status."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

from coresnap.ground import catalog, notify, program, settings
from coresnap.ground.errors import TryLater
from coresnap.ground.log import Log
from coresnap.spool import stages
from coresnap.spool.hooks import Notice, commands
from coresnap.spool.owner import Owner
from coresnap.spool.record import Record
from coresnap.spool.stages import Spool
from coresnap.spool.trade import Tell, Trade, Verdict

_MESSAGES = {
    "done": catalog.PROCESSED,
    "later": catalog.WAITS,
    "parked": catalog.WAITS,
    "failed": catalog.FAILED,
}


def main(name: str, manual: str, trade: Callable[[settings.Settings, Log], Trade], arguments: list[str] | None) -> int:
    """Be the stage owner `name` of this trade; return its exit status."""
    parser = argparse.ArgumentParser(
        prog=f"coresnap-{name}", description=manual, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", metavar="FILE", help="read this configuration file, and no other")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--once", action="store_true", help="end when nothing is due")
    mode.add_argument(
        "--linger", metavar="SECONDS", type=float, help="end when there has been nothing to do for so long"
    )
    parser.add_argument(
        "--worker-socket", metavar="PATH", help="connect here for a worker, in place of starting it as a child"
    )
    parser.add_argument("-f", dest="output", action="store_const", const="inherit", help="the same as --output inherit")
    parser.add_argument("--output", choices=("log", "inherit", "discard"), help="override command.output")
    options = parser.parse_args(arguments)
    log = Log.open()
    linger_usec = None if options.linger is None else int(options.linger * 1e6)
    return program.run(f"coresnap-{name}", lambda: _run(trade, options, linger_usec, log), log.error)


def _run(
    trade: Callable[[settings.Settings, Log], Trade], options: argparse.Namespace, linger_usec: int | None, log: Log
) -> int:
    loaded = settings.load(options.settings)
    if options.output:
        loaded = replace(loaded, command_output=options.output)
    with Spool(loaded.dump_root) as spool, program.signals() as caught:
        owner = Owner(spool, trade(loaded, log), _teller(log, Notice(spool, commands(loaded))), options.worker_socket)
        notify.ready()
        owner.run(caught, once=options.once, linger_usec=linger_usec)
        if owner.outlook and owner.outlook.problem:
            log.warning(f"{loaded.dump_root}/{owner.outlook.problem}, ignoring")
        notify.stopping()
    return 0


def _teller(log: Log, notice: Notice) -> Tell:
    """Return the function that puts a verdict into words, and into the queue of hooks."""

    def tell(uuid: str, document: Record | None, verdict: Verdict, stage: str) -> None:
        fields = {"CORESNAP_DUMP": uuid, "CORESNAP_STAGE": stage}
        message = _MESSAGES[verdict.status]
        if verdict.status == "done" and stage == stages.COMMITTED:
            message = catalog.DELIVERED
        fields["MESSAGE_ID"] = message.id
        if verdict.status == "done":
            log.info(f"{uuid}: {verdict.detail or 'done'}; now in {stage}", **fields)
        elif verdict.status == "later":
            seconds = (verdict.retry_usec or 0) // 1_000_000
            log.warning(f"{uuid}: {verdict.detail}; next try in {seconds} s, it stays in {stage}", **fields)
        elif verdict.status == "parked":
            log.warning(f"{uuid}: {verdict.detail}; it stays in {stage}", **fields)
        else:
            log.error(f"{uuid}: {verdict.detail}; now in {stage}: `coresnap retry {uuid[:8]}` tries again", **fields)
        if document is not None and verdict.status in ("done", "failed"):
            try:
                notice.give(stage, document, verdict.detail if verdict.status == "failed" else "")
            except (OSError, TryLater) as error:
                log.warning(f"{uuid}: no hook is run: {error}", **fields)

    return tell
