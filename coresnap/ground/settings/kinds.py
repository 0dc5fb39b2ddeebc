# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: D102  # each kind overrides the methods of Kind, which say what they do
"""The kinds of settings: how a value is read from text, shown as text, described to people and to a JSON schema."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import Any

from coresnap.ground import formats
from coresnap.ground.errors import BadSettings
from coresnap.ground.settings.rules import MAX_RULES, NAMED, PATTERN_MAX, Rule, parse_rule

_BYTES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_USEC = {
    "us": 1,
    "ms": 1_000,
    "s": 1_000_000,
    "min": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
    "w": 604_800_000_000,
}
_FLAGS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


class Kind:
    """One kind of setting."""

    #: The unit, as it ends the name of the attribute that holds the value.
    unit = ""

    def parse(self, text: str) -> Any:
        """Return the value that the text stands for. Raises ValueError, saying what is wrong with it."""
        raise NotImplementedError

    def show(self, value: Any) -> str:
        """Return the text that stands for the value."""
        return str(value)

    def json(self, value: Any) -> Any:
        """Return the value as JSON has it."""
        return value

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of json(value)."""
        raise NotImplementedError

    def allowed(self) -> str:
        """Say what the text may be."""
        raise NotImplementedError


@dataclass(frozen=True)
class Text(Kind):
    """A line of text of one shape."""

    pattern: str
    described: str
    max_length: int = 1024

    def parse(self, text: str) -> str:
        if len(text) > self.max_length:
            raise ValueError(f"longer than {self.max_length} characters")
        if not re.fullmatch(self.pattern, text):
            raise ValueError(f"not {self.described}")
        return text

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^(?:{self.pattern})$", "maxLength": self.max_length}

    def allowed(self) -> str:
        return self.described


PATH = Text(r"/[^\x00-\x1f\x7f]*", "an absolute path")
PATH_OR_NONE = Text(rf"({PATH.pattern})?", "an absolute path, or empty")
USER = Text(r"[A-Za-z_][A-Za-z0-9_.-]{0,30}[$]?|0|[1-9][0-9]{0,8}|[1-3][0-9]{9}", "the name or number of a user")
GROUP = Text(USER.pattern, "the name or number of a group")
#: No address that could have a token in it: the configuration is for everybody to read.
STORE = Text(
    r"file:/[^\x00-\x1f\x7f]+|https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/(api/)?post)?/?",
    "`file:` and the absolute path of a directory, or https://HOST[:PORT] with no more than /post or /api/post behind it",
)


@dataclass(frozen=True)
class Number(Kind):
    """A whole number within limits, both included; what its text looks like is the subclass's."""

    minimum: int
    maximum: int

    def parse(self, text: str) -> int:
        value = self.read(text)
        if not self.minimum <= value <= self.maximum:
            raise ValueError("out of range")
        return value

    def read(self, text: str) -> int:
        """Return the number, whatever the limits. Raises ValueError."""
        return _digits(text)

    def schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.minimum, "maximum": self.maximum}

    def allowed(self) -> str:
        return f"a whole number from {self.minimum} to {self.maximum}"


def _digits(text: str, what: str = "a whole number") -> int:
    if not re.fullmatch("[0-9]{1,18}", text):
        raise ValueError(f"not {what}")
    return int(text)


class Share(Number):
    """A percentage."""

    unit = "_percent"

    def read(self, text: str) -> int:
        return _digits(text.removesuffix("%").rstrip(), "a share")

    def show(self, value: int) -> str:
        return f"{value}%"

    def allowed(self) -> str:
        return f"a share from {self.minimum}% to {self.maximum}%"


class Mode(Number):
    """A file mode, octal."""

    def read(self, text: str) -> int:
        if not re.fullmatch("(0o)?[0-7]{1,6}", text):
            raise ValueError("not an octal mode")
        return int(text, 8)

    def show(self, value: int) -> str:
        return f"{value:04o}"

    def allowed(self) -> str:
        return f"an octal mode from {self.show(self.minimum)} to {self.show(self.maximum)}"


class Bytes(Number):
    """A size; K, M, G and T are powers of 1024."""

    unit = "_bytes"

    def read(self, text: str) -> int:
        number, suffix = _split(text, "a size")
        if suffix.upper() not in _BYTES:
            raise ValueError(f"not a size: unknown unit `{suffix}`")
        return number * _BYTES[suffix.upper()]

    def show(self, value: int) -> str:
        return _largest(value, _BYTES)

    def allowed(self) -> str:
        return f"bytes, also with K, M, G or T, from {self.show(self.minimum)} to {self.show(self.maximum)}"


class Duration(Number):
    """A time; a bare number is seconds."""

    unit = "_usec"

    def read(self, text: str) -> int:
        number, suffix = _split(text, "a time")
        if (suffix or "s") not in _USEC:
            raise ValueError(f"not a time: unknown unit `{suffix}`")
        return number * _USEC[suffix or "s"]

    def show(self, value: int) -> str:
        return _largest(value, _USEC)

    def allowed(self) -> str:
        return f"a time in us, ms, s, min, h, d or w, from {self.show(self.minimum)} to {self.show(self.maximum)}"


def _split(text: str, what: str) -> tuple[int, str]:
    """Split a number from its unit."""
    digits = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    return _digits(digits.rstrip(), what), text[len(digits) :]


def _largest(value: int, units: dict[str, int]) -> str:
    """Show the value in the largest unit that divides it."""
    fitting = [(size, unit) for unit, size in units.items() if value and value % size == 0]
    size, unit = max(fitting, default=(1, ""))
    return f"{value // size}{unit}"


@dataclass(frozen=True)
class Flag(Kind):
    """Yes or no."""

    def parse(self, text: str) -> bool:
        if text.lower() not in _FLAGS:
            raise ValueError("neither true nor false")
        return _FLAGS[text.lower()]

    def show(self, value: bool) -> str:
        return "true" if value else "false"

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}

    def allowed(self) -> str:
        return "true, yes, on, 1 or false, no, off, 0"


@dataclass(frozen=True)
class Choice(Kind):
    """One of a few words."""

    choices: tuple[str, ...]

    def parse(self, text: str) -> str:
        if text not in self.choices:
            raise ValueError("not one of the choices")
        return text

    def schema(self) -> dict[str, Any]:
        return {"enum": list(self.choices)}

    def allowed(self) -> str:
        return ", ".join(self.choices[:-1]) + " or " + self.choices[-1]


@dataclass(frozen=True)
class Argv(Kind):
    """A command line, split into words as a shell does and run without one.

    `letters` are the % formats that it may have; None leaves percent signs as they are.
    """

    letters: str | None
    may_be_empty: bool = False

    def parse(self, text: str) -> tuple[str, ...]:
        words = tuple(shlex.split(text))
        if not words and not self.may_be_empty:
            raise ValueError("no command")
        if words and not words[0]:
            raise ValueError("the first word, the program, is empty")
        if self.letters is not None:
            try:
                formats.check(words, self.letters)
            except BadSettings as error:
                raise ValueError(str(error)) from None
        return words

    def show(self, value: tuple[str, ...]) -> str:
        return shlex.join(value)

    def json(self, value: tuple[str, ...]) -> list[str]:
        return list(value)

    def schema(self) -> dict[str, Any]:
        return {"type": "array", "items": {"type": "string"}, "minItems": 0 if self.may_be_empty else 1}

    def allowed(self) -> str:
        words = "a command, its words split as a shell splits them" + (", or nothing" if self.may_be_empty else "")
        return words if self.letters is None else f"{words}; formats {' '.join(f'%{x}' for x in self.letters)} %%"


@dataclass(frozen=True)
class Words(Kind):
    """Words of one shape, divided by spaces."""

    pattern: str
    described: str
    max_items: int = 256

    def parse(self, text: str) -> tuple[str, ...]:
        words = tuple(text.split())
        if len(words) > self.max_items:
            raise ValueError(f"more than {self.max_items} words")
        for word in words:
            if not re.fullmatch(self.pattern, word):
                raise ValueError(f"`{word}` is not allowed")
        return words

    def show(self, value: tuple[str, ...]) -> str:
        return " ".join(value)

    def json(self, value: tuple[str, ...]) -> list[str]:
        return list(value)

    def schema(self) -> dict[str, Any]:
        items = {"type": "string", "pattern": f"^(?:{self.pattern})$"}
        return {"type": "array", "items": items, "maxItems": self.max_items}

    def allowed(self) -> str:
        return self.described


@dataclass(frozen=True)
class Rules(Kind):
    """Rules that choose a project; one directive is one rule, the value is all of them."""

    def parse(self, text: str) -> tuple[Rule, ...]:
        return (parse_rule(text),)

    def json(self, value: tuple[Rule, ...]) -> list[dict[str, Any]]:
        return [{"number": rule.number, "project": rule.project, "regex": rule.regex} for rule in value]

    def schema(self) -> dict[str, Any]:
        properties = {
            "number": {"type": "integer", "minimum": 0},
            "project": {"type": "string", "pattern": f"^(?:{NAMED})$"},
            "regex": {"type": ["string", "null"], "maxLength": PATTERN_MAX},
        }
        item = {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }
        return {"type": "array", "items": item, "minItems": 1, "maxItems": MAX_RULES + 1}

    def allowed(self) -> str:
        return "PROJECT, or PROJECT %e REGEX; \\1 to \\9 in PROJECT are groups of REGEX"
