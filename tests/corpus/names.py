# SPDX-License-Identifier: Apache-2.0
"""When two tools name the same function: gdb's names are those of the debug information, ours those of symbol tables."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

_DEBUG = Path("/usr/lib/debug/.build-id")
_SUFFIX = re.compile(
    r"( \[clone [^]]*\]|\[cold\])+$|(\.(cold|part|constprop|isra|lto_priv|localalias|abi0|llvm)(\.\d+)*)+$"
)
_RUST_HASH = re.compile(r"::h[0-9a-f]{16}$")


def plain(name: str) -> str:
    """Return a name without what debug information does not have: parameters, return type, version, the compiler's suffixes."""
    name = name.partition("@")[0]
    name = _RUST_HASH.sub("", _SUFFIX.sub("", name))
    for qualifier in (" const", " &", " &&", " volatile"):
        name = name.removesuffix(qualifier)
    name = _without_parameters(name)
    return name if "operator" in name else _last_word(name)


def generic(name: str) -> str:
    """Return a plain name without the arguments of a template at its end."""
    depth = 0
    for at in range(len(name) - 1, -1, -1):
        depth += (name[at] == ">") - (name[at] == "<")
        if not depth:
            return name[:at].removesuffix("::") if name[at] == "<" and at else name
    return name


def same(ours: str, theirs: str, library: str, build_id: str) -> bool:
    """Say whether both are names of one function: alike, or at one address of the library's tables of symbols."""
    if plain(ours) == plain(theirs):
        return True
    table = _table(library, build_id)
    places = [table.get(name, frozenset()) | table.get(plain(name), frozenset()) for name in (ours, theirs)]
    return bool(places[0] & places[1])


def _without_parameters(name: str) -> str:
    """Cut the last pair of parentheses, if they end the name."""
    if not name.endswith(")") or name.endswith("::operator()"):
        return name
    depth = 0
    for at in range(len(name) - 1, -1, -1):
        depth += (name[at] == ")") - (name[at] == "(")
        if not depth:
            return name[:at] if at and not name[:at].endswith(".") else name
    return name


def _last_word(name: str) -> str:
    """Cut the return type that templates' names begin with."""
    depth = 0
    for at in range(len(name) - 1, -1, -1):
        depth += (name[at] in ">)") - (name[at] in "<(")
        if not depth and name[at] == " ":
            return name[at + 1 :]
    return name


@cache
def _table(library: str, build_id: str) -> dict[str, frozenset[str]]:
    """Return by name the addresses that a library's tables have: nm(1) prints `address type name`."""
    debug = _DEBUG / build_id[:2] / f"{build_id[2:]}.debug"
    files = [path for path in (Path(library), debug) if build_id and path.is_file()]
    found: dict[str, set[str]] = {}
    for path in files:
        for options in (("-D",), (), ("-D", "-C"), ("-C",)):
            done = subprocess.run(["nm", *options, path], capture_output=True, text=True, check=False)
            for line in done.stdout.splitlines():
                address, _blank, rest = line.partition(" ")
                kind, _blank, name = rest.partition(" ")
                if address and kind in "tTwWiIuV":
                    found.setdefault(name.partition("@")[0], set()).add(address)
                    found.setdefault(plain(name), set()).add(address)
    return {name: frozenset(addresses) for name, addresses in found.items()}
