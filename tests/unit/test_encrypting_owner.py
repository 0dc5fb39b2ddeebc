# SPDX-License-Identifier: Apache-2.0
"""The stage processor does not believe its worker, which has read a hostile core, that something has been encrypted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from coresnap import process
from coresnap.ground import settings
from coresnap.ground.log import Log
from coresnap.spool import record
from coresnap.spool.stages import PENDING, Dump, Spool
from tests.support.site import Site

_HEADER = b"age-encryption.org/v1\n"
_KEY = "age1" + "q" * 58


@pytest.fixture
def dump(tmp_path: Path, real_core: Path) -> tuple[Site, str]:
    site = Site(tmp_path / "site", **{"encrypt.recipients": _KEY})
    assert site.archive(real_core).returncode == 0
    ((_stage, path),) = site.dumps()
    return site, path.name


@pytest.mark.parametrize(
    ("answer", "writes", "is_kept"),
    [
        ({}, {}, False),
        ({"encrypted": True}, {}, False),
        ({"encrypted": True}, {"core.age": 1, "assets.tar.age": 0}, False),
        ({"encrypted": True, "compressed": True}, {"core.age": 1, "assets.tar.age": 1}, False),
        ({"encrypted": True}, {"core.age": 1, "assets.tar.age": 1}, True),
    ],
)
def test_what_a_worker_says_is_looked_at(
    dump: tuple[Site, str], answer: dict[str, Any], writes: dict[str, int], is_kept: bool
) -> None:
    site, uuid = dump
    trade = process.Processing(settings.load(site.settings), Log.open())
    with Spool(str(site.root)) as spool:
        taken = spool.take(PENDING, uuid)
        assert isinstance(taken, Dump)
        with taken:
            document = record.load(taken)
            job = trade.request(taken, document)
            assert isinstance(job, tuple)
            files = dict(zip(job[0]["files"], job[1], strict=True))
            os.write(files["snapshot"], b"{}")
            for name, whole in writes.items():
                plain_bytes = os.fstat(files[name.removesuffix(".age")]).st_size
                os.write(files[name], _HEADER + bytes(plain_bytes if whole else plain_bytes // 2))
            for fd in files.values():
                os.close(fd)
            verdict = trade.conclude(taken, document, {"status": "done", "detail": "", **answer})
            assert verdict.status == ("done" if is_kept else "later")
            if is_kept:
                trade.settle(spool, taken, document, {"status": "done", **answer})
                assert document["encrypted"] == {"tool": "age", "recipients": [_KEY]}
                record.store(taken, document, *trade.owner)
                trade.shed(spool, taken, document)
                assert not {"core", "assets.tar"} & set(os.listdir(taken.fd))


@pytest.mark.parametrize("elapsed_usec", [10**400, -1, True, "1"])
def test_a_time_that_is_none_is_not_told(dump: tuple[Site, str], elapsed_usec: object) -> None:
    site, uuid = dump
    trade = process.Processing(settings.load(site.settings), Log.open())
    with Spool(str(site.root)) as spool:
        taken = spool.take(PENDING, uuid)
        assert isinstance(taken, Dump)
        with taken:
            (Path(site.root) / PENDING / uuid / "snapshot").write_bytes(b"{}")
            answer = {"status": "done", "detail": "", "elapsed_usec": elapsed_usec}
            verdict = trade.conclude(taken, record.load(taken), answer)
    assert (verdict.status, verdict.detail) == ("done", "processed")


def test_a_plain_core_goes_under_the_journal_s_name_too_where_that_was_interrupted(dump: tuple[Site, str]) -> None:
    site, uuid = dump
    trade = process.Processing(settings.load(site.settings), Log.open())
    with Spool(str(site.root)) as spool:
        taken = spool.take(PENDING, uuid)
        assert isinstance(taken, Dump)
        with taken:
            link = Path(spool.link_core(taken, "core"))
            path = Path(site.root) / PENDING / uuid
            for name in ("core", "assets.tar"):
                (path / f"{name}.age").write_bytes(_HEADER)
                (path / name).unlink()
            document = record.load(taken)
            document["encrypted"] = {"tool": "age", "recipients": [_KEY]}
            trade.shed(spool, taken, document)
    assert not link.exists()
