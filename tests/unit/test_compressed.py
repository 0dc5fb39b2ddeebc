# SPDX-License-Identifier: Apache-2.0
"""Cores compressed and read again, by the real zstd."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from coresnap.ground import runner
from coresnap.ground.errors import BadInput, Refused
from coresnap.spool import compressed

_HOLE_BYTES = 4 << 20
_CORE = b"core " * 20_000 + bytes(_HOLE_BYTES) + b"end"
_MINUTE_USEC = 60_000_000


@pytest.fixture
def core(tmp_path: Path) -> Iterator[int]:
    """Make a file with a hole."""
    path = tmp_path / "core"
    path.write_bytes(_CORE)
    with path.open("rb") as file:
        yield file.fileno()


@pytest.fixture
def target(tmp_path: Path) -> Iterator[int]:
    """Make an empty file."""
    with (tmp_path / "target").open("w+b") as file:
        yield file.fileno()


def test_there_and_back(core: int, target: int, tmp_path: Path) -> None:
    assert compressed.compress(core, target, len(_CORE), _MINUTE_USEC) == ""
    assert 0 < os.fstat(target).st_size < len(_CORE) // 100
    os.lseek(target, 0, os.SEEK_SET)
    with (tmp_path / "plain").open("w+b") as plain:
        compressed.unpack(target, plain.fileno(), len(_CORE))
        status = os.fstat(plain.fileno())
        plain.seek(0)
        assert plain.read() == _CORE
    assert status.st_blocks * 512 < _HOLE_BYTES, "zeros are a hole again"


def test_what_does_not_become_smaller_is_not_taken(target: int, tmp_path: Path) -> None:
    path = tmp_path / "random"
    path.write_bytes(os.urandom(1 << 20))
    with path.open("rb") as file:
        assert "smaller" in compressed.compress(file.fileno(), target, 1 << 19, _MINUTE_USEC)


def test_it_may_not_take_for_ever(core: int, target: int) -> None:
    assert "too long" in compressed.compress(core, target, len(_CORE), 0)


def test_without_zstd_the_reason_is_told(core: int, target: int, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"PATH": "/nonexistent"}
    monkeypatch.setattr(runner, "ENVIRONMENT", environment)
    monkeypatch.setattr(runner.run, "__kwdefaults__", {**(runner.run.__kwdefaults__ or {}), "env": environment})
    assert "is it installed" in compressed.compress(core, target, len(_CORE), _MINUTE_USEC)
    with pytest.raises(Refused, match="zstd"):
        compressed.unpack(core, target, 0)


def test_a_compressed_core_that_is_damaged_is_not_taken_for_whole(core: int, target: int, tmp_path: Path) -> None:
    assert compressed.compress(core, target, len(_CORE), _MINUTE_USEC) == ""
    os.pwrite(target, b"\0\0\0\0", os.fstat(target).st_size // 2)
    os.lseek(target, 0, os.SEEK_SET)
    with (tmp_path / "plain").open("w+b") as plain, pytest.raises(BadInput, match="not whole"):
        compressed.unpack(target, plain.fileno(), len(_CORE))
