# SPDX-License-Identifier: Apache-2.0
"""Durable file operations: whole writes whatever the kernel does, nothing followed, nothing overwritten."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from coresnap.ground import durable
from coresnap.ground.errors import BadInput


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = durable.open_directory(str(tmp_path))
    yield fd
    os.close(fd)


def test_short_and_interrupted_writes_are_carried_on(
    directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def hinder(operation: str, _name: str) -> int | None:
        nonlocal calls
        calls += 1
        if calls % 2:
            raise InterruptedError(errno.EINTR, "interrupted")
        return 3 if operation == "write" else None

    monkeypatch.setattr(durable, "fault", hinder)
    durable.replace(directory, "file", b"0123456789", 0o640)
    assert (tmp_path / "file").read_bytes() == b"0123456789"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert calls > 8


def test_replace_leaves_the_old_file_where_the_new_one_cannot_be_written(
    directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    durable.replace(directory, "file", b"old", 0o600)

    def fill_the_disk(operation: str, _name: str) -> int | None:
        if operation == "write":
            raise OSError(errno.ENOSPC, "No space left on device")
        return None

    monkeypatch.setattr(durable, "fault", fill_the_disk)
    with pytest.raises(OSError, match="No space"):
        durable.replace(directory, "file", b"new", 0o600)
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_create_refuses_what_is_there(directory: int, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(FileExistsError):
        durable.create(directory, "link", 0o600)


def test_rename_refuses_an_existing_target(directory: int, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pytest.raises(FileExistsError):
        durable.rename(directory, "a", directory, "b")
    assert (tmp_path / "a").is_dir()


def test_read_is_bounded_and_reads_regular_files_only(directory: int, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    assert durable.read(directory, "file", 5) == b"12345"
    with pytest.raises(BadInput, match="more than 4"):
        durable.read(directory, "file", 4)
    with pytest.raises(OSError, match="symbolic"):
        durable.read(directory, "link", 5)
    with pytest.raises(BadInput, match="regular"):
        durable.read(directory, "fifo", 5)


def test_remove_tree_does_not_follow_links(directory: int, tmp_path: Path) -> None:
    (tmp_path / "keep").write_text("x")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to("../keep")
    durable.remove_tree(directory, "tree")
    assert (tmp_path / "keep").exists()
    assert not (tmp_path / "tree").exists()
