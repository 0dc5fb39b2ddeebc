# SPDX-License-Identifier: Apache-2.0
"""The message catalog: what it says is what the programs log, both ways round."""

from __future__ import annotations

import re
from pathlib import Path

from coresnap.ground import catalog
from coresnap.ground.log import FIELDS

_PACKAGE = Path(catalog.__file__).parents[1]
_NAMES = {name for name, value in vars(catalog).items() if isinstance(value, catalog.Message)}


def test_it_is_up_to_date() -> None:
    assert catalog.CATALOG.read_text(encoding="utf-8") == catalog.catalog(), "run `make generate`"


def test_every_kind_is_in_it_once_and_is_logged_somewhere() -> None:
    assert len(catalog.MESSAGES) == len(_NAMES) == len({message.id for message in catalog.MESSAGES})
    programs = "\n".join(path.read_text() for path in _PACKAGE.rglob("*.py") if path.name != "catalog.py")
    assert set(re.findall(r"\bcatalog\.([A-Z]+)\b", programs)) == _NAMES


def test_its_ids_are_the_journal_s_and_its_fields_are_declared() -> None:
    for message in catalog.MESSAGES:
        assert re.fullmatch("[0-9a-f]{32}", message.id)
        assert set(re.findall("@([A-Z_]+)@", message.text)) <= FIELDS.keys()
