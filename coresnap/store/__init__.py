# SPDX-License-Identifier: Apache-2.0
"""The store: where snapshots are delivered to. One interface, and one module for each kind of store."""

from coresnap.store.face import (
    Attachment,
    Delivery,
    NotTaken,
    Parked,
    Receipt,
    Secret,
    Store,
    StoreBusy,
    StoreRefused,
    is_name,
)
from coresnap.store.open import open_store

__all__ = [
    "Attachment",
    "Delivery",
    "NotTaken",
    "Parked",
    "Receipt",
    "Secret",
    "Store",
    "StoreBusy",
    "StoreRefused",
    "is_name",
    "open_store",
]
