# SPDX-License-Identifier: Apache-2.0
"""What was not kept: the spool's ledger, and from the other one, for crashes that found no spool, what is this spool's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from coresnap.cli import terminal
from coresnap.cli.served import Served
from coresnap.ground import durable
from coresnap.spool import ledger
from coresnap.spool.stages import Dump

if TYPE_CHECKING:
    from coresnap.spool.stages import Spool


def fallback() -> str:
    """Return the path of the ledger for crashes that found no spool."""
    return os.path.join(ledger.FALLBACK, ledger.NAME)


def read(root: str, spool: Spool | None) -> list[dict[str, Any]]:
    """Return the lines, oldest first, each with the path of its ledger. One that may not be read gets a note.

    A line of the other ledger that does not say which spool it was meant for is among them. To whom the spool is closed his
    own are told.
    """
    if isinstance(spool, Served):
        return [{**loss, "ledger": os.path.join(root, ledger.NAME)} for loss in spool.losses()]
    found = _read(spool.root_fd, os.path.join(root, ledger.NAME)) if spool else []
    try:
        fallback_fd = durable.open_directory(ledger.FALLBACK)
    except FileNotFoundError:
        return found  # it is only there once the spool was not
    except OSError as error:
        terminal.note(f"{fallback()}: {error.strerror}: what is on record there is not shown")
        return found
    with Dump("", "", fallback_fd):
        others = _read(fallback_fd, fallback())
    found += (loss for loss in others if "root" not in loss or _same(loss["root"], root))
    return sorted(found, key=lambda loss: loss["time_usec"])


def _read(dir_fd: int, path: str) -> list[dict[str, Any]]:
    try:
        return [{**loss, "ledger": path} for loss in ledger.read(dir_fd)]
    except OSError as error:
        terminal.note(f"{path}: {error.strerror}: what is on record there is not shown")
        return []


def _same(one: Any, other: str) -> bool:
    return isinstance(one, str) and os.path.normpath(one) == os.path.normpath(other)
