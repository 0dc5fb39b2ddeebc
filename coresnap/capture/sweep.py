# SPDX-License-Identifier: Apache-2.0
"""The sweep: captures that were killed are brought to their end. What can be kept is kept, the rest is put on record."""

from __future__ import annotations

import os
import tarfile
import time
from collections.abc import Callable

from coresnap.capture.assets import ASSETS
from coresnap.capture.board import Taken
from coresnap.capture.capture import CORE, Capture
from coresnap.capture.finish import Outcome, finish
from coresnap.capture.loss import is_on_record
from coresnap.capture.tell import tell_swept
from coresnap.capture.victim import Victim
from coresnap.ground import durable
from coresnap.ground.errors import BadInput
from coresnap.ground.flat import ArchiveSettings
from coresnap.ground.log import Log
from coresnap.spool import record, stages
from coresnap.spool.stages import Dump, Spool


def sweep(
    log: Log, spool: Spool, settings: ArchiveSettings, find: Callable[[str], Taken | None] = lambda _uuid: None
) -> None:
    """End the captures that were killed, and tell of each. Raises OSError.

    `find` returns what is known of a crash by its UUID.
    """
    for dump in spool.abandoned():
        try:
            outcome = _end(spool, settings, dump, find(dump.uuid) or Taken(Victim(), dump.uuid))
        except Exception as error:  # noqa: BLE001  # whatever is wrong with one dump, the others are ended
            dump.close()
            log.error(f"{stages.STAGING}/{dump.uuid}: cannot be swept, and is left there: {error!r}")
            continue
        if outcome is not None:
            tell_swept(log, outcome)


def _end(spool: Spool, settings: ArchiveSettings, dump: Dump, crash: Taken) -> Outcome | None:
    """End one; None where there is nothing to tell."""
    if _is_complete(dump):
        spool.move(dump, stages.PENDING)
        dump.close()
        return None
    if (crash.is_offered and _is_empty(dump)) or is_on_record(spool, dump.uuid):
        spool.remove(dump)  # archive captures it in another one, or this is what was left to be done
        return None
    capture = Capture(settings, crash.victim, "salvage", time.monotonic_ns(), uuid=dump.uuid)
    capture.spool, capture.dump = spool, dump
    try:
        capture.core_fd = os.open(CORE, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dump.fd)
        capture.copied.size_bytes = crash.core_bytes
        if crash.core_bytes < 0:
            capture.copied.size_bytes = os.fstat(capture.core_fd).st_size
            capture.copied.stop("interrupted", "archive was killed")
        _drop_torn_assets(dump)
    except OSError as error:
        capture.fail(error)
        capture.reason = "interrupted"
    return finish(capture)


def _is_empty(dump: Dump) -> bool:
    return not durable.exists(dump.fd, CORE) or not os.stat(CORE, dir_fd=dump.fd, follow_symlinks=False).st_size


def _is_complete(dump: Dump) -> bool:
    """Say whether only the rename was missing."""
    try:
        record.load(dump)
    except (BadInput, OSError):
        return False
    return durable.exists(dump.fd, CORE)


def _drop_torn_assets(dump: Dump) -> None:
    """Unlink an asset that does not read to its end."""
    if not durable.exists(dump.fd, ASSETS):
        return
    try:
        with tarfile.open(fileobj=os.fdopen(durable.open_regular(dump.fd, ASSETS), "rb")) as archive:
            archive.getmembers()
    except (tarfile.TarError, EOFError, BadInput, OSError):
        durable.unlink(dump.fd, ASSETS)
