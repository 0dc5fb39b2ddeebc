# SPDX-License-Identifier: Apache-2.0
"""The asset, read safely: a TAR of plain files whose names and sizes are known beforehand. Nothing is unpacked.

What archive writes is plain ustar: a header of 512 bytes, then the contents, in blocks of 512. tarfile is not asked to read
it: links, sparse members and extended headers, which a forged one may nest and inflate, have no place in an asset. Layout:
pax(1p).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from typing import BinaryIO, NamedTuple

from coresnap.ground.errors import BadInput

_BLOCK_BYTES = 512
#: archive keeps no more of a file.
_MEMBER_MAX_BYTES = 4 << 20
_MEMBERS_MAX = 200
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
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if stat.S_ISCHR(mode):
            return {}
        if not stat.S_ISREG(mode):
            raise BadInput("not a regular file")
        members, gaps = _read_members(file, names)
    if gaps:
        missing.append(f"the asset: {'; '.join(gaps)}")
    return members


def _read_members(file: BinaryIO, names: Collection[str]) -> tuple[dict[str, bytes], list[str]]:
    """Read the members up to the end or to what is damaged; return them, and what there is no more of."""
    members: dict[str, bytes] = {}
    gaps: list[str] = []
    at = others = 0
    extended = False
    for _ in range(_MEMBERS_MAX):
        file.seek(at)
        block = file.read(_BLOCK_BYTES)
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
        elif member.name in names and member.kind in _PLAIN and member.name not in members:
            content = file.read(min(member.size_bytes, _MEMBER_MAX_BYTES))
            if len(content) < member.size_bytes:
                gaps.append(f"{member.name}: {len(content)} of {member.size_bytes} bytes")
            members[member.name] = content
        extended = member.kind in _EXTENSIONS
        at += _BLOCK_BYTES + member.size_bytes + -member.size_bytes % _BLOCK_BYTES
    else:
        gaps.append(f"the first {_MEMBERS_MAX} members")
    if others:
        gaps.append(f"{others} members that are not plain, as links, sparse and extended ones, are left out")
    return members, gaps


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
