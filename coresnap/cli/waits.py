# SPDX-License-Identifier: Apache-2.0
"""Which store a dump in sending waits for, and why, in words."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from coresnap.cli import words
from coresnap.ground.errors import BadInput
from coresnap.ground.text import printable
from coresnap.spool import outlook
from coresnap.spool.stages import Spool

if TYPE_CHECKING:
    from coresnap.ground.settings import Settings
    from coresnap.spool.outlook import Standing
    from coresnap.spool.record import Record


def standings(spool: object) -> list[Standing]:
    """Return how the stores stand; nothing where that may not be known, or cannot be read."""
    try:
        return outlook.read(spool.root_fd) if isinstance(spool, Spool) else []
    except (BadInput, OSError):
        return []


def of(document: Record, loaded: Settings, known: list[Standing]) -> list[Standing]:
    """Return what keeps this dump from its store now: the store, or its project, where it takes nothing."""
    victim = document["victim"]
    project, _rule = loaded.format_for(os.path.basename(victim["exe"] or victim["comm"] or ""))
    store = f"command:{loaded.send_command[0]}" if loaded.send_command else loaded.store_address()
    return [one for one in known if one.store == store and one.project in (None, project) and one.state != outlook.UP]


def line(one: Standing) -> str:
    """Return in words how a store, or a project, stands that takes nothing."""
    what = printable(one.store, 200) if one.project is None else f"project {printable(one.project)}"
    next_try = f", next try {words.ago(one.next_try_usec)}" if one.next_try_usec is not None else ""
    return (
        f"{what} {outlook.WORDS[one.state]} since {words.when(one.since_usec)}{next_try}: {printable(one.detail, 300)}"
    )
