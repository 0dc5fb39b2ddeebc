# SPDX-License-Identifier: Apache-2.0
"""The manual pages of the programs, from their own help. `python3 -m coresnap.cli.manual` writes them anew."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator

from coresnap.cli import COMMANDS, command_parser, main_parser

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DIRECTORY = os.path.join(os.path.dirname(_PACKAGE), "docs", "man")
#: Pages made of a program's docstring: name and section, and the module.
_PROGRAMS = {
    ("archive", 8): "archive",
    ("coresnapd", 8): "daemon",
    ("coresnap-capture", 8): "capture_service",
    ("coresnap-snapshot", 1): "take_snapshot",
}
_COLUMNS = "78"


def pages() -> dict[str, str]:
    """Return each page by the name of its file."""
    found = {"coresnap.1": _coresnap()}
    for (name, section), module in _PROGRAMS.items():
        found[f"{name}.{section}"] = "\n".join(_program(name, section, module)) + "\n"
    return found


def _program(name: str, section: int, module: str) -> Iterator[str]:
    """Yield the lines of a page made of a docstring: NAME - what it does, then sections under titles in capitals."""
    with open(os.path.join(_PACKAGE, f"{module}.py"), encoding="utf-8") as file:
        text = ast.get_docstring(ast.parse(file.read())) or ""
    summary, _blank, rest = text.partition("\n")
    yield '.\\" SPDX-License-Identifier: Apache-2.0'
    yield f'.\\" Written by python3 -m coresnap.cli.manual from coresnap/{module}.py.'
    manual = "System Administration" if section == 8 else "User Commands"
    title = name.upper().replace("-", "\\-")
    yield f'.TH {title} {section} "" coresnap "{manual}"'
    yield ".SH NAME"
    yield summary.replace("-", "\\-")
    body: list[str] = []
    for line in [*rest.strip("\n").split("\n"), "SEE ALSO"]:
        if not line or line.startswith(" "):
            body.append(line.removeprefix("    "))
            continue
        if body:
            yield from _verbatim("\n".join(body))
        yield f".SH {line}"
        body = []
    yield ".BR coresnap (1),"
    yield ".BR coresnap.conf (5),"
    yield ".BR core (5)"


def _coresnap() -> str:
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
    lines += [".SH SEE ALSO", ".BR archive (8),", ".BR coresnapd (8),", ".BR coresnap\\-snapshot (1),"]
    lines += [".BR coresnap.conf (5),", ".BR core (5),", ".BR gdb (1)"]
    return "\n".join(lines) + "\n"


def _verbatim(text: str) -> list[str]:
    return [".nf", *map(_escaped, text.rstrip("\n").split("\n")), ".fi"]


def _escaped(line: str) -> str:
    escaped = line.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + escaped if escaped.startswith((".", "'")) else escaped


def main() -> None:
    """Write the pages to their place in the source tree."""
    for name, text in pages().items():
        with open(os.path.join(DIRECTORY, name), "w", encoding="utf-8") as file:
            file.write(text)


if __name__ == "__main__":
    main()
