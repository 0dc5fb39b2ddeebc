# SPDX-License-Identifier: Apache-2.0
"""`coresnap config`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from coresnap import cli
from coresnap.ground import flat, settings
from coresnap.ground.settings import render

BACKTRACE = Path(__file__).parents[1] / "fixtures" / "backtrace.conf"


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "broken.conf"
    path.write_text("\xe9\nsnapshot.jobs = 0\ndump.quoat = 10%")
    return path


def test_what_is_printed_can_be_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "--settings", str(BACKTRACE)]) == 0
    printed = capsys.readouterr().out
    assert f"# {BACKTRACE}:4\ndump.root = /var/coresnap/archive\n" in printed
    assert "# built-in\ndump.ceiling = 0\narchive.environ = PATH " in printed
    again = tmp_path / "again.conf"
    again.write_text(printed)
    assert settings.load(again).document() == settings.load(BACKTRACE).document()


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "--json", "--settings", str(BACKTRACE)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["files"] == [str(BACKTRACE)]
    assert printed["settings"]["dump.root"] == {"value": "/var/coresnap/archive", "origin": f"{BACKTRACE}:4"}
    assert printed["settings"]["snapshot.jobs"] == {"value": 2, "origin": "built-in"}
    rules = [(rule["project"], rule["regex"], rule["origin"]) for rule in printed["settings"]["format"]]
    assert rules[0] == ("editors", "^vim", f"{BACKTRACE}:18")
    assert rules[2] == ("blackhole", None, f"{BACKTRACE}:17")


def test_check(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "--check", str(BACKTRACE)]) == 0
    assert capsys.readouterr().out == f"{BACKTRACE}: ok\n"
    assert cli.main(["config", "--check", str(broken)]) == 78
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        f"{broken}:1: `\xe9` is no directive: NAME = VALUE is expected",
        f"{broken}:2: `snapshot.jobs = 0`: out of range: allowed: a whole number from 1 to 64",
        f"{broken}:3: `dump.quoat = 10%`: no such setting: did you mean dump.quota?",
    ]


def test_check_of_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "--check", str(tmp_path)]) == 78
    assert capsys.readouterr().err == f"{tmp_path}: not a regular file\n"


def test_check_of_the_coroner_cf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configuration, coroner = tmp_path / "coresnap.conf", tmp_path / "coroner.cf"
    configuration.write_text(f"dump.user = {os.getuid()}\ndump.group = {os.getgid()}\nsend.coroner = {coroner}\n")
    check = ["config", "--check", str(configuration)]
    assert cli.main(check) == 0, "there is none"
    right = "[universe]\nwrite = https://store.example:6098\nssl.key = credential\n[token]\nweb = abcdef0123456789\n"
    for text, mode, status, said in (
        (right, 0o600, 0, ""),
        (right, 0o644, 0, "chmod 600"),
        (right + "web\n", 0o600, 78, f"{coroner}:6: KEY = VALUE expected"),
        (right.replace("https", "ftp"), 0o600, 78, f"{coroner}: write: "),
        (right.replace("write", "read"), 0o600, 78, f"{coroner}: write: "),
    ):
        coroner.write_text(text)
        coroner.chmod(mode)
        capsys.readouterr()
        assert cli.main(check) == status
        err = capsys.readouterr().err
        assert said in err
        assert bool(err) == bool(said)
        assert "abcdef" not in err


def test_compile(tmp_path: Path, broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "cache" / "archive.settings"
    assert cli.main(["config", "--compile", "--output", str(output), "--settings", str(BACKTRACE)]) == 0
    assert flat.read(str(output))[0].root == "/var/coresnap/archive"
    before = output.read_bytes()
    assert cli.main(["config", "--compile", "--output", str(output), "--settings", str(broken)]) == 78
    assert output.read_bytes() == before, "the last good ones stay"
    assert capsys.readouterr().err.startswith(f"coresnap: {broken}:")


def test_sample(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "--sample"]) == 0
    assert capsys.readouterr().out == render.sample()
