# SPDX-License-Identifier: Apache-2.0
"""A dump's core in the debugger, opened by coredumpctl and by coresnap."""

from __future__ import annotations

import re

from tests.system.booted import Booted


def frames(guest: Booted, uuid: str) -> list[str]:
    """Return gdb's stack of a dump that died of SIGSEGV and whose core is compressed, the same from both commands."""
    assert "core.zst" in guest.run("ls", f"/var/lib/coresnap/committed/{uuid}").stdout.split()
    match = f"COREDUMP_FILENAME=/var/lib/coresnap/by-uuid/{uuid}.core.zst"
    theirs = guest.sh(f"coredumpctl debug --debugger-arguments='-batch -ex bt' {match} 2>/dev/null", seconds=300).stdout
    ours = guest.sh(f"coresnap debug {uuid[:8]} -- -batch -ex bt 2>/dev/null", seconds=300).stdout
    for said in (theirs, ours):
        assert "Program terminated with signal SIGSEGV" in said
    both = [[line for line in said.splitlines() if re.match(r"#\d+ ", line)] for said in (theirs, ours)]
    assert both[0] == both[1]
    return both[0]
