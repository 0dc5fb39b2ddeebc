# SPDX-License-Identifier: Apache-2.0
"""Spools for tests: made by coresnap's own spool functions, with dumps whose every byte a test may choose."""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coresnap.ground import durable
from coresnap.spool import record, stages
from coresnap.spool.stages import Dump, Spool

if TYPE_CHECKING:
    from pathlib import Path

CORE = b"\x7fELF" + bytes(60)
_MODE = 0o600


@dataclass(frozen=True)
class Made:
    """A spool in a directory of a test's own, and the configuration that names it."""

    root: Path
    configuration: Path

    def open(self) -> Spool:
        """Open the spool."""
        return Spool(str(self.root))

    def path(self, stage: str, uuid: str) -> Path:
        """Return a dump's directory."""
        return self.root / stage / uuid

    def record(self, stage: str, uuid: str) -> Any:
        """Return what stands in a dump's record."""
        return json.loads((self.path(stage, uuid) / record.NAME).read_bytes())


def make(directory: Path, *more: str) -> Made:
    """Make an empty spool, and a configuration with these further lines."""
    root, configuration = directory / "spool", directory / "coresnap.conf"
    lines = [
        f"dump.root = {root}",
        f"dump.user = {os.getuid()}",
        f"dump.group = {os.getgid()}",
        "dump.quota = 0%",
        *more,
    ]
    configuration.write_text("\n".join(lines) + "\n")
    stages.prepare(str(root), -1, -1)
    return Made(root, configuration)


def document(uuid: str, **changes: Any) -> record.Record:
    """Return a record. The name of a change is a key of the record, or of its victim or captured."""
    made: record.Record = {
        "version": record.VERSION,
        "uuid": uuid,
        "captured": {"time_usec": time.time_ns() // 1000, "held_usec": 1000, "transport": "pipe", "hostname": "host"},
        "victim": {
            **dict.fromkeys(("pid", "tid"), 4711),
            **dict.fromkeys(("uid", "gid"), 1000),
            "signal": 11,
            "dumpable": 1,
            "rlimit_core": None,
            "comm": "vim",
            "exe": "/usr/bin/vim.basic",
            "cmdline": "vim notes",
        },
        "place": dict.fromkeys(record.FIELDS["place"]),
        "core": {"size_bytes": len(CORE), "disk_bytes": 4096, "compressed_bytes": None, "class": 64, "truncated": None},
        "assets": {"size_bytes": 10240, "missing": []},
        "reader_uid": None,
        "package": None,
        "snapshot": None,
        "encrypted": None,
        "fingerprint": None,
        "journaled_usec": None,
        "pinned_usec": None,
        "core_removed": None,
        "sent_small": None,
        "attempts": {"process": 0, "send": 0},
        "next_try_usec": None,
        "failure": None,
        "history": [],
    }
    record.note(made, "captured", "held 1000 usec")
    for name, value in changes.items():
        inner = next((part for part in (made["victim"], made["captured"]) if name in part), made)
        inner[name] = value
    return made


def add(made: Made, stage: str = stages.PENDING, uuid: str = "", *, report: bytes = b"", **changes: Any) -> str:
    """Put a dump into a stage, with `report` for its snapshot where one is given; return its UUID."""
    uuid = uuid or stages.new_uuid()
    with (
        made.open() as spool,
        Dump(uuid, stages.STAGING, durable.mkdir(spool.stage_fds["staging"], uuid, 0o700)) as dump,
    ):
        _file(dump, "core", CORE)
        _file(dump, "assets.tar", bytes(10240))
        if report:
            _file(dump, "snapshot", report)
            changes.setdefault("snapshot", {"size_bytes": len(report), "sha256": "00"})
        record.store(dump, document(uuid, **changes), _MODE)
        if stage != stages.STAGING:
            spool.move(dump, stage)
    return uuid


def fill(made: Made, count: int, *, report_bytes: int = 8192, asset_bytes: int = 10240) -> list[str]:
    """Put so many dumps into sending at once, nothing of them synced; return their UUIDs.

    Each report has its dump's, and each is of another bug.
    """
    uuids = [stages.new_uuid() for _ in range(count)]
    asset = bytes(asset_bytes)
    for uuid in uuids:
        report = json.dumps({"uuid": uuid, "lang": "c", "threads": {}, "pad": "x" * report_bytes}).encode()
        snapshot = {"size_bytes": len(report), "sha256": hashlib.sha256(report).hexdigest()}
        bug = hashlib.sha256(uuid.encode()).hexdigest()
        path = made.path(stages.SENDING, uuid)
        path.mkdir(mode=0o700)
        for name, data in (
            ("snapshot", report),
            ("assets.tar", asset),
            (
                record.NAME,
                json.dumps(document(uuid, snapshot=snapshot, fingerprint=bug)).encode(),
            ),
        ):
            (path / name).write_bytes(data)
    return uuids


def _file(dump: Dump, name: str, data: bytes) -> None:
    fd = durable.create(dump.fd, name, _MODE)
    durable.write(fd, data)
    os.close(fd)
