# SPDX-License-Identifier: Apache-2.0
"""Hooks: each transition's is run, with the event as data; one that fails, hangs or is killed concerns no dump and no owner."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coresnap.spool import hooks
from tests.fixtures import cores
from tests.support.site import REPOSITORY, Site

#: Writes what it was told as a line, and what it can reach.
_TELLER = """#!/usr/bin/python3 -I
import json, os, sys
def reads(path):
    try:
        return bool(os.listdir(path) if os.path.isdir(path) else open(path, "rb").read())
    except OSError:
        return False
told = {name: value for name, value in os.environ.items() if name not in ("LC_CTYPE",)}
with open(os.path.join(os.path.dirname(sys.argv[0]), "told"), "a") as file:
    file.write(json.dumps([sys.argv[1:], told, os.geteuid(), [reads(path) for path in SECRETS]]) + "\\n")
"""
_HOSTILE = "/tmp/a b;$(touch pwned)`id`'\"\n*\x1b[31m %B"


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that a hook's user may write to."""
    path = Path(tempfile.mkdtemp(prefix="coresnap-hooks-"))
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


def _program(place: Path, text: str, name: str = "hook") -> Path:
    path = place / name
    path.write_text(text)
    path.chmod(0o755)
    return path


def _site(place: Path, **settings: str) -> Site:
    return Site(place / "site", **settings)


def _dump(site: Site, exe: str = "/usr/bin/vim") -> None:
    core = site.root.parent / "made.core"
    core.write_bytes(cores.small())
    arguments = ["", "", "1000", "1000", "11", "1700000000", "0", "1", "", exe.replace("/", "!")]
    site.archive(core, *arguments).check_returncode()


def _told(place: Path) -> list[Any]:
    path = place / "told"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _queue(site: Site) -> list[str]:
    return sorted(os.listdir(site.root / hooks.NAME))


def test_every_transition_runs_its_hook_once_in_order(place: Path) -> None:
    hook = _program(place, _TELLER.replace("SECRETS", "[]"))
    site = _site(place, on__sending=f"{hook} %w %B %s", on__committed=f"{hook} %w %B %e")
    _dump(site)
    done = site.once()
    assert site.stages() == ["committed"], done.stderr
    ((_stage, path),) = site.dumps()
    (first, second) = _told(place)
    assert first[0] == ["sending", path.name, "11"]
    assert second[0] == ["committed", path.name, "/usr/bin/vim"]
    told = second[1]
    assert {name: told[f"CORESNAP_{name}"] for name in ("UUID", "STAGE", "EXE", "SIGNAL", "UID", "DETAIL")} == {
        "UUID": path.name,
        "STAGE": "committed",
        "EXE": "/usr/bin/vim",
        "SIGNAL": "11",
        "UID": "1000",
        "DETAIL": "",
    }
    assert _queue(site) == []
    site.once()
    assert len(_told(place)) == 2


def test_a_hostile_name_is_one_word_and_runs_nothing(place: Path) -> None:
    hook = _program(place, _TELLER.replace("SECRETS", "[]"))
    site = _site(place, on__committed=f"{hook} before %e after")
    _dump(site, _HOSTILE)
    site.once()
    ((words, environment, _uid, _reach),) = _told(place)
    assert words == ["before", _HOSTILE, "after"]
    assert environment["CORESNAP_EXE"] == _HOSTILE
    assert not list(place.rglob("pwned"))


def test_without_hooks_there_is_no_queue(place: Path) -> None:
    site = _site(place)
    _dump(site)
    site.once()
    assert site.stages() == ["committed"]
    assert not (site.root / hooks.NAME).exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up root")
def test_a_hook_is_somebody_else_and_reaches_no_dump_and_no_token(place: Path) -> None:
    coroner = place / "coroner.cf"
    coroner.write_text("[universe]\ntoken = SECRET\n")
    coroner.chmod(0o600)
    site = _site(place, on__committed="PLACEHOLDER", send__command="true")
    (place / "site").chmod(0o755)
    secrets = [str(coroner), str(site.root), str(site.root / "committed")]
    hook = _program(place, _TELLER.replace("SECRETS", repr(secrets)))
    site.settings.write_text(site.settings.read_text().replace("PLACEHOLDER", str(hook)))
    _dump(site)
    os.environ["CREDENTIALS_DIRECTORY"] = str(place)
    try:
        site.once()
    finally:
        del os.environ["CREDENTIALS_DIRECTORY"]
    ((_words, environment, uid, reach),) = _told(place)
    assert uid != 0
    assert reach == [False, False, False]
    assert "SECRET" not in json.dumps(environment)
    assert set(environment) - {"PATH", "LANG"} == {f"CORESNAP_{name.upper()}" for name in hooks.Event._fields}


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        ("false", "on.committed false: exit status 1"),
        ("/no/such/program", "on.committed /no/such/program: /no/such/program: No such file or directory"),
        ("sh -c 'sleep 1000 & sleep 1000'", "on.committed sh: took too long and was killed"),
        ("sh -c 'kill -9 $$'", "on.committed sh: was killed by signal 9"),
    ],
)
def test_a_hook_that_fails_is_one_line_and_no_more(place: Path, hook: str, words: str) -> None:
    site = _site(place, on__committed=hook, on__timeout="1s")
    _dump(site)
    done = site.once()
    assert done.returncode == 0, done.stderr
    assert site.stages() == ["committed"]
    assert _queue(site) == []
    lines = [line for line in done.stderr.splitlines() if "on.committed" in line]
    assert len(lines) == 1
    assert words in lines[0]


def test_no_owner_waits_for_a_hook(place: Path) -> None:
    """Nobody runs the hooks here: the owners do their work, and what has happened waits."""
    site = _site(place, on__sending="sleep 1000", on__committed="sleep 1000")
    _dump(site)
    for program in ("process", "send"):
        assert site.run(program, "--once").returncode == 0
    assert site.stages() == ["committed"]
    assert [name.rpartition("-")[2] for name in _queue(site)] == ["sending", "committed"]


def test_a_dump_that_is_given_up_on_says_why(place: Path) -> None:
    hook = _program(place, _TELLER.replace("SECRETS", "[]"))
    site = _site(place, on__failed=f"{hook} %w", snapshot__command="false", snapshot__attempts="1")
    _dump(site)
    site.once()
    assert site.stages() == ["failed"]
    ((words, environment, _uid, _reach),) = _told(place)
    assert words == ["failed"]
    assert "exit status 1" in environment["CORESNAP_DETAIL"]


def test_a_hook_whose_owner_is_killed_is_run_once_more_and_never_a_third_time(place: Path) -> None:
    """Its owner's end ends the hook as well: it says where it is, and hangs."""
    fifo = place / "begun"
    os.mkfifo(fifo)
    fifo.chmod(0o666)
    site = _site(place, on__committed=f"sh -c 'echo $$ > {fifo}; exec sleep 1000'")
    _dump(site)
    site.run("process", "--once")
    site.run("send", "--once")
    for again in (["-again"], []):
        argv = [sys.executable, "-m", "coresnap.hook", "--settings", str(site.settings)]
        with subprocess.Popen(argv, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) as owner:
            pid = int(fifo.read_text())
            hook_fd = os.pidfd_open(pid)
            owner.send_signal(signal.SIGKILL)
            owner.wait()
        assert select.select([hook_fd], [], [], 60)[0], "the hook outlives who ran it"
        os.close(hook_fd)
        assert [name[-6:] for name in _queue(site)] == again
    done = site.run("hook", "--once")
    assert done.returncode == 0
    assert _queue(site) == []


def test_what_is_no_event_is_told_and_goes(place: Path) -> None:
    site = _site(place, on__committed="true")
    queue = site.root / hooks.NAME
    queue.mkdir(mode=0o700)
    name = f"{1:020d}-11111111-0000-4000-8000-000000000001-committed"
    (queue / name).write_text('{"stage": "committed"}')
    os.symlink("/etc/passwd", queue / name.replace("0001-committed", "0002-committed"))
    (queue / "foreign").write_text("x")
    done = site.run("hook", "--once")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no hook is run") == 2
    assert _queue(site) == ["foreign"]  # it may be somebody's who is just writing; after an hour it goes
    os.utime(queue / "foreign", (0, 0))
    site.run("hook", "--once")
    assert _queue(site) == []


def test_a_full_queue_is_a_warning_and_the_dump_goes_on(place: Path) -> None:
    site = _site(place, on__committed="true")
    queue = site.root / hooks.NAME
    queue.mkdir(mode=0o700)
    for number in range(hooks.WAITING_MOST):
        (queue / str(number)).touch()
    _dump(site)
    site.run("process", "--once")
    done = site.run("send", "--once")
    assert site.stages() == ["committed"]
    assert "no hook is run: 10000 hooks wait already" in done.stderr
    assert len(_queue(site)) == hooks.WAITING_MOST


def test_coresnapd_in_the_foreground_keeps_them_running(place: Path) -> None:
    fifo = place / "told"
    os.mkfifo(fifo)
    fifo.chmod(0o666)
    site = _site(place, on__committed=f"sh -c 'echo $CORESNAP_UUID > {fifo}'")
    argv = [sys.executable, "-m", "coresnap.daemon", "-f", "--settings", str(site.settings)]
    argv += ["--compiled", str(site.compiled)]
    with subprocess.Popen(argv, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as daemon:
        try:
            for _crash in range(2):
                _dump(site)
                uuid = fifo.read_text().strip()
                assert uuid in [path.name for stage, path in site.dumps() if stage == "committed"]
        finally:
            daemon.terminate()
            assert daemon.wait(60) == 0
