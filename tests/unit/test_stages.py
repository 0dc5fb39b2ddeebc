# SPDX-License-Identifier: Apache-2.0
"""The spool: locking, moving, removing, what is foreign, what is no spool."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from coresnap.ground import durable
from coresnap.ground.errors import Refused
from coresnap.spool import stages
from coresnap.spool.stages import Spool


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    stages.prepare(str(tmp_path / "spool"), -1, -1)
    with Spool(str(tmp_path / "spool")) as opened:
        yield opened


def test_uuids() -> None:
    uuid = stages.new_uuid()
    assert stages.is_uuid(uuid)
    assert uuid[14] == "4"
    assert uuid[19] in "89ab"
    for wrong in ("", uuid.upper(), uuid[:-1], uuid + "0", uuid.replace("-", "_"), "../" + uuid, uuid[:-1] + "g"):
        assert not stages.is_uuid(wrong)


def test_a_dump_moves_and_is_given_up_with_the_move(spool: Spool) -> None:
    dump = spool.new()
    assert spool.uuids(stages.STAGING) == [dump.uuid]
    assert spool.take(stages.STAGING, dump.uuid) is None
    spool.move(dump, stages.PENDING)
    with Spool(spool.path) as other:
        taken = other.take(stages.PENDING, dump.uuid)
        assert taken is not None
        assert spool.take(stages.PENDING, dump.uuid) is None
        taken.close()


def test_a_dump_that_has_moved_on_is_not_taken(spool: Spool) -> None:
    dump = spool.new()
    spool.move(dump, stages.PENDING)
    dump.close()
    assert spool.take(stages.STAGING, dump.uuid) is None
    assert spool.take(stages.PENDING, "../../etc") is None


def test_move_refuses_an_existing_target(spool: Spool) -> None:
    dump = spool.new()
    os.close(durable.mkdir(spool.stage_fds[stages.PENDING], dump.uuid, 0o700))
    with pytest.raises(FileExistsError):
        spool.move(dump, stages.PENDING)
    assert dump.stage == stages.STAGING


def test_remove_ends_what_was_interrupted(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    dump = spool.new()
    os.close(durable.create(dump.fd, "core", 0o600))
    spool.move(dump, stages.FAILED)
    taken = spool.take(stages.FAILED, dump.uuid)
    assert taken is not None

    def die(operation: str, _name: str) -> int | None:
        if operation == "unlink":
            raise SystemExit
        return None

    with monkeypatch.context() as patch:
        patch.setattr(durable, "fault", die)
        with pytest.raises(SystemExit):
            spool.remove(taken)
    taken.close()
    assert spool.uuids(stages.FAILED) == []
    assert list(spool.abandoned()) == []
    assert os.listdir(spool.stage_fds[stages.STAGING]) == []


def test_what_a_sweep_removes_meanwhile_is_no_error(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    for begun_at in ("unlink", "rmdir"):
        dump = spool.new()
        for name in ("core", "snapshot"):
            os.close(durable.create(dump.fd, name, 0o600))
        spool.move(dump, stages.COMMITTED)
        taken = spool.take(stages.COMMITTED, dump.uuid)
        assert taken is not None

        def sweep(operation: str, _name: str, begun_at: str = begun_at) -> None:
            if operation == begun_at:
                durable.fault = None
                assert list(spool.abandoned()) == []

        monkeypatch.setattr(durable, "fault", sweep)
        spool.remove(taken)
        assert durable.fault is None, "it has been swept"
        assert os.listdir(spool.stage_fds[stages.STAGING]) == []


def test_files_that_are_being_replaced_do_not_end_a_count(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    with spool.new() as dump:
        fd = durable.create(dump.fd, "core", 0o600)
        os.write(fd, b"x" * 5000)
        disk_bytes = os.fstat(fd).st_blocks * 512
        os.close(fd)
        listdir = os.listdir
        monkeypatch.setattr(os, "listdir", lambda path: [".dump.json.new", *listdir(path)])
        assert dump.disk_bytes() == disk_bytes


def test_only_dumps_without_a_writer_are_abandoned(spool: Spool) -> None:
    alive, dead = spool.new(), spool.new()
    dead.close()
    with Spool(spool.path) as other:
        found = list(other.abandoned())
        assert [dump.uuid for dump in found] == [dead.uuid]
        found[0].close()
    alive.close()


def test_a_sweep_that_is_stopped_holds_no_capture(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "_SHARE_SECONDS", 0.2)
    with Spool(spool.path) as other:
        fcntl.flock(other.stage_fds[stages.STAGING], fcntl.LOCK_EX)
        with spool.new() as dump:
            assert list(spool.uuids(stages.STAGING)) == [dump.uuid]


def test_foreign_entries_are_seen_and_left_alone(spool: Spool) -> None:
    (Path(spool.path) / "pending" / "notes.txt").write_text("x")
    assert list(spool.foreign()) == ["pending/notes.txt"]
    assert spool.uuids(stages.PENDING) == []


def test_no_spool_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="No such file") as refusal:
        Spool(str(tmp_path / "none"))
    assert "--prepare" in refusal.value.hint
    with pytest.raises(Refused, match="not a spool") as refusal:
        Spool(str(tmp_path))
    assert "mounted" in refusal.value.hint


def test_a_stage_that_is_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    stages.prepare(str(tmp_path / "spool"), -1, -1)
    (tmp_path / "spool" / "failed").rmdir()
    (tmp_path / "spool" / "failed").symlink_to(tmp_path)
    with pytest.raises(Refused, match="failed"):
        Spool(str(tmp_path / "spool"))
    with pytest.raises(Refused, match="Not a directory|Too many levels"):
        stages.prepare(str(tmp_path / "spool"), -1, -1)


def test_prepare_tries_the_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cross_device(operation: str, name: str) -> int | None:
        if operation == "rename" and name.startswith(".probe"):
            raise OSError(18, "Invalid cross-device link")
        return None

    monkeypatch.setattr(durable, "fault", cross_device)
    with pytest.raises(Refused, match="from staging to pending: Invalid cross-device link"):
        stages.prepare(str(tmp_path / "spool"), -1, -1)
    assert os.listdir(tmp_path / "spool" / "staging") == []
