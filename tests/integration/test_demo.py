# SPDX-License-Identifier: Apache-2.0
"""What the demo leaves to be looked at is there, and the command that it names works."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.support.site import REPOSITORY


def test_what_the_demo_names_is_kept(tmp_path: Path) -> None:
    program = "import sys, pathlib, tests.demo as demo; sys.exit(demo.main(pathlib.Path(sys.argv[1])))"
    for _turn in range(2):  # the second one clears what the first has left
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "demo")],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
    (named,) = re.findall(r"^Look around: (.*)$", done.stdout, re.MULTILINE)
    looked = subprocess.run(shlex.split(named), cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert looked.returncode == 0, looked.stderr
    assert "committed/" in looked.stdout
