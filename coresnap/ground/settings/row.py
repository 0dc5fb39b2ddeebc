# SPDX-License-Identifier: Apache-2.0
"""A row of the table of settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coresnap.ground.settings.kinds import Kind

K, M, G, T = 1 << 10, 1 << 20, 1 << 30, 1 << 40
#: In microseconds.
SECOND, MINUTE, HOUR, DAY = 1_000_000, 60_000_000, 3_600_000_000, 86_400_000_000


@dataclass(frozen=True)
class Setting:
    """One row. The first sentence of `doc` is its summary; `archive` is its name in the compiled settings, if any."""

    name: str
    kind: Kind
    default: str
    section: str
    doc: str
    archive: str = ""


def row(name: str, kind: Kind, default: str, section: str, doc: str, *, archive: str = "") -> Any:
    """Declare a setting as the field of a dataclass; white space in `default` and `doc` is folded."""
    setting = Setting(name, kind, " ".join(default.split()), section, " ".join(doc.split()), archive)
    return field(default=kind.parse(default), metadata={"setting": setting})
