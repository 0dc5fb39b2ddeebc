# SPDX-License-Identifier: Apache-2.0
"""The table of settings. Parser, schema, compiled settings, sample, manual page and `coresnap config` derive from it.

A row is a field of Values: its attribute is the setting's name with `_` for `.`, and the unit of the value at its end.
The rows stand in capture_rows, snapshot_rows, delivery_rows and hook_rows, the way that a dump goes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import TYPE_CHECKING

from coresnap.ground.settings.hook_rows import HookValues

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coresnap.ground.settings.row import Setting


@dataclass(frozen=True)
class Values(HookValues):
    """The settings' values."""


#: The rows by attribute, in order.
TABLE: Mapping[str, Setting] = MappingProxyType({row.name: row.metadata["setting"] for row in fields(Values)})
#: The attributes by the setting's name.
ATTRIBUTES: Mapping[str, str] = MappingProxyType({setting.name: name for name, setting in TABLE.items()})
