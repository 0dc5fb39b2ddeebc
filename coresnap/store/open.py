# SPDX-License-Identifier: Apache-2.0
"""From the name of a store to the store."""

from __future__ import annotations

from coresnap.ground.errors import BadSettings
from coresnap.store.face import Parked, Store
from coresnap.store.file import FileStore


def open_store(spec: str, *, max_bytes: int, max_age_usec: int) -> Store:
    """Open the store `spec`: file:/PATH, or coroner:/PATH for the one that a coroner.cf names.

    Raises BadSettings, or Parked where the store cannot be used.
    """
    scheme, _colon, rest = spec.partition(":")
    if scheme == "file" and rest.startswith("/"):
        return FileStore(rest, max_bytes=max_bytes, max_age_usec=max_age_usec)
    if scheme == "coroner":
        raise Parked(
            f"{rest} names an object store, and this version does not speak to one by itself",
            hint="set send.command, such as `coroner -c FILE put %P %t %S`, or take the file away",
        )
    # Only the scheme is shown: the rest of an address may hold a token.
    raise BadSettings(f"send.store = {scheme[:32]}:…: no store is known by that name", hint="file:/PATH is one")
