# SPDX-License-Identifier: Apache-2.0
"""Render the table for people: the sample coresnap.conf and the manual page coresnap.conf(5).

`python3 -m coresnap.ground.settings.render` writes both where the repository keeps them.
"""

from __future__ import annotations

import itertools
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from coresnap.ground import formats
from coresnap.ground.settings.load import FILE_NAME, SEARCH
from coresnap.ground.settings.row import Setting
from coresnap.ground.settings.table import TABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLE = Path(__file__).with_name(FILE_NAME)
MANUAL = Path(__file__).parents[3] / "docs" / "man" / f"{FILE_NAME}.5"
_SECTIONS = {
    "dump": "The spool",
    "archive": "Taking cores",
    "limit": "Limits before capture",
    "redact": "Secrets in command lines, environments and messages",
    "snapshot": "Making snapshots",
    "symbols": "Debug files",
    "format": "Choosing projects",
    "daemon": "Retention",
    "send": "Delivery",
    "store": "The file: store",
    "on": "Hooks",
}
_INTRODUCTION = f"""
Looked for in {", ".join(SEARCH[:-1])} and {SEARCH[-1]}, in this order: the first {FILE_NAME} found counts whole, and
nothing of the others. The files {FILE_NAME}.d/*.conf beside it follow in lexical order, each over what came before.
Where there is no file, the built-in defaults hold.
"""
_SYNTAX = """
A line is `NAME = VALUE`. A line that begins with # or ; is a comment. Section headers in brackets may stand anywhere
and have no meaning. Only format.N may be repeated in a file. Sizes take K, M, G or T, powers of 1024; times take us,
ms, s, min, h, d or w, and are seconds without.
"""
_COMMANDS = """
A command is split into words first, as a shell splits them, and run without a shell; then the formats in its words are
replaced, so that no file name can become two words:
"""


def _by_section() -> Iterator[tuple[str, list[Setting]]]:
    for section, settings in itertools.groupby(TABLE.values(), lambda setting: setting.section):
        yield section, list(settings)


def sample() -> str:
    """Return the configuration file with every setting explained, and commented out at its default."""
    parts = [
        "# SPDX-License-Identifier: Apache-2.0",
        "# Settings of coresnap. Made from the table of settings: change a copy of it.",
        "#",
        *_comment(_INTRODUCTION + _SYNTAX),
        *_comment(
            "`coresnap config --check FILE` tells what is wrong with a file, `coresnap config` what is in force."
        ),
        "#",
        *_comment(_COMMANDS),
        *(f"#   %{letter}  {meaning}" for letter, meaning in formats.MEANINGS.items()),
    ]
    for section, settings in _by_section():
        parts += ["", "", f"# {_SECTIONS[section]}", f"[{section}]"]
        for setting in settings:
            allowed = f"Allowed: {setting.kind.allowed()}."
            default = f"# {setting.name} = {setting.default}".rstrip()
            parts += ["", *_comment(setting.doc), *_comment(allowed), default]
    return "\n".join(parts) + "\n"


def _comment(text: str) -> list[str]:
    filled = textwrap.wrap(" ".join(text.split()), 98, break_long_words=False, break_on_hyphens=False)
    return [f"# {line}" for line in filled]


def manual() -> str:
    """Return the manual page, as man(7) has it."""
    parts = [
        '.\\" SPDX-License-Identifier: Apache-2.0',
        '.\\" Made from the table of settings.',
        '.TH CORESNAP.CONF 5 "" coresnap "File formats"',
        ".nh",
        ".SH NAME",
        "coresnap.conf \\- settings of coresnap",
        ".SH SYNOPSIS",
        *itertools.chain.from_iterable((".br", f".I {_roff(directory)}/{FILE_NAME}") for directory in SEARCH),
        ".SH DESCRIPTION",
        _roff(_INTRODUCTION),
        ".PP",
        _roff(_SYNTAX),
    ]
    for section, settings in _by_section():
        parts.append(f'.SH "{_SECTIONS[section].upper()}"')
        for setting in settings:
            parts += [".TP", f".BR {_roff(setting.name)}", *_entry(setting)]
    parts += [".SH FORMATS", _roff(_COMMANDS)]
    for letter, meaning in formats.MEANINGS.items():
        parts += [".TP", f".B %{letter}", _roff(meaning)]
    parts += [".SH SEE ALSO", ".BR core (5)"]
    return "\n".join(parts) + "\n"


def _entry(setting: Setting) -> list[str]:
    return [
        _roff(setting.doc),
        ".br",
        _roff(f"Allowed: {setting.kind.allowed()}."),
        ".br",
        _roff(f"Default: {setting.default or 'nothing'}"),
    ]


def _roff(text: str) -> str:
    """Return the text as one line that roff takes for text."""
    escaped = " ".join(text.split()).replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga")
    return f"\\&{escaped}" if escaped[:1] in (".", "'") else escaped


def main() -> None:
    """Write the sample and the manual page."""
    SAMPLE.write_text(sample(), encoding="utf-8")
    MANUAL.parent.mkdir(parents=True, exist_ok=True)
    MANUAL.write_text(manual(), encoding="utf-8")


if __name__ == "__main__":
    main()
