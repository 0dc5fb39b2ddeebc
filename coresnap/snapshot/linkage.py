# SPDX-License-Identifier: Apache-2.0
"""The entries of a procedure linkage table, which no symbol names: each jumps through a slot that a relocation is for.

x86-64: an entry of 8 or 16 bytes has `jmp *slot(%rip)` in it, ff 25 and a displacement of 32 bits from its end. Relocations:
Elf64_Rela of elf(5). System V ABI, AMD64 supplement, "Procedure Linkage Table".
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from coresnap.ground.elf_file import ElfFile, Section
from coresnap.snapshot.symbols import ENTRY, Symbol, name_at

#: The end of such an entry's name.
PLT = "@plt"
_TABLES = (".plt", ".plt.sec", ".plt.got")
_RELOCATIONS = (".rela.plt", ".rela.dyn")
_JUMP = b"\xff\x25"
_EM_X86_64 = 62
_R_GLOB_DAT, _R_JUMP_SLOT = 6, 7
_RELA = struct.Struct("<QQq")
_RELOCATIONS_MAX_BYTES = 24 << 20
_ENTRY_BYTES = (8, 16)


def find(file: ElfFile, addresses: Sequence[int]) -> dict[int, Symbol]:
    """Return, as NAME@plt, what the entries lead to that have these addresses of the file."""
    slots: dict[int, list[tuple[int, int]]] = {}
    for address in addresses if file.machine == _EM_X86_64 else ():
        entry = _entry(file, address)
        if entry:
            slots.setdefault(entry[1], []).append((address, entry[0]))
    names = _names(file, set(slots)) if slots else {}
    return {
        address: Symbol(f"{name}{PLT}", start) for slot, name in names.items() for address, start in slots.get(slot, ())
    }


def _entry(file: ElfFile, address: int) -> tuple[int, int] | None:
    """Return the start of the entry that has the address, and its slot's address; None where it is in no entry."""
    section = next((one for name in _TABLES if (one := file.section(name)) and _has(one, address)), None)
    if section is None:
        return None
    size_bytes = section.entry_bytes if section.entry_bytes in _ENTRY_BYTES else _ENTRY_BYTES[-1]
    start = address - (address - section.address) % size_bytes
    code = file.read(section.offset + start - section.address, size_bytes)
    at = code.find(_JUMP)
    if not 0 <= at <= len(code) - 6:
        return None
    end = at + 6
    return start, start + end + struct.unpack_from("<i", code, end - 4)[0]


def _has(section: Section, address: int) -> bool:
    return section.address <= address < section.address + section.size_bytes


def _names(file: ElfFile, slots: set[int]) -> dict[int, str]:
    """Return the names of the symbols whose addresses the dynamic linker puts into these slots."""
    sections = file.sections()
    result: dict[int, str] = {}
    for relocations in filter(None, map(file.section, _RELOCATIONS)):
        symbols = sections[relocations.link] if relocations.link < len(sections) else None
        if symbols is None or symbols.entry_bytes != ENTRY.size or symbols.link >= len(sections):
            continue
        data = file.read(relocations.offset, min(relocations.size_bytes, _RELOCATIONS_MAX_BYTES))
        for slot, kind, _addend in _RELA.iter_unpack(data[: len(data) - len(data) % _RELA.size]):
            if slot in slots and kind & 0xFFFFFFFF in (_R_GLOB_DAT, _R_JUMP_SLOT):
                symbol = file.read(symbols.offset + (kind >> 32) * ENTRY.size, ENTRY.size)
                if len(symbol) == ENTRY.size and (kind >> 32) < symbols.size_bytes // ENTRY.size:
                    name = name_at(file, sections[symbols.link], ENTRY.unpack(symbol)[0] & 0xFFFFFFFF)
                    if name:
                        result[slot] = name
    return result
