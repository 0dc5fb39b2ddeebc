# SPDX-License-Identifier: Apache-2.0
"""Two hundred concurrent captures under a quota: never over, and each crash is kept or explained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash import build, crash

_STORM = Path(__file__).parents[1] / "support" / "storm.py"
_COUNT, _PERCENT = 200, 20


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A core of some megabytes."""
    path = tmp_path_factory.mktemp("storm") / "core"
    with crash([build("crash"), "segv", "2", "8"]) as crashed:
        path.write_bytes(crashed.core.read_bytes())
    return path


@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
def test_storm(tmp_path: Path, core: Path, kind: str) -> None:
    mountpoint = tmp_path / "small"
    mountpoint.mkdir()
    if kind == "ext4":
        if os.getuid() != 0:
            pytest.skip("only root may mount an ext4 image")
        image = tmp_path / "image"
        subprocess.run(["truncate", "-s", "256M", image], check=True)
        subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-m", "0", image], check=True)
        mount = f"mount -o loop {image} {mountpoint}"
    else:
        mount = f"mount -t tmpfs -o size=256m small {mountpoint}"
    # The mount is in a name space of its own and goes with it: nothing of the machine changes.
    inner = f"{mount} && exec {sys.executable} {_STORM} {mountpoint} {core} {_COUNT} {_PERCENT}"
    unshare = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--user", "--map-root-user"]), "sh", "-c", inner]
    done = subprocess.run(unshare, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["elsewhere"] == 0, result
    assert result["kept"] + sum(result["ledger"].values()) == _COUNT, result
    assert set(result["ledger"]) == {"quota"}, result
    assert result["statuses"] == {"0": result["kept"], "75": _COUNT - result["kept"]}, result
    assert result["least_free_percent"] >= _PERCENT, result
    # The quota refuses what does not fit, not everything: of some 45 that fit, most have to be there.
    assert result["kept"] >= 20, result
    print(result)
