# SPDX-License-Identifier: Apache-2.0
"""The symbol tables of ELF files: which function has an address.

A table is not taken apart: it is passed through once, a piece at a time, for all the addresses that are asked for. Layouts:
elf(5), System V ABI; .gnu_debugdata: GDB's manual, "Debugging information in a special section".
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from coresnap.ground.elf_file import SHT_DYNSYM, SHT_SYMTAB, ElfFile, Section
from coresnap.ground.errors import BadInput

NAME_MAX_BYTES = 16 << 10
#: Symbols are read up to here, of all modules together: chromium has three million.
SYMBOLS_MAX = 8 << 20
_NAME_USUAL_BYTES = 256
_PIECE_BYTES = 24 * 43690
#: One symbol may claim all addresses: what tables may have looked at one by one.
_MATCHES_MAX = 1 << 18
_ALIASES_MAX = 64
_DEBUGDATA_MAX_BYTES = 32 << 20
_ALL_DEBUGDATA_MAX_BYTES = 256 << 20
_XZ_MEMORY_BYTES = 80 << 20
#: struct Elf64_Sym as three words: st_name, st_info, st_other and st_shndx are the first.
ENTRY = struct.Struct("<QQQ")
STT_NOTYPE, STT_FUNC, STT_GNU_IFUNC = 0, 2, 10
_CODE = (STT_NOTYPE, STT_FUNC, STT_GNU_IFUNC)
_STB_GLOBAL, _STB_WEAK, _STB_GNU_UNIQUE = 1, 2, 10
_SHN_UNDEF, _SHN_LORESERVE = 0, 0xFF00
_SHF_EXECINSTR = 4
_NO_ADDRESS = 1 << 65


class Symbol(NamedTuple):
    """A function's symbol: its name as in the file, without a version, and its address there."""

    name: str
    address: int


class Limits:
    """What may still be read, of all modules together; `missing` says what was not."""

    def __init__(
        self,
        symbols: int = SYMBOLS_MAX,
        matches: int = _MATCHES_MAX,
        debugdata_bytes: int = _ALL_DEBUGDATA_MAX_BYTES,
    ) -> None:
        self.symbols = symbols
        self.matches = matches
        self.debugdata_bytes = debugdata_bytes
        self.missing: list[str] = []

    def say(self, line: str) -> None:
        """Say what was not read, once."""
        if line not in self.missing:
            self.missing.append(line)


class _Best:
    """The symbols that start last of those that have an address: their first words are of one function's aliases."""

    __slots__ = ("start", "words")

    def __init__(self, start: int, words: list[tuple[int, _Table]]) -> None:
        self.start = start
        self.words = words


class _Table(NamedTuple):
    """A symbol table and its names."""

    file: ElfFile
    section: Section
    names: Section

    def pieces(self, limits: Limits) -> Iterator[bytes]:
        """Yield the table in pieces of whole entries, up to the limit."""
        end = self.section.offset + self.section.size_bytes
        for at in range(self.section.offset, end, _PIECE_BYTES):
            data = self.file.read(at, min(_PIECE_BYTES, end - at))
            count = min(len(data) // ENTRY.size, limits.symbols)
            limits.symbols -= count
            yield data[: count * ENTRY.size]
            if not limits.symbols:
                limits.say(f"symbols: no more than {SYMBOLS_MAX} are looked at")
                return
            if count * ENTRY.size < _PIECE_BYTES:
                if at + len(data) < end:
                    there_bytes = at + len(data) - self.section.offset
                    limits.say(
                        f"symbols of {self.file.name}: {there_bytes} of {self.section.size_bytes} bytes are there"
                    )
                return

    def name(self, at: int) -> str:
        """Return a name, without its version; empty where there is none of a length that is taken."""
        return name_at(self.file, self.names, at)


def name_at(file: ElfFile, names: Section, at: int) -> str:
    """Return a name out of a table of names, without its version; empty where there is none of a length that is taken."""
    for most_bytes in (_NAME_USUAL_BYTES, NAME_MAX_BYTES):
        name, end, _rest = file.read(names.offset + at, min(most_bytes, names.size_bytes - at)).partition(b"\0")
        if end:
            text = name.decode("utf-8", "backslashreplace")
            return text[: text.find("@", 1)] if "@" in text[1:] else text
    return ""


def find(files: Sequence[ElfFile], addresses: Sequence[int], limits: Limits) -> dict[int, Symbol]:
    """Return the functions that have these addresses of the files, which tell of one module: first the one that tells more.

    A function has an address from its start up to its size on; a symbol without a size, as assembly may have it, up to the
    next one or the end of its section. Of several the one that starts last counts; for its aliases see _rank().
    """
    left = sorted(set(addresses))
    groups: list[list[_Table]] = []
    result: dict[int, Symbol] = {}
    for file in files:
        if left:
            groups.append(_tables(file, limits))
            result |= _sized(groups[-1], left, limits)
            left = [address for address in left if address not in result]
    for group in groups:
        result |= _unsized(group, left, limits)
        left = [address for address in left if address not in result]
    return result


def _tables(file: ElfFile, limits: Limits) -> list[_Table]:
    """Return the file's tables: the whole one, or that of what is exported together with the compressed one of the rest."""
    whole = _table(file, SHT_SYMTAB)
    if whole:
        return [whole]
    try:
        rest = _debugdata(file, limits)
    except BadInput as error:
        limits.say(str(error))
        rest = None
    parts = [_table(file, SHT_DYNSYM), _table(rest, SHT_SYMTAB) if rest else None]
    return [part for part in parts if part]


def _table(file: ElfFile, kind: int) -> _Table | None:
    """Return the table of a kind, if it has any symbols in this file."""
    sections = file.sections()
    for section in sections:
        if section.type == kind and section.entry_bytes == ENTRY.size and section.link < len(sections):
            return _Table(file, section, sections[section.link])
    return None


def _debugdata(file: ElfFile, limits: Limits) -> ElfFile | None:
    """Return the ELF file that stands in .gnu_debugdata, compressed by xz(1). Raises BadInput where it is damaged."""
    section = file.section(".gnu_debugdata")
    if section is None:
        return None
    import lzma

    most_bytes = min(_DEBUGDATA_MAX_BYTES, limits.debugdata_bytes)
    data = file.contents(section, most_bytes)
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY_BYTES)
    try:
        contents = unpacker.decompress(data, most_bytes)
    except (lzma.LZMAError, MemoryError) as error:
        raise BadInput(f"{file.name}: .gnu_debugdata: {error}") from error
    limits.debugdata_bytes -= len(contents)
    if not unpacker.eof:
        raise BadInput(f"{file.name}: .gnu_debugdata: cut, or more than {most_bytes} bytes")
    return ElfFile(lambda count, at: contents[at : at + count], file.name)


def _sized(group: list[_Table], wanted: list[int], limits: Limits) -> dict[int, Symbol]:
    """Return the functions that have these addresses, ascending, by their sizes."""
    found: dict[int, _Best] = {}
    ends = [*wanted, _NO_ADDRESS]
    for table in group:
        for piece in table.pieces(limits):
            for word, start, size_bytes in ENTRY.iter_unpack(piece):
                if ends[bisect_left(wanted, start)] >= start + size_bytes or not _is_code(word):
                    continue  # nearly all of them
                for index in range(bisect_left(wanted, start), len(wanted)):
                    if wanted[index] >= start + size_bytes or limits.matches <= 0:
                        break
                    limits.matches -= 1
                    _take(found, wanted[index], start, word, table)
    if limits.matches <= 0:
        limits.say("symbols: too many that overlap")
    return _chosen(found)


def _unsized(group: list[_Table], wanted: list[int], limits: Limits) -> dict[int, Symbol]:
    """Return the symbols without a size behind which, and behind no other function's start, these addresses are."""
    found: dict[int, _Best] = {}
    sized: dict[int, int] = {}
    for table in group if wanted else ():
        places = table.file.sections()
        for piece in table.pieces(limits):
            for word, start, size_bytes in ENTRY.iter_unpack(piece):
                index = bisect_left(wanted, start)
                if index == len(wanted) or not _is_code(word):
                    continue
                address = wanted[index]
                if size_bytes:
                    sized[address] = max(sized.get(address, 0), start)
                elif _end(places, word) > address:
                    _take(found, address, start, word, table)
    nearest: _Best | None = None
    nearest_sized = -1
    for address in wanted:  # what is nearest to one is nearest to the next one, too, if nothing starts between them
        best = found.get(address) or nearest
        nearest_sized = max(nearest_sized, sized.get(address, -1))
        if best is None or best.start < nearest_sized:
            found.pop(address, None)
            continue
        word, table = best.words[0]
        nearest = best
        if _end(table.file.sections(), word) > address:
            found[address] = best
    return _chosen(found)


def _is_code(word: int) -> bool:
    """Say whether the first word of an entry is that of a function, or of a label, that this file defines."""
    return word >> 32 & 15 in _CODE and _SHN_UNDEF < word >> 48 < _SHN_LORESERVE


def _end(sections: list[Section], word: int) -> int:
    """Return where the section of code ends that a symbol is in; 0 where it is in none."""
    number = word >> 48
    if number >= len(sections) or not sections[number].flags & _SHF_EXECINSTR:
        return 0
    return sections[number].address + sections[number].size_bytes


def _take(found: dict[int, _Best], address: int, start: int, word: int, table: _Table) -> None:
    best = found.get(address)
    if best is None or start > best.start:
        found[address] = _Best(start, [(word, table)])
    elif start == best.start and len(best.words) < _ALIASES_MAX:
        best.words.append((word, table))


def _chosen(found: dict[int, _Best]) -> dict[int, Symbol]:
    """Read the names of the symbols that were found, and choose among aliases. One without a name is no symbol."""
    chosen: dict[int, str] = {}
    result = {}
    for address, best in found.items():
        if best.start not in chosen:
            names = ((word, table.name(word & 0xFFFFFFFF)) for word, table in best.words)
            chosen[best.start] = min((_rank(word, name) for word, name in names if name), default=(0, 0, 0, 0, 0, ""))[
                -1
            ]
        if chosen[best.start]:
            result[address] = Symbol(chosen[best.start], best.start)
    return result


def _rank(word: int, name: str) -> tuple[int, int, int, int, int, str]:
    """Order aliases: what is exported first, then `poll` before `__poll`, the strong before the weak one, the shorter one.

    The same name is chosen with a debug file and without: where there is none, only what is exported can be seen.
    """
    binding = word >> 36 & 15
    exported = binding in (_STB_GLOBAL, _STB_WEAK, _STB_GNU_UNIQUE)
    underscores = len(name) - len(name.lstrip("_"))
    return not exported, name.startswith("__GI_"), underscores, binding == _STB_WEAK, len(name), name
