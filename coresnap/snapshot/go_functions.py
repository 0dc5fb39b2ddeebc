# SPDX-License-Identifier: Apache-2.0
"""The functions of a Go program by its own table, which is there when all symbols are stripped: the runtime needs it.

Layout: .gopclntab as of Go 1.16, runtime/symtab.go and debug/gosym of Go's standard library: a header of words, then tables
at offsets from its start. Functions are ascending pairs of address and offset of a record that begins with the address, then
has the offset of the name. Since Go 1.18 both are of 32 bits, addresses from the start of the text on.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Sequence

from coresnap.ground.elf_file import ElfFile, Section
from coresnap.snapshot.symbols import Symbol

_SECTIONS = (".gopclntab", ".data.rel.ro.gopclntab")
_GO_1_16, _GO_1_18, _GO_1_20 = 0xFFFFFFFA, 0xFFFFFFF0, 0xFFFFFFF1
_FUNCTIONS_MAX = 4 << 20
_NAME_MAX_BYTES = 4096


def find(file: ElfFile, addresses: Sequence[int]) -> dict[int, Symbol]:
    """Return the functions of Go that have these addresses of the file; none where it is no program of Go's."""
    section = next(filter(None, map(file.section, _SECTIONS)), None)
    if section is None or not addresses:
        return {}
    header = file.read(section.offset, 72)
    if len(header) < 72:
        return {}
    magic, _zeros, _quantum, word_bytes, count = struct.unpack_from("<IHBBQ", header)
    if word_bytes != 8 or not 0 < count <= _FUNCTIONS_MAX:
        return {}
    if magic == _GO_1_16:
        names_at, table_at = struct.unpack_from("<Q24xQ", header, 24)
        return _find(file, section, addresses, 8, 0, count, names_at, table_at)
    if magic in (_GO_1_18, _GO_1_20):
        text, names_at, table_at = struct.unpack_from("<QQ24xQ", header, 24)
        code = file.section(".text")
        base = text or (code.address if code else 0)  # it is 0 where the loader is to fill it in
        return _find(file, section, addresses, 4, base, count, names_at, table_at)
    return {}


def _find(
    file: ElfFile,
    section: Section,
    addresses: Sequence[int],
    width: int,
    base: int,
    count: int,
    names_at: int,
    table_at: int,
) -> dict[int, Symbol]:
    """Look the addresses up in a table of pairs, `width` bytes each member; behind the last pair is where the text ends."""
    size_bytes = (2 * count + 1) * width
    if max(names_at, table_at) > section.size_bytes or size_bytes > section.size_bytes - table_at:
        return {}
    data = file.read(section.offset + table_at, size_bytes)
    if len(data) < size_bytes:
        return {}
    words = memoryview(data).cast("I" if width == 4 else "Q")
    starts = words[::2]
    result = {}
    for address in addresses:
        index = bisect_right(starts, address - base) - 1
        if 0 <= index < count:
            record_at = section.offset + table_at + words[2 * index + 1]
            name = _name(file, section, names_at, file.read(record_at + width, 4))
            if name:
                result[address] = Symbol(name, base + starts[index])
    return result


def _name(file: ElfFile, section: Section, names_at: int, offset: bytes) -> str:
    at = names_at + int.from_bytes(offset, "little")
    if len(offset) < 4 or at >= section.size_bytes:
        return ""
    name, end, _rest = file.read(section.offset + at, _NAME_MAX_BYTES).partition(b"\0")
    return name.decode("utf-8", "backslashreplace") if end else ""
