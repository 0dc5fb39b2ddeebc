# SPDX-License-Identifier: Apache-2.0
"""Settings: one table (table), and what derives from it: load, compile, render, schema."""

from coresnap.ground.settings.compiled import archive_settings, compile, write_compiled  # noqa: A004  # settings.compile reads well
from coresnap.ground.settings.load import SEARCH, Settings, examine, load
from coresnap.ground.settings.rules import Rule

__all__ = ["SEARCH", "Rule", "Settings", "archive_settings", "compile", "examine", "load", "write_compiled"]
