# SPDX-License-Identifier: Apache-2.0
"""From the name of a store to the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coresnap.ground.errors import BadSettings
from coresnap.store.face import Parked, Store
from coresnap.store.file import FileStore

if TYPE_CHECKING:
    from coresnap.store.coroner import Coroner
    from coresnap.store.object_store import ObjectStore

DEFAULT_TIMEOUT_USEC = 300_000_000


def open_store(spec: str, *, max_bytes: int, max_age_usec: int, timeout_usec: int = DEFAULT_TIMEOUT_USEC) -> Store:
    """Open the store `spec`: file:/PATH; coroner:/PATH for the one that a coroner.cf names; https://HOST.

    A delivery to an object store may take `timeout_usec`. Raises BadSettings, or Parked where the store cannot be used.
    """
    scheme, _colon, rest = spec.partition(":")
    if scheme == "file" and rest.startswith("/"):
        return FileStore(rest, max_bytes=max_bytes, max_age_usec=max_age_usec)
    if scheme == "coroner":
        from coresnap.store import coroner

        return object_store(coroner.read(coroner.for_service(rest), rest), timeout_usec=timeout_usec)
    if scheme in ("https", "http"):
        from coresnap.store import coroner

        credential = coroner.for_service("")
        settings = coroner.read(credential) if credential else coroner.Coroner("")
        return object_store(settings, spec, timeout_usec=timeout_usec)
    # Only the scheme is shown: the rest of an address may hold a token.
    hint = "file:/PATH and https://HOST are some"
    raise BadSettings(f"send.store = {scheme[:32]}:…: no store is known by that name", hint=hint)


def object_store(
    settings: Coroner, address: str = "", *, timeout_usec: int, told_by: str = "send.store"
) -> ObjectStore:
    """Open the object store at an address, of which `told_by` is the origin, else the one that a coroner.cf names.

    Raises BadSettings or Parked.
    """
    from coresnap.store.address import parse

    where = told_by if address else f"{settings.path}: write"
    if not (address or settings.write):
        raise BadSettings(f"{where}: the store's address is missing", hint="write = https://HOST:PORT in [universe]")
    parsed = parse(address or settings.write, settings.universe, where=where)
    try:
        from coresnap.store.object_store import ObjectStore
    except ImportError as error:
        # What is missing is a package, which somebody has to install; the dumps wait for it.
        raise Parked(f"{parsed.shown}: {error}", hint="install python3-requests") from error
    return ObjectStore(parsed, settings, timeout_usec=timeout_usec)
