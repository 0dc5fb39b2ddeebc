#!/usr/bin/python3 -I
# SPDX-License-Identifier: Apache-2.0
"""coresnap send - the sender: deliver each snapshot to the store

SYNOPSIS
    python3 -m coresnap.send [--settings FILE] [--once | --linger SECONDS]

DESCRIPTION
    Owns the stage sending. A worker delivers one snapshot after the other to the store that send.store or send.coroner
    names, or runs send.command; format.N chooses the project. What the store acknowledged is kept as receipt.json, and
    the dump moves to committed. A store that cannot be reached is probed with one dump once a minute (send.retry), one
    that takes nothing until somebody has mended something now and then; how the stores stand is in stores.json, and in
    `coresnap status`. Only a refusal of this one snapshot moves its dump to failed. Of one bug, send.whole_per_day reports
    are sent whole on one day, the rest small.

    --once           end when nothing is due
    --linger SECONDS end when sending has been empty for so long

EXIT STATUS
    0 all is delivered, or waits for its next attempt; 69 there is no spool; 78 the settings are wrong.

SECURITY
    The worker is handed the snapshot and the asset; the core only where send.core says so.
"""

import hashlib
import json
import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from typing import Any

from coresnap.ground import durable
from coresnap.ground.clock import Clock
from coresnap.ground.errors import BadInput
from coresnap.ground.log import Log
from coresnap.ground.program import argv_of
from coresnap.ground.settings import Settings
from coresnap.spool import record, stage_program, stages
from coresnap.spool.record import Record
from coresnap.spool.stages import Dump, Spool
from coresnap.spool.tally import Tally
from coresnap.spool.trade import Verdict
from coresnap.store import Receipt

SNAPSHOT, RECEIPT, _ASSETS = "snapshot", "receipt.json", "assets.tar"
_GRACE_USEC = 10_000_000
_RECEIPT_MAX_BYTES = 64 << 10
#: Of a file that is encrypted, and of one that is not; the first that is there counts.
_ENDINGS = (stages.AGE, "")


class Sending:
    """The trade of the stage sending."""

    name = "send"
    stage, next_stage = stages.SENDING, stages.COMMITTED
    reuse = True
    spread = 0.5

    def __init__(self, settings: Settings, _log: Log) -> None:
        self.settings = settings
        self.worker = argv_of("send_worker", packages=True)
        self.attempts = settings.send_attempts
        self.workers = settings.send_jobs
        self.first_retry_usec = settings.send_retry_usec
        self.last_retry_usec = max(settings.send_retry_max_usec, settings.send_retry_usec)
        self.limit_usec = settings.send_timeout_usec + _GRACE_USEC
        self.owner = settings.dump_owner()
        self.tally: Tally | None = None
        self._coroner_nsec = _changed_nsec(settings.send_coroner)

    def enter(self, spool: Spool, clock: Clock) -> None:
        """Learn how often each bug has been reported today."""
        self.tally = Tally(spool.root_fd, self.owner, clock)

    def rest(self, *, last: bool) -> None:
        """Put that on the disk."""
        if self.tally:
            self.tally.write(now=last)

    def request(self, dump: Dump, document: Record) -> tuple[dict[str, Any], list[int]] | Verdict | None:
        """Open what is to be sent and say where to."""
        if _receipt_of(dump) is not None:
            return None
        if document["snapshot"] is None or not durable.exists(dump.fd, SNAPSHOT):
            return Verdict("failed", "its snapshot is gone")
        settings = self.settings
        self._decide(dump, document)
        names = [SNAPSHOT] if document["sent_small"] is not None else [SNAPSHOT, *self._attached(dump)]
        files = {name: durable.open_regular(dump.fd, name) for name in names}
        message = {
            "version": 1,
            "job": self.name,
            "uuid": dump.uuid,
            "files": list(files),
            "project": self.project(document),
            "store": settings.store_address(),
            "store_max_bytes": settings.store_max_bytes,
            "store_max_age_usec": settings.store_max_age_usec,
            "command": settings.send_command,
            "timeout_usec": settings.send_timeout_usec,
            "snapshot": document["snapshot"],
            "small": document["sent_small"] or 0,
        }
        return message, list(files.values())

    def _decide(self, dump: Dump, document: Record) -> None:
        """Decide whether the report is sent whole; that it is not is in its record before it goes, and stays so."""
        victim, most = document["victim"], self.settings.send_whole_per_day
        like = f"{victim['exe']}:{victim['signal']}".encode("utf-8", "backslashreplace")
        bug = document["fingerprint"] or hashlib.sha256(like).hexdigest()
        number = self.tally.begin(dump.uuid, bug) if self.tally else 1
        if document["sent_small"] is None and most and number > most:
            document["sent_small"] = number
            record.store(dump, document, *self.owner)

    def _attached(self, dump: Dump) -> list[str]:
        """Return what of the dump goes with its snapshot."""
        settings = self.settings
        names = _first_there(dump, [_ASSETS])
        if settings.send_core and not settings.send_command:
            names += _first_there(dump, [stages.CORE, stages.COMPRESSED])
        if settings.store_address().startswith("file:"):  # it refuses what it has no room for
            sizes = {name: os.stat(name, dir_fd=dump.fd, follow_symlinks=False).st_size for name in names}
            names = [name for name in names if sizes[name] <= settings.store_max_bytes // 4]
        return names

    def store(self) -> str:
        """Return the name of the store, which is its address, or the command that delivers."""
        settings = self.settings
        return f"command:{settings.send_command[0]}" if settings.send_command else settings.store_address()

    def mended(self) -> bool:
        """Say whether the coroner.cf has changed: it may have a token now that it had not."""
        before, self._coroner_nsec = self._coroner_nsec, _changed_nsec(self.settings.send_coroner)
        return before != self._coroner_nsec

    def project(self, document: Record) -> str:
        """Return the project that format.N chooses."""
        victim = document["victim"]
        return self.settings.format_for(os.path.basename(victim["exe"] or victim["comm"] or ""))[0]

    def settle(self, spool: Spool, dump: Dump, document: Record, answer: dict[str, Any] | None) -> None:
        """Nothing more is due."""

    def shed(self, spool: Spool, dump: Dump, document: Record) -> None:
        """Nothing goes."""

    def conclude(self, dump: Dump, document: Record, answer: dict[str, Any] | None) -> Verdict:
        """Keep the receipt; without one nothing counts as delivered."""
        if self.tally:
            self.tally.end(dump.uuid, delivered=answer is not None and answer.get("status") == "delivered")
        if answer is None:
            return Verdict("later", "the worker died, or did not answer in time")
        status, detail = answer.get("status"), str(answer.get("detail", ""))[:2000]
        if status == "delivered":
            receipt = Receipt.from_json(answer.get("receipt"))
            small = document["sent_small"] is not None
            if receipt.uuid != dump.uuid or (receipt.sha256 != document["snapshot"]["sha256"] and not small):
                return Verdict("later", "the worker's receipt is another snapshot's")
            # The record comes next, and syncs the directory. Were the receipt's name lost the store would be asked again.
            durable.replace(dump.fd, RECEIPT, json.dumps(receipt.to_json()).encode(), *self.owner, sync_entry=False)
            how = f"; small, number {document['sent_small']} of its bug today" if small else ""
            return Verdict("done", f"delivered to {receipt.store}, project {receipt.project}{how}")
        if status == "done":
            known = _receipt_of(dump)
            if known is None:
                return Verdict("later", "its receipt has gone")
            return Verdict("done", f"delivered to {known.store}, project {known.project}")
        if status == "refused":
            return Verdict("failed", detail)
        retry_usec, scope = answer.get("retry_after_usec"), answer.get("scope")
        retry_usec = min(retry_usec, self.last_retry_usec) if type(retry_usec) is int and retry_usec > 0 else None
        if status == "parked":
            return Verdict("parked", detail, scope="project" if scope == "project" else "store")
        if status != "later":
            return Verdict("later", "the worker's answer cannot be understood")
        return Verdict("later", detail or "without a word", retry_usec, "dump" if scope == "dump" else "store")


def _receipt_of(dump: Dump) -> Receipt | None:
    """Return the receipt that a dump has; of one that is broken the store is asked again. Raises OSError."""
    try:
        return Receipt.from_json(json.loads(durable.read(dump.fd, RECEIPT, _RECEIPT_MAX_BYTES)))
    except (BadInput, FileNotFoundError, ValueError, RecursionError):
        return None


def _changed_nsec(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _first_there(dump: Dump, names: list[str]) -> list[str]:
    """Return the first of these files that the dump has, encrypted rather than not; none is none."""
    every = [name + end for name in names for end in _ENDINGS]
    return [name for name in every if durable.exists(dump.fd, name)][:1]


def main(arguments: list[str] | None = None) -> int:
    """Run the sender; return its exit status."""
    return stage_program.main("send", __doc__ or "", Sending, arguments)


if __name__ == "__main__":
    sys.exit(main())
