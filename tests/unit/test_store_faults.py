# SPDX-License-Identifier: Apache-2.0
"""A put that is killed, or fails, at any of its durable steps: what bears a name in the store is whole all the same."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from coresnap.ground import durable
from coresnap.ground.errors import TryLater
from coresnap.store import Attachment, Delivery, Receipt, StoreRefused, open_store

UUID = "11111111-2222-4333-8444-555555555555"
OLD = "99999999-2222-4333-8444-555555555555"
DATA, ASSETS = b'{"snapshot": 1}' * 100, b"assets" * 1000
DAY_USEC = 86_400_000_000
REPOSITORY = Path(__file__).parents[2]


def _source(directory: Path, name: str, data: bytes) -> int:
    (directory / name).write_bytes(data)
    return os.open(directory / name, os.O_RDONLY)


def _put(directory: Path, data: bytes = DATA, *, max_bytes: int = 8000) -> Receipt:
    """Open the store and put one delivery, which there is room for only when OLD has gone."""
    snapshot_fd, assets_fd = _source(directory, "snapshot", data), _source(directory, "assets", ASSETS)
    try:
        store = open_store(f"file:{directory}/store", max_bytes=max_bytes, max_age_usec=DAY_USEC)
        attachments = (Attachment("assets.tar", assets_fd, len(ASSETS)),)
        receipt = store.put(
            Delivery(UUID, "project", snapshot_fd, len(DATA), hashlib.sha256(DATA).hexdigest(), attachments)
        )
        store.close()
        return receipt
    finally:
        os.close(snapshot_fd)
        os.close(assets_fd)


def _prepare(directory: Path) -> None:
    """Make a store with one old snapshot in another project, and what goes with it."""
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "store" / "other").mkdir(parents=True)
    for name, size_bytes in (("json", 1000), ("assets.tar", 1000)):
        (directory / "store" / "other" / f"{OLD}.{name}").write_bytes(bytes(size_bytes))


def _killed(directory: Path, step: int, data: bytes = DATA) -> bool:
    """Put in a child that is killed before its step number `step`; say whether it came so far."""
    pid = os.fork()
    if pid == 0:
        steps = iter(range(step + 1))

        def fault(_operation: str, _name: str) -> None:
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)

        status = 1
        try:
            durable.fault = fault
            _put(directory, data)
            status = 0
        except StoreRefused:
            status = 0
        finally:
            os._exit(status)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def _assert_whole(directory: Path) -> None:
    """Assert that every file with a name of its own is whole, and that no snapshot lacks what goes with it."""
    project = directory / "store" / "project"
    for path, data in ((project / f"{UUID}.json", DATA), (project / f"{UUID}.assets.tar", ASSETS)):
        assert not path.exists() or path.read_bytes() == data
    for place in (project / UUID, directory / "store" / "other" / OLD):
        assert not Path(f"{place}.json").exists() or Path(f"{place}.assets.tar").exists()


def test_killed_at_each_step(tmp_path: Path) -> None:
    directory, step, found = tmp_path / "site", 0, set()
    while True:
        _prepare(directory)
        if not _killed(directory, step):
            break
        _assert_whole(directory)
        found.add((directory / "store" / "project" / f"{UUID}.json").exists())
        receipt = _put(directory)
        assert (directory / "store" / receipt.object).read_bytes() == DATA
        names = sorted(path.name for path in (directory / "store").rglob("*") if path.is_file())
        assert names == [f"{UUID}.assets.tar", f"{UUID}.json"], step
        step += 1
    assert step > 12, "the walk has come through all of a put"
    assert found == {False, True}


def test_killed_with_a_snapshot_that_is_not_as_recorded(tmp_path: Path) -> None:
    """At no step are wrong bytes under the snapshot's name, so the right ones are taken afterwards."""
    directory, step = tmp_path / "site", 0
    while True:
        _prepare(directory)
        killed = _killed(directory, step, DATA[:-1] + b"!")
        _assert_whole(directory)
        if not killed:
            break
        step += 1
    assert step > 8
    assert not _put(directory).already_there


@pytest.mark.parametrize("killed_before", ["fsync", "unlink"])
def test_no_receipt_before_the_directory_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_before: str
) -> None:
    """A put that was killed between giving the name and syncing the directory leaves the syncing to the next."""
    steps: list[str] = []

    def note(operation: str, _name: str) -> int | None:
        steps.append(operation)
        return None

    def stop(operation: str, name: str) -> int | None:
        if steps.count("link") == 2 and operation == killed_before:
            raise OSError(errno.EIO, "stopped")
        return note(operation, name)

    _prepare(tmp_path / "site")
    with monkeypatch.context() as patch:
        patch.setattr(durable, "fault", stop)
        with pytest.raises(TryLater):
            _put(tmp_path / "site")
    steps.clear()
    monkeypatch.setattr(durable, "fault", note)
    assert _put(tmp_path / "site").already_there
    assert steps[-1] == "fsync"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_an_error_at_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    directory, step = tmp_path / "site", 0
    while True:
        _prepare(directory)
        steps = iter(range(1_000_000))

        def fault(_operation: str, _name: str) -> None:
            if next(steps) == step:  # noqa: B023  # called in this round only
                raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            patch.setattr(durable, "fault", fault)
            try:
                _put(directory)
            except TryLater:
                pass
            else:
                break
        _assert_whole(directory)
        assert (directory / "store" / _put(directory).object).read_bytes() == DATA
        step += 1
    assert step > 12


def test_a_disk_that_lies_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reads back as something else never gets the snapshot's name."""
    _prepare(tmp_path / "site")

    def lie(operation: str, name: str) -> int | None:
        if operation == "fsync" and ".json.put" in os.readlink(f"/proc/self/fd/{name}"):
            os.pwrite(int(name), b"!", 3)
        return None

    with monkeypatch.context() as patch:
        patch.setattr(durable, "fault", lie)
        with pytest.raises(TryLater, match="reads back"):
            _put(tmp_path / "site")
    assert not list((tmp_path / "site" / "store" / "project").glob("*.json*"))
    assert not _put(tmp_path / "site").already_there


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_full_file_system(tmp_path: Path) -> None:
    """A real one, in a mount namespace of its own; when there is room again, the same put goes through."""
    program = (
        "import os, sys; from pathlib import Path; sys.path[:0] = ['.', 'tests/unit']; import test_store_faults as t\n"
        "from coresnap.ground.errors import TryLater\n"
        "site = Path(sys.argv[1]); filler = site / 'store' / 'filler'\n"
        "try:\n"
        "    with filler.open('wb', buffering=0) as file:\n"
        "        while file.write(bytes(4096)): pass\n"
        "except OSError: pass\n"
        "try: t._put(site); sys.exit('it went through')\n"
        "except TryLater as error: print(type(error).__name__, error)\n"
        "print(sorted(p.name for p in (site / 'store').rglob('*') if p.is_file()))\n"
        "filler.unlink(); print(t._put(site).already_there)\n"
    )
    (tmp_path / "store").mkdir()
    shell = f'mount -t tmpfs -o size=64k none "$1/store" && exec {sys.executable} -c "$2" "$1"'
    argv = ["unshare", "-m", "--propagation", "private", "sh", "-c", shell, "sh", str(tmp_path), program]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60)
    if "unshare failed" in done.stderr or "permission denied" in done.stderr:
        pytest.skip(done.stderr.strip())
    said, names, already_there = done.stdout.splitlines()
    assert said.startswith("TryLater ")
    assert said.endswith("No space left on device")
    assert names == "['filler']"
    assert already_there == "False"
    assert not list((tmp_path / "store").iterdir()), "nothing was mounted outside"
