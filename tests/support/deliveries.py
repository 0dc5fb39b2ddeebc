# SPDX-License-Identifier: Apache-2.0
"""Deliveries for tests of stores: reports of a test's own, in files of a directory of its own."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from coresnap.spool.stages import new_uuid
from coresnap.store import Attachment, Delivery, Secret
from coresnap.store.coroner import Coroner, parse

TOKEN = "5ec4e7" * 10 + "beef"


class Maker:
    """Makes deliveries; it has their files open until close()."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._fds: list[int] = []

    def file(self, data: bytes) -> int:
        """Return a descriptor of a file with these bytes."""
        path = self._directory / f"file{len(self._fds)}"
        path.write_bytes(data)
        self._fds.append(os.open(path, os.O_RDONLY))
        return self._fds[-1]

    def attachment(self, name: str, data: bytes) -> Attachment:
        """Return an attachment with these bytes."""
        return Attachment(name, self.file(data), len(data))

    def delivery(
        self,
        data: bytes = b"",
        *attachments: Attachment,
        uuid: str = "",
        token: str | None = TOKEN,
        attributes: tuple[tuple[str, str], ...] = (),
    ) -> Delivery:
        """Return a delivery, of a report in JSON where no bytes are given."""
        uuid = uuid or new_uuid()
        data = data or json.dumps({"uuid": uuid, "lang": "c", "threads": {}}).encode()
        return Delivery(
            uuid,
            "web",
            self.file(data),
            len(data),
            hashlib.sha256(data).hexdigest(),
            attachments,
            None if token is None else Secret(token),
            attributes,
        )

    def close(self) -> None:
        """Close the files."""
        for fd in self._fds:
            os.close(fd)


def settings(write: str, *lines: str) -> Coroner:
    """Return what a coroner.cf says that has this address and these further lines."""
    text = "\n".join(["[universe]", "name = universe", f"write = {write}", *lines])
    return parse(text.encode(), "/nonexistent/coroner.cf")
