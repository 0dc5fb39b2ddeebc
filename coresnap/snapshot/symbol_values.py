# SPDX-License-Identifier: Apache-2.0
"""Where something of a given name is in a module: its symbol's value. Layout of a symbol: elf(5), Elf64_Sym."""

from __future__ import annotations

import struct

from coresnap.ground.elf_file import ElfFile, Section
from coresnap.ground.errors import BadInput
from coresnap.snapshot.images import Image

_SYMBOL = struct.Struct("<IBBHQQ")
_TABLE_MAX_BYTES = 32 << 20
_CANDIDATES_MAX = 64


def address_of(image: Image, name: str) -> int | None:
    """Return the address in the process of what has this name in the module; None where none has.

    The dynamic symbols of the mapped file are asked first, then all that there are, in it and in its debug files.
    """
    own = [image.file] if image.file else []
    for file, section in [(file, ".dynsym") for file in own] + [(file, ".symtab") for file in own + image.debug]:
        try:
            value = _value_of(file, file.section(section), name.encode())
        except (BadInput, OSError):
            continue
        if value:
            return value + image.bias
    return None


def _value_of(file: ElfFile, table: Section | None, name: bytes) -> int:
    if table is None or not 0 < table.link < len(file.sections()):
        return 0
    names = b"\0" + file.contents(file.sections()[table.link], _TABLE_MAX_BYTES)
    numbers: set[int] = set()
    at = names.find(name + b"\0")
    while at > 0 and len(numbers) < _CANDIDATES_MAX:
        numbers.add(at - 1)  # that of a NUL before the first
        at = names.find(name + b"\0", at + 1)
    if not numbers:
        return 0
    data = file.contents(table, _TABLE_MAX_BYTES)
    for number, _info, _other, section, value, _size in _SYMBOL.iter_unpack(data[: len(data) - len(data) % 24]):
        if number in numbers and section:
            return int(value)
    return 0
