# SPDX-License-Identifier: Apache-2.0
"""What became of a crash, in one line of the log."""

from __future__ import annotations

from coresnap.capture.capture import WITHDRAWN, Capture
from coresnap.capture.finish import Outcome
from coresnap.ground import catalog
from coresnap.ground.log import Log
from coresnap.spool import ledger


def tell(log: Log, capture: Capture, outcome: Outcome) -> None:
    """Log what became of the crash; nothing where archive has taken it back, and will say so itself.

    Nothing either of most that a limit leaves out: they are counted, and each is in the ledger.
    """
    if outcome.reason == WITHDRAWN or outcome.quiet:
        return
    victim = capture.victim
    who = (
        "an unknown process" if victim.pid is None else f"{victim.comm or victim.exe or 'a process'} (pid {victim.pid})"
    )
    held = f"held {outcome.held_usec / 1000:.0f} ms"
    fields = {"CORESNAP_DUMP": outcome.uuid, "CORESNAP_STAGE": "pending" if outcome.kept else "none"}
    if not outcome.kept:
        record = "" if outcome.on_record else "; the ledger could not take it"
        line = f"core of {who} not kept: {outcome.reason}: {outcome.detail}{record}"
        (log.warning if outcome.reason in ledger.UNWANTED else log.error)(line, MESSAGE_ID=catalog.LOST.id, **fields)
        return
    truncated = f", truncated: {outcome.truncated}" if outcome.truncated else ""
    size = f"{outcome.size_bytes} bytes, {held}{truncated}"
    line = f"core of {who} archived in {capture.settings.root}/pending/{outcome.uuid} ({size})"
    log.info(line, MESSAGE_ID=catalog.ARCHIVED.id, **fields)
    if outcome.detail:
        log.warning(f"{outcome.uuid}: {outcome.detail}", **fields)


def tell_swept(log: Log, outcome: Outcome) -> None:
    """Log what became of a capture that was killed."""
    fields = {"CORESNAP_DUMP": outcome.uuid, "CORESNAP_STAGE": "pending" if outcome.kept else "none"}
    if outcome.kept:
        line = f"{outcome.uuid}: salvaged, its capture was killed: {outcome.truncated or 'whole'}"
        log.warning(line, MESSAGE_ID=catalog.SALVAGED.id, **fields)
    else:
        line = f"{outcome.uuid}: lost, its capture was killed: {outcome.reason}: {outcome.detail}"
        log.error(line, MESSAGE_ID=catalog.LOST.id, **fields)
