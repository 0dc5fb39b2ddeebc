# SPDX-License-Identifier: Apache-2.0
"""Faults at every durable step: whatever happens to coresnap itself, no crash is lost without a record.

The steps are not picked by hand. Each program is run once to list the steps it takes, then once for each step and each
fault: SIGKILL before the step, an error, an interrupted call, a short write. After each, every dump is whole, in exactly one
stage, or on record; after a restart, everything is delivered, exactly once.
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.support.site import Site, assert_whole

pytestmark = pytest.mark.walk

ACTIONS = ["kill", "ENOSPC", "EIO", "EDQUOT", "EINTR", "short"]


def _steps(trace: Path) -> list[str]:
    return trace.read_text().splitlines()


def _copy_site(site: Site, directory: Path) -> Site:
    """Make a site like `site`, with the same dumps, in another directory."""
    copied = Site(directory)
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
        done = site.archive(real_core, faulty=(f"{action}:{number}", str(tmp_path / "t")))
        assert_whole(site, core)
        after = len(site.ledger()) + len(site.stages())
        if action == "kill":
            assert done.returncode == -9, (step, done)
            # Before the first mkdir there is nothing yet; archive died before it had begun.
            assert after == before + (number > 0), (step, done)
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


def _walk(tmp_path: Path, prepared: Site, core: bytes, program: str, action: str, only: str = "") -> None:
    """Run a stage's owner, or its worker, with the fault at each of its steps; each time restart and look."""
    words = ("--only", only) if only else ()
    trace = tmp_path / "trace"
    counted = _copy_site(prepared, tmp_path / "counted")
    assert counted.run(program, "--once", faulty=(*words, "trace:0", str(trace))).returncode == 0
    steps = _steps(trace)
    assert "fsync" in {step.split()[0] for step in steps}
    for number, step in enumerate(steps):
        site = _copy_site(prepared, tmp_path / f"{number}")
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
    from coresnap.spool import record

    document = record.parse((path / "dump.json").read_bytes())
    document["next_try_usec"] = None
    import json

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


@pytest.mark.parametrize("action", ACTIONS)
def test_store(tmp_path: Path, real_core: Path, action: str) -> None:
    """The same for the steps that the sender's worker takes in the file: store."""
    prepared = Site(tmp_path / "prepared")
    assert prepared.archive(real_core).returncode == 0
    assert prepared.run("process", "--once").returncode == 0
    _walk(tmp_path, prepared, real_core.read_bytes(), "send", action, only="send_worker")
