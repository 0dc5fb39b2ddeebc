# SPDX-License-Identifier: Apache-2.0
"""What is known of the process's code: which addresses are executable, and its bytes.

Bytes come from the core, which has what was changed or made at run time, else from the module's file.
"""

from __future__ import annotations

from coresnap.snapshot.core import Memory
from coresnap.snapshot.images import Images
from coresnap.snapshot.modules import Modules
from coresnap.snapshot.unwind.tables import loaded

_KNOWN_MAX = 65536
#: The longest call: an opcode, ModRM, SIB and 4 bytes of displacement.
_CALL_MAX_BYTES = 7
_CALL, _GROUP_5 = 0xE8, 0xFF
#: The lengths of an indirect call without prefixes.
_INDIRECT = (2, 3, 4, 6, 7)


class Code:
    """The code of a process."""

    def __init__(self, memory: Memory, modules: Modules, images: Images) -> None:
        self._memory = memory
        self._modules = modules
        self._images = images
        self._returns: dict[int, bool] = {}

    def is_executable(self, address: int) -> bool:
        """Say whether an address lies in an executable mapping."""
        return self._memory.has_code(address)

    def read(self, address: int, count: int) -> bytes:
        """Return bytes at an address, fewer where they cannot be had."""
        data = self._memory.read(address, count)
        if len(data) == count:
            return data
        module = self._modules.find(address)
        if module is None:
            return data
        image = self._images.image(module)
        return loaded(image.file)(address - image.bias, count) if image.file is not None else data

    def is_return_address(self, address: int) -> bool:
        """Say whether an address is executable and, if its bytes can be had, follows a call."""
        known = self._returns.get(address)
        if known is None:
            if len(self._returns) >= _KNOWN_MAX:
                self._returns.clear()
            known = self._returns[address] = self.is_executable(address) and self._follows_call(address)
        return known

    def _follows_call(self, address: int) -> bool:
        data = self.read(address - _CALL_MAX_BYTES, _CALL_MAX_BYTES)
        if len(data) < _CALL_MAX_BYTES:
            return True
        if data[2] == _CALL:
            return True
        return any(
            data[-length] == _GROUP_5 and _indirect_bytes(data[_CALL_MAX_BYTES - length :]) == length
            for length in _INDIRECT
        )


def _indirect_bytes(code: bytes) -> int:
    """Return the length of an indirect call by its ModRM byte, whose reg field is 2; 0 where it is none."""
    mode, register, base = code[1] >> 6, code[1] >> 3 & 7, code[1] & 7
    if register != 2:
        return 0
    if mode == 3:
        return 2
    length = 3 if base == 4 else 2
    if mode == 0:
        return length + (4 if base == 5 or (base == 4 and len(code) > 2 and code[2] & 7 == 5) else 0)
    return length + (1 if mode == 1 else 4)
