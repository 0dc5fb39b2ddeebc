# SPDX-License-Identifier: Apache-2.0
"""The asset, read safely: a TAR whose members have names and sizes that are known beforehand. Nothing is unpacked."""

from __future__ import annotations

import io
import os
import tarfile

from coresnap.ground.errors import BadInput

_ASSET_MAX_BYTES = 32 << 20
_MEMBERS_MAX = 200


def read_asset(path: str) -> dict[str, bytes]:
    """Return the members of the asset by name. Raises BadInput where it is no TAR, OSError where it cannot be read.

    A device such as /dev/null, which stands for no asset, has no members.
    """
    with open(path, "rb") as file:
        data = file.read(_ASSET_MAX_BYTES + 1)
    if len(data) > _ASSET_MAX_BYTES:
        raise BadInput(f"{os.path.basename(path)}: more than {_ASSET_MAX_BYTES} bytes")
    if not data:
        return {}
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for member in archive:
                name = member.name
                if not member.isreg() or not name.startswith(("proc/", "host/")) or len(members) >= _MEMBERS_MAX:
                    continue
                content = archive.extractfile(member)
                members.setdefault(name, content.read() if content else b"")
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise BadInput(f"asset: {error}") from error
    return members


def table(data: bytes) -> dict[str, str]:
    """Read lines of `Name: value` or `name value`, as /proc/PID/status, meminfo, vmstat and io have them."""
    result: dict[str, str] = {}
    for line in data.decode("utf-8", "replace").splitlines()[:1000]:
        name, _blank, value = line.replace(":", " ", 1).partition(" ")
        result.setdefault(name, value.strip())
    return result


def thread_names(data: bytes) -> dict[int, str]:
    """Read proc/task: thread id, what it waits in, its name with what is not printable escaped."""
    names = {}
    for line in data.decode("utf-8", "replace").splitlines():
        parts = line.split("\t")
        if len(parts) == 3 and parts[0].isascii() and parts[0].isdigit():
            names[int(parts[0])] = parts[2][:64]
    return names
