# SPDX-License-Identifier: Apache-2.0
"""The modules of a process: its mapped ELF files, with build-id and package, read from the core's memory alone.

Build-id: note GNU, type 3. Package metadata: note FDO, type 0xcafe1a7e, JSON (the ELF packaging specification).
"""

from __future__ import annotations

import bisect
import json
import struct
from dataclasses import dataclass
from typing import Any

from coresnap.ground import elf
from coresnap.snapshot.core import Core

MODULES_MAX = 65536
_NT_GNU_BUILD_ID = 3
_NT_FDO_PACKAGING = 0xCAFE1A7E
_NOTES_MAX_BYTES = 64 << 10
_HEADERS_MAX = 256
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")


@dataclass(frozen=True)
class Module:
    """A mapped ELF file: from `start`, the address of its first mapping, to `end`; `build_id` in hex, empty where unknown."""

    path: str
    start: int
    end: int
    build_id: str
    package: dict[str, str]


def list_modules(core: Core) -> list[Module]:
    """Return the modules by address. A file whose header the core does not have is listed without a build-id."""
    extents: dict[tuple[str, int], int] = {}
    current: dict[str, int] = {}
    for mapping in core.mappings:
        if mapping.offset == 0 and mapping.path not in current:
            current[mapping.path] = mapping.start
        start = current.get(mapping.path)
        if start is not None and mapping.start >= start:
            key = (mapping.path, start)
            extents[key] = max(extents.get(key, 0), mapping.end)
    modules = []
    for (path, start), end in sorted(extents.items(), key=lambda item: item[0][1])[:MODULES_MAX]:
        head = core.read(start, 64)
        if head and head[:4] != b"\x7fELF":
            continue
        build_id, package = _notes(core, start, head)
        modules.append(Module(path, start, end, build_id, package))
    return modules


def find(modules: list[Module], address: int) -> Module | None:
    """Return the module that has the address."""
    index = bisect.bisect_right(modules, address, key=lambda module: module.start) - 1
    return modules[index] if index >= 0 and address < modules[index].end else None


def _notes(core: Core, start: int, head: bytes) -> tuple[str, dict[str, str]]:
    """Walk the notes of the ELF file that is mapped at `start`."""
    build_id = ""
    package: dict[str, str] = {}
    if len(head) < 64 or head[4:6] != b"\x02\x01":
        return build_id, package
    phoff = struct.unpack_from("<Q", head, 32)[0]
    phentsize, phnum = struct.unpack_from("<HH", head, 54)
    if phentsize != _PROGRAM_HEADER.size or phnum > _HEADERS_MAX or phoff > 1 << 20:
        return build_id, package
    data = core.read(start + phoff, phnum * phentsize)
    headers = list(_PROGRAM_HEADER.iter_unpack(data[: len(data) - len(data) % phentsize]))
    first = min((vaddr - offset for kind, _f, offset, vaddr, *_ in headers if kind == elf.PT_LOAD), default=0)
    for kind, _flags, _offset, vaddr, _paddr, filesz, *_rest in headers:
        if kind != elf.PT_NOTE:
            continue
        notes = core.read(start + vaddr - first, min(filesz, _NOTES_MAX_BYTES))
        for name, note_kind, at, size_bytes in elf.iter_notes(notes):
            if name == "GNU" and note_kind == _NT_GNU_BUILD_ID and size_bytes <= 64:
                build_id = notes[at : at + size_bytes].hex()
            elif name == "FDO" and note_kind == _NT_FDO_PACKAGING:
                package = _package(notes[at : at + size_bytes])
    return build_id, package


def _package(data: bytes) -> dict[str, str]:
    """Return the texts of a package note, nothing where it is no JSON object."""
    try:
        document: Any = json.loads(data.rstrip(b"\0"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(document, dict):
        return {}
    return {key[:64]: value[:256] for key, value in list(document.items())[:32] if isinstance(value, str)}
