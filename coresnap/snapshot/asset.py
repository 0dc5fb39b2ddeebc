# SPDX-License-Identifier: Apache-2.0
"""The asset, read safely: a TAR of plain files whose names and sizes are known beforehand. Nothing is unpacked."""

from __future__ import annotations

import io
import os
import stat
import tarfile

from coresnap.ground.errors import BadInput

_ASSET_MAX_BYTES = 32 << 20
_MEMBERS_MAX = 200
_THREADS_MAX = 65536
#: The members that a report draws on.
_PROC = ("status", "stat", "exe", "task")
_HOST = ("meminfo", "uptime", "version", "stat", "hostname")
_NAMES = {*(f"proc/{name}" for name in _PROC), *(f"host/{name}" for name in _HOST)}


def read_asset(path: str) -> dict[str, bytes]:
    """Return the members that a report draws on, by name. Raises BadInput where it is no TAR, OSError where it is unreadable.

    A device such as /dev/null stands for no asset.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if stat.S_ISCHR(mode):
            return {}
        if not stat.S_ISREG(mode):
            raise BadInput("not a regular file")
        data = file.read(_ASSET_MAX_BYTES + 1)
    if len(data) > _ASSET_MAX_BYTES:
        raise BadInput(f"more than {_ASSET_MAX_BYTES} bytes")
    members: dict[str, bytes] = {}
    if not data:
        return members
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for _ in range(_MEMBERS_MAX):
                member = archive.next()
                if member is None:
                    break
                # A sparse member may claim any size; archive writes none.
                plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
                content = archive.extractfile(member) if plain and member.name in _NAMES else None
                if content is not None:
                    members.setdefault(member.name, content.read(len(data)))
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise BadInput(f"not a TAR: {error}") from error
    return members


def table(data: bytes) -> dict[str, str]:
    """Read lines of `Name: value` or `name value`, as /proc/PID/status, meminfo and stat have them; the first of a name counts.

    A process names itself: only what the kernel takes for an end of line may end one here.
    """
    result: dict[str, str] = {}
    for line in data.decode("utf-8", "replace").split("\n")[:1000]:
        name, _blank, value = line.replace(":", " ", 1).partition(" ")
        result.setdefault(name, value.strip())
    return result


def thread_names(data: bytes) -> dict[int, str]:
    """Read proc/task: thread id, what it waits in, its name with what is not printable escaped."""
    names: dict[int, str] = {}
    for line in data.decode("utf-8", "replace").split("\n")[:_THREADS_MAX]:
        parts = line.split("\t")
        if len(parts) == 3 and parts[0].isascii() and parts[0].isdigit() and len(parts[0]) < 20:
            names[int(parts[0])] = parts[2][:64]
    return names
