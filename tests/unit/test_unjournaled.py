# SPDX-License-Identifier: Apache-2.0
"""The journal is told later of what was processed while it was away, once each."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from coresnap.ground import durable
from coresnap.ground.log import Log
from coresnap.spool import record, removal, stages, unjournaled
from tests.support import spools
from tests.support.spools import Made

_OWNER = (0o600, -1, -1)
_REPORT = b'{"uuid": "1"}'


class _Journal:
    """A journal that keeps what it is sent, or is away; a stand-in, since the real one is the machine's."""

    def __init__(self) -> None:
        self.entries: list[dict[str, str]] = []
        self.away = False

    def take(self, _priority: int, message: str, fields: Mapping[str, str]) -> None:
        if self.away:
            raise ConnectionRefusedError
        self.entries.append({"MESSAGE": message, **fields})


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch) -> _Journal:
    made = _Journal()
    monkeypatch.setattr(Log, "open", lambda **_how: Log([], made.take))
    return made


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return spools.make(tmp_path)


def _noted(made: Made) -> list[str]:
    directory = made.root / unjournaled.NAME
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


def _note(made: Made, *uuids: str) -> None:
    with made.open() as spool:
        for uuid in uuids:
            unjournaled.note(spool, uuid)


def _tell(made: Made) -> int:
    with made.open() as spool:
        return unjournaled.tell(spool, _OWNER)


def test_where_nothing_is_owed_nothing_is_done(made: Made, journal: _Journal) -> None:
    assert _tell(made) == 0
    assert not (made.root / unjournaled.NAME).exists()


def test_each_is_told_of_once_wherever_it_is_by_then(made: Made, journal: _Journal) -> None:
    uuids = [spools.add(made, stage, report=_REPORT) for stage in (stages.SENDING, stages.COMMITTED, stages.FAILED)]
    _note(made, *uuids, uuids[0])
    journal.away = True
    assert _tell(made) == 0
    assert _noted(made) == sorted(uuids)
    journal.away = False
    assert _tell(made) == 3
    assert _tell(made) == 0
    assert _noted(made) == []
    assert sorted(entry["CORESNAP_DUMP"] for entry in journal.entries) == sorted(uuids)
    entry = next(entry for entry in journal.entries if entry["CORESNAP_DUMP"] == uuids[1])
    assert entry["COREDUMP_FILENAME"] == str(made.root / "by-uuid" / f"{uuids[1]}.core")
    assert (entry["COREDUMP_PID"], entry["COREDUMP_SIGNAL_NAME"]) == ("4711", "SIGSEGV")
    with made.open() as spool:
        dump = spool.take(stages.COMMITTED, uuids[1])
        assert dump is not None
        with dump:
            assert record.load(dump)["journaled_usec"] is not None


def test_one_that_is_in_work_waits(made: Made, journal: _Journal) -> None:
    uuid = spools.add(made, stages.SENDING, report=_REPORT)
    _note(made, uuid)
    with made.open() as spool:
        dump = spool.take(stages.SENDING, uuid)
        assert dump is not None
        with dump:
            assert _tell(made) == 0
    assert _noted(made) == [uuid]
    assert _tell(made) == 1


def test_one_that_has_gone_is_forgotten(made: Made, journal: _Journal) -> None:
    uuid = spools.add(made, stages.COMMITTED, report=_REPORT)
    _note(made, uuid, "no dump's name")
    with made.open() as spool:
        dump = spool.take(stages.COMMITTED, uuid)
        assert dump is not None
        removal.remove(spool, dump)
    assert _tell(made) == 0
    assert _noted(made) == []
    assert journal.entries == []


def test_one_that_is_processed_again_is_told_of_then(made: Made, journal: _Journal) -> None:
    uuid = spools.add(made, stages.PENDING)
    _note(made, uuid)
    assert _tell(made) == 0
    assert _noted(made) == []


def test_one_whose_record_cannot_be_read_keeps_no_other_back(made: Made, journal: _Journal) -> None:
    torn, whole = (spools.add(made, stages.COMMITTED, report=_REPORT) for _dump in range(2))
    made.path(stages.COMMITTED, torn).joinpath(record.NAME).write_bytes(b"{")
    _note(made, torn, whole)
    assert _tell(made) == 1
    assert [entry["CORESNAP_DUMP"] for entry in journal.entries] == [whole]


def test_a_full_disk_does_not_have_it_told_again_and_again(
    made: Made, journal: _Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuids = [spools.add(made, stages.COMMITTED, report=_REPORT) for _dump in range(2)]
    _note(made, *uuids)

    def full(operation: str, _name: str) -> None:
        if operation in ("create", "write"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable, "fault", full)
    _tell(made)
    _tell(made)
    assert sorted(entry["CORESNAP_DUMP"] for entry in journal.entries) == sorted(uuids)


def test_while_it_is_away_what_has_gone_is_forgotten_all_the_same(made: Made, journal: _Journal) -> None:
    uuid = spools.add(made, stages.COMMITTED, report=_REPORT)
    _note(made, uuid, stages.new_uuid())
    journal.away = True
    assert _tell(made) == 0
    assert _noted(made) == [uuid]
