# SPDX-License-Identifier: Apache-2.0
"""The bounded reader of an ELF core's headers and notes. Everything in a core is what a crashed process chose to leave.

Layouts: elf(5), System V ABI; the notes of Linux cores: fs/binfmt_elf.c and include/uapi/linux/elfcore.h of the kernel.
A `pread` here is a function of (count, offset) that returns at most that many bytes, fewer at the end of the core.

Imported while a crashed process is held.
"""

import struct

from coresnap.ground.errors import BadInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Pread = Callable[[int, int], bytes]

ET_CORE = 4
EM_X86_64, EM_AARCH64 = 62, 183
PT_LOAD, PT_NOTE = 1, 4
NT_PRSTATUS, NT_PRPSINFO = 1, 3
SEGMENTS_MAX = 1 << 20
NOTES_MAX_BYTES = 256 << 20
_PN_XNUM = 0xFFFF
_CHUNK_SEGMENTS = 4096


class Segment:
    """A program header: offsets and sizes in bytes."""

    __slots__ = ("filesz", "flags", "memsz", "offset", "type", "vaddr")

    def __init__(self, type_: int, flags: int, offset: int, vaddr: int, filesz: int, memsz: int) -> None:
        self.type = type_
        self.flags = flags
        self.offset = offset
        self.vaddr = vaddr
        self.filesz = filesz
        self.memsz = memsz


class CoreHeader:
    """The header of a core and its segments. `expected_bytes` is where the last segment's bytes end."""

    __slots__ = ("elf_class", "expected_bytes", "machine", "notes_end", "notes_offset", "order", "segments")

    def __init__(self, elf_class: int, order: str, machine: int) -> None:
        self.elf_class = elf_class
        self.order = order
        self.machine = machine
        self.segments: list[Segment] = []
        self.notes_offset = 0
        self.notes_end = 0
        self.expected_bytes = 0


def looks_like_core(first: bytes) -> str:
    """Return why these first bytes of a stream are not those of a core; nothing where they are."""
    if first[:4] != b"\x7fELF":
        return "not ELF" if len(first) >= 4 else f"not ELF, {len(first)} bytes"
    if len(first) < 18 or first[4] not in (1, 2) or first[5] not in (1, 2):
        return "ELF of no known class or byte order"
    kind = struct.unpack_from("<H" if first[5] == 1 else ">H", first, 16)[0]
    return "" if kind == ET_CORE else f"ELF of type {kind}, not a core"


def read_core(pread: "Pread") -> CoreHeader:
    """Read the header and the program headers. Raises BadInput naming the offset of what is wrong."""
    head = pread(64, 0)
    reason = looks_like_core(head)
    if reason:
        raise BadInput(f"core: {reason}")
    elf_class, order = (64 if head[4] == 2 else 32), ("<" if head[5] == 1 else ">")
    if len(head) < (64 if elf_class == 64 else 52):
        raise BadInput(f"core: the ELF header is cut at {len(head)} bytes")
    machine = struct.unpack_from(order + "H", head, 18)[0]
    header = CoreHeader(elf_class, order, machine)
    if elf_class == 64:
        phoff, _shoff = struct.unpack_from(order + "QQ", head, 32)
        phentsize, phnum = struct.unpack_from(order + "HH", head, 54)
    else:
        phoff, _shoff = struct.unpack_from(order + "II", head, 28)
        phentsize, phnum = struct.unpack_from(order + "HH", head, 42)
    shape = _shape(elf_class, order)
    if phentsize != shape.size:
        raise BadInput(f"core: a program header of {phentsize} bytes at offset 54, {shape.size} expected")
    if phnum == _PN_XNUM:
        phnum = _many(pread, header, phoff, shape)
    if not 0 < phnum <= SEGMENTS_MAX:
        raise BadInput(f"core: {phnum} program headers")
    _read_segments(pread, header, phoff, phnum, shape)
    return header


def _shape(elf_class: int, order: str) -> struct.Struct:
    """Return the layout of a program header: Elf64_Phdr or Elf32_Phdr."""
    return struct.Struct(order + ("IIQQQQQQ" if elf_class == 64 else "IIIIIIII"))


def _segment(header: CoreHeader, values: "tuple[int, ...]") -> Segment:
    if header.elf_class == 64:
        type_, flags, offset, vaddr, _paddr, filesz, memsz, _align = values
    else:
        type_, offset, vaddr, _paddr, filesz, memsz, flags, _align = values
    return Segment(type_, flags, offset, vaddr, filesz, memsz)


def _many(pread: "Pread", header: CoreHeader, phoff: int, shape: struct.Struct) -> int:
    """Count program headers that are too many for e_phnum.

    The count stands in a section header behind all the data, which a stream or a cut core does not have; but the notes
    come first in the file and start where the program headers end.
    """
    data = pread(shape.size, phoff)
    if len(data) < shape.size:
        raise BadInput(f"core: the program headers at {phoff} are cut")
    first = _segment(header, shape.unpack(data))
    if first.type != PT_NOTE or first.offset < phoff or (first.offset - phoff) % shape.size:
        raise BadInput(f"core: the first of many program headers at {phoff} is not the notes'")
    return (first.offset - phoff) // shape.size


def _read_segments(pread: "Pread", header: CoreHeader, phoff: int, phnum: int, shape: struct.Struct) -> None:
    for at in range(0, phnum, _CHUNK_SEGMENTS):
        count = min(_CHUNK_SEGMENTS, phnum - at)
        offset = phoff + at * shape.size
        data = pread(count * shape.size, offset)
        if len(data) < count * shape.size:
            raise BadInput(f"core: the program headers are cut at {offset + len(data)}")
        for values in shape.iter_unpack(data):
            segment = _segment(header, values)
            header.segments.append(segment)
            end = segment.offset + segment.filesz
            if segment.filesz:
                header.expected_bytes = max(header.expected_bytes, end)
            if segment.type == PT_NOTE and not header.notes_end:
                if segment.filesz > NOTES_MAX_BYTES:
                    raise BadInput(f"core: notes of {segment.filesz} bytes at {segment.offset}")
                header.notes_offset, header.notes_end = segment.offset, end


def iter_notes(data: bytes, order: str = "<") -> "Iterator[tuple[str, int, int, int]]":
    """Yield (name, type, offset, size) of each note in `data`; ends at the first that does not fit."""
    at = 0
    while at + 12 <= len(data):
        name_bytes, size_bytes, kind = struct.unpack_from(order + "III", data, at)
        start = at + 12 + (name_bytes + 3 & ~3)
        if name_bytes > 256 or start + size_bytes > len(data):
            return
        name = data[at + 12 : at + 12 + name_bytes].rstrip(b"\0").decode("latin-1")
        yield name, kind, start, size_bytes
        at = start + (size_bytes + 3 & ~3)


class Identity:
    """Who crashed, as the notes tell; None where they do not."""

    __slots__ = ("comm", "gid", "pid", "psargs", "signal", "tid", "uid")

    def __init__(self) -> None:
        self.pid: int | None = None
        self.tid: int | None = None
        self.uid: int | None = None
        self.gid: int | None = None
        self.signal: int | None = None
        self.comm: str | None = None
        self.psargs: str | None = None


def identity(pread: "Pread") -> Identity:
    """Read who crashed from the notes of a 64-bit core; of a 32-bit one nothing is known. Raises BadInput.

    struct elf_prstatus: cursig at 12, pid at 32. struct elf_prpsinfo: uid 16, gid 20, pid 24, fname 40, psargs 56.
    """
    header = read_core(pread)
    known = Identity()
    if header.elf_class != 64:
        return known
    data = pread(min(header.notes_end - header.notes_offset, 1 << 20), header.notes_offset)
    for name, kind, at, size_bytes in iter_notes(data, header.order):
        if name != "CORE":
            continue
        if kind == NT_PRSTATUS and known.tid is None and size_bytes >= 112:
            known.signal = struct.unpack_from(header.order + "H", data, at + 12)[0]
            known.tid = struct.unpack_from(header.order + "I", data, at + 32)[0]
        elif kind == NT_PRPSINFO and known.pid is None and size_bytes >= 136:
            known.uid, known.gid, known.pid = struct.unpack_from(header.order + "III", data, at + 16)
            known.comm = data[at + 40 : at + 56].split(b"\0")[0].decode("utf-8", "replace")
            known.psargs = data[at + 56 : at + 136].split(b"\0")[0].decode("utf-8", "replace")
    return known
