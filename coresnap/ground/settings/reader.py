# SPDX-License-Identifier: Apache-2.0
"""Read one configuration file into directives, within bounds, every problem with its file and line.

configparser knows neither repeated names, nor names before a section, nor where a value stood. So it is given each
directive with its line number in front, under a section of ours; section headers of the file are checked and dropped.
"""

from __future__ import annotations

import configparser
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coresnap.ground.errors import BadSettings
from coresnap.ground.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_FILE_BYTES = 1 << 20
MAX_LINE_BYTES = 8 << 10
#: So many wrong lines in a file, and the rest is not looked at.
MAX_PROBLEMS = 100
_MAX_NAME = 128
_SECTION = "settings"

#: A line's number and what is wrong with it.
Problem = tuple[int, BadSettings]


@dataclass(frozen=True)
class Directive:
    """`name = value`, as it stands at `file`:`line`."""

    name: str
    value: str
    file: str
    line: int

    @property
    def origin(self) -> str:
        """FILE:LINE."""
        return f"{self.file}:{self.line}"


class _Parser(configparser.RawConfigParser):
    def optionxform(self, optionstr: str) -> str:
        return optionstr


def read(path: str) -> tuple[list[Directive], list[Problem]]:
    """Return the file's directives and what is wrong with its lines. Raises BadSettings where it cannot be read."""
    problems: list[Problem] = []
    parser = _Parser(delimiters=("=",), comment_prefixes=(), strict=True, default_section="")
    parser.read_file(_lines(path, _content(path), problems), source=path)
    directives = []
    for key, value in parser.items(_SECTION):
        line, _space, name = key.partition(" ")
        directives.append(Directive(name, value, path, int(line)))
    return directives, problems


def _content(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise BadSettings(f"{printable(path)}: not a regular file")
            data = os.read(fd, MAX_FILE_BYTES + 1)
        finally:
            os.close(fd)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise BadSettings(f"{printable(path)}: cannot be read: {why}") from None
    if len(data) > MAX_FILE_BYTES:
        raise BadSettings(f"{printable(path)}: a configuration file of more than {MAX_FILE_BYTES} bytes")
    return data


def _lines(path: str, data: bytes, problems: list[Problem]) -> Iterator[str]:
    """Yield for configparser what of the file is a directive; note what is neither that nor comment nor header."""
    yield f"[{_SECTION}]\n"
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        stripped = raw.strip()
        if not stripped or stripped[:1] in b"#;":
            continue
        try:
            text = _line(stripped)
        except ValueError as error:
            problems.append((number, BadSettings(f"{printable(path)}:{number}: {error}")))
            if len(problems) == MAX_PROBLEMS:
                return
            continue
        if text:
            yield f"{number} {text}\n"


def _line(raw: bytes) -> str:
    """Return the directive on a line, nothing for a section header. Raises ValueError."""
    if len(raw) > MAX_LINE_BYTES:
        raise ValueError(f"a line of more than {MAX_LINE_BYTES} bytes")
    try:
        text = raw.decode().replace("\t", " ").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start + 1} of the line is not UTF-8") from None
    strange = next((character for character in text if not character.isprintable()), None)
    if strange:
        raise ValueError(
            f"character {text.index(strange) + 1} of the line is U+{ord(strange):04X}, which does not print"
        )
    if text.startswith("["):
        if not text.endswith("]"):
            raise ValueError(f"`{text[:_MAX_NAME]}` is a section header without its ]")
        return ""
    name, equals, _value = text.partition("=")
    if not equals:
        raise ValueError(f"`{text[:_MAX_NAME]}` is no directive: NAME = VALUE is expected")
    if len(name) > _MAX_NAME:
        raise ValueError(f"a name of more than {_MAX_NAME} characters")
    return text
