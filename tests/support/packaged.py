# SPDX-License-Identifier: Apache-2.0
"""A crash program with a package note, linked in as distributions do: the section .note.package."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

PACKAGE = {"type": "deb", "name": "crash", "version": "1.2-3", "architecture": "amd64"}
_SOURCE = Path(__file__).parents[1] / "crash" / "programs" / "crash.c"


def build(directory: Path) -> Path:
    """Build the program."""
    text = json.dumps(PACKAGE).replace('"', '\\"')
    note, program = directory / "note.s", directory / "packaged"
    note.write_text(
        f'.section .note.package,"a",%note\n.balign 4\n.long 4, 2f - 1f, 0xcafe1a7e\n.asciz "FDO"\n1: .asciz "{text}"\n'
        '2: .balign 4\n.section .note.GNU-stack,"",%progbits\n'
    )
    subprocess.run(["gcc", "-pthread", "-o", program, _SOURCE, note], check=True)
    return program
