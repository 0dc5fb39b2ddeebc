# SPDX-License-Identifier: Apache-2.0
"""Other crash collectors: which one a core_pattern belongs to, and which of them cannot be beside coresnap.

systemd-coredump can: it takes its core_pattern when its units start and leaves it alone then. The services of apport and
abrt write theirs whenever they are started, so an administrator has to choose.
"""

from __future__ import annotations

from dataclasses import dataclass

from coresnap.ground.errors import Refused


@dataclass(frozen=True)
class Rival:
    """A collector: by which words its core_pattern is known, and the commands that take it out of the way, if it has to go."""

    name: str
    words: tuple[str, ...]
    remedy: str = ""


RIVALS = (
    Rival("systemd-coredump", ("systemd-coredump", "/run/systemd/coredump")),
    Rival(
        "apport",
        ("/apport",),
        'service apport stop; echo "enabled=0" > /etc/default/apport   (or: apt-get purge apport)',
    ),
    Rival("abrt", ("/abrt",), "systemctl disable --now abrtd.service abrt-ccpp.service"),
)


def owner_of(pattern: str) -> Rival | None:
    """Return the collector that a core_pattern gives the cores to, as far as it is known."""
    for rival in RIVALS:
        if any(word in pattern for word in rival.words):
            return rival
    return None


def refuse_rivals(pattern: str) -> None:
    """Raise Refused where the collector in force would take core_pattern back again, and say how it is disabled."""
    rival = owner_of(pattern)
    if rival is not None and rival.remedy:
        raise Refused(f"{rival.name} has core_pattern: `{pattern}`", hint=f"disable it first: {rival.remedy}")
