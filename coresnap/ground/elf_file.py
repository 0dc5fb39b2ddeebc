# SPDX-License-Identifier: Apache-2.0
"""The bounded reader of an ELF executable or library: segments, sections, build-id. Nothing in it is taken on trust.

It reads through a `pread`, a function of (count, offset): of a file, of pieces of one that archive kept, of a core's memory.
64-bit, little-endian. Layouts: elf(5), System V ABI; .gnu_debuglink: GDB's manual, "Debugging Information in Separate Files".
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

from coresnap.ground import elf
from coresnap.ground.errors import BadInput

Pread = Callable[[int, int], bytes]

PT_DYNAMIC, PT_GNU_EH_FRAME = 2, 0x6474E550
SHT_SYMTAB, SHT_NOBITS, SHT_DYNSYM = 2, 8, 11
_SHF_COMPRESSED = 1 << 11
_ELFCOMPRESS_ZLIB = 1
_NT_GNU_BUILD_ID, NT_GO_BUILD_ID = 3, 4
GO_BUILD_ID_MAX = 256
_SEGMENTS_MAX = 256
_SECTIONS_MAX = 65536
_NAMES_MAX_BYTES = 4 << 20
_NOTES_MAX_BYTES = 64 << 10
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SEGMENT = struct.Struct("<IIQQQQQQ")


class Section(NamedTuple):
    """A section header; offsets and sizes in bytes. `link` is the number of another section, as of a symbol table's names."""

    name: str
    type: int
    flags: int
    address: int
    offset: int
    size_bytes: int
    link: int
    entry_bytes: int


class ElfFile:
    """An ELF file. Its sections are read when they are asked for first: a core's memory has none."""

    def __init__(self, pread: Pread, name: str) -> None:
        """Read the header and the segments; `name` is for errors. Raises BadInput."""
        self.name = name
        self._pread = pread
        head = pread(64, 0)
        if len(head) < 64 or head[:6] != b"\x7fELF\x02\x01":
            raise BadInput(f"{name}: no ELF file of a 64-bit little-endian machine")
        self.type, self.machine = struct.unpack_from("<HH", head, 16)
        self.entry, phoff, self._shoff = struct.unpack_from("<QQQ", head, 24)
        phentsize, phnum, self._shentsize, self._shnum, self._shstrndx = struct.unpack_from("<HHHHH", head, 54)
        if phnum and (phentsize != _SEGMENT.size or phnum > _SEGMENTS_MAX):
            raise BadInput(f"{name}: {phnum} program headers of {phentsize} bytes")
        data = self.read(phoff, phnum * _SEGMENT.size)
        self._headers = [(0, 64), (phoff, phnum * _SEGMENT.size)]
        self.segments = [
            elf.Segment(type_, flags, offset, vaddr, filesz, memsz)
            for type_, flags, offset, vaddr, _paddr, filesz, memsz, _align in _SEGMENT.iter_unpack(
                data[: len(data) - len(data) % _SEGMENT.size]
            )
        ]
        self._numbered: list[Section] | None = None

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Return bytes at an offset of the file, fewer where it has no more."""
        if size_bytes <= 0 or offset < 0 or offset + size_bytes >= 1 << 63:
            return b""
        return self._pread(size_bytes, offset)

    def offset_of(self, vaddr: int) -> int | None:
        """Return where in the file the byte stands that is loaded at this address, before the bias."""
        for segment in self.segments:
            if segment.type == elf.PT_LOAD and segment.vaddr <= vaddr < segment.vaddr + segment.filesz:
                return segment.offset + vaddr - segment.vaddr
        return None

    def segment(self, type_: int) -> elf.Segment | None:
        """Return the first segment of a type."""
        return next((segment for segment in self.segments if segment.type == type_), None)

    def sections(self) -> list[Section]:
        """Return the sections, by their numbers; none where the headers are damaged or not there."""
        if self._numbered is None:
            self._numbered = self._read_sections()
        return self._numbered

    def headers(self) -> list[tuple[int, int]]:
        """Return where the file's header, the program headers, the section headers and the sections' names are.

        Each is (offset, size in bytes).
        """
        self.sections()
        return self._headers

    def section(self, name: str) -> Section | None:
        """Return the first section of a name that has contents in this file."""
        return next((one for one in self.sections() if one.name == name and one.type != SHT_NOBITS), None)

    def contents(self, section: Section, most_bytes: int) -> bytes:
        """Return a section's bytes, uncompressed. Raises BadInput where they are more than `most_bytes`, or are not there."""
        if section.size_bytes > most_bytes:
            raise BadInput(f"{self.name}: {section.name}: {section.size_bytes} bytes are more than {most_bytes}")
        data = self.read(section.offset, section.size_bytes)
        if len(data) < section.size_bytes:
            raise BadInput(f"{self.name}: {section.name}: {len(data)} of {section.size_bytes} bytes")
        if not section.flags & _SHF_COMPRESSED:
            return data
        if len(data) < 24 or struct.unpack_from("<I", data)[0] != _ELFCOMPRESS_ZLIB:
            raise BadInput(f"{self.name}: {section.name}: compressed in a way that is not read")
        try:
            inflater = zlib.decompressobj()
            contents = inflater.decompress(memoryview(data)[24:], most_bytes)
        except zlib.error as error:
            raise BadInput(f"{self.name}: {section.name}: {error}") from error
        if not inflater.eof:
            raise BadInput(f"{self.name}: {section.name}: cut, or more than {most_bytes} bytes")
        return contents

    def build_id(self) -> str:
        """Return the build-id in hex, empty where there is none. A debug file has it in a section only."""
        places = [(one.offset, one.filesz) for one in self.segments if one.type == elf.PT_NOTE]
        for offset, size_bytes in places:
            found = self._build_id_at(offset, size_bytes)
            if found:
                return found
        section = self.section(".note.gnu.build-id")
        return self._build_id_at(section.offset, section.size_bytes) if section else ""

    def go_build_id(self) -> str:
        """Return the build-id that Go's linker writes, in hex, empty where there is none: note Go, type 4."""
        for segment in self.segments:
            if segment.type == elf.PT_NOTE:
                data = self.read(segment.offset, min(segment.filesz, _NOTES_MAX_BYTES))
                for name, kind, at, length in elf.iter_notes(data):
                    if name == "Go" and kind == NT_GO_BUILD_ID and 0 < length <= GO_BUILD_ID_MAX:
                        return data[at : at + length].hex()
        return ""

    def _build_id_at(self, offset: int, size_bytes: int) -> str:
        data = self.read(offset, min(size_bytes, _NOTES_MAX_BYTES))
        for name, kind, at, length in elf.iter_notes(data):
            if name == "GNU" and kind == _NT_GNU_BUILD_ID and 0 < length <= 64:
                return data[at : at + length].hex()
        return ""

    def debuglink(self) -> tuple[str, int] | None:
        """Return the name of the separate debug file and its CRC-32; None where none is named, or the name is a path."""
        section = self.section(".gnu_debuglink")
        if section is None or not 8 <= section.size_bytes <= 4096:
            return None
        data = self.read(section.offset, section.size_bytes)
        name = data.split(b"\0", 1)[0]
        at = len(name) + 4 & ~3
        if not name or b"/" in name or name in (b".", b"..") or at + 4 > len(data):
            return None
        return name.decode("utf-8", "surrogateescape"), struct.unpack_from("<I", data, at)[0]

    def _read_sections(self) -> list[Section]:
        count, names_at = self._shnum, self._shstrndx
        if self._shoff and self._shentsize == _SECTION.size:
            first = self.read(self._shoff, _SECTION.size)
            if len(first) == _SECTION.size:  # there may be more than the header's fields can say: elf(5)
                values = _SECTION.unpack(first)
                count, names_at = count or values[5], values[6] if names_at == 0xFFFF else names_at
        else:
            return []
        count = min(count, _SECTIONS_MAX)
        data = self.read(self._shoff, count * _SECTION.size)
        self._headers.append((self._shoff, count * _SECTION.size))
        rows = list(_SECTION.iter_unpack(data[: len(data) - len(data) % _SECTION.size]))
        names = b""
        if names_at < len(rows):
            place = rows[names_at][4], min(rows[names_at][5], _NAMES_MAX_BYTES)
            names = self.read(*place)
            self._headers.append(place)
        return [
            Section(_name(names, name), type_, flags, address, offset, size_bytes, link, entry_bytes)
            for name, type_, flags, address, offset, size_bytes, link, _info, _align, entry_bytes in rows
        ]


def _name(names: bytes, at: int) -> str:
    end = names.find(b"\0", at)
    return names[at : end if 0 <= end <= at + 256 else at + 256].decode("utf-8", "replace") if at < len(names) else ""
