# SPDX-License-Identifier: Apache-2.0
"""Which project a crash belongs to: the rules, and `coresnap route`, which says what they make of an executable."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from coresnap.ground import settings
from tests.support import spools
from tests.support.deliveries import TOKEN

REPOSITORY = Path(__file__).resolve().parents[2]
RULES = (r"format.2 = \1 %e ^(web|db)-", r"format.3 = team-\1.\2 %e ^svc_([^_]*)(?:_(.*))?$", "format.1 = blackhole")


def _route(directory: Path, *arguments: str, rules: tuple[str, ...] = RULES) -> subprocess.CompletedProcess[str]:
    made = spools.make(
        directory, f"send.coroner = {directory}/coroner.cf", f"send.store = file:{directory}/store", *rules
    )
    argv = [sys.executable, "-m", "coresnap.cli", "route", *arguments, "--settings", str(made.configuration)]
    return subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def _project(directory: Path, exe: str) -> Any:
    [route] = json.loads(_route(directory, exe, "--json").stdout)
    return route["project"], route["rule"]["number"], route["named"]


@pytest.mark.parametrize(
    ("exe", "project"),
    [
        ("/opt/web-shop", ("web", 2, True)),
        ("db-1", ("db", 2, True)),
        ("xweb-", ("blackhole", 1, True)),
        ("svc_a_b", ("team-a.b", 3, True)),
        ("svc_a", ("team-a.", 3, True)),
        ("svc_a_\x1b[31m", ("blackhole", 3, False)),
        ("svc_" + "x" * 60, ("blackhole", 3, False)),
        ("svc_..", ("team-...", 3, True)),
        ("svc_a b", ("blackhole", 3, False)),
    ],
)
def test_groups_make_a_name_or_the_default_counts(tmp_path: Path, exe: str, project: tuple[str, int, bool]) -> None:
    assert _project(tmp_path, exe) == project


@pytest.mark.parametrize("name", ["..", ".hidden", "-x", "a/b", ""])
def test_a_group_alone_makes_no_name_that_is_not_one(tmp_path: Path, name: str) -> None:
    made = spools.make(tmp_path, r"format.2 = \1 %e ^x=(.*)$")
    assert settings.load(made.configuration).format_for(f"x={name}")[0] == "blackhole"


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (r"\2 %e ^(a)", "stands for a group, and the regular expression has 1"),
        (r"\1", "and there is none"),
        (r"\0 %e (a)", "not the name of a project"),
        (r"\10 %e (a)", ""),
    ],
)
def test_a_group_has_to_be_there(tmp_path: Path, rule: str, said: str) -> None:
    done = _route(tmp_path, "x", rules=(f"format.1 = {rule}",))
    assert (done.returncode, said in done.stderr) == ((78, True) if said else (0, True)), done


def test_people_are_told_all_of_it(tmp_path: Path) -> None:
    done = _route(tmp_path, "/usr/bin/web-shop")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "executable: web-shop",
        "   project: web",
        rf"        by: format.2 = \1 %e ^(web|db)- ({tmp_path}/coresnap.conf:7)",
        f"     store: file:{tmp_path}/store",
    ]


def test_whether_there_is_a_token_is_told_and_not_the_token(tmp_path: Path) -> None:
    coroner = tmp_path / "coroner.cf"
    coroner.write_text(f"[universe]\nname = u\nwrite = https://localhost:6098\n[token]\nweb = {TOKEN}\n")
    coroner.chmod(0o600)
    done = _route(tmp_path, "web-1", "db-1")
    assert done.returncode == 75, "one of them would wait"
    assert "there is one for web" in done.stdout
    assert f"{coroner} has no token for db: reports would wait until it has" in done.stdout
    told = json.loads(_route(tmp_path, "web-1", "db-1", "--json").stdout)
    assert [(route["token"], bool(route["problem"])) for route in told] == [(True, False), (False, True)]
    assert TOKEN not in done.stdout + done.stderr + json.dumps(told)
    coroner.write_text(TOKEN)
    broken = _route(tmp_path, "web-1")
    assert broken.returncode == 75
    assert TOKEN not in broken.stdout + broken.stderr
