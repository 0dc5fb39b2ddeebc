# SPDX-License-Identifier: Apache-2.0
"""Where the kernel sends its cores: core_pattern, core(5)."""

from __future__ import annotations

from coresnap.ground.text import printable
from coresnap.host.pattern import is_ours

_CORE_PATTERN = "/proc/sys/kernel/core_pattern"
REMEDY = "the kernel's cores go elsewhere; archive(8) has the line to write there"


def core_pattern() -> tuple[str, bool]:
    """Return core_pattern, and whether it gives the cores to coresnap; an empty one where it cannot be read."""
    try:
        with open(_CORE_PATTERN, encoding="utf-8", errors="replace") as file:
            pattern = file.read(4096).removesuffix("\n")
    except OSError:
        return "", False
    return pattern, is_ours(pattern)


def cores_go_where() -> str:
    """Say whether cores come to coresnap, and what it means where one has not."""
    pattern, ours = core_pattern()
    if ours:
        return (
            "no core of it has come: it may not have crashed, or caught the signal, or the kernel skipped it,"
            " which `journalctl -k` tells"
        )
    if not pattern:
        return f"{_CORE_PATTERN} cannot be read, so whether cores come to coresnap is not known"
    return f"cores do not come to coresnap: core_pattern is `{printable(pattern, 200)}`; archive(8) has its own"
