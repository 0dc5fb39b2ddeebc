# SPDX-License-Identifier: Apache-2.0
"""The way of a dump through the real programs: attempts, back-off, refusals, workers that die."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from coresnap.ground import durable
from coresnap.spool import coredump, record
from coresnap.spool.stages import STAGES, Spool
from tests.crash import build, crash
from tests.support import packaged
from tests.support.deliveries import TOKEN
from tests.support.lying_store import LyingStore
from tests.support.site import REPOSITORY, Site, assert_whole
from tests.unit.test_snapshot import VALIDATOR


def _only(site: Site) -> tuple[str, dict[str, Any]]:
    """Return the stage and the record of the only dump."""
    ((stage, path),) = site.dumps()
    return stage, record.parse((path / "dump.json").read_bytes())


def _make_due(site: Site) -> None:
    for _stage, path in site.dumps():
        document = record.parse((path / "dump.json").read_bytes())
        document["next_try_usec"] = None
        (path / "dump.json").write_text(json.dumps(document))


def test_all_the_way(site: Site, real_core: Path) -> None:
    for _ in range(5):
        assert site.archive(real_core).returncode == 0
    assert site.once().returncode == 0
    assert site.stages() == ["committed"] * 5
    assert len(site.stored()) == 5
    assert_whole(site, real_core.read_bytes())
    for _stage, path in site.dumps():
        receipt = json.loads((path / "receipt.json").read_text())
        assert receipt["uuid"] == path.name
        assert not receipt["already_there"]


def test_the_settings_say_what_is_in_a_report_and_its_fingerprint_is_on_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The crash is real, with its evidence; what its environment may show is a matter of two lists."""
    more = {"snapshot.stack_bytes": "256", "snapshot.environ": "TZ LC_*"}
    site = Site(tmp_path / "site", **more)
    for name, value in {"TZ": "Europe/Vienna", "LC_ALL": "C", "LC_SECRET": "", "LCX": "1", "PWD": "/"}.items():
        monkeypatch.setenv(name, value)
    with crash([build("crash"), "null", "3"]) as crashed:
        site.archive(crashed.core, *crashed.core_pattern()).check_returncode()
    assert site.run("process", "--once").returncode == 0
    ((_stage, path),) = site.dumps()
    report = json.loads((path / "snapshot").read_bytes())
    VALIDATOR.validate(report)
    assert report["annotations"]["environment"] == {"TZ": "Europe/Vienna", "LC_ALL": "C", "LC_SECRET": ""}
    assert [region["size"] for region in report["memory"]] == [256] * 3
    assert record.parse((path / "dump.json").read_bytes())["fingerprint"] == report["fingerprint"]


def test_commands_get_words_not_a_shell(tmp_path: Path, real_core: Path) -> None:
    """A hostile executable name stays one argument; each format arrives; defaults.command's lines reach the snapshot."""
    told = tmp_path / "told"
    program = tmp_path / "command"
    program.write_text(
        f"#!{sys.executable} -IS\nimport json, os, sys\n"
        f"json.dump([sys.argv[1:], dict(os.environ), os.path.getsize(sys.argv[2])], open({str(told)!r}, 'w'))\n"
        "open(sys.argv[1], 'w').write('{}')\n"
    )
    program.chmod(0o755)
    defaults = tmp_path / "defaults"
    defaults.write_text('#!/bin/sh\necho "name=$1"\n')
    defaults.chmod(0o755)
    site = Site(
        tmp_path / "site",
        **{
            "snapshot.command": f"{program} %S %c %a %B %e p=%p/u=%u/s=%s 100%%",
            "defaults.command": str(defaults),
        },
    )
    hostile = "!tmp!a b;$(touch x)`'\n"
    assert site.archive(real_core, "4194304", "1", "12", "13", "6", "", "", "1", "", hostile).returncode == 0
    assert site.run("process", "--once").returncode == 0
    stage, document = _only(site)
    assert stage == "sending"
    arguments, environment, size = json.loads(told.read_text())
    assert arguments[0].startswith("/proc/self/fd/")
    assert size == real_core.stat().st_size
    assert arguments[3:] == [document["uuid"], "/tmp/a b;$(touch x)`'\n", "p=4194304/u=12/s=6", "100%"]
    assert environment["BACKTRACE_DEFAULTS"] == "name=a b;$(touch x)`'\n\n"
    assert "HOME" not in environment


def test_a_failing_command_is_tried_again_and_given_up_on(tmp_path: Path, real_core: Path) -> None:
    command = "sh -c 'echo first >&2; echo no such symbol >&2; exit 1'"
    site = Site(tmp_path / "site", **{"snapshot.command": command, "snapshot.attempts": "2"})
    assert site.archive(real_core).returncode == 0
    done = site.run("process", "--once")
    assert "exit status 1: no such symbol; next try in 30 s" in done.stderr
    stage, document = _only(site)
    assert (stage, document["attempts"]["process"]) == ("pending", 1)
    assert document["next_try_usec"] is not None
    assert site.run("process", "--once").stderr == ""  # not due yet
    _make_due(site)
    done = site.run("process", "--once")
    assert "given up on after 2 attempts" in done.stderr
    assert "coresnap retry" in done.stderr
    stage, document = _only(site)
    assert stage == "failed"
    assert "no such symbol" in document["failure"]["detail"]
    assert_whole(site, real_core.read_bytes())


def test_a_clock_set_back_does_not_hold_a_dump_for_ever(site: Site, real_core: Path) -> None:
    assert site.archive(real_core).returncode == 0
    ((_stage, path),) = site.dumps()
    document = record.parse((path / "dump.json").read_bytes())
    document["next_try_usec"] = 2**62
    (path / "dump.json").write_text(json.dumps(document))
    site.once()
    assert site.stages() == ["committed"]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("sleep 60", "took too long and was killed"),
        ("sh -c 'kill -9 $$'", "was killed by signal 9"),
        ("/no/such/command", "No such file"),
        ("true", "left a snapshot of 0 bytes"),
    ],
)
def test_what_can_go_wrong_with_a_command(tmp_path: Path, real_core: Path, command: str, says: str) -> None:
    site = Site(tmp_path / "site", **{"snapshot.command": command, "snapshot.timeout": "1s"})
    assert site.archive(real_core).returncode == 0
    done = site.run("process", "--once")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert site.stages() == ["pending"]


def test_a_snapshot_that_grows_without_bound_is_stopped(tmp_path: Path, real_core: Path) -> None:
    command = "sh -c 'cat /dev/zero > \"$0\"' %S"
    site = Site(tmp_path / "site", **{"snapshot.command": command, "snapshot.max_bytes": "64K"})
    assert site.archive(real_core).returncode == 0
    site.run("process", "--once")
    ((stage, path),) = site.dumps()
    assert stage == "pending"
    assert (path / "snapshot").stat().st_size <= 64 << 10


def test_a_store_that_cannot_be_used_parks_the_dumps(tmp_path: Path, real_core: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    site = Site(tmp_path / "site", **{"send.store": f"file:{tmp_path}/file/store"})
    for _ in range(3):
        assert site.archive(real_core).returncode == 0
    done = site.once()
    assert done.returncode == 0
    assert site.stages() == ["sending"] * 3
    assert "make the directory, or set send.store" in done.stderr
    assert done.stderr.count("send.store") == 1, "the stage is parked with the first"
    (tmp_path / "file").unlink()
    site.once()
    assert site.stages() == ["committed"] * 3


def test_another_client_delivers(tmp_path: Path, real_core: Path) -> None:
    """The documented line of coroner's, with a recording stand-in for the real client, which is not public."""
    told = tmp_path / "told"
    client = tmp_path / "coroner"
    client.write_text(f'#!/bin/sh\ncat "$6" > {told}.snapshot\necho "$@" > {told}\n')
    client.chmod(0o755)
    site = Site(
        tmp_path / "site", **{"send.command": f"{client} -c /usr/local/etc/coroner.cf put %P %t %S", "format.1": "web"}
    )
    assert site.archive(real_core).returncode == 0
    site.once()
    stage, document = _only(site)
    assert stage == "committed"
    assert told.read_text().startswith("-c /usr/local/etc/coroner.cf put web web /proc/self/fd/")
    assert json.loads(Path(f"{told}.snapshot").read_text())["uuid"] == document["uuid"]


def test_a_coroner_cf_is_all_that_it_takes(tmp_path: Path, real_core: Path) -> None:
    """Copied to where send.coroner says, it has the report delivered to its store, and nothing goes to the file: store."""
    with LyingStore(tokens={TOKEN}) as store:
        site = Site(tmp_path / "site")
        (tmp_path / "site" / "coroner.cf").write_text(
            f"[universe]\nname = universe\nwrite = {store.address}\n[token]\nblackhole = {TOKEN}\n"
        )
        assert site.archive(real_core).returncode == 0
        done = site.once()
    ((stage, path),) = site.dumps()
    assert stage == "committed", done.stderr
    receipt, document = (json.loads((path / name).read_text()) for name in ("receipt.json", "dump.json"))
    stored = store.objects[path.name]
    assert (receipt["store"], receipt["object"]) == (store.address, stored.rxid)
    assert stored.upload == (document["snapshot"]["size_bytes"], document["snapshot"]["sha256"])
    assert site.stored() == []
    assert TOKEN not in done.stdout + done.stderr + json.dumps([receipt, document])
    assert "can read it: chmod 600" in done.stderr


def test_the_core_goes_along_where_it_is_to(tmp_path: Path, real_core: Path) -> None:
    with LyingStore(tokens={TOKEN}) as store:
        site = Site(tmp_path / "site", **{"send.core": "yes"})
        (tmp_path / "site" / "coroner.cf").write_text(f"write = {store.address}\nblackhole = {TOKEN}\n")
        assert site.archive(real_core).returncode == 0
        done = site.once()
    ((stage, path),) = site.dumps()
    assert stage == "committed", done.stderr
    kept = {name: (path / name).read_bytes() for name in ("core.zst", "assets.tar")}
    told = {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in kept.items()}
    assert store.objects[path.name].attachments == told


def test_an_object_store_that_cannot_be_reached_is_not_passed_over(tmp_path: Path, real_core: Path) -> None:
    """Where a coroner.cf stands its owner expects the snapshot there: it waits, and nothing goes to the file: store."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    coroner = tmp_path / "coroner.cf"
    coroner.write_text(f"write = {address}\nblackhole = {TOKEN}\n")
    site = Site(tmp_path / "site", **{"send.coroner": str(coroner)})
    assert site.archive(real_core).returncode == 0
    done = site.once()
    assert site.stages() == ["sending"]
    assert f"{address}: Connection refused" in done.stderr
    assert site.stored() == []


def test_what_is_wrong_with_a_dump_is_said_and_left_alone(site: Site, real_core: Path) -> None:
    for _ in range(3):
        assert site.archive(real_core).returncode == 0
    newer, broken, _good = [path for _stage, path in site.dumps()]
    (newer / "dump.json").write_text('{"version": 2}')
    (broken / "dump.json").write_text("{")
    (site.root / "pending" / "a note").write_text("x")
    done = site.once()
    assert sorted(site.stages()) == ["committed", "pending", "pending", "pending"]
    assert "version 2" in done.stderr
    assert "upgrade" in done.stderr
    assert "a note is no dump, ignoring" in done.stderr
    assert (newer / "core").read_bytes() == real_core.read_bytes()
    assert done.stderr.count(broken.name) == 1


def test_a_worker_that_is_killed_costs_an_attempt(tmp_path: Path, real_core: Path) -> None:
    command = "sh -c 'kill -9 $(ps -o ppid= -p $$)'"
    site = Site(tmp_path / "site", **{"snapshot.command": command})
    assert site.archive(real_core).returncode == 0
    done = site.run("process", "--once")
    assert "the worker died" in done.stderr
    assert site.stages() == ["pending"]


@pytest.mark.parametrize(
    ("gone", "stage", "says"),
    [("core", "pending", "its core is gone"), ("snapshot", "sending", "its snapshot is gone")],
)
def test_what_was_deleted_is_said_and_not_tried_for_ever(
    site: Site, real_core: Path, gone: str, stage: str, says: str
) -> None:
    assert site.archive(real_core).returncode == 0
    if stage == "sending":
        assert site.run("process", "--once").returncode == 0
    ((found, path),) = site.dumps()
    assert found == stage
    (path / gone).unlink()
    assert says in site.once().stderr
    found, document = _only(site)
    assert found == "failed"
    assert says in document["failure"]["detail"]


@pytest.mark.parametrize("foreign", ["file", "link"])
def test_a_dump_that_cannot_be_opened_holds_up_no_other(site: Site, real_core: Path, foreign: str) -> None:
    name = "00000000-0000-4000-8000-000000000000"
    path = site.root / "pending" / name
    if foreign == "file":
        path.write_text("x")
    else:
        path.symlink_to("/tmp")
    assert site.archive(real_core).returncode == 0
    done = site.once()
    assert done.stderr.count(name) == 1, done.stderr
    assert sorted(site.stages()) == ["committed", "pending"]


def test_salvage(site: Site, real_core: Path) -> None:
    """What a killed archive left in staging: kept where the notes are whole, recorded where they are not."""
    core = real_core.read_bytes()
    with Spool(str(site.root)) as spool:
        for content in (core[:-8192], core[:500], None):
            dump = spool.new()
            if content is not None:
                fd = durable.create(dump.fd, "core", 0o600)
                durable.write(fd, content)
                os.close(fd)
            dump.close()
    done = site.once()
    assert site.stages() == ["committed"]
    _stage, document = _only(site)
    assert document["core"]["truncated"]["reason"] == "interrupted"
    assert document["victim"]["signal"] == 11
    assert [entry["reason"] for entry in site.ledger()] == ["cut-short", "interrupted"] or [
        entry["reason"] for entry in site.ledger()
    ] == ["interrupted", "interrupted"]
    assert done.stderr.count("lost") == 2


def test_wrong_settings_end_a_program_with_one_line(site: Site) -> None:
    site.settings.write_text("dump.root = relative\n")
    for program in ("process", "send", "daemon", "purge"):
        done = site.run(program, *(["--once"] if program != "purge" else []))
        assert done.returncode == 78, program
        (line,) = done.stderr.splitlines()
        assert f"{site.settings}:1: " in line
        assert "dump.root" in line


def test_purge_by_age(site: Site, real_core: Path) -> None:
    old = str(1_000_000_000)
    assert site.archive(real_core, "1", "1", "0", "0", "11", old).returncode == 0
    assert site.archive(real_core).returncode == 0
    assert site.once().returncode == 0
    assert site.archive(real_core, "1", "1", "0", "0", "11", old).returncode == 0
    dry = site.run("purge", "--dry-run")
    assert dry.stdout.count("would go") == 1
    assert len(site.stages()) == 3
    assert site.run("purge").returncode == 0
    assert sorted(site.stages()) == ["committed", "pending"], "what waits is not removed, however old"
    assert os.listdir(site.root / "staging") == []
    assert set(STAGES) <= set(os.listdir(site.root))


def test_a_core_keeps_a_name_of_its_own(site: Site, real_core: Path) -> None:
    """The journal knows a core by it; it goes when the core goes, also where a removal was cut short."""
    for _ in range(2):
        site.archive(real_core).check_returncode()
    site.once()
    names = site.root / "by-uuid"
    for _stage, path in site.dumps():
        assert (names / f"{path.name}.core.zst").samefile(path / "core.zst")
        assert not (path / "core").exists()
    (_stage, first), (_stage, second) = site.dumps()
    argv = [sys.executable, "-m", "coresnap.cli", "--settings", str(site.settings), "rm", first.name]
    assert subprocess.run(argv, cwd=REPOSITORY, check=False).returncode == 0
    assert [path.name for path in names.iterdir()] == [f"{second.name}.core.zst"]
    shutil.rmtree(second)
    site.run("purge").check_returncode()
    assert list(names.iterdir()) == []


def test_cores_are_left_as_they_are_where_settings_say_so(site: Site, real_core: Path) -> None:
    site.settings.write_text(site.settings.read_text() + "core.compress = none\n")
    assert site.archive(real_core).returncode == 0
    assert site.once().returncode == 0
    ((stage, path),) = site.dumps()
    assert stage == "committed"
    assert not (path / "core.zst").exists()
    assert (site.root / "by-uuid" / f"{path.name}.core").samefile(path / "core")


def test_a_dump_that_fails_keeps_its_core_as_it_is(site: Site, real_core: Path) -> None:
    site.settings.write_text(site.settings.read_text() + "snapshot.command = false\nsnapshot.attempts = 1\n")
    assert site.archive(real_core).returncode == 0
    site.once()
    ((stage, path),) = site.dumps()
    assert stage == "failed"
    assert sorted(os.listdir(path)) == ["assets.tar", "core", "dump.json", "snapshot"]


def test_a_compressed_core_is_read_as_any_other(site: Site, real_core: Path, tmp_path: Path) -> None:
    assert site.archive(real_core).returncode == 0
    assert site.once().returncode == 0
    ((_stage, path),) = site.dumps()
    assert not (path / "core").exists()
    argv = [sys.executable, "-m", "coresnap.cli", "--settings", str(site.settings)]
    got = subprocess.run([*argv, "dump", path.name], cwd=REPOSITORY, check=True, capture_output=True)
    assert got.stdout == real_core.read_bytes()
    target = tmp_path / "out"
    subprocess.run([*argv, "dump", path.name, "-o", str(target)], cwd=REPOSITORY, check=True)
    assert target.read_bytes() == real_core.read_bytes()
    debugged = [*argv, "debug", path.name, "--", "-batch", "-ex", "info proc"]
    told = subprocess.run(debugged, cwd=REPOSITORY, check=False, capture_output=True, text=True)
    assert "Core was generated by" in told.stdout, told
    listed = json.loads(
        subprocess.run([*argv, "list", "--json"], cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    )
    assert listed[0]["record"]["core"]["compressed_bytes"] == (path / "core.zst").stat().st_size
    (path / "snapshot").unlink()
    os.rename(path, site.root / "failed" / path.name)
    refused = subprocess.run([*argv, "retry", path.name], cwd=REPOSITORY, check=False, capture_output=True, text=True)
    assert refused.returncode == 69
    assert "core compressed" in refused.stderr


def test_the_package_is_told(site: Site, tmp_path: Path) -> None:
    """The executable's own note tells it, from the core alone."""
    with crash([packaged.build(tmp_path), "null", "1"]) as crashed:
        assert site.archive(crashed.core, *crashed.core_pattern()).returncode == 0
    assert site.once().returncode == 0
    stage, document = _only(site)
    assert stage == "committed"
    assert document["package"] == packaged.PACKAGE
    fields = coredump.fields(document, "/core", {})
    assert (fields["COREDUMP_PACKAGE_NAME"], fields["COREDUMP_PACKAGE_VERSION"]) == ("crash", "1.2-3")
    argv = [sys.executable, "-m", "coresnap.cli", "--settings", str(site.settings), "info", document["uuid"]]
    told = subprocess.run(argv, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    assert "crash 1.2-3 (deb, amd64)" in told
