#!/usr/bin/python3 -I
# SPDX-License-Identifier: Apache-2.0
"""coresnap process - the stage processor: make a snapshot of each pending dump

SYNOPSIS
    python3 -m coresnap.process [--settings FILE] [--once | --linger SECONDS]

DESCRIPTION
    Owns the stage pending. For each dump a worker runs defaults.command and snapshot.command, at most snapshot.jobs at
    once; the dump then moves to sending. A command that fails is tried again, later each time; after
    snapshot.attempts, or at once where the command says (exit status 65) that the core can never give a snapshot, the
    dump moves to failed with the reason.

    --once           end when nothing is due
    --linger SECONDS end when pending has been empty for so long

EXIT STATUS
    0 all went well, or waits for its next attempt; 69 there is no spool; 78 the settings are wrong.

SECURITY
    The owner reads nothing of a dump but dump.json. The core is opened for the worker and read by it alone.
"""

import hashlib
import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

import re
import secrets
import time
from typing import Any

from coresnap.ground import durable, recipients
from coresnap.ground.clock import Clock
from coresnap.ground.log import CRITICAL, Log, has_journal
from coresnap.ground.program import argv_of
from coresnap.ground.recipients import Recipient
from coresnap.ground.settings import Settings
from coresnap.ground.text import human_duration
from coresnap.spool import coredump, encrypted, quota, record, stage_program, stages, unjournaled
from coresnap.spool.record import Record
from coresnap.spool.stages import AGE, ASSETS, COMPRESSED, CORE, Dump, Spool
from coresnap.spool.trade import Verdict

SNAPSHOT = "snapshot"
_GRACE_USEC = 10_000_000
_ELAPSED_MOST_USEC = 1 << 53
_PACKAGE_MAX = 256


class Processing:
    """The trade of the stage pending."""

    name = "process"
    stage, next_stage = stages.PENDING, stages.SENDING
    reuse = False
    first_retry_usec = 30_000_000
    last_retry_usec = 3_600_000_000
    spread = 0.0

    def __init__(self, settings: Settings, log: Log) -> None:
        self.settings = settings
        self.log = log
        self.worker = argv_of("process_worker")
        self.workers = settings.snapshot_jobs
        self.attempts = settings.snapshot_attempts
        self.recipients: dict[str, list[Recipient]] = {}
        steps = 3 if settings.encrypt_recipients else 2
        self.limit_usec = steps * settings.snapshot_timeout_usec + settings.defaults_timeout_usec + _GRACE_USEC
        self.owner = settings.dump_owner()

    def enter(self, _spool: Spool, _clock: Clock) -> None:
        """Need nothing of them."""

    def rest(self, *, last: bool) -> None:
        """Nothing is left to do."""

    def store(self) -> None:
        """Return none: a snapshot stays here."""

    def mended(self) -> bool:
        """Nothing is parked."""
        return False

    def project(self, _document: Record) -> str:
        """Return none."""
        return ""

    def request(self, dump: Dump, document: Record) -> tuple[dict[str, Any], list[int]] | Verdict | None:
        """Open the dump's files for the worker and say what is to be run on them."""
        if document["snapshot"] is not None:
            return None
        if document["encrypted"] is not None:
            return Verdict("failed", "its core is encrypted, and it has no snapshot: none can be made of it here")
        if not durable.exists(dump.fd, CORE):
            return Verdict("failed", "its core is gone, and was not taken by coresnap")
        keys = self.recipients[dump.uuid] = recipients.read(self.settings.encrypt_recipients)
        for name in (SNAPSHOT, COMPRESSED, *encrypted.NAMES):  # an earlier attempt's
            if durable.exists(dump.fd, name):
                durable.unlink(dump.fd, name)
        if keys and not quota.has_room(dump.fd, 0, document["core"]["disk_bytes"] + document["assets"]["size_bytes"]):
            return Verdict("later", "the disk has no room for its core to be encrypted beside it")
        files = {SNAPSHOT: durable.create(dump.fd, SNAPSHOT, *self.owner), CORE: durable.open_regular(dump.fd, CORE)}
        if durable.exists(dump.fd, ASSETS):
            files[ASSETS] = durable.open_regular(dump.fd, ASSETS)
        if self._compresses(dump, document):
            files[COMPRESSED] = durable.create(dump.fd, COMPRESSED, *self.owner)
        for name in [name for name in files if name != SNAPSHOT] if keys else []:
            files[name + AGE] = durable.create(dump.fd, name + AGE, *self.owner)
        settings, victim = self.settings, document["victim"]
        message = {
            "version": 1,
            "job": self.name,
            "uuid": dump.uuid,
            "files": list(files),
            "exe": victim["exe"] or victim["comm"] or "",
            "pid": victim["pid"] or 0,
            "uid": victim["uid"] or 0,
            "signal": victim["signal"] or 0,
            "snapshot_command": settings.snapshot_command,
            "own_options": settings.report_options(),
            "defaults_command": settings.defaults_command,
            "snapshot_timeout_usec": settings.snapshot_timeout_usec,
            "defaults_timeout_usec": settings.defaults_timeout_usec,
            "memory_bytes": settings.snapshot_memory_bytes,
            "max_bytes": settings.snapshot_max_bytes,
            "output": settings.command_output,
            "compress_bytes": document["core"]["disk_bytes"],
            "recipients": [one.key for one in keys],
            "last_attempt": 0 < self.attempts <= document["attempts"][self.name] + 1,
        }
        return message, list(files.values())

    def _compresses(self, dump: Dump, document: Record) -> bool:
        """Say whether the core is to be compressed: not where the journal knows it by another name already, that stays."""
        encrypts = bool(self.settings.encrypt_recipients)
        return (
            self.settings.core_compress == "zstd"
            and (encrypts or document["journaled_usec"] is None)
            and quota.has_room(
                dump.fd, self.settings.dump_quota_percent, (1 + encrypts) * document["core"]["disk_bytes"]
            )
        )

    def settle(self, spool: Spool, dump: Dump, document: Record, answer: dict[str, Any] | None) -> None:
        """Give the core its lasting form and name, and tell the journal of the crash, once."""
        answer = answer or {}
        document["package"] = document["package"] or _package(answer.get("package"))
        document["fingerprint"] = _fingerprint(answer.get("fingerprint")) or document["fingerprint"]
        core = document["core"]
        if core["compressed_bytes"] is None and durable.exists(dump.fd, COMPRESSED):
            if document["failure"] is None and answer.get("compressed") is True:
                _take_compressed(dump, core)
            else:
                durable.unlink(dump.fd, COMPRESSED)
        keys = self.recipients.pop(dump.uuid, [])
        encrypted.take(dump, document, [one.fingerprint for one in keys] if answer.get("encrypted") is True else [])
        if document["failure"] is None:
            document["next_try_usec"] = self._first_send_usec()
        if document["journaled_usec"] is not None:
            return
        try:
            path = spool.link_core(dump, encrypted.core_of(document))
        except OSError as error:
            self.log.warning(f"{dump.uuid}: by-uuid: {error.strerror}; coredumpctl will not find its core")
            return
        evidence = answer.get("evidence")
        fields = coredump.fields(document, path, evidence if isinstance(evidence, dict) else {})
        if self.log.entry(CRITICAL, coredump.message(document), fields):
            document["journaled_usec"] = time.time_ns() // 1000
        elif has_journal():
            try:
                unjournaled.note(spool, dump.uuid)
            except OSError as error:
                self.log.warning(f"{dump.uuid}: {unjournaled.NAME}: {error.strerror}; coredumpctl will not list it")

    def _first_send_usec(self) -> int | None:
        """Return when the snapshot is sent for the first time: a fleet that crashes at once does not come to its store at once."""
        settings = self.settings
        if settings.send_command or not settings.send_jitter_usec or settings.store_address().startswith("file:"):
            return None
        return time.time_ns() // 1000 + secrets.randbelow(settings.send_jitter_usec)

    def shed(self, spool: Spool, dump: Dump, document: Record) -> None:
        """Unlink the core that has been compressed, and what has been encrypted, under the journal's names too."""
        if document["core"]["compressed_bytes"] is None and document["encrypted"] is None:
            return
        gone = [CORE] if document["encrypted"] is None else [CORE, COMPRESSED, ASSETS]
        gone = [name for name in gone if durable.exists(dump.fd, name)]
        if not gone:
            if document["encrypted"] is not None:
                spool.unlink_orphans(dump.uuid)  # an earlier attempt may have come as far as the dump's own
            return
        more_bytes = document["core"]["disk_bytes"] if CORE in gone else 0
        more_bytes += _disk_bytes(dump, ASSETS + AGE) if ASSETS in gone else 0
        freed_bytes = sum(_disk_bytes(dump, name) for name in gone if name != COMPRESSED)  # that was never counted
        for name in gone:
            durable.unlink(dump.fd, name)
        durable.sync(dump.fd)
        if document["encrypted"] is not None:
            spool.unlink_orphans(dump.uuid)
        quota.count(spool, more_bytes - freed_bytes)

    def conclude(self, dump: Dump, document: Record, answer: dict[str, Any] | None) -> Verdict:
        """Take the snapshot into the record once it is on the disk."""
        if answer is None:
            return Verdict("later", "the worker died, or did not answer in time")
        detail = str(answer.get("detail", ""))[:2000]
        if answer.get("status") == "refused":
            return Verdict("failed", detail)
        if answer.get("status") != "done":
            return Verdict("later", detail or "the worker's answer cannot be understood")
        if self.recipients.get(dump.uuid) and not encrypted.is_done(
            dump, is_compressed=answer.get("compressed") is True
        ):
            return Verdict("later", "the worker has not encrypted the core, or not all of it")
        if document["snapshot"] is None:
            fd = durable.open_regular(dump.fd, SNAPSHOT)
            try:
                size_bytes = os.fstat(fd).st_size
                if not 0 < size_bytes <= self.settings.snapshot_max_bytes:
                    return Verdict("later", f"snapshot.command left a snapshot of {size_bytes} bytes")
                with os.fdopen(os.dup(fd), "rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                durable.sync(fd)
            finally:
                os.close(fd)
            document["snapshot"] = {"size_bytes": size_bytes, "sha256": digest}
        elapsed_usec = answer.get("elapsed_usec")
        took = ""
        if type(elapsed_usec) is int and 0 <= elapsed_usec < _ELAPSED_MOST_USEC:
            took = f" in {human_duration(elapsed_usec)}"
        told = [detail, f"core not compressed: {problem}" if (problem := answer.get("compress_detail")) else ""]
        return Verdict("done", f"processed{took}{''.join(f': {text}' for text in told if text)}"[:2000])


def _package(told: object) -> dict[str, str | None] | None:
    """Return what a worker tells of the package, which is hostile, as the record has it."""
    if not isinstance(told, dict):
        return None
    texts = {key: told.get(key) for key in record.FIELDS["package"].shape}
    package = {key: text[:_PACKAGE_MAX] if isinstance(text, str) else None for key, text in texts.items()}
    return package if any(package.values()) else None


def _fingerprint(told: object) -> str | None:
    """Return the fingerprint that a worker tells, which is hostile, if it is one."""
    return told if isinstance(told, str) and re.fullmatch("[0-9a-f]{64}", told) else None


def _disk_bytes(dump: Dump, name: str) -> int:
    return os.stat(name, dir_fd=dump.fd, follow_symlinks=False).st_blocks * 512


def _take_compressed(dump: Dump, core: dict[str, Any]) -> None:
    """Have the compressed core on the disk, and in the record."""
    fd = durable.open_regular(dump.fd, COMPRESSED)
    try:
        durable.sync(fd)
        status = os.fstat(fd)
    finally:
        os.close(fd)
    core["compressed_bytes"], core["disk_bytes"] = status.st_size, status.st_blocks * 512


def main(arguments: list[str] | None = None) -> int:
    """Run the stage processor; return its exit status."""
    return stage_program.main("process", __doc__ or "", Processing, arguments)


if __name__ == "__main__":
    sys.exit(main())
