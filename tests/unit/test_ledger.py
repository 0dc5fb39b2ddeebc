# SPDX-License-Identifier: Apache-2.0
"""The ledger: every loss on record, in a file that neither grows nor needs free space."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from coresnap.ground import durable
from coresnap.spool import ledger


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = durable.open_directory(str(tmp_path))
    yield fd
    os.close(fd)


def test_entries_come_back_in_order(directory: int) -> None:
    ledger.append(directory, "quota", "full", "some-uuid", {"pid": 7, "comm": "x\ny", "exe": None, "gid": 5})
    ledger.append(directory, "empty", "nothing came")
    first, second = ledger.read(directory)
    assert (first["n"], first["reason"], first["pid"], first["comm"]) == (0, "quota", 7, "x\ny")
    assert "exe" not in first
    assert second["reason"] == "empty"


def test_an_undeclared_reason_is_a_mistake(directory: int) -> None:
    with pytest.raises(ValueError, match="because"):
        ledger.append(directory, "because", "")


def test_it_is_a_ring_and_needs_no_more_space(directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "LINES", 10)
    ledger.prepare(directory)
    before = (tmp_path / "ledger").stat()
    for number in range(25):
        ledger.append(directory, "quota", f"loss {number}")
    after = (tmp_path / "ledger").stat()
    assert (after.st_size, after.st_blocks) == (before.st_size, before.st_blocks)
    assert [entry["detail"] for entry in ledger.read(directory)] == [f"loss {number}" for number in range(15, 25)]


def test_long_text_is_cut_until_it_fits(directory: int) -> None:
    ledger.append(directory, "internal", "d" * 5000, "u", {"exe": "\x00" * 3000, "comm": "name"})
    (entry,) = ledger.read(directory)
    assert entry["comm"] == "name"
    assert entry["detail"].startswith("ddd")


def test_a_crash_between_entry_and_count_overwrites_nothing(directory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.append(directory, "quota", "first")
    writes = 0

    def die_before_the_count(operation: str, _name: str) -> int | None:
        nonlocal writes
        writes += operation == "write"
        if writes == 2:
            raise SystemExit
        return None

    with monkeypatch.context() as patch:
        patch.setattr(durable, "fault", die_before_the_count)
        with pytest.raises(SystemExit):
            ledger.append(directory, "quota", "second")
    ledger.append(directory, "quota", "third")
    assert [entry["detail"] for entry in ledger.read(directory)] == ["first", "second", "third"]


def test_damaged_lines_are_passed_over(directory: int, tmp_path: Path) -> None:
    for detail in ("one", "two", "three"):
        ledger.append(directory, "quota", detail)
    with (tmp_path / "ledger").open("r+b") as file:
        file.seek(2 * ledger.LINE_BYTES)
        file.write(b'{"n": "text", \xff')
    assert [entry["detail"] for entry in ledger.read(directory)] == ["one", "three"]
    ledger.append(directory, "quota", "four")
    assert [entry["detail"] for entry in ledger.read(directory)] == ["one", "three", "four"]


def test_no_ledger_has_no_entries(directory: int) -> None:
    assert list(ledger.read(directory)) == []
