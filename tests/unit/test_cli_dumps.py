# SPDX-License-Identifier: Apache-2.0
"""Looking at dumps while they move, and the manual page that derives from the commands."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from coresnap import process_worker
from coresnap.capture.victim import CORE_PATTERN
from coresnap.cli import dumps, manual, parse, status, why
from coresnap.ground import durable
from coresnap.ground.errors import Refused
from coresnap.host.pattern import is_ours
from coresnap.spool import ledger, stages
from coresnap.spool.stages import Spool
from tests.support import spools

if TYPE_CHECKING:
    from collections.abc import Callable

    from coresnap.spool.inventory import Row


class Eventful(Spool):
    """A spool in which something happens after a stage has been listed."""

    def __init__(self, path: Path, **events: Callable[[Spool], None]) -> None:
        super().__init__(str(path))
        self.events = events

    def uuids(self, stage: str) -> list[str]:
        return self._and_then(stage, super().uuids(stage))

    def listing(self, stage: str) -> list[str]:
        return self._and_then(stage, super().listing(stage))

    def _and_then(self, stage: str, found: list[str]) -> list[str]:
        event = self.events.pop(stage, None)
        if event:
            event(self)
        return found


def _rows(spool: Spool) -> list[Row]:
    found = dumps.inventory_of(spool, dumps.LISTED)
    return [found.row(number) for number in found.oldest_first()]


def _move(uuid: str, stage: str, target: str) -> Callable[[Spool], None]:
    def move(spool: Spool) -> None:
        dump = spool.take(stage, uuid)
        assert dump is not None
        with dump:
            spool.move(dump, target)

    return move


def _remove(uuid: str) -> Callable[[Spool], None]:
    def remove(spool: Spool) -> None:
        dump = spool.take(stages.PENDING, uuid)
        assert dump is not None
        spool.remove(dump)

    return remove


@pytest.mark.parametrize("after", ["pending", "sending", "committed"])
def test_a_dump_that_moves_on_is_found_once(tmp_path: Path, after: str) -> None:
    made = spools.make(tmp_path)
    uuid = spools.add(made)
    with Eventful(made.root, **{after: _move(uuid, "pending", "sending")}) as spool:
        (entry,) = _rows(spool)
    assert (entry.stage, entry.uuid, entry.problem) == ("sending", uuid, "")


def test_a_dump_that_goes_back_is_found(tmp_path: Path) -> None:
    made = spools.make(tmp_path)
    uuid = spools.add(made, "failed")
    with Eventful(made.root, failed=_move(uuid, "failed", "pending")) as spool:
        (entry,) = _rows(spool)
    assert (entry.stage, entry.uuid) == ("pending", uuid)


def test_a_dump_that_is_removed_meanwhile_is_no_dump(tmp_path: Path) -> None:
    made = spools.make(tmp_path)
    uuid = spools.add(made)
    with Eventful(made.root, failed=_remove(uuid)) as spool:
        assert _rows(spool) == []


def test_open_dump_follows_a_dump_that_moves(tmp_path: Path) -> None:
    made = spools.make(tmp_path)
    uuid = spools.add(made)
    event = _move(uuid, "pending", "committed")
    with Eventful(made.root, pending=event) as spool, dumps.open_dump(spool, f"pending/{uuid[:8]}") as dump:
        assert dump.stage == "committed"


def test_why_still_reads_the_other_ledger_without_a_spool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = spools.make(tmp_path)
    fallback = tmp_path / "run"
    fallback.mkdir()
    with made.open() as spool:
        for pid, root in ((99, str(made.root)), (98, "/another/spool")):
            ledger.append(spool.root_fd, "no-spool", "gone", "", {"pid": pid, "comm": "vim", "root": root})
    shutil.move(made.root / "ledger", fallback / "ledger")
    shutil.rmtree(made.root)
    monkeypatch.setattr(ledger, "FALLBACK", str(fallback))
    assert why.run(parse("why", ["99", "--settings", str(made.configuration)])) == 0
    shown = capsys.readouterr()
    assert "vim (pid 99)" in shown.out
    assert "to do: mount its file system" in shown.out
    assert "No such file or directory" in shown.err
    with pytest.raises(Refused):
        why.run(parse("why", ["98", "--settings", str(made.configuration)]))


def test_the_other_ledger_has_what_is_of_this_spool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = spools.make(tmp_path)
    fallback = tmp_path / "run"
    fallback.mkdir()
    monkeypatch.setattr(ledger, "FALLBACK", str(fallback))
    fd = durable.open_directory(str(fallback))
    ledger.append(fd, "no-spool", "mine", "", {"pid": 99, "root": f"{made.root}/"})
    ledger.append(fd, "no-spool", "another", "", {"pid": 99, "root": "/elsewhere"})
    ledger.append(fd, "no-spool", "somebody", "", {"pid": 99})
    os.close(fd)
    assert why.run(parse("why", ["99", "--settings", str(made.configuration)])) == 0
    shown = capsys.readouterr().out
    assert "mine" in shown
    assert "another\n" not in shown
    assert "  no-spool: somebody\n" in shown
    assert shown.count(f"on record in {fallback}/ledger, without the spool") == 1
    assert status.run(parse("status", ["--settings", str(made.configuration)])) == 0
    assert "2 on record" in capsys.readouterr().out


def test_the_paths_of_archive_are_what_install_makes(tmp_path: Path) -> None:
    repository = Path(manual.DIRECTORY).parents[1]
    subprocess.run(["make", "install", f"DESTDIR={tmp_path}"], cwd=repository, check=True, capture_output=True)
    line = f"|/usr/local/lib/coresnap/archive {CORE_PATTERN}"
    assert (tmp_path / "usr/local/lib/coresnap/archive").exists()
    assert is_ours(line)
    for name in ("README.md", "coresnap/archive.py", "docs/man/archive.8"):
        assert line in (repository / name).read_text()
    for page in ("man1/coresnap-snapshot.1", "man8/archive.8", "man8/coresnapd.8"):
        assert (tmp_path / "usr/local/share/man" / page).exists()


def test_the_environment_of_a_snapshot_command_is_in_the_manual() -> None:
    page = (Path(manual.DIRECTORY) / "coresnap-snapshot.1").read_text()
    assert f"PATH={process_worker._PATH}," in page


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
@pytest.mark.parametrize("name", manual.pages())
def test_the_manual_pages_have_no_warnings(name: str) -> None:
    command = ["groff", "-man", "-Tascii", "-P-cbou", "-ww", str(Path(manual.DIRECTORY) / name)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert "SEE ALSO" in done.stdout


def test_the_manual_pages_are_up_to_date() -> None:
    for name, text in manual.pages().items():
        assert (Path(manual.DIRECTORY) / name).read_text() == text, "run `make generate`"
