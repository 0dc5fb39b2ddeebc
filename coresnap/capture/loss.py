# SPDX-License-Identifier: Apache-2.0
"""A crash whose core is not kept, put on record."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from coresnap.ground import durable
from coresnap.spool import ledger, record

if TYPE_CHECKING:
    from coresnap.capture.policy import Declined
    from coresnap.capture.victim import Victim
    from coresnap.spool.stages import Spool


def put_on_record(
    spool: Spool | None,
    root: str,
    reason: str,
    detail: str,
    uuid: str,
    victim: Victim,
    declined: Declined | None = None,
) -> bool:
    """Put a crash that was not kept into the spool's ledger, or where that fails into the other one; say whether it is there.

    `root` is dump.root, also where there is no spool in it. Raises nothing.
    """
    known: dict[str, object] = {name: getattr(victim, name) for name in record.FIELDS["victim"]}
    if declined is not None and declined.count:
        known |= {"count": declined.count, "until_usec": declined.until_usec}
    if spool is not None:
        try:
            ledger.append(spool.root_fd, reason, detail, uuid, known)
        except OSError as error:
            detail += f"; ledger: {error.strerror}"
        else:
            return True
    try:
        os.makedirs(ledger.FALLBACK, 0o700, exist_ok=True)
        fallback_fd = durable.open_directory(ledger.FALLBACK)
    except OSError:
        return False
    try:
        ledger.append(fallback_fd, reason, detail, uuid, known | {"root": root})
    except OSError:
        return False
    finally:
        os.close(fallback_fd)
    return True


def is_on_record(spool: Spool | None, uuid: str) -> bool:
    """Say whether the crash that goes by this UUID is in one of the ledgers, as far as they can be read. Raises OSError."""
    if spool is not None and ledger.has(spool.root_fd, uuid):
        return True
    try:
        fallback_fd = durable.open_directory(ledger.FALLBACK)
    except OSError:
        return False  # nobody has made it, or it is another user's
    try:
        return ledger.has(fallback_fd, uuid)
    finally:
        os.close(fallback_fd)
