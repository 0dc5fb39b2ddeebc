# SPDX-License-Identifier: Apache-2.0
"""The compiled settings: what is compiled is what archive reads, and nothing that it reads stops it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from coresnap.ground import flat, settings
from coresnap.ground.flat import ArchiveSettings

SETTINGS = """\
dump.root = /srv/cor\u00e9 dumps
dump.mode = 0640
dump.user = 4711
dump.group = 4712
dump.quota = 25%
dump.ceiling = 20G
archive.environ = PATH LC_*
archive.evidence_budget = 250ms
archive.modules_max_bytes = 5M
archive.rlimit_core = honour
archive.jobs = 3
archive.include = /usr/* unit:a@*.service
archive.exclude = uid:12
archive.core_max_bytes = 2G
redact.names = *A*
redact.values = x-*
limit.exe = 7/2h
limit.unit = 0
limit.user = 1/1s
"""


def as_dict(known: ArchiveSettings) -> dict[str, object]:
    return {name: getattr(known, name) for name in ArchiveSettings.__slots__}


def read(path: Path, content: bytes) -> tuple[dict[str, object], str]:
    path.write_bytes(content)
    path.chmod(0o644)
    known, problem = flat.read(str(path))
    return as_dict(known), problem.replace(str(path), "PATH")


def test_what_is_compiled_is_what_is_read(tmp_path: Path) -> None:
    configuration = tmp_path / "coresnap.conf"
    configuration.write_text(SETTINGS, encoding="utf-8")
    compiled = tmp_path / "cache" / "archive.settings"
    for _again in range(2):
        settings.write_compiled(settings.load(configuration), compiled)
    known, problem = flat.read(str(compiled))
    assert problem == ""
    assert as_dict(known) == {
        "root": "/srv/cor\u00e9 dumps",
        "mode": 0o640,
        "uid": 4711,
        "gid": 4712,
        "quota_percent": 25,
        "ceiling_bytes": 20 << 30,
        "environ": ("PATH", "LC_*"),
        "evidence_budget_usec": 250_000,
        "modules_max_bytes": 5 << 20,
        "rlimit_core": "honour",
        "jobs": 3,
        "include": ("/usr/*", "unit:a@*.service"),
        "exclude": ("uid:12",),
        "core_max_bytes": 2 << 30,
        "redact_names": ("*A*",),
        "redact_values": ("x-*",),
        "limit_exe": (7, 7_200_000_000),
        "limit_unit": (0, 3_600_000_000),
        "limit_user": (1, 1_000_000),
    }
    assert known.owner() == (0o640, 4711, 4712)
    assert compiled.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in compiled.parent.iterdir()] == ["archive.settings"]


def test_the_built_in_defaults_are_the_tables(tmp_path: Path) -> None:
    known, problem = read(tmp_path / "x", settings.compile(settings.load(search=[])))
    assert problem == ""
    defaults = as_dict(ArchiveSettings())
    assert (defaults.pop("uid"), defaults.pop("gid")) == (-1, -1)
    del known["uid"], known["gid"]  # coresnap's own, where its user exists
    assert known == defaults


def test_every_name_of_the_compiled_file_is_read() -> None:
    lines = settings.compile(settings.Settings()).decode().splitlines()
    assert lines[0] == flat.HEADER
    assert sorted(line.partition("\t")[0] for line in lines[1:]) == sorted(ArchiveSettings.__slots__)


def test_without_a_file(tmp_path: Path) -> None:
    path = str(tmp_path / "none" / "archive.settings")
    known, problem = flat.read(path)
    assert problem == f"no compiled settings at {path}: built-in defaults"
    assert as_dict(known) == as_dict(ArchiveSettings())


def test_names_of_another_version_do_not_hide_where_the_spool_is(tmp_path: Path) -> None:
    known, problem = read(tmp_path / "x", b"coresnap-settings 1\nroot\t/srv\nlater\t7\n\n")
    assert (known["root"], problem) == ("/srv", "")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "the first line is not `coresnap-settings 1`"),
        (b"\0" * 4096, "the first line is not `coresnap-settings 1`"),
        (b"coresnap-settings 1", "the first line is not `coresnap-settings 1`"),
        (b"coresnap-settings 2\nroot\t/srv\n", "the first line is not `coresnap-settings 1`"),
        (b"coresnap-settings 1\nroot\t/srv\nquota_percent\t1", "the last line is cut short"),
        (b"coresnap-settings 1\nroot\tsrv\n", "root: not an absolute path"),
        (b"coresnap-settings 1\nroot\t/\0\n", "root: not an absolute path"),
        (b"coresnap-settings 1\nroot\n", "root: not an absolute path"),
        (b"coresnap-settings 1\nmode\t1000\n", "mode: not a number from 384 to 511"),
        (b"coresnap-settings 1\nuid\t-2\n", "uid: not a number from -1 to 4294967294"),
        (b"coresnap-settings 1\nuid\t--1\n", "uid: not a number from -1 to 4294967294"),
        (b"coresnap-settings 1\nquota_percent\t1_0\n", "quota_percent: not a number from 0 to 100"),
        (b"coresnap-settings 1\nceiling_bytes\t" + b"9" * 9999 + b"\n", "ceiling_bytes: not a number from 0 to "),
        (b"coresnap-settings 1\nquota_percent\t\xd9\xa3\n", "quota_percent: not a number from 0 to 100"),
        (b"coresnap-settings 1\nroot\t/\xff\n", "'utf-8' codec can't decode"),
        (b"coresnap-settings 1\n" + b"x" * 70000 + b"\n", "more than 65536 bytes"),
    ],
)
def test_a_broken_file_gives_the_defaults_and_one_line(tmp_path: Path, content: bytes, why: str) -> None:
    known, problem = read(tmp_path / "x", content)
    assert known == as_dict(ArchiveSettings())
    assert problem.startswith(f"compiled settings at PATH: {why}")
    assert problem.endswith(": built-in defaults")
    assert "\n" not in problem


def test_what_is_no_file_of_ours(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    (tmp_path / "link").symlink_to("fifo")
    (tmp_path / "open").write_bytes(settings.compile(settings.Settings()))
    (tmp_path / "open").chmod(0o666)
    for name, why in (
        (".", "not a regular file"),
        ("fifo", "not a regular file"),
        ("link", "Too many levels of symbolic links"),
        ("open", "others can write it"),
        ("open/below", "Not a directory"),
        ("nul\0", "embedded null byte"),
    ):
        _known, problem = flat.read(f"{tmp_path}/{name}")
        assert why in problem


def test_reading_imports_nothing_but_os() -> None:
    program = (
        "import sys, os; sys.path.insert(0, sys.argv[1]); before = set(sys.modules)\n"
        "from coresnap.ground import flat; flat.read('/nonexistent')\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    root = str(Path(__file__).parents[2])
    result = subprocess.run(
        [sys.executable, "-IS", "-c", program, root], check=True, capture_output=True, text=True, timeout=30
    )
    assert result.stdout.split() == ["coresnap", "coresnap.ground", "coresnap.ground.flat"]
