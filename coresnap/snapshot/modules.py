# SPDX-License-Identifier: Apache-2.0
"""The modules of a process: its mapped ELF files, with build-id and package, read from the core's memory alone.

Build-id: note GNU, type 3; Go's own: note Go, type 4.
Package metadata: note FDO, type 0xcafe1a7e, JSON (the ELF packaging specification).
"""

from __future__ import annotations

import bisect
import json
import struct
from collections.abc import Iterator
from collections.abc import Mapping as ReadOnly
from types import MappingProxyType
from typing import Any, NamedTuple

from coresnap.ground import elf
from coresnap.ground.elf_file import GO_BUILD_ID_MAX, NT_GO_BUILD_ID
from coresnap.snapshot.core import Core, Memory
from coresnap.snapshot.notes import Mapping

MODULES_MAX = 65536
VDSO = "[vdso]"
AT_ENTRY, AT_SYSINFO_EHDR = 9, 33
_NT_GNU_BUILD_ID = 3
_NT_FDO_PACKAGING = 0xCAFE1A7E
_NOTES_MAX_BYTES = 64 << 10
#: What all modules' program headers and notes may take to read; real ones are below 2 kB each.
_BUDGET_BYTES = 32 << 20
_HEADERS_MAX = 256
_PAGE_MASK = ~0xFFF
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")


class Module(NamedTuple):
    """An ELF file in memory from `start` to `end`, where its own addresses are `bias` lower.

    The build-ids, in hex, are empty where the core does not have them.
    """

    path: str
    start: int
    end: int
    bias: int
    build_id: str = ""
    go_build_id: str = ""
    package: ReadOnly[str, str] = MappingProxyType({})


class Modules:
    """The modules by address; `missing` says what was left out."""

    def __init__(self, modules: list[Module], missing: list[str]) -> None:
        self.missing = missing
        self.listed = sorted(modules, key=lambda module: module.start)
        self._starts = [module.start for module in self.listed]

    def find(self, address: int) -> Module | None:
        """Return the module that has the address."""
        index = bisect.bisect_right(self._starts, address) - 1
        return self.listed[index] if index >= 0 and address < self.listed[index].end else None


def list_modules(core: Core) -> Modules:
    """Return the modules. A file whose header the core does not have is one if something of it is executable."""
    modules: list[Module] = []
    missing: list[str] = []
    left_bytes = _BUDGET_BYTES
    for path, start, mapped_end in _candidates(core):
        if modules and start < modules[-1].end and path == modules[-1].path:
            continue  # a second segment of the same page of a small file
        if len(modules) >= MODULES_MAX or left_bytes <= 0:
            missing.append(f"modules: the first {len(modules)}")
            break
        image = _Image(core.memory, start, left_bytes)
        if image.is_elf:
            modules.append(image.module(path, start))
        elif image.is_unknown and core.memory.is_executable(start, mapped_end):
            modules.append(Module(path, start, mapped_end, start))
        left_bytes = image.left_bytes
    return Modules(modules, missing)


def main_package(core: Core) -> dict[str, str]:
    """Return what the executable's package note tells; nothing where it has none."""
    main = list_modules(core).find(core.notes.auxv.get(AT_ENTRY, 0))
    return dict(main.package) if main else {}


def _candidates(core: Core) -> Iterator[tuple[str, int, int]]:
    """Yield (path, start, end of the run of its mappings) wherever the first page of a file is mapped, and the vDSO."""
    mappings = sorted(core.notes.mappings, key=lambda mapping: mapping.start)
    vdso = core.notes.auxv.get(AT_SYSINFO_EHDR, 0)
    if vdso:
        yield VDSO, vdso, vdso
    run: Mapping | None = None
    end = 0
    for mapping in mappings:
        if run is not None and mapping.path == run.path and mapping.offset:
            end = max(end, mapping.end)
            continue
        if run is not None:
            yield run.path, run.start, end
        run, end = (None, 0) if mapping.offset else (mapping, mapping.end)
    if run is not None:
        yield run.path, run.start, end


class _Image:
    """The headers of an ELF file that is mapped at `start`; reads no more than `left_bytes`."""

    def __init__(self, memory: Memory, start: int, left_bytes: int) -> None:
        head = memory.read(start, 64)
        self._memory = memory
        self.left_bytes = left_bytes
        self.is_unknown = not head
        self.is_elf = len(head) == 64 and head[:6] == b"\x7fELF\x02\x01"
        self._headers = self._read_headers(start, head) if self.is_elf else []

    def _read(self, address: int, size_bytes: int) -> bytes:
        data = self._memory.read(address, min(size_bytes, self.left_bytes))
        self.left_bytes -= len(data)
        return data

    def _read_headers(self, start: int, head: bytes) -> list[tuple[int, ...]]:
        phoff = struct.unpack_from("<Q", head, 32)[0]
        phentsize, phnum = struct.unpack_from("<HH", head, 54)
        if phentsize != _PROGRAM_HEADER.size or phnum > _HEADERS_MAX or phoff > 1 << 20:
            return []
        data = self._read(start + phoff, phnum * phentsize)
        return list(_PROGRAM_HEADER.iter_unpack(data[: len(data) - len(data) % phentsize]))

    def module(self, path: str, start: int) -> Module:
        """Return the module that this is. Its addresses start where the segment of the file's first page does."""
        loads = [
            (vaddr, offset, memsz) for t, _f, offset, vaddr, _p, _s, memsz, _a in self._headers if t == elf.PT_LOAD
        ]
        base = start - next((vaddr - offset & _PAGE_MASK for vaddr, offset, _m in loads if not offset & _PAGE_MASK), 0)
        end = max((base + vaddr + memsz for vaddr, _offset, memsz in loads), default=start)
        build_id, go_build_id, package = "", "", {}
        for kind, _flags, _offset, vaddr, _paddr, filesz, *_rest in self._headers:
            if kind != elf.PT_NOTE:
                continue
            notes = self._read(base + vaddr, min(filesz, _NOTES_MAX_BYTES))
            for name, note_kind, at, size_bytes in elf.iter_notes(notes):
                if name == "GNU" and note_kind == _NT_GNU_BUILD_ID and size_bytes <= 64:
                    build_id = notes[at : at + size_bytes].hex()
                elif name == "Go" and note_kind == NT_GO_BUILD_ID and size_bytes <= GO_BUILD_ID_MAX:
                    go_build_id = notes[at : at + size_bytes].hex()
                elif name == "FDO" and note_kind == _NT_FDO_PACKAGING:
                    package = _package(notes[at : at + size_bytes])
        return Module(path, start, min(max(end, start + 1), 1 << 64), base, build_id, go_build_id, package)


def _package(data: bytes) -> dict[str, str]:
    """Return the texts of a package note, nothing where it is no JSON object."""
    try:
        document: Any = json.loads(data.rstrip(b"\0"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(document, dict):
        return {}
    return {key[:64]: value[:256] for key, value in list(document.items())[:32] if isinstance(value, str)}
