# SPDX-License-Identifier: Apache-2.0
"""Compile the settings that archive needs into the flat file that coresnap.ground.flat reads."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from coresnap.ground import durable, flat
from coresnap.ground.settings.table import TABLE

if TYPE_CHECKING:
    from coresnap.ground.settings.load import Settings


def compile(settings: Settings) -> bytes:  # noqa: A001  # it is used as settings.compile
    """Return the flat file: users, units and modes resolved to numbers."""
    resolved = archive_settings(settings)
    lines = [flat.HEADER]
    for setting in TABLE.values():
        if setting.archive:
            value = getattr(resolved, setting.archive)
            lines.append(f"{setting.archive}\t{' '.join(map(str, value)) if isinstance(value, tuple) else value}")
    return "\n".join([*lines, ""]).encode()


def archive_settings(settings: Settings) -> flat.ArchiveSettings:
    """Return what archive goes by, as flat.read() would find it compiled."""
    result = flat.ArchiveSettings()
    for name, setting in TABLE.items():
        if setting.archive:
            setattr(result, setting.archive, getattr(settings, name))
    _mode, result.uid, result.gid = settings.dump_owner()
    return result


def write_compiled(settings: Settings, path: str | os.PathLike[str] = flat.PATH) -> None:
    """Put the compiled settings durably in place; the directory is made if only it is missing. Raises OSError."""
    directory, name = os.path.split(os.path.abspath(path))
    parent_fd = durable.open_directory(os.path.dirname(directory))
    try:
        if not durable.exists(parent_fd, os.path.basename(directory) or "."):
            os.close(durable.mkdir(parent_fd, os.path.basename(directory), 0o755))
    finally:
        os.close(parent_fd)
    directory_fd = durable.open_directory(directory)
    try:
        durable.replace(directory_fd, name, compile(settings), 0o644)
    finally:
        os.close(directory_fd)
