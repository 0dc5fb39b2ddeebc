# SPDX-License-Identifier: Apache-2.0
"""The names of Rust: symbols of the first mangling, `_ZN…17h<hash>E`, and of the second one, `_R…`.

The grammar of the second: RFC 2603, "Rust Symbol Name Mangling v0". As gdb and c++filt do it hashes, the disambiguators of
crates and the types of constants are left out. A name that is no such symbol, or too deep or too long, is None.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_DEPTH_MAX = 100
_TEXT_MAX = 16 << 10
#: A back reference may make a type of itself twice, and again: what one name may have parsed.
_STEPS_MAX = 10_000
_ESCAPES = {"SP": "@", "BP": "*", "RF": "&", "LT": "<", "GT": ">", "LP": "(", "RP": ")", "C": ","}
_ESCAPE = re.compile(r"\$(SP|BP|RF|LT|GT|LP|RP|C|u[0-9a-f]{1,6})\$")
_BASIC = {
    **{"a": "i8", "b": "bool", "c": "char", "d": "f64", "e": "str", "f": "f32", "h": "u8", "i": "isize", "j": "usize"},
    **{"l": "i32", "m": "u32", "n": "i128", "o": "u128", "s": "i16", "t": "u16", "u": "()", "v": "...", "x": "i64"},
    **{"y": "u64", "z": "!", "p": "_"},
}
_POINTERS = {"R": "&", "Q": "&mut ", "P": "*const ", "O": "*mut "}
_SIGNED, _UNSIGNED = "ilnasx", "jmohty"


class _NoName(Exception):
    """It is no symbol of Rust's after all."""


def demangle(symbol: str) -> str | None:
    """Return the name of a symbol of Rust's; None of any other."""
    if symbol.startswith("_R"):
        body, suffix = _split(symbol[2:])
        try:
            return _Reader(body).symbol() + suffix
        except _NoName:
            return None
    return _first(symbol)


def _split(body: str) -> tuple[str, str]:
    """Split off what the compiler puts behind a symbol, of which `.llvm.…` tells nobody anything."""
    at = body.find(".")
    suffix = "" if at < 0 else body[at:]
    return (body if at < 0 else body[:at]), suffix.partition(".llvm.")[0]


def _first(symbol: str) -> str | None:
    """Read a symbol of the first mangling: names with their lengths, as C++ has them, the last one a hash."""
    end = symbol.rfind("17h")
    if not symbol.startswith("_ZN") or end < 0 or not re.match(r"17h[0-9a-f]{16}E(\.|$)", symbol[end:]):
        return None
    parts, at = [], 3
    while at < end:
        length = re.match(r"[1-9]\d{0,4}", symbol[at : at + 5], re.ASCII)
        if length is None:
            return None
        start = at + length.end()
        at = start + int(length[0])
        parts.append(symbol[start:at])
    if at != end or not parts:
        return None
    name = "::".join(_unescaped(part) for part in parts)
    return name + symbol[end + 20 :].partition(".llvm.")[0] if name.isprintable() else None


def _unescaped(part: str) -> str:
    text = part[1:] if part.startswith("_$") else part
    text = text.replace("..", "::")
    return _ESCAPE.sub(lambda found: _ESCAPES.get(found[1]) or _character(int(found[1][1:], 16)), text)


def _character(code: int) -> str:
    return chr(code) if code < 0xD800 or 0xE000 <= code < 0x110000 else "?"


class _Reader:
    """Reads a symbol of the second mangling, from behind its `_R`. A method's name is that of the grammar's rule."""

    def __init__(self, body: str) -> None:
        self._body = body
        self._at = 0
        self._depth = 0
        self._steps = 0
        self._lifetimes = 0

    def symbol(self) -> str:
        if self._peek().isdigit():
            raise _NoName  # of a version to come
        return self._path(in_value=True)

    def _peek(self) -> str:
        return self._body[self._at : self._at + 1]

    def _next(self) -> str:
        self._steps += 1
        if self._at >= len(self._body) or self._steps > _STEPS_MAX:
            raise _NoName
        self._at += 1
        return self._body[self._at - 1]

    def _takes(self, character: str) -> bool:
        if self._peek() != character:
            return False
        self._at += 1
        return True

    def _bounded(self, text: str) -> str:
        if len(text) > _TEXT_MAX:
            raise _NoName
        return text

    def _deeper(self, rule: Callable[[], str]) -> str:
        self._depth += 1
        if self._depth > _DEPTH_MAX:
            raise _NoName
        text = self._bounded(rule())
        self._depth -= 1
        return text

    def _base62(self) -> int:
        if self._takes("_"):
            return 0
        value = 0
        while not self._takes("_"):
            digit = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ".find(self._next())
            value = value * 62 + digit
            if digit < 0 or value > 1 << 64:
                raise _NoName
        return value + 1

    def _optional(self, tag: str) -> int:
        return self._base62() + 1 if self._takes(tag) else 0

    def _decimal(self) -> int:
        found = re.compile(r"0|[1-9]\d{0,5}", re.ASCII).match(self._body, self._at)
        if found is None:
            raise _NoName
        self._at = found.end()
        return int(found[0])

    def _name(self) -> str:
        """undisambiguated-identifier."""
        is_punycode = self._takes("u")
        length = self._decimal()
        self._takes("_")
        text = self._body[self._at : self._at + length]
        self._at += length
        if len(text) < length:
            raise _NoName
        if not is_punycode:
            return text
        plain, _underscore, rest = text.rpartition("_")
        try:
            return (f"{plain}-{rest}" if plain else rest).encode("ascii").decode("punycode")
        except UnicodeError as error:
            raise _NoName from error

    def _referred(self, rule: Callable[[], str]) -> str:
        """Read at a back reference what stood before it."""
        here, target = self._at - 1, self._base62()
        if target >= here:
            raise _NoName
        after, self._at = self._at, target
        text = self._deeper(rule)
        self._at = after
        return text

    def _path(self, *, in_value: bool) -> str:
        return self._deeper(lambda: self._path_of(self._next(), in_value=in_value))

    def _path_of(self, tag: str, *, in_value: bool) -> str:
        if tag == "C":
            self._optional("s")
            return self._name()
        if tag == "N":
            return self._nested(in_value=in_value)
        if tag in "MX":
            self._optional("s")
            self._path(in_value=False)
        if tag == "M":
            return f"<{self._type()}>"
        if tag in "XY":
            return f"<{self._type()} as {self._path(in_value=False)}>"
        if tag == "I":
            path = self._path(in_value=in_value)
            return f"{path}{'::' if in_value else ''}<{', '.join(self._arguments())}>"
        if tag == "B":
            return self._referred(lambda: self._path(in_value=in_value))
        raise _NoName

    def _nested(self, *, in_value: bool) -> str:
        kind = self._next()
        path = self._path(in_value=in_value)
        number = self._optional("s")
        name = self._name()
        if kind.isupper():
            what = {"C": "closure", "S": "shim"}.get(kind, kind)
            return f"{path}::{{{what}{':' if name else ''}{name}#{number}}}"
        return f"{path}::{name}" if name else path

    def _list(self, rule: Callable[[], str]) -> list[str]:
        items = []
        while not self._takes("E"):
            items.append(rule())
        return items

    def _arguments(self) -> list[str]:
        return self._list(self._argument)

    def _argument(self) -> str:
        if self._takes("L"):
            return self._lifetime(self._base62())
        return self._constant() if self._takes("K") else self._type()

    def _lifetime(self, index: int) -> str:
        if not index:
            return "'_"
        depth = self._lifetimes - index
        if depth < 0:
            raise _NoName
        return f"'{chr(97 + depth)}" if depth < 26 else f"'_{depth}"

    def _bound(self, rule: Callable[[], str]) -> str:
        """Read what may have a binder of lifetimes before it."""
        count = self._optional("G")
        if count > 64:
            raise _NoName
        before, self._lifetimes = self._lifetimes, self._lifetimes + count
        names = ", ".join(self._lifetime(count - number) for number in range(count))
        text = rule()
        self._lifetimes = before
        return f"for<{names}> {text}" if count else text

    def _type(self) -> str:
        return self._deeper(self._type_here)

    def _type_here(self) -> str:
        tag = self._next()
        if tag in _BASIC:
            return _BASIC[tag]
        if tag in _POINTERS:
            lifetime = self._lifetime(self._base62()) if tag in "RQ" and self._takes("L") else "'_"
            reference = "&" if tag in "RQ" else _POINTERS[tag]
            between = f"{lifetime} " if lifetime != "'_" else ""
            return f"{reference}{between}{'mut ' if tag == 'Q' else ''}{self._type()}"
        if tag == "A":
            return f"[{self._type()}; {self._constant()}]"
        if tag == "S":
            return f"[{self._type()}]"
        if tag == "T":
            items = self._list(self._type)
            return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"
        if tag == "F":
            return self._bound(self._function)
        if tag == "D":
            return self._dyn()
        if tag == "B":
            return self._referred(self._type)
        self._at -= 1
        return self._path(in_value=False)

    def _function(self) -> str:
        before = "unsafe " if self._takes("U") else ""
        if self._takes("K"):
            before += f'extern "{"C" if self._takes("C") else self._name().replace("_", "-")}" '
        arguments = ", ".join(self._list(self._type))
        result = self._type()
        return f"{before}fn({arguments})" + (f" -> {result}" if result != "()" else "")

    def _dyn(self) -> str:
        bounds = self._bound(lambda: " + ".join(self._list(self._dyn_trait)))
        if not self._takes("L"):
            raise _NoName
        lifetime = self._lifetime(self._base62())
        return f"dyn {bounds}" + (f" + {lifetime}" if lifetime != "'_" else "")

    def _dyn_trait(self) -> str:
        path = self._path(in_value=False)
        bindings = []
        while self._takes("p"):
            name = self._name()
            bindings.append(f"{name} = {self._type()}")
        if not bindings:
            return path
        return (path[:-1] + ", " if path.endswith(">") else path + "<") + ", ".join(bindings) + ">"

    def _constant(self) -> str:
        return self._deeper(self._constant_here)

    def _constant_here(self) -> str:
        tag = self._next()
        if tag == "p":
            return "_"
        if tag == "B":
            return self._referred(self._constant)
        if tag not in _SIGNED + _UNSIGNED + "bc":
            raise _NoName
        sign = "-" if tag in _SIGNED and self._takes("n") else ""
        digits = self._body[self._at :].partition("_")[0]
        self._at += len(digits) + 1
        if not re.fullmatch("[0-9a-f]{0,32}", digits):
            raise _NoName
        value = int(digits or "0", 16)
        if tag == "b":
            return "true" if value else "false"
        if tag == "c":
            return repr(_character(value))
        return sign + (str(value) if value < 1 << 64 else hex(value))
