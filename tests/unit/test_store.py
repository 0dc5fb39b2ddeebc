# SPDX-License-Identifier: Apache-2.0
"""The file: store: verified, exactly once, capped, and no name of its own choosing."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from coresnap.ground import durable
from coresnap.ground.errors import BadInput, BadSettings, TryLater
from coresnap.spool.stages import new_uuid
from coresnap.store import Attachment, Delivery, Parked, Receipt, Secret, Store, StoreRefused, open_store

DAY_USEC = 86_400_000_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(f"file:{tmp_path}/store", max_bytes=1 << 20, max_age_usec=DAY_USEC)
    yield opened
    opened.close()


@pytest.fixture
def source(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "snapshot", os.O_RDWR | os.O_CREAT)
    os.write(fd, b'{"snapshot": 1}')
    yield fd
    os.close(fd)


def _delivery(fd: int, project: str = "project", uuid: str = "", attachments: tuple[Attachment, ...] = ()) -> Delivery:
    size_bytes = os.fstat(fd).st_size
    digest = hashlib.sha256(os.pread(fd, size_bytes, 0)).hexdigest()
    return Delivery(uuid or new_uuid(), project, fd, size_bytes, digest, attachments)


def _files(tmp_path: Path) -> list[str]:
    return sorted(
        str(path.relative_to(tmp_path / "store")) for path in (tmp_path / "store").rglob("*") if path.is_file()
    )


def test_a_snapshot_is_stored_with_what_goes_with_it(store: Store, source: int, tmp_path: Path) -> None:
    delivery = _delivery(source, attachments=(Attachment("assets.tar", source, os.fstat(source).st_size),))
    receipt = store.put(delivery)
    assert (receipt.uuid, receipt.sha256, receipt.already_there) == (delivery.uuid, delivery.sha256, False)
    assert _files(tmp_path) == [f"project/{delivery.uuid}.assets.tar", f"project/{delivery.uuid}.json"]
    assert Receipt.from_json(receipt.to_json()) == receipt


def test_twice_is_once(store: Store, source: int, tmp_path: Path) -> None:
    delivery = _delivery(source)
    assert not store.put(delivery).already_there
    assert store.put(delivery).already_there
    assert len(_files(tmp_path)) == 1


def test_another_snapshot_under_the_same_uuid_is_refused(store: Store, source: int) -> None:
    uuid = new_uuid()
    store.put(_delivery(source, uuid=uuid))
    os.pwrite(source, b"other", 0)
    with pytest.raises(StoreRefused, match="has another snapshot"):
        store.put(_delivery(source, uuid=uuid))


def test_what_is_not_as_recorded_is_not_stored(store: Store, source: int, tmp_path: Path) -> None:
    """The snapshot has changed since its checksum was taken."""
    delivery = _delivery(source)
    os.pwrite(source, b"!", 0)
    with pytest.raises(StoreRefused, match="is on record"):
        store.put(delivery)
    assert _files(tmp_path) == []


def test_a_snapshot_that_is_cut_is_not_stored(store: Store, source: int, tmp_path: Path) -> None:
    delivery = _delivery(source)
    os.truncate(source, 3)
    with pytest.raises(StoreRefused, match="3 bytes came, 15 were announced"):
        store.put(delivery)
    assert _files(tmp_path) == []


@pytest.mark.parametrize("project", ["", ".", "..", "a/b", "/etc", ".hidden", "a\0b", "x" * 65, "é", "a b"])
def test_a_project_is_a_plain_name(store: Store, source: int, tmp_path: Path, project: str) -> None:
    with pytest.raises(Parked, match="not a name"):
        store.put(_delivery(source, project))
    assert _files(tmp_path) == []


def test_a_project_that_is_a_link_is_not_followed(store: Store, source: int, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "store" / "project").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Parked, match="Not a directory|symbolic"):
        store.put(_delivery(source))
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_the_oldest_make_room(tmp_path: Path, source: int) -> None:
    os.truncate(source, 1000)
    store = open_store(f"file:{tmp_path}/store", max_bytes=3500, max_age_usec=DAY_USEC)
    kept = [_delivery(source, f"project{number % 2}") for number in range(6)]
    for number, delivery in enumerate(kept):
        store.put(delivery)
        path = tmp_path / "store" / delivery.project / f"{delivery.uuid}.json"
        os.utime(path, (2_000_000_000 + number, 2_000_000_000 + number))
    assert sorted(name.rpartition("/")[2] for name in _files(tmp_path)) == sorted(f"{d.uuid}.json" for d in kept[-3:])
    store.close()


def test_the_old_are_removed_whatever_the_room(store: Store, source: int, tmp_path: Path) -> None:
    old = _delivery(source)
    store.put(old)
    os.utime(tmp_path / "store" / "project" / f"{old.uuid}.json", (1000, 1000))
    new = _delivery(source)
    reopened = open_store(f"file:{tmp_path}/store", max_bytes=1 << 20, max_age_usec=DAY_USEC)
    reopened.put(new)
    reopened.close()
    assert _files(tmp_path) == [f"project/{new.uuid}.json"]


def test_what_is_larger_than_the_store_is_refused(tmp_path: Path, source: int) -> None:
    store = open_store(f"file:{tmp_path}/store", max_bytes=10, max_age_usec=DAY_USEC)
    with pytest.raises(StoreRefused, match="more than store.max_bytes"):
        store.put(_delivery(source))
    store.close()


def test_files_of_others_are_left_alone(tmp_path: Path, source: int) -> None:
    """The directory may have been another's before: what is not of the store's making is neither counted nor removed."""
    logs = tmp_path / "store" / "logs"
    logs.mkdir(parents=True)
    foreign = [logs / "syslog.1", logs / f"{new_uuid()}", logs / f".{new_uuid()}.swp", tmp_path / "store" / "notes"]
    for path in foreign:
        path.write_bytes(bytes(2000))
        os.utime(path, (1000, 1000))
    (logs / f"{new_uuid()}.json").mkdir()
    (logs / f"{new_uuid()}.json").symlink_to(foreign[0])
    store = open_store(f"file:{tmp_path}/store", max_bytes=100, max_age_usec=DAY_USEC)
    for _ in range(10):
        store.put(_delivery(source, "logs"))
    store.close()
    assert all(path.stat().st_size == 2000 for path in foreign)
    assert len([path for path in logs.glob("*.json") if path.is_file() and not path.is_symlink()]) == 100 // 15


def test_another_s_puts_count_as_well(tmp_path: Path, source: int) -> None:
    """Two that have the store open keep the cap together, whatever each remembers of it."""
    stores = [open_store(f"file:{tmp_path}/store", max_bytes=45, max_age_usec=DAY_USEC) for _ in range(2)]
    for number in range(12):
        stores[number % 2].put(_delivery(source, f"project{number % 3}"))
        assert sum((tmp_path / "store" / name).stat().st_size for name in _files(tmp_path)) <= 45
    assert len(_files(tmp_path)) == 3


def test_what_a_killed_put_left_is_swept_at_the_next_opening(tmp_path: Path) -> None:
    project = tmp_path / "store" / "project"
    project.mkdir(parents=True)
    left = [project / f".{new_uuid()}.json.put", project / f".{new_uuid()}.assets.tar.put"]
    for path in left:
        path.write_text("torn")
    open_store(f"file:{tmp_path}/store", max_bytes=1 << 20, max_age_usec=DAY_USEC).close()
    assert list(project.iterdir()) == []


def test_a_store_that_was_moved_is_not_written_to(store: Store, source: int, tmp_path: Path) -> None:
    (tmp_path / "store").rename(tmp_path / "moved")
    (tmp_path / "store").mkdir()
    receipt = store.put(_delivery(source))
    assert (tmp_path / "store" / receipt.object).exists()
    assert list((tmp_path / "moved").iterdir()) == []


def test_a_uuid_and_an_attachment_are_plain_names(store: Store, source: int, tmp_path: Path) -> None:
    for uuid in ("../../escaped", "x", new_uuid().upper(), f"{new_uuid()}/x"):
        with pytest.raises(StoreRefused, match="not a UUID"):
            store.put(_delivery(source, uuid=uuid))
    for name in ("json", "../x", ".x", ""):
        with pytest.raises(StoreRefused, match="not a name"):
            store.put(_delivery(source, attachments=(Attachment(name, source, 15),)))
    assert _files(tmp_path) == []


def test_what_lies_in_the_snapshot_s_place_is_not_followed(store: Store, source: int, tmp_path: Path) -> None:
    delivery = _delivery(source)
    (tmp_path / "store" / "project").mkdir()
    place = tmp_path / "store" / "project" / f"{delivery.uuid}.json"
    place.symlink_to(tmp_path / "snapshot")
    with pytest.raises(Parked):
        store.put(delivery)
    place.unlink()
    place.mkdir()
    with pytest.raises(Parked, match="not a regular file"):
        store.put(delivery)


def test_a_token_is_not_shown(source: int) -> None:
    delivery = dataclasses.replace(_delivery(source), token=Secret("c0ffee"))
    assert delivery.token is not None
    assert delivery.token.reveal() == "c0ffee"
    assert "c0ffee" not in f"{delivery} {delivery!r} {delivery.token} {delivery.token!r} {delivery.token:}"


def test_a_full_disk_is_tried_again(store: Store, source: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(operation: str, _name: str) -> int | None:
        if operation == "write":
            raise OSError(28, "No space left on device")
        return None

    delivery = _delivery(source)
    with monkeypatch.context() as patch:
        patch.setattr(durable, "fault", full)
        with pytest.raises(TryLater, match="No space left"):
            store.put(delivery)
    assert _files(tmp_path) == []
    assert not store.put(delivery).already_there


def test_two_at_once_store_one(tmp_path: Path, source: int) -> None:
    delivery = _delivery(source)
    program = (
        "import os, sys; from coresnap.store import Delivery, open_store\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY); size = os.fstat(fd).st_size\n"
        "store = open_store('file:' + sys.argv[2], max_bytes=1 << 20, max_age_usec=1 << 50)\n"
        "print(store.put(Delivery(sys.argv[3], 'project', fd, size, sys.argv[4])).already_there)\n"
    )
    paths = [str(tmp_path / "snapshot"), str(tmp_path / "store")]
    argv = [sys.executable, "-c", program, *paths, delivery.uuid, delivery.sha256]
    repository = Path(__file__).parents[2]
    running = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=repository) for _ in range(8)]
    said = sorted(process.communicate()[0] for process in running)
    assert said == ["False\n"] + ["True\n"] * 7
    assert _files(tmp_path) == [f"project/{delivery.uuid}.json"]


def test_a_put_is_alone_in_the_store(
    store: Store, source: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its temporary file could be swept by another, or two could fill the last room."""
    steps = []

    def try_to_lock(operation: str, _name: str) -> int | None:
        steps.append(operation)
        other = os.open(tmp_path / "store", os.O_RDONLY)
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(other)
        return None

    monkeypatch.setattr(durable, "fault", try_to_lock)
    store.put(_delivery(source))
    assert {"mkdir", "create", "write", "fsync", "link", "unlink"} <= set(steps)


def test_what_leads_to_the_store_is_made(tmp_path: Path, source: int) -> None:
    store = open_store(f"file:{tmp_path}/a/b/store/", max_bytes=1 << 20, max_age_usec=DAY_USEC)
    receipt = store.put(_delivery(source))
    assert receipt.store == f"file:{tmp_path}/a/b/store"
    assert (tmp_path / "a" / "b" / "store" / receipt.object).exists()
    assert (tmp_path / "a" / "b" / "store").stat().st_mode & 0o777 == 0o700


def test_a_store_in_the_way_is_parked(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(Parked, match="Not a directory|File exists"):
        open_store(f"file:{tmp_path}/file", max_bytes=1, max_age_usec=1)


@pytest.mark.parametrize("spec", ["https://c0ffee@host/", "file:relative", "", "ftp:/x"])
def test_an_unknown_store_is_a_mistake_in_the_settings(spec: str) -> None:
    with pytest.raises(BadSettings, match=r"send\.store") as caught:
        open_store(spec, max_bytes=1, max_age_usec=1)
    assert "c0ffee" not in caught.value.line()


def test_a_receipt_is_read_strictly() -> None:
    good = Receipt("u", "file:/x", "p", "o", 1, 2, "s", already_there=False).to_json()
    assert Receipt.from_json(good).object == "o"
    wrong: list[object] = [[], None, {}, {**good, "more": 1}, {**good, "size_bytes": "2"}]
    wrong += [
        {**good, "size_bytes": -1},
        {**good, "acknowledged_usec": 1 << 64},
        {**good, "version": 2},
        {**good, "uuid": "x" * 2000},
    ]
    for bad in wrong:
        with pytest.raises(BadInput, match="receipt"):
            Receipt.from_json(bad)
