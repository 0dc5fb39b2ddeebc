# SPDX-License-Identifier: Apache-2.0
"""What every file of the repository has, and has not."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).parents[2]
_NO_COMMENTS = {".json", ""}
_WITHOUT = {"LICENSE", ".gitignore"}


def _tracked() -> list[Path]:
    argv = [
        "git",
        "-c",
        f"safe.directory={_REPOSITORY}",
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    if shutil.which("git") is None or not (_REPOSITORY / ".git").exists():
        return [path for path in _REPOSITORY.rglob("*.py") if "build" not in path.parts]
    names = subprocess.run(argv, cwd=_REPOSITORY, capture_output=True, text=True, check=True).stdout
    return [_REPOSITORY / name for name in names.split("\0") if name and (_REPOSITORY / name).is_file()]


def test_every_file_says_its_licence() -> None:
    missing = []
    for path in _tracked():
        if path.name in _WITHOUT or path.suffix == ".json":
            continue
        head = "\n".join(path.read_text().splitlines()[:4])
        if "SPDX-License-Identifier: Apache-2.0" not in head:
            missing.append(str(path))
    assert not missing


def test_no_path_of_a_private_machine() -> None:
    pattern = re.compile(r"(^|[^a-z.])/(work|farm)/")
    found = [
        f"{path}:{number}"
        for path in _tracked()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line) and path != Path(__file__)
    ]
    assert not found


@pytest.mark.parametrize("name", ["coresnap/archive.sh", "tools/need", "tools/copy-package", ".ci/run"])
def test_scripts_are_executable(name: str) -> None:
    assert (_REPOSITORY / name).stat().st_mode & 0o111


def test_what_is_installed_runs(tmp_path: Path) -> None:
    """Every program finds its package where it was installed, from any directory, with no help of the environment."""
    argv = ["make", "install", f"DESTDIR={tmp_path}", "PREFIX=/usr/local"]
    subprocess.run(argv, cwd=_REPOSITORY, check=True, capture_output=True)
    installed = tmp_path / "usr" / "local"
    for program in ("bin/coresnap", "bin/coresnap-snapshot", "sbin/coresnapd", "lib/coresnap/archive"):
        done = subprocess.run(
            [installed / program, "--help"], cwd="/", env={}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert program.rpartition("/")[2] in done.stdout


def test_archive_is_executable_and_isolated() -> None:
    archive = _REPOSITORY / "coresnap" / "archive.py"
    assert archive.stat().st_mode & 0o111
    assert archive.read_text().splitlines()[0] == "#!/usr/bin/python3 -IS"
