# SPDX-License-Identifier: Apache-2.0
"""The manual page coresnap(1), from the commands' own help. `python3 -m coresnap.cli.manual` writes it anew."""

from __future__ import annotations

import os

from coresnap.cli import COMMANDS, command_parser, main_parser

PATH = os.path.join(
    os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "docs", "man", "coresnap.1"
)
_COLUMNS = "78"


def manual() -> str:
    """Return the page."""
    os.environ["COLUMNS"] = _COLUMNS  # argparse fills its lines up to there
    lines = [
        '.\\" SPDX-License-Identifier: Apache-2.0',
        '.\\" Written by python3 -m coresnap.cli.manual from the help of the commands.',
        '.TH CORESNAP 1 "" coresnap "User Commands"',
        ".SH NAME",
        r"coresnap \- look after core dumps",
        ".SH DESCRIPTION",
        *_verbatim(main_parser().format_help()),
        ".SH COMMANDS",
    ]
    for name in COMMANDS:
        lines += [f".SS coresnap {name}", *_verbatim(command_parser(name).format_help())]
    lines += [".SH SEE ALSO", ".BR coresnap.conf (5),", ".BR core (5),", ".BR gdb (1)"]
    return "\n".join(lines) + "\n"


def _verbatim(text: str) -> list[str]:
    return [".nf", *map(_escaped, text.rstrip("\n").split("\n")), ".fi"]


def _escaped(line: str) -> str:
    escaped = line.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + escaped if escaped.startswith((".", "'")) else escaped


def main() -> None:
    """Write the page to its place in the source tree."""
    with open(PATH, "w", encoding="utf-8") as file:
        file.write(manual())


if __name__ == "__main__":
    main()
