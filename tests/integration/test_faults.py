# SPDX-License-Identifier: Apache-2.0
"""Faults at every durable step: whatever happens to coresnap itself, no crash is lost without a record.

The steps are not picked by hand. Each program is run once to list the steps it takes, then once for each step and each
fault: SIGKILL before the step, an error, an interrupted call, a short write. After each, every dump is whole, in exactly one
stage, or on record; after a restart, everything is delivered, exactly once.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from coresnap.spool import record
from tests.support.site import Site, assert_whole, kept_core

pytestmark = pytest.mark.walk

ACTIONS = ["kill", "ENOSPC", "EIO", "EDQUOT", "EINTR", "short"]


def _steps(trace: Path) -> list[str]:
    return trace.read_text().splitlines()


def _copy_site(site: Site, directory: Path, **settings: str) -> Site:
    """Make a site like `site`, with the same dumps, in another directory."""
    copied = Site(directory, **settings)
    for stage, path in site.dumps():
        shutil.copytree(path, copied.root / stage / path.name)
    return copied


@pytest.mark.parametrize("action", ACTIONS)
def test_archive(tmp_path: Path, real_core: Path, action: str) -> None:
    site = Site(tmp_path / "site")
    core = real_core.read_bytes()
    trace = tmp_path / "trace"
    assert site.archive(real_core, faulty=("trace:0", str(trace))).returncode == 0
    steps = _steps(trace)
    assert {"mkdir", "create", "write", "truncate", "fsync", "rename"} <= {step.split()[0] for step in steps}
    for number, step in enumerate(steps):
        before = len(site.ledger()) + len(site.stages())
        taken = tmp_path / f"{number}"
        done = site.archive(real_core, faulty=(f"{action}:{number}", str(taken)))
        assert_whole(site, core)
        after = len(site.ledger()) + len(site.stages())
        if action == "kill":
            assert done.returncode == -9, (step, done)
            # Before mkdir there is nothing yet; archive died before it had begun.
            has_begun = any(step.startswith("mkdir ") for step in _steps(taken)[:-1])
            assert after == before + has_begun, (step, done)
        elif action in ("EINTR", "short"):
            assert done.returncode == 0, (step, done)
        else:
            assert after == before + 1, (step, done)
            assert done.returncode in (0, 75), (step, done)
    crashes = len(site.ledger()) + len(site.stages())
    done = site.once()
    assert done.returncode == 0, done
    assert_whole(site, core)
    assert set(site.stages()) <= {"committed"}, Counter(site.stages())
    assert len(site.ledger()) + len(site.stages()) == crashes
    assert len(site.stored()) == len(site.stages())
    if action in ("EINTR", "short"):
        assert site.ledger() == []


def _nothing_more(_site: Site) -> None:
    pass


def _walk(
    tmp_path: Path,
    prepared: Site,
    core: bytes,
    program: str,
    action: str,
    only: str = "",
    more: Callable[[Site], None] = _nothing_more,
) -> None:
    """Run a stage's owner, or its worker, with the fault at each of its steps; each time restart and look."""
    words = ("--only", only) if only else ()
    trace = tmp_path / "trace"
    counted = _copy_site(prepared, tmp_path / "counted")
    more(counted)
    assert counted.run(program, "--once", faulty=(*words, "trace:0", str(trace))).returncode == 0
    steps = _steps(trace)
    assert "fsync" in {step.split()[0] for step in steps}
    for number, step in enumerate(steps):
        site = _copy_site(prepared, tmp_path / f"{number}")
        more(site)
        done = site.run(program, "--once", faulty=(*words, f"{action}:{number}", str(tmp_path / "t")))
        if action == "kill" and not only:
            assert done.returncode == -9, (step, done)
        assert_whole(site, core)
        (site.root / "stores.json").unlink(missing_ok=True)
        for _stage, path in site.dumps():
            _make_due(path)
        restarted = site.once()
        assert_whole(site, core)
        assert site.stages() == ["committed"], (step, done, restarted)
        assert len(site.stored()) == 1, (step, done, restarted)
        shutil.rmtree(tmp_path / f"{number}")


def _make_due(path: Path) -> None:
    """Let the back-off of a failed attempt pass, as what is forgotten of the stores does for theirs."""
    document = record.parse((path / "dump.json").read_bytes())
    document["next_try_usec"] = None
    (path / "dump.json").write_text(json.dumps(document))


@pytest.mark.parametrize("action", ACTIONS)
def test_process(tmp_path: Path, real_core: Path, action: str) -> None:
    prepared = Site(tmp_path / "prepared")
    assert prepared.archive(real_core).returncode == 0
    _walk(tmp_path, prepared, real_core.read_bytes(), "process", action)


@pytest.mark.parametrize("action", ACTIONS)
def test_send(tmp_path: Path, real_core: Path, action: str) -> None:
    prepared = Site(tmp_path / "prepared")
    assert prepared.archive(real_core).returncode == 0
    assert prepared.run("process", "--once").returncode == 0
    assert prepared.stages() == ["sending"]
    _walk(tmp_path, prepared, real_core.read_bytes(), "send", action)


@pytest.mark.parametrize("action", ["kill", "ENOSPC"])
@pytest.mark.parametrize("forgets", [False, True])
def test_send_small(tmp_path: Path, real_core: Path, action: str, forgets: bool) -> None:
    """A report that is sent small stays so, or is found in the store whole, where the count was lost with the sender."""
    prepared = Site(tmp_path / "prepared")
    assert prepared.archive(real_core).returncode == 0
    assert prepared.run("process", "--once").returncode == 0
    ((_stage, path),) = prepared.dumps()
    bug = record.parse((path / "dump.json").read_bytes())["fingerprint"]

    def more(site: Site) -> None:
        site.settings.write_text(site.settings.read_text() + "send.whole_per_day = 1\n")
        counts = {"version": 1, "day": time.time_ns() // 86_400_000_000_000, "counts": {bug[:16]: 7}}
        if forgets:  # it was sent whole, and the sender was killed before it knew
            site.run("send", "--once").check_returncode()
            ((_stage, path),) = site.dumps()
            (path / "receipt.json").unlink()
            path.rename(site.root / "sending" / path.name)
        (site.root / "sent.json").write_text(json.dumps(counts))

    _walk(tmp_path, prepared, real_core.read_bytes(), "send", action, more=more)


@pytest.mark.parametrize("action", ACTIONS)
def test_store(tmp_path: Path, real_core: Path, action: str) -> None:
    """The same for the steps that the sender's worker takes in the file: store."""
    prepared = Site(tmp_path / "prepared")
    assert prepared.archive(real_core).returncode == 0
    assert prepared.run("process", "--once").returncode == 0
    _walk(tmp_path, prepared, real_core.read_bytes(), "send", action, only="send_worker")


@pytest.mark.parametrize("action", ACTIONS)
def test_purge(tmp_path: Path, real_core: Path, action: str) -> None:
    """One dump goes whole, one loses its core, one stays: after a purge that was cut short anywhere, the next ends it."""
    prepared = Site(tmp_path / "prepared")
    ages = {"purge__snapshot_age": "9000d", "purge__protected_age": "0"}
    for days in (20000, 9500, 2000, 0):  # the first and the latest are kept
        time_sec = str(int(time.time()) - days * 86400)
        prepared.archive(real_core, "1", "1", "0", "0", "11", time_sec).check_returncode()
    assert prepared.once().returncode == 0
    core = real_core.read_bytes()
    trace = tmp_path / "trace"
    counted = _linked(_copy_site(prepared, tmp_path / "counted", **ages))
    assert counted.run("purge", faulty=("trace:0", str(trace))).returncode == 0
    ended = _purged(counted, core)
    assert sorted(ended.values()) == ["no core", "whole", "whole"]
    for number, step in enumerate(_steps(trace)):
        site = _linked(_copy_site(prepared, tmp_path / f"{number}", **ages))
        done = site.run("purge", faulty=(f"{action}:{number}", str(tmp_path / "t")))
        if action in ("kill", "EINTR", "short"):
            assert done.returncode == (-9 if action == "kill" else 0), (step, done)
        before = _purged(site, core)
        assert set(before) >= set(ended), (step, done)
        if any((site.root / "staging").iterdir()):
            assert site.once().returncode == 0  # sweeps what was half removed
        again = site.run("purge")
        assert again.returncode == 0, (step, again)
        assert _purged(site, core) == ended, (step, done, again)
        assert list((site.root / "staging").iterdir()) == []
        names = {path.name.partition(".")[0] for path in (site.root / "by-uuid").iterdir()}
        assert names == {uuid for uuid, kept in ended.items() if kept == "whole"}, (step, done)
        shutil.rmtree(tmp_path / f"{number}")


def _linked(site: Site) -> Site:
    """Give the cores of a copied site their names in by-uuid."""
    (site.root / "by-uuid").mkdir(exist_ok=True)
    for _stage, path in site.dumps():
        os.link(path / "core.zst", site.root / "by-uuid" / f"{path.name}.core.zst")
    return site


def _purged(site: Site, core: bytes) -> dict[str, str]:
    """Assert that every dump is whole, or that its record says that its core was removed; return which."""
    found = {}
    for stage, path in site.dumps():
        if stage == "staging":
            continue
        document = record.parse((path / "dump.json").read_bytes())
        there = (path / "core").exists() or (path / "core.zst").exists()
        assert there or document["core_removed"], path
        if there:
            assert kept_core(path) == core
        assert (path / "snapshot").stat().st_size == document["snapshot"]["size_bytes"]
        assert (path / "receipt.json").exists()
        found[path.name] = "whole" if there else "no core"
    return found
