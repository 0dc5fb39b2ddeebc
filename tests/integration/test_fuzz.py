# SPDX-License-Identifier: Apache-2.0
"""A hundred mutated crashes; `make proof` takes ten thousand."""

from __future__ import annotations

import json
import re
import resource
import subprocess
from pathlib import Path

import pytest

from coresnap import take_snapshot
from tests.corpus import fuzz
from tests.corpus.material import Material
from tests.crash import REPOSITORY

pytestmark = pytest.mark.walk

_SEED = "20261126"


def test_a_hundred_rounds() -> None:
    """In a process of its own: what this one has in memory is its children's, too."""
    argv = ["/usr/bin/python3", "tests/corpus/fuzz.py", "--count", "100", "--seed", _SEED]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "100 rounds, 0 wrong" in done.stdout
    assert re.search(r"ended \d+ with 0, \d+ with 65", done.stdout)


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("raise ValueError('unexpected')", "Traceback"),
        ("import time; time.sleep(60)", "it took more than"),
        ("b'x' * (300 << 20)", " MB"),
        ("print('a stray line')", "it says"),
        ("return 75", "status 75"),
        ("open(arguments[1], 'w').write('{')", "no JSON"),
        ("open(arguments[1], 'w').write('{\"threads\": {}}')", "no thread"),
    ],
)
def test_what_is_wrong_is_found(code: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that is as it must not be."""
    program: dict[str, object] = {}
    exec(f"def main(arguments):\n    {code}\n    return 0", program)  # noqa: S102  # that is the case
    monkeypatch.setattr(take_snapshot, "main", program["main"])
    monkeypatch.setattr(fuzz, "SECONDS", 1)
    # What this process has in memory is its children's, too.
    own_bytes = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    monkeypatch.setattr(fuzz, "MEMORY_BYTES", fuzz.MEMORY_BYTES + own_bytes)
    monkeypatch.setattr(fuzz, "_ADDRESS_BYTES", resource.RLIM_INFINITY)
    monkeypatch.setattr(fuzz, "_KEPT", tmp_path / "kept")
    monkeypatch.setattr(fuzz, "gather", lambda directory: [Material("none", [], "")])
    fuzzer = fuzz.Fuzzer(tmp_path, _SEED)
    status, seconds, memory_bytes, said = fuzzer._snapshot(Material("none", [], ""))
    assert wrong in fuzzer._judge(1, status, seconds, memory_bytes, said, core_too=True)


def test_a_report_is_held_against_its_schema() -> None:
    report = json.dumps({"threads": {"1": {}}}).encode()
    assert "required" in fuzz._fault_of(report, 0)
    assert not fuzz._fault_of(report, 1)
