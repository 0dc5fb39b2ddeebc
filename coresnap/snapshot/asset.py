# SPDX-License-Identifier: Apache-2.0
"""The asset, read safely: a TAR of plain files whose names and sizes are known beforehand. Nothing is unpacked.

What archive writes is plain ustar: a header of 512 bytes, then the contents, in blocks of 512. tarfile is not asked to read
it: links, sparse members and extended headers, which a forged one may nest and inflate, have no place in an asset. Layout:
pax(1p).
"""

from __future__ import annotations

import bisect
import os
import re
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

from coresnap.ground.elf_file import Pread
from coresnap.ground.errors import BadInput

_BLOCK_BYTES = 512
#: archive keeps no more of a file.
_MEMBER_MAX_BYTES = 4 << 20
#: What is kept of mapped files comes last, in some thousand pieces at most.
_MEMBERS_MAX = 4096
_OFFSET_MAX = (1 << 63) - _BLOCK_BYTES - 1
_PIECE = re.compile(r"modules/([0-9a-f]{1,16})/([0-9a-f]{1,16})")
_LINES_MAX = 1000
_THREADS_MAX = 65536
#: The members that a report draws on.
_PROC = ("status", "stat", "exe", "task", "environ")
_HOST = ("meminfo", "uptime", "version", "stat", "hostname")
_NAMES = {*(f"proc/{name}" for name in _PROC), *(f"host/{name}" for name in _HOST)}


#: Typeflags: a plain file; a directory; what changes the name, the size or the meaning of the member behind it.
_PLAIN, _DIRECTORY, _EXTENSIONS = b"0\0", b"5", b"xgXLK"


class _Member(NamedTuple):
    name: str
    kind: bytes
    size_bytes: int


def read_asset(path: str, missing: list[str], names: Collection[str] = _NAMES) -> dict[str, bytes]:
    """Return these members, those that a report draws on, by name; a line in `missing` says what of the asset could not be read.

    A device such as /dev/null stands for no asset. Raises BadInput where it is no TAR, OSError where it is unreadable.
    """
    members: dict[str, bytes] = {}
    gaps: list[str] = []
    with _open(path) as file:
        for member, at in _walk(file, gaps):
            if member.name in names and member.name not in members:
                content = os.pread(file.fileno(), min(member.size_bytes, _MEMBER_MAX_BYTES), at)
                if len(content) < member.size_bytes:
                    gaps.append(f"{member.name}: {len(content)} of {member.size_bytes} bytes")
                members[member.name] = content
    if gaps:
        missing.append(f"the asset: {'; '.join(gaps)}")
    return members


@contextmanager
def kept_modules(path: str) -> Iterator[dict[int, Pread]]:
    """Yield what archive kept of mapped ELF files: by the address of a module's first mapping a reader of the file's bytes.

    A member modules/START/OFFSET, in hex, has what stands in the file at this offset. Raises as read_asset does.
    """
    found: dict[int, dict[int, tuple[int, int]]] = {}
    with _open(path) as file:
        for member, at in _walk(file, []):
            piece = _PIECE.fullmatch(member.name)
            if piece and member.size_bytes:
                found.setdefault(int(piece[1], 16), {}).setdefault(int(piece[2], 16), (at, member.size_bytes))
        yield {start: _Pieces(file.fileno(), pieces).read for start, pieces in found.items()}


class _Pieces:
    """What there is of one file, in pieces of the asset."""

    def __init__(self, fd: int, pieces: dict[int, tuple[int, int]]) -> None:
        """`pieces` are, by their offset in the file, (offset in the asset, size in bytes)."""
        self._fd = fd
        self._offsets: list[int] = []
        end = -1
        for offset in sorted(pieces):  # one that lies within another would hide what of that is behind it
            if offset + pieces[offset][1] > end:
                self._offsets.append(offset)
                end = offset + pieces[offset][1]
        self._places = [pieces[offset] for offset in self._offsets]

    def read(self, count: int, offset: int) -> bytes:
        """Return bytes of the file, over the borders of pieces; fewer, or none, where they were not kept."""
        blocks: list[bytes] = []
        while count > 0:
            index = bisect.bisect_right(self._offsets, offset) - 1
            within = offset - self._offsets[index] if index >= 0 else 0
            at, size_bytes = self._places[index] if index >= 0 else (0, 0)
            block = os.pread(self._fd, min(count, size_bytes - within), at + within) if within < size_bytes else b""
            if not block:
                break
            blocks.append(block)
            count, offset = count - len(block), offset + len(block)
        return b"".join(blocks)


def _open(path: str) -> BinaryIO:
    file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: SIM115  # the caller's
    mode = os.fstat(file.fileno()).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISCHR(mode):
        file.close()
        raise BadInput("not a regular file")
    return file


def _walk(file: BinaryIO, gaps: list[str]) -> Iterator[tuple[_Member, int]]:
    """Yield the plain members, each with where its contents stand, up to the end or to what is damaged.

    What there is no more of is said in `gaps`.
    """
    at = others = 0
    extended = False
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return
    for _ in range(_MEMBERS_MAX):
        block = os.pread(file.fileno(), _BLOCK_BYTES, at) if at < _OFFSET_MAX else b""
        if not block.strip(b"\0"):
            gaps += ["its end"] if at and not block else []
            break
        member = _header(block)
        if member is None:
            if not at:
                raise BadInput("not a TAR")
            gaps.append(f"no header of a member at {at}")
            break
        if extended or member.kind not in _PLAIN + _DIRECTORY:
            others += 1
        elif member.kind in _PLAIN:
            yield member, at + _BLOCK_BYTES
        extended = member.kind in _EXTENSIONS
        at += _BLOCK_BYTES + member.size_bytes + -member.size_bytes % _BLOCK_BYTES
    else:
        gaps.append(f"the first {_MEMBERS_MAX} members")
    if others:
        gaps.append(f"{others} members that are not plain, as links, sparse and extended ones, are left out")


def _header(block: bytes) -> _Member | None:
    """Read a header: name at 0, size at 124, checksum at 148, typeflag at 156, prefix at 345. None where it is none."""
    size_bytes, checksum = _octal(block[124:136]), _octal(block[148:156])
    if len(block) < _BLOCK_BYTES or size_bytes is None:
        return None
    if checksum != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        return None
    name, prefix = (field.split(b"\0", 1)[0].decode("utf-8", "replace") for field in (block[:100], block[345:500]))
    return _Member(f"{prefix}/{name}" if prefix else name, block[156:157], size_bytes)


def _octal(field: bytes) -> int | None:
    digits = field.strip(b" \0") or b"0"
    return int(digits, 8) if not digits.strip(b"01234567") else None


def table(data: bytes) -> dict[str, str]:
    """Read lines of `Name: value` or `name value`, as /proc/PID/status, meminfo and stat have them; the first of a name counts.

    A process names itself: only what the kernel takes for an end of line may end one here.
    """
    result: dict[str, str] = {}
    for line in data.decode("utf-8", "replace").split("\n", _LINES_MAX)[:_LINES_MAX]:
        name, _blank, value = line.replace(":", " ", 1).partition(" ")
        result.setdefault(name, value.strip())
    return result


def thread_names(data: bytes) -> dict[int, str]:
    """Read proc/task: thread id, what it waits in, its name with what is not printable escaped."""
    names: dict[int, str] = {}
    for line in data.decode("utf-8", "replace").split("\n", _THREADS_MAX)[:_THREADS_MAX]:
        parts = line.split("\t")
        if len(parts) == 3 and parts[0].isascii() and parts[0].isdigit() and len(parts[0]) < 20:
            names[int(parts[0])] = parts[2][:64]
    return names
