# SPDX-License-Identifier: Apache-2.0
"""The store: where snapshots are delivered to. One interface, and one module for each kind of store."""

from coresnap.store.face import Attachment, Delivery, Parked, Receipt, Store, StoreRefused
from coresnap.store.open import open_store

__all__ = ["Attachment", "Delivery", "Parked", "Receipt", "Store", "StoreRefused", "open_store"]
