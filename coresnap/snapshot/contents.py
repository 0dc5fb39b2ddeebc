# SPDX-License-Identifier: Apache-2.0
"""What stands at an address of the process: in the core, or, of a module's bytes that a core leaves out, in its file."""

from __future__ import annotations

import struct

from coresnap.ground.errors import BadInput
from coresnap.snapshot.core import Core
from coresnap.snapshot.images import Image, Images
from coresnap.snapshot.modules import Module, Modules
from coresnap.snapshot.symbol_values import address_of

_TEXT_CHUNK_BYTES = 256


class Contents:
    """The memory of the process."""

    def __init__(self, core: Core, listed: Modules, images: Images | None) -> None:
        self._memory = core.memory
        self._listed = listed
        self._images = images
        self._addresses: dict[tuple[int, str], int | None] = {}

    def image(self, module: Module) -> Image | None:
        """Return where a module's files are; None where they are not looked for."""
        return self._images.image(module) if self._images else None

    def address_of(self, module: Module, name: str) -> int | None:
        """Return the address of what has this name in a module; tables are looked through once for it."""
        key = (module.start, name)
        if key not in self._addresses:
            image = self.image(module)
            self._addresses[key] = address_of(image, name) if image else None
        return self._addresses[key]

    def read(self, address: int, size_bytes: int) -> bytes:
        """Return bytes, fewer where they are not known."""
        data = self._memory.read(address, size_bytes)
        module = self._listed.find(address) if len(data) < size_bytes else None
        image = self.image(module) if module else None
        if image is None or image.file is None:
            return data
        at = image.file.offset_of(address - image.bias)
        if at is None:
            return data
        try:
            found = image.file.read(at, size_bytes)
        except (BadInput, OSError):
            return data
        return found if len(found) > len(data) else data

    def word(self, address: int) -> int | None:
        """Return 64 bits at an address; None where they are not known."""
        data = self.read(address, 8)
        return int.from_bytes(data, "little") if len(data) == 8 else None

    def words(self, address: int, count: int) -> tuple[int, ...]:
        """Return words from an address on, fewer where there are no more."""
        data = self.read(address, 8 * count)
        return struct.unpack(f"<{len(data) // 8}Q", data[: len(data) & ~7])

    def text(self, address: int, most_bytes: int) -> bytes | None:
        """Return the text that ends with a NUL, without it, or so much of it; None where none is known at all."""
        pieces = b""
        while len(pieces) < most_bytes:
            data = self.read(address + len(pieces), min(_TEXT_CHUNK_BYTES, most_bytes - len(pieces)))
            text, end, _rest = data.partition(b"\0")
            pieces += text
            if end or not data:
                return pieces if end or pieces else None
        return pieces
