# SPDX-License-Identifier: Apache-2.0
"""The JSON schema of the settings, and validation by it.

jsonschema takes longer to import than Python takes to start, and the stage owners run without packages: so the parser
keeps the table's limits by itself, and what `coresnap config` prints, checks or compiles passes the schema besides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jsonschema import Draft202012Validator

from coresnap.ground.errors import BadSettings
from coresnap.ground.settings.table import TABLE
from coresnap.ground.text import printable

if TYPE_CHECKING:
    from coresnap.ground.settings.load import Settings


def schema() -> dict[str, Any]:
    """Return the schema of Settings.document()."""
    properties = {
        "format" if name == "formats" else setting.name: {"description": setting.doc, **setting.kind.schema()}
        for name, setting in TABLE.items()
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "coresnap's settings",
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def validate(settings: Settings) -> list[BadSettings]:
    """Return what of the settings the schema does not allow."""
    return [
        BadSettings(f"{'/'.join(map(str, error.absolute_path)) or 'settings'}: {printable(error.message, 200)}")
        for error in Draft202012Validator(schema()).iter_errors(settings.document())
    ]
