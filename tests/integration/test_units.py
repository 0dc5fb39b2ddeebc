# SPDX-License-Identifier: Apache-2.0
"""The units as `make install` leaves them: systemd finds nothing wrong with them, and little that is open."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.site import REPOSITORY

#: systemd's own measure, from 0 to 10; coresnapd.service has none, and says why.
_EXPOSURE = {
    "coresnap-process@.service": 0.8,
    "coresnap-archive.service": 1.5,
    "coresnap-send@.service": 1.5,
    "coresnap-processor.service": 1.2,
    "coresnap-sender.service": 1.2,
    "coresnap-purge.service": 1.2,
    "coresnap-metrics.service": 1.2,
    "coresnap-query@.service": 1.2,
    "coresnap-hooks.service": 1.2,
    "coresnap-hook@.service": 1.5,
    "coresnap-symbols.service": 1.5,
    "coresnap-symbols-wanted.service": 1.2,
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install into a directory, with the few commands of the system's that units call."""
    root = tmp_path_factory.mktemp("root")
    subprocess.run(["make", "-s", "install", f"DESTDIR={root}", "PREFIX=/usr"], cwd=REPOSITORY, check=True)
    (root / "bin").mkdir()
    for name in ("sh", "kill", "systemctl"):
        (root / "bin" / name).touch(0o755)
    return root


def _units(root: Path) -> list[Path]:
    return sorted((root / "usr/lib/systemd/system").iterdir())


def test_systemd_finds_nothing_wrong(installed: Path) -> None:
    argv = ["systemd-analyze", "verify", f"--root={installed}", "--man=no", "--recursive-errors=no"]
    done = subprocess.run([*argv, *_units(installed)], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout + done.stderr == ""
    assert done.returncode == 0


def test_a_unit_that_is_wrong_is_found(installed: Path) -> None:
    wrong = installed / "usr/lib/systemd/system/wrong.service"
    wrong.write_text("[Service]\nExecStart=/usr/lib/coresnap/capture\nKillMood=mixed\n")
    argv = ["systemd-analyze", "verify", f"--root={installed}", "--man=no", str(wrong)]
    try:
        assert "KillMood" in subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120).stderr
    finally:
        wrong.unlink()


@pytest.mark.parametrize("unit", _EXPOSURE)
def test_little_is_open(installed: Path, unit: str) -> None:
    argv = ["systemd-analyze", "security", "--offline=true", "--no-pager", f"--root={installed}", unit]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120)
    found = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found, done.stdout
    assert float(found[1]) <= _EXPOSURE[unit], done.stdout


def test_every_service_is_measured_or_says_why_not(installed: Path) -> None:
    root = {"coresnapd.service", "coresnap-early.service", "coresnap-fallback.service", "coresnap-rescue.service"}
    services = {path.name for path in _units(installed) if path.suffix == ".service"}
    assert services == root | _EXPOSURE.keys()
    assert "No sandbox" in (installed / "usr/lib/systemd/system/coresnapd.service").read_text()


def test_no_placeholder_is_left(installed: Path) -> None:
    assert not [path.name for path in _units(installed) if "@PREFIX@" in path.read_text()]
