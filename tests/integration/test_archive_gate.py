# SPDX-License-Identifier: Apache-2.0
"""archive.sh: in a storm of crashes few archives at a time have an interpreter, and no other waits for ever."""

from __future__ import annotations

import fcntl
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).parents[2]
_STORM, _CALM = "9.00 5.00 1.00 31/400 4711\n", "0.10 0.10 0.10 2/400 4711\n"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Return archive.sh as it is installed, but for where its gates and the machine's load are."""
    script = (_REPOSITORY / "coresnap" / "archive.sh").read_text()
    for there, here in (("run=/run/coresnap\n", f"run={tmp_path}\n"), ("/proc/loadavg", f"{tmp_path}/loadavg")):
        assert there in script
        script = script.replace(there, here)
    path = tmp_path / "archive"
    path.write_text(script)
    path.chmod(0o755)
    (tmp_path / "python").symlink_to(_REPOSITORY)
    (tmp_path / "gate.p").touch()
    return path


@contextmanager
def _started(archive: Path) -> Iterator[subprocess.Popen[str]]:
    """Start archive; the last character of --help chooses its gate, as the last digit of a pid does."""
    with subprocess.Popen([archive, "--help"], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_in_a_storm_it_waits_until_another_has_gone_in(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "loadavg").write_text(_STORM)
    with (tmp_path / "gate.p").open() as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        with _started(archive) as process:
            assert process.stdout is not None
            assert not select.select([process.stdout], [], [], 0.5)[0]
            fcntl.flock(gate, fcntl.LOCK_UN)
            assert process.stdout.read().startswith("archive - ")
            assert process.wait() == 0


@pytest.mark.parametrize(("load", "gate"), [(_CALM, True), (_STORM, False), ("", True)])
def test_else_it_does_not_wait(archive: Path, tmp_path: Path, load: str, gate: bool) -> None:
    (tmp_path / "loadavg").write_text(load)
    with (tmp_path / "gate.p").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not gate:
            (tmp_path / "gate.p").unlink()
        with _started(archive) as process:
            assert process.stdout is not None
            assert process.stdout.read().startswith("archive - ")
            assert process.wait() == 0


def test_its_arguments_are_passed_as_they_are(archive: Path, tmp_path: Path) -> None:
    """The kernel gives it the executable's path, in which there may be anything."""
    (tmp_path / "loadavg").write_text(_CALM)
    done = subprocess.run(
        [archive, "--a b*$(id)"], check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "--a b*$(id): unknown option" in done.stderr
