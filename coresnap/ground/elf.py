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
PF_X, PF_R = 1, 4
NT_PRSTATUS, NT_PRPSINFO, NT_AUXV, NT_FILE = 1, 3, 6, 0x46494C45
#: vm.max_map_count is set as high as this by some distributions.
SEGMENTS_MAX = 1 << 20
#: 65,536 threads with some ten register sets each, of 12 kB in all.
NOTES_MAX = 1 << 20
NOTES_MAX_BYTES = 1 << 30
#: The kernel writes no list of files larger than this (core_file_note_size_limit).
NOTE_MAX_BYTES = 16 << 20
_VECTOR_MAX_BYTES = 4096
_OFFSET_MAX = (1 << 63) - 1
PN_XNUM = 0xFFFF  #: e_phnum, where there are as many program headers or more
_CHUNK_SEGMENTS = 4096
_WINDOW_BYTES = 1 << 20
_KINDS = {1: "an object file", 2: "an executable", 3: "an executable or a library"}
#: What may be taken for a core, by its first bytes.
_OTHERS = {
    b"\x1f\x8b": "compressed by gzip",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"\xfd7zXZ": "compressed by xz",
    b"BZh": "compressed by bzip2",
    b"\x04\x22\x4d\x18": "compressed by lz4",
    b"age-encryption.org/": "encrypted by age",
    b"KDUMP ": "a dump of a kernel",
    b"DISKDUMP": "a dump of a kernel",
    b"makedumpfile": "a dump of a kernel",
}


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
    """The header of a core. `expected_bytes` is where the last segment's bytes end; its segments: see segments()."""

    __slots__ = (
        "elf_class",
        "expected_bytes",
        "machine",
        "notes_end",
        "notes_offset",
        "order",
        "segments_count",
        "segments_offset",
    )

    def __init__(self, elf_class: int, order: str, machine: int) -> None:
        self.elf_class = elf_class
        self.order = order
        self.machine = machine
        self.segments_offset = 0
        self.segments_count = 0
        self.notes_offset = 0
        self.notes_end = 0
        self.expected_bytes = 0


def looks_like_core(first: bytes) -> str:
    """Return why these first bytes of a stream are not those of a core; nothing where they are."""
    if first[:4] != b"\x7fELF":
        what = [": " + what for magic, what in _OTHERS.items() if first.startswith(magic)]
        return "".join(["not ELF", *what]) if len(first) >= 4 else f"not ELF, {len(first)} bytes"
    if len(first) < 18 or first[4] not in (1, 2) or first[5] not in (1, 2):
        return "ELF of no known class or byte order"
    kind = struct.unpack_from("<H" if first[5] == 1 else ">H", first, 16)[0]
    if kind == ET_CORE << 8:
        return "ELF of another byte order than it says"
    return "" if kind == ET_CORE else f"{_KINDS.get(kind, f'ELF of type {kind}')}, not a core"


def read_core(pread: "Pread") -> CoreHeader:
    """Read the header and walk the program headers once. Raises BadInput naming the offset of what is wrong."""
    head = pread(64, 0)
    reason = looks_like_core(head)
    if reason:
        raise BadInput(f"core: {reason}")
    elf_class, order = (64 if head[4] == 2 else 32), ("<" if head[5] == 1 else ">")
    if len(head) < (64 if elf_class == 64 else 52):
        raise BadInput(f"core: the ELF header is cut at {len(head)} bytes")
    header = CoreHeader(elf_class, order, struct.unpack_from(order + "H", head, 18)[0])
    if elf_class == 64:
        header.segments_offset, shoff = struct.unpack_from(order + "QQ", head, 32)
        phentsize, phnum = struct.unpack_from(order + "HH", head, 54)
    else:
        header.segments_offset, shoff = struct.unpack_from(order + "II", head, 28)
        phentsize, phnum = struct.unpack_from(order + "HH", head, 42)
    size_bytes = _shape(header).size
    if phentsize != size_bytes:
        at = 54 if elf_class == 64 else 42
        raise BadInput(f"core: a program header of {phentsize} bytes at offset {at}, {size_bytes} expected")
    count = _many(pread, header, shoff) if phnum == PN_XNUM else phnum
    header.segments_count = min(count, _before_notes(pread, header) or count)
    if not 0 < header.segments_count <= SEGMENTS_MAX:
        raise BadInput(f"core: {header.segments_count} program headers")
    for segment in segments(pread, header):
        end = min(segment.offset + segment.filesz, _OFFSET_MAX)
        if segment.filesz:
            header.expected_bytes = max(header.expected_bytes, end)
        if segment.type == PT_NOTE and not header.notes_end:
            header.notes_offset, header.notes_end = segment.offset, end
    return header


def segments(pread: "Pread", header: CoreHeader) -> "Iterator[Segment]":
    """Yield the segments, a chunk of program headers at a time: there may be a million. Raises BadInput where they are cut."""
    shape = _shape(header)
    for at in range(0, header.segments_count, _CHUNK_SEGMENTS):
        count = min(_CHUNK_SEGMENTS, header.segments_count - at)
        offset = header.segments_offset + at * shape.size
        data = _read(pread, count * shape.size, offset)
        if len(data) < count * shape.size:
            raise BadInput(f"core: the program headers are cut at {offset + len(data)}")
        for values in shape.iter_unpack(data):
            yield _segment(header, values)


def _read(pread: "Pread", count: int, offset: int) -> bytes:
    """Read at an offset that the core gave: at one that no file can have there is nothing."""
    return pread(count, offset) if offset + count <= _OFFSET_MAX else b""


def _shape(header: CoreHeader) -> struct.Struct:
    """Return the layout of a program header: Elf64_Phdr or Elf32_Phdr."""
    return struct.Struct(header.order + ("IIQQQQQQ" if header.elf_class == 64 else "IIIIIIII"))


def _segment(header: CoreHeader, values: "tuple[int, ...]") -> Segment:
    if header.elf_class == 64:
        type_, flags, offset, vaddr, _paddr, filesz, memsz, _align = values
    else:
        type_, offset, vaddr, _paddr, filesz, memsz, flags, _align = values
    return Segment(type_, flags, offset, vaddr, filesz, memsz)


def _before_notes(pread: "Pread", header: CoreHeader) -> int:
    """Return how many program headers fit before the notes, where the first one is of these; else 0.

    Whatever the count may say, it is wrong where it has the headers run into the notes, which can be read all the same.
    """
    shape = _shape(header)
    data = _read(pread, shape.size, header.segments_offset)
    first = _segment(header, shape.unpack(data)) if len(data) == shape.size else None
    if first is None or first.type != PT_NOTE or not first.filesz:
        return 0
    return max(0, first.offset - header.segments_offset) // shape.size


def _many(pread: "Pread", header: CoreHeader, shoff: int) -> int:
    """Count program headers that are too many for e_phnum.

    The kernel writes the notes right behind them, before all memory, which tells even of a stream or a cut core. Other
    writers leave the count where elf(5) has it: in sh_info of the first section header, behind all the data.
    """
    shape, phoff = _shape(header), header.segments_offset
    data = _read(pread, 2 * shape.size, phoff)
    if len(data) < 2 * shape.size:
        raise BadInput(f"core: the program headers are cut at {phoff + len(data)}")
    first, second = (_segment(header, values) for values in shape.iter_unpack(data))
    count, rest = divmod(first.offset - phoff, shape.size)
    before_memory = first.type == PT_NOTE and first.offset + first.filesz <= second.offset
    if before_memory and not rest and PN_XNUM <= count <= SEGMENTS_MAX:
        return count
    at = 44 if header.elf_class == 64 else 28
    data = _read(pread, 4, shoff + at) if shoff else b""
    said = int(struct.unpack(header.order + "I", data)[0]) if len(data) == 4 else 0
    if said < PN_XNUM and before_memory and 0 < count <= SEGMENTS_MAX:
        return count  # they are not so many: e_phnum lies
    if len(data) < 4:
        raise BadInput(f"core: the count of its many program headers, at {shoff + at}, is cut off")
    return said


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


def core_notes(pread: "Pread", header: CoreHeader) -> "Iterator[tuple[int, bytes]]":
    """Yield (type, contents) of the core's own notes, those named CORE, in their order; ends where they are cut.

    At most a window is held at a time. A note larger than NOTE_MAX_BYTES is passed over, and what is behind NOTES_MAX
    notes or NOTES_MAX_BYTES as well: a core may be a file of holes.
    """
    at, size_bytes, left = header.notes_offset, _WINDOW_BYTES, NOTES_MAX
    end = min(header.notes_end, at + NOTES_MAX_BYTES)
    while at < end and left:
        window = _read(pread, min(size_bytes, end - at), at)
        used = 0
        for name, kind, start, length in iter_notes(window, header.order):
            used = start + (length + 3 & ~3)
            left -= 1
            if name == "CORE":
                yield kind, window[start : start + length]
            if not left:
                return
        if used:
            at, size_bytes = at + used, _WINDOW_BYTES
        elif len(window) < 12 or len(window) < min(size_bytes, end - at):
            return
        else:
            name_bytes, length = struct.unpack_from(header.order + "II", window, 0)
            whole = 12 + (name_bytes + 3 & ~3) + (length + 3 & ~3)
            if name_bytes > 256 or whole <= size_bytes:
                return
            if whole <= NOTE_MAX_BYTES:
                size_bytes = whole
            else:
                at, left = at + whole, left - 1


def file_mappings(pread: "Pread") -> "set[int] | None":
    """Return the addresses at which files are mapped; None where the core, of a 64-bit machine, does not tell. Raises BadInput.

    NT_FILE: count, page size, then (start, end, offset in pages) of each mapping; its names are of no interest here.
    """
    header = read_core(pread)
    if header.elf_class != 64:
        return None
    for kind, note in core_notes(pread, header):
        if kind == NT_FILE and len(note) >= 16:
            (count,) = struct.unpack_from(header.order + "Q", note, 0)
            if 16 + 24 * count <= len(note):
                return set(struct.unpack_from(f"{header.order}{3 * count}Q", note, 16)[::3])
    return None


def auxiliary_vector(pread: "Pread") -> "dict[int, int]":
    """Return the auxiliary vector that the notes have, by its keys; empty where they have none. Raises BadInput.

    NT_AUXV: pairs of words of the core's class, up to AT_NULL; of a key that is there twice the first counts. getauxval(3).
    """
    header = read_core(pread)
    word = "Q" if header.elf_class == 64 else "I"
    pair = struct.Struct(f"{header.order}2{word}")
    vector: dict[int, int] = {}
    for kind, note in core_notes(pread, header):
        if kind != NT_AUXV:
            continue
        for key, value in pair.iter_unpack(note[: min(len(note), _VECTOR_MAX_BYTES) // pair.size * pair.size]):
            if key == 0:
                break
            vector.setdefault(key, value)
        break
    return vector


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


#: struct elf_prpsinfo by its size: where uid and gid stand and their format, then pid, fname and psargs. 64-bit machines;
#: 32-bit ones with ids of 16 bits (i386, ARM), and of 32 bits.
_PRPSINFO = {136: (16, "II", 24, 40, 56), 124: (8, "HH", 12, 28, 44), 128: (8, "II", 16, 32, 48)}


def identity(pread: "Pread") -> Identity:
    """Read who crashed from the notes of a core. Raises BadInput where it has no header.

    The first thread is the one that crashed. struct elf_prstatus: cursig at 12, pid at 32, or at 24 of a 32-bit machine.
    """
    header = read_core(pread)
    known = Identity()
    pid_at = 32 if header.elf_class == 64 else 24
    for kind, note in core_notes(pread, header):
        if kind == NT_PRSTATUS and known.tid is None and len(note) >= pid_at + 4:
            known.signal = struct.unpack_from(header.order + "H", note, 12)[0]
            known.tid = struct.unpack_from(header.order + "I", note, pid_at)[0]
        elif kind == NT_PRPSINFO and known.pid is None and len(note) in _PRPSINFO:
            ids_at, ids, psinfo_pid_at, fname_at, psargs_at = _PRPSINFO[len(note)]
            known.uid, known.gid = struct.unpack_from(header.order + ids, note, ids_at)
            known.pid = struct.unpack_from(header.order + "I", note, psinfo_pid_at)[0]
            known.comm = text(note[fname_at : fname_at + 16])
            known.psargs = text(note[psargs_at : psargs_at + 80])
        if known.tid is not None and known.pid is not None:
            break
    return known


def text(raw: bytes) -> str:
    """Return the text that a NUL ends in an array of bytes."""
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace").strip(" ")
