# SPDX-License-Identifier: Apache-2.0
"""No secret of a crashed process's command line and environment leaves it but in the core."""

from __future__ import annotations

import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.crash import build, crash
from tests.support.site import Site

_WORD = "hunter2hunter2hunter2"
_ARGUMENTS = ["segv", "2", "1", "44", f"--password={_WORD}", "--token", _WORD, f"https://u:{_WORD}@host/"]


def _processed(site: Site) -> tuple[Path, dict[str, Any]]:
    """Have the one dump made a snapshot of; return its directory and the report."""
    done = site.run("process", "--once")
    assert done.returncode == 0, done.stderr
    ((stage, dump),) = site.dumps()
    assert stage == "sending", done.stderr
    return dump, json.loads((dump / "snapshot").read_text())


@pytest.fixture
def _with_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET", _WORD)
    monkeypatch.setenv("DATABASE_URL", f"postgres://u:{_WORD}@db/x")
    monkeypatch.setenv("PLAIN", "plain")


@pytest.mark.usefixtures("_with_secrets")
def test_of_the_whole_dump_the_core_alone_has_them(tmp_path: Path) -> None:
    site = Site(tmp_path / "site", **{"archive.environ": "*", "snapshot.environ": "*", "core.compress": "none"})
    with crash([build("crash"), *_ARGUMENTS]) as crashed:
        assert _WORD.encode() in Path(f"/proc/{crashed.pid}/cmdline").read_bytes()
        assert site.archive(crashed.core, *crashed.core_pattern()).returncode == 0
    dump, report = _processed(site)
    document = json.loads((dump / "dump.json").read_text())
    assert document["victim"]["cmdline"].endswith(" 44 --password=*** --token *** https://u:***@host/")
    environment = report["annotations"]["environment"]
    assert (environment["MY_SECRET"], environment["PLAIN"]) == ("***", "plain")
    assert environment["DATABASE_URL"] == "postgres://u:***@db/x"
    have = sorted(path.name for path in dump.iterdir() if _WORD.encode() in path.read_bytes())
    assert have == ["core"], "it is what encrypt.recipients is for"
    with tarfile.open(dump / "assets.tar") as asset:
        assert {"proc/cmdline", "proc/environ"} <= set(asset.getnames())
    assert _WORD not in site.run("cli", "info", dump.name).stdout


@pytest.mark.usefixtures("_with_secrets")
def test_a_core_that_is_imported_has_its_arguments_redacted(tmp_path: Path) -> None:
    """Of those there are only the 80 bytes of the core's notes."""
    site = Site(tmp_path / "site")
    with crash([build("crash"), "segv", "1", "--password=short"]) as crashed:
        if b"--password=short" not in crashed.core.read_bytes()[:8192]:
            pytest.skip("the path of the program leaves no room for its arguments in the notes")
        assert site.archive(crashed.core).returncode == 0
    dump, report = _processed(site)
    assert "short" not in json.loads((dump / "dump.json").read_text())["victim"]["cmdline"]
    assert "short" not in report["annotations"]["arguments"]


@pytest.mark.usefixtures("_with_secrets")
def test_a_confidential_report_has_nothing_of_memory_and_registers(tmp_path: Path) -> None:
    everything = {"archive.environ": "*", "snapshot.environ": "*", "snapshot.stack_bytes": "64K"}
    site = Site(tmp_path / "site", **everything, **{"snapshot.confidential": "yes"})
    with crash([build("crash"), *_ARGUMENTS]) as crashed:
        assert site.archive(crashed.core, *crashed.core_pattern()).returncode == 0
    _dump, report = _processed(site)
    assert report["memory"] == []
    assert report["annotations"]["arguments"] == ""
    assert "environment" not in report["annotations"]
    frames = [frame for thread in report["threads"].values() for frame in thread["stack"]]
    assert len(frames) > 2
    assert not any("registers" in frame for frame in frames)
    assert any(line.endswith("snapshot.confidential") for line in report["annotations"]["missing"])
    assert report["attributes"]["fault.address"], "what kind of crash it was is told all the same"


def test_secrets_in_the_error_s_message(tmp_path: Path) -> None:
    program = tmp_path / "fails.c"
    program.write_text(
        '#include <assert.h>\nint main(void) { assert(!"no connection: postgres://u:hunter2@db/x password=hunter2"); }\n'
    )
    subprocess.run(["gcc", "-g", "-o", tmp_path / "fails", program], check=True)
    for confidential in ("no", "yes"):
        site = Site(tmp_path / confidential, **{"snapshot.confidential": confidential, "snapshot.stack_bytes": "0"})
        with crash([tmp_path / "fails"]) as crashed:
            assert site.archive(crashed.core, *crashed.core_pattern()).returncode == 0
        dump, report = _processed(site)
        message = report["attributes"]["error.message"]
        assert ("no connection: postgres://u:***@db/x password=***" in message) == (confidential == "no")
        assert "hunter2" not in (dump / "snapshot").read_text()
