# SPDX-License-Identifier: Apache-2.0
"""The asset as it is written: whole, or without the pieces that found no room, or not there."""

from __future__ import annotations

import errno
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from coresnap.capture.assets import ASSETS, Assets
from coresnap.ground import durable
from coresnap.ground.redact import Redaction

_OWNER = (0o600, -1, -1)
_EVIDENCE = {"proc/status": b"Name:\tx\n", "proc/comm": b"", "host/uptime": b"x" * 512}
_PIECES = {"modules/400000/0": b"\x7fELF" * 200, "modules/400000/1000": b"table"}


@pytest.fixture
def dump_fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def _contents(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as asset:
        members = [(member, asset.extractfile(member)) for member in asset]
        assert all(member.isreg() and member.mode == 0o400 for member, _file in members)
        return {member.name: file.read() for member, file in members if file is not None}


def _written(dump_fd: int) -> Assets:
    assets = Assets(dump_fd, _OWNER, None)
    assets.put_evidence(_EVIDENCE, Redaction())
    for name, data in _PIECES.items():
        assets.put_piece(name, data)
    assets.finish()
    assets.close()
    return assets


def test_all_of_it(tmp_path: Path, dump_fd: int) -> None:
    assets = _written(dump_fd)
    assert _contents(tmp_path / ASSETS) == _EVIDENCE | _PIECES
    assert assets.problem == ""
    assert assets.size_bytes == (tmp_path / ASSETS).stat().st_size
    assert (tmp_path / ASSETS).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("number", range(4))
def test_a_disk_that_is_full(tmp_path: Path, dump_fd: int, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """At each write in turn: the pieces go first, all of them, so that the record finds room."""
    writes = 0

    def full(operation: str, _name: str) -> int | None:
        nonlocal writes
        if operation == "write":
            writes += 1
            if writes - 1 == number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return None

    monkeypatch.setattr(durable, "fault", full)
    assets = _written(dump_fd)
    assert assets.problem == "the disk is full"
    if number:
        assert _contents(tmp_path / ASSETS) == _EVIDENCE
        assert assets.size_bytes == (tmp_path / ASSETS).stat().st_size
    else:
        assert not (tmp_path / ASSETS).exists()
        assert assets.size_bytes == 0


def test_a_disk_that_fails(dump_fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(operation: str, _name: str) -> int | None:
        if operation == "write":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return None

    monkeypatch.setattr(durable, "fault", broken)
    with pytest.raises(OSError, match="Input/output error"):
        _written(dump_fd)
