# SPDX-License-Identifier: Apache-2.0
"""The unwind tables of a module, wherever they are: .eh_frame and .debug_frame of its file, of the core, of debug files.

Addresses are those of the file, without the bias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from coresnap.ground.elf_file import PT_GNU_EH_FRAME, ElfFile, Section
from coresnap.ground.errors import BadInput
from coresnap.snapshot.core import Core
from coresnap.snapshot.images import Image
from coresnap.snapshot.unwind.entries import Entries, Fde, Read
from coresnap.snapshot.unwind.index import MadeTable, read_header

#: Tables are made of sections up to this size, and of no more than this in all modules.
_MADE_MAX_BYTES = 32 << 20
_FDES_MAX = 4096


class Table(Protocol):
    """Tells which FDE an address would have."""

    def find(self, address: int) -> int | None:
        """Return the place of that FDE. Raises BadInput."""


class _Source:
    """A table, and the records that it points to; those that were read are kept by their place."""

    def __init__(self, table: Table, entries: Entries) -> None:
        self.table = table
        self.entries = entries
        self.known: dict[int, Fde] = {}

    def fde(self, address: int) -> Fde | None:
        place = self.table.find(address)
        if place is None:
            return None
        fde = self.known.get(place)
        if fde is None:
            fde = self.entries.fde(place)
            if len(self.known) >= _FDES_MAX:
                self.known.clear()
            self.known[place] = fde
        return fde if fde.start <= address < fde.end else None


class Tables:
    """The unwind tables of one module. They are looked for when they are needed, the best first."""

    def __init__(self, image: Image, core: Core, budget: Budget) -> None:
        self._image = image
        self._core = core
        self._budget = budget
        self._sources: list[_Source] = []
        self._more = self._look()
        self.damage = ""

    def find(self, address: int) -> Fde | None:
        """Return the FDE that has the address; what was damaged on the way is said in `damage`."""
        self.damage = ""
        for source in self._all():
            try:
                fde = source.fde(address)
            except BadInput as error:
                self.damage = str(error)
                continue
            if fde is not None:
                return fde
        return None

    def _all(self) -> Iterator[_Source]:
        yield from self._sources
        for source in self._more:
            self._sources.append(source)
            yield source

    def _look(self) -> Iterator[_Source]:
        image = self._image
        for file, read in self._readers():
            source = self._eh_frame(file, read)
            if source is not None:
                yield source
        for one in (image.file, *image.debug):
            source = self._debug_frame(one) if one is not None else None
            if source is not None:
                yield source

    def _readers(self) -> Iterator[tuple[ElfFile, Read]]:
        """Yield ELF files, and how their loaded bytes are read: the file that was mapped, the module in the core."""
        file, module = self._image.file, self._image.module
        if file is not None:
            yield file, loaded(file)
        memory, bias = self._core.memory, self._image.bias
        try:
            mapped = ElfFile(lambda count, at: memory.read(module.start + at, count), module.path)
        except BadInput:
            return
        yield mapped, lambda address, count: memory.read(bias + address, count)

    def _eh_frame(self, file: ElfFile, read: Read) -> _Source | None:
        segment = file.segment(PT_GNU_EH_FRAME)
        try:
            if segment is not None and read(segment.vaddr, 1):
                header = read_header(read, segment.vaddr, segment.memsz)
                if header.table is not None:
                    return _Source(header.table, Entries(read, header.frames, is_eh=True))
        except BadInput as error:
            self.damage = str(error)
        section = file.section(".eh_frame")
        return self._made(file, section, is_eh=True) if section is not None else None

    def _debug_frame(self, file: ElfFile) -> _Source | None:
        section = file.section(".debug_frame")
        return self._made(file, section, is_eh=False) if section is not None else None

    def _made(self, file: ElfFile, section: Section, *, is_eh: bool) -> _Source | None:
        try:
            data = file.contents(section, min(_MADE_MAX_BYTES, self._budget.left_bytes))
        except BadInput as error:
            self.damage = str(error)
            return None
        self._budget.left_bytes -= len(data)
        start = section.address if is_eh else 0

        def read(address: int, count: int) -> bytes:
            at = address - start
            return data[at : at + count] if at >= 0 else b""

        entries = Entries(read, start, is_eh=is_eh)
        return _Source(MadeTable(entries, data, start), entries)


class Budget:
    """What tables that have to be made may still take, of all modules."""

    def __init__(self, left_bytes: int = _MADE_MAX_BYTES) -> None:
        self.left_bytes = left_bytes


def loaded(file: ElfFile) -> Callable[[int, int], bytes]:
    """Return how a file's bytes are read by the address at which they are loaded, before the bias."""

    def read(address: int, count: int) -> bytes:
        offset = file.offset_of(address)
        return file.read(offset, count) if offset is not None else b""

    return read
