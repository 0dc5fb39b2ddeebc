# SPDX-License-Identifier: Apache-2.0
"""Retention through the real programs: what goes is what was said, and what is told of it afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from coresnap.spool import record
from tests.support.site import REPOSITORY, Site

if TYPE_CHECKING:
    from pathlib import Path

_DAY_SECONDS = 86400


def _coresnap(site: Site, *arguments: str, status: int = 0) -> str:
    argv = [sys.executable, "-m", "coresnap.cli", "--settings", str(site.settings), *arguments]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == status, done
    return done.stdout + done.stderr


def _tree(site: Site) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_ino) for path in site.root.rglob("*"))


def _size(path: Path) -> int:
    return sum(inner.stat().st_blocks for inner in path.iterdir()) * 512


@pytest.fixture
def site(tmp_path: Path, real_core: Path) -> Site:
    """Make a site with five delivered dumps of one bug: of 50 days ago, 40, 20, 10, and today."""
    made = Site(tmp_path / "site", purge__min_free="0%")
    for days in (50, 40, 20, 10, 0):
        then = str(int(time.time()) - days * _DAY_SECONDS)
        made.archive(real_core, "1", "1", "0", "0", "11", then).check_returncode()
    made.once().check_returncode()
    return made


def _by_age(site: Site) -> list[Path]:
    known = [(record.parse((path / "dump.json").read_bytes()), path) for _stage, path in site.dumps()]
    return [path for _document, path in sorted(known, key=lambda pair: pair[0]["captured"]["time_usec"])]


def test_a_dry_run_says_what_a_run_does(site: Site) -> None:
    dumps = _by_age(site)
    before = _tree(site)
    size_bytes = _size(dumps[1])
    told = json.loads(_coresnap(site, "purge", "--dry-run", "--json"))
    assert _tree(site) == before
    assert [(step["uuid"], step["what"], step["why"]) for step in told["steps"]] == [
        (dumps[1].name, "core", "older than purge.age")
    ]
    assert told["kept"]["protected"] == 2
    assert f"{dumps[1].name[:12]}... core" in _coresnap(site, "purge", "--dry-run")
    assert _coresnap(site, "purge").splitlines()[-1].startswith("1 step, ")
    assert [(path / "core.zst").exists() for path in dumps] == [True, False, True, True, True]
    assert not (site.root / "by-uuid" / f"{dumps[1].name}.core.zst").exists()
    assert abs(size_bytes - _size(dumps[1]) - told["freed_bytes"]) <= 4096, "the record may need another block"
    assert json.loads(_coresnap(site, "purge", "--json"))["steps"] == [], "once is enough"
    assert _coresnap(site, "purge") == "nothing to remove; kept back: 2 first or latest of a bug\n"


def test_what_became_of_a_core_is_told(site: Site) -> None:
    uuid = _by_age(site)[1].name
    site.run("purge").check_returncode()
    why = "purge removed it on "
    assert "-sa" in _coresnap(site, "list", "--uuid").splitlines()[1]
    assert why in _coresnap(site, "info", uuid)
    assert why in _coresnap(site, "why", uuid)
    assert "older than purge.age" in _coresnap(site, "debug", uuid, "--debugger", "true", status=69)
    assert why in _coresnap(site, "dump", uuid, "-o", "-", status=69)
    assert "something other" not in _coresnap(site, "why", uuid)
    history = json.loads(_coresnap(site, "info", uuid, "--json"))["record"]["history"]
    assert history[-1]["event"] == "core removed"


def test_what_is_pinned_stays(site: Site) -> None:
    dumps = _by_age(site)
    assert "pinned" in _coresnap(site, "pin", dumps[1].name)
    assert "already" in _coresnap(site, "pin", dumps[1].name)
    site.run("purge").check_returncode()
    assert (dumps[1] / "core.zst").exists()
    assert "purge does not remove it" in _coresnap(site, "info", dumps[1].name)
    assert "unpinned" in _coresnap(site, "unpin", dumps[1].name)
    assert "was not pinned" in _coresnap(site, "unpin", dumps[1].name)
    site.run("purge").check_returncode()
    assert not (dumps[1] / "core.zst").exists()


def test_no_more_goes_than_has_to(site: Site) -> None:
    """Of four cores that may go one is enough, the oldest that is neither first nor latest."""
    dumps = _by_age(site)
    total = sum(map(_size, dumps))
    site.settings.write_text(site.settings.read_text() + f"purge.max_bytes = {total - 1}\npurge.age = 9000d\n")
    site.run("purge").check_returncode()
    assert [(path / "core.zst").exists() for path in dumps] == [True, False, True, True, True]
    assert "to make room: purge.max_bytes" in _coresnap(site, "why", dumps[1].name)
    assert sum(map(_size, dumps)) <= total - 1 + 4096


def test_where_nothing_more_may_go_that_is_said(site: Site) -> None:
    dumps = _by_age(site)
    site.settings.write_text(site.settings.read_text() + "purge.max_bytes = 1\n")
    told = _coresnap(site, "purge", status=75)
    assert "nothing more may go" in told
    assert [path.exists() for path in dumps] == [True, False, False, False, True], "the first and the latest"
    assert not list(site.root.rglob("core.zst")), "of which the cores go, last"


def test_a_dump_that_was_never_delivered_is_on_record(tmp_path: Path, real_core: Path) -> None:
    settings: dict[str, Any] = {"snapshot__command": "false", "snapshot__attempts": "1", "purge__protected_age": "1d"}
    site = Site(tmp_path / "site", purge__min_free="0%", **settings)
    site.archive(real_core, "1", "1", "0", "0", "11", str(10**9)).check_returncode()
    site.once()
    ((stage, path),) = site.dumps()
    assert stage == "failed"
    site.run("purge").check_returncode()
    assert site.stages() == []
    (lost,) = site.ledger()
    assert (lost["reason"], lost["uuid"]) == ("purged", path.name)
    assert "given up on" in _coresnap(site, "why", path.name)


def test_purge_disabled_removes_nothing(site: Site) -> None:
    site.settings.write_text(site.settings.read_text() + "purge.disabled = true\npurge.max_bytes = 1\n")
    before = _tree(site)
    site.run("purge").check_returncode()
    assert _tree(site) == before
    assert "purge.disabled" in _coresnap(site, "purge", status=69)
