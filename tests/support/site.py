# SPDX-License-Identifier: Apache-2.0
"""A site: a spool, a store and their settings in a directory of the test's own, and the real programs on them."""

from __future__ import annotations

import grp
import hashlib
import json
import os
import pwd
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from coresnap.ground import durable
from coresnap.ground.inotify import Watch
from coresnap.spool import ledger, record
from coresnap.spool.stages import STAGES

REPOSITORY = Path(__file__).parents[2]
ARCHIVE = ["/usr/bin/python3", "-IS", str(REPOSITORY / "coresnap" / "archive.py")]
FAULTY = [sys.executable, str(REPOSITORY / "tests" / "faulty.py")]


class Site:
    """Where one test's programs work."""

    def __init__(self, directory: Path, **settings: str) -> None:
        directory.mkdir(exist_ok=True)
        self.root = directory / "spool"
        self.store = directory / "store"
        self.settings = directory / "coresnap.conf"
        self.compiled = directory / "archive.settings"
        lines = {
            "dump.root": str(self.root),
            "dump.user": pwd.getpwuid(os.getuid()).pw_name,
            "dump.group": grp.getgrgid(os.getgid()).gr_name,
            "dump.quota": "0%",
            "send.store": f"file:{self.store}",
            "send.coroner": str(directory / "coroner.cf"),
            "send.jitter": "0",
            **{key.replace("__", "."): value for key, value in settings.items()},
        }
        self.settings.write_text("".join(f"{key} = {value}\n" for key, value in lines.items()))
        self.run("daemon", "--prepare", "--compiled", str(self.compiled)).check_returncode()

    def run(
        self, program: str, *arguments: str, faulty: Sequence[str] = (), settings: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of coresnap's to its end; `faulty` are the words for tests/faulty.py."""
        start = [*FAULTY, *faulty, program] if faulty else [sys.executable, "-m", f"coresnap.{program}"]
        argv = [*start, *(["--settings", str(self.settings)] if settings else []), *arguments]
        return subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120)

    def archive(
        self, source: Path | BinaryIO, *arguments: str, faulty: Sequence[str] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run archive with a core on its standard input."""
        start = [*FAULTY, *faulty, "archive"] if faulty else ARCHIVE
        argv = [*start, "--settings", str(self.compiled), *arguments]
        with source.open("rb") if isinstance(source, Path) else source as file:
            return subprocess.run(argv, stdin=file, capture_output=True, text=True, check=False, timeout=120)

    def once(self) -> subprocess.CompletedProcess[str]:
        """Run coresnapd --once, as after a restart."""
        return self.run("daemon", "--once", "--compiled", str(self.compiled))

    def dumps(self) -> Iterator[tuple[str, Path]]:
        """Yield the stage and directory of each dump; what is being probed or removed has a name with a dot."""
        for stage in STAGES:
            for path in sorted((self.root / stage).iterdir()):
                if not path.name.startswith("."):
                    yield stage, path

    def stages(self) -> list[str]:
        """Return the stages of all dumps."""
        return [stage for stage, _path in self.dumps()]

    def wait_for(self, stage: str, count: int) -> None:
        """Wait until a stage holds so many dumps."""
        fd = os.open(self.root / stage, os.O_RDONLY)
        with Watch(fd) as watch:
            while self.stages().count(stage) < count:
                assert select.select([watch.fd], [], [], 60)[0], self.stages()
                watch.drain()
        os.close(fd)

    def ledger(self) -> list[dict[str, Any]]:
        """Return the ledger's entries."""
        fd = durable.open_directory(str(self.root))
        try:
            return list(ledger.read(fd))
        finally:
            os.close(fd)

    def stored(self) -> list[Path]:
        """Return the snapshots in the store."""
        return sorted(self.store.glob("*/*.json"))


def kept_core(path: Path) -> bytes:
    """Return the core of the dump in this directory, whether it is compressed or not; where it is both, they are the same."""
    plain, packed = path / "core", path / "core.zst"
    compressed_bytes = record.parse((path / "dump.json").read_bytes())["core"]["compressed_bytes"]
    if compressed_bytes is None:
        return plain.read_bytes()
    assert packed.stat().st_size == compressed_bytes
    unpacked = subprocess.run(["zstd", "-dcq"], input=packed.read_bytes(), capture_output=True, check=True).stdout
    assert not plain.exists() or plain.read_bytes() == unpacked
    return unpacked


def assert_whole(site: Site, core: bytes) -> None:
    """Assert that every dump outside staging is whole: its record, its core, and what its stage promises."""
    seen: set[str] = set()
    for stage, path in site.dumps():
        assert path.name not in seen, f"{path.name} is in two stages"
        seen.add(path.name)
        if stage == "staging":
            continue
        document = record.parse((path / "dump.json").read_bytes())
        assert document["uuid"] == path.name
        kept = kept_core(path)
        assert len(kept) == document["core"]["size_bytes"]
        assert core.startswith(kept)
        assert document["core"]["truncated"] is not None or kept == core
        if stage in ("sending", "committed"):
            _assert_snapshot(path, document)
        if stage == "committed":
            receipt = json.loads((path / "receipt.json").read_text())
            stored = site.store / receipt["object"]
            assert hashlib.sha256(stored.read_bytes()).hexdigest() == receipt["sha256"]
            if document["sent_small"] is None:
                assert receipt["sha256"] == document["snapshot"]["sha256"]


def _assert_snapshot(path: Path, document: dict[str, Any]) -> None:
    snapshot = (path / "snapshot").read_bytes()
    assert len(snapshot) == document["snapshot"]["size_bytes"]
    assert hashlib.sha256(snapshot).hexdigest() == document["snapshot"]["sha256"]
    assert json.loads(snapshot)["uuid"] == path.name
