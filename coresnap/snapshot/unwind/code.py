# SPDX-License-Identifier: Apache-2.0
"""What is known of the process's code: which addresses are executable, and what its bytes say of calls.

Bytes come from the core, which has what was changed or made at run time, else from the module's file.
"""

from __future__ import annotations

import struct

from coresnap.snapshot.core import Memory
from coresnap.snapshot.images import Images
from coresnap.snapshot.modules import Modules
from coresnap.snapshot.unwind.encoding import MASK
from coresnap.snapshot.unwind.tables import loaded

_KNOWN_MAX = 65536
#: The longest call: an opcode, ModRM, SIB and 4 bytes of displacement.
_CALL_MAX_BYTES = 7
_CALL, _GROUP_5 = 0xE8, 0xFF
#: The lengths of an indirect call without prefixes.
_INDIRECT = (2, 3, 4, 6, 7)
#: Functions begin at multiples of this; a return address is one only where a call is the last instruction before.
_ALIGNED_BYTES = 16
#: No function is larger.
_FUNCTION_MAX_BYTES = 1 << 20


class Code:
    """The code of a process of x86-64. `sigreturn` are the instructions that a signal handler returns to."""

    def __init__(self, memory: Memory, modules: Modules, images: Images, sigreturn: tuple[bytes, ...]) -> None:
        self._memory = memory
        self._modules = modules
        self._images = images
        self._sigreturn = sigreturn
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
        """Say whether an address is executable and, if its bytes can be had, follows a call, or returns from a signal."""
        known = self._returns.get(address)
        if known is None:
            if len(self._returns) >= _KNOWN_MAX:
                self._returns.clear()
            known = self.is_executable(address) and (self._follows_call(address) or self.is_sigreturn(address))
            self._returns[address] = known
        return known

    def is_sigreturn(self, address: int) -> bool:
        """Say whether an address is that of the instructions that a signal handler returns to."""
        return any(self.read(address, len(code)) == code for code in self._sigreturn)

    def may_have_called(self, address: int, callee: int, *, strictly: bool) -> bool:
        """Say whether the call before a return address may have led to where `callee` is.

        That is asked only where the address may as well be that of a function, of which stacks are full: it is aligned like one.
        A direct call that ends elsewhere, as before a tail call, is not believed then; `strictly`, nor is any other call.
        """
        if address % _ALIGNED_BYTES or self.is_sigreturn(address):
            return True
        target = self._target(address)
        if target is None:
            return not strictly
        return 0 <= callee - target < _FUNCTION_MAX_BYTES or not self.is_executable(callee)

    def _target(self, address: int) -> int | None:
        """Return where a direct call before an address leads, through the procedure linkage table, too."""
        call = self.read(address - 5, 5)
        if len(call) < 5 or call[0] != _CALL:
            return None
        target = address + struct.unpack_from("<i", call, 1)[0] & MASK
        entry = self.read(target, 16)
        start = 4 if entry[:4] == b"\xf3\x0f\x1e\xfa" else 0  # endbr64
        start += entry[start : start + 1] == b"\xf2"  # bnd
        if entry[start : start + 2] != b"\xff\x25":  # jmp *displacement(%rip)
            return int(target)
        displacement: int = struct.unpack_from("<i", entry, start + 2)[0]
        word = self._memory.read(target + start + 6 + displacement & MASK, 8)
        return int.from_bytes(word, "little") if len(word) == 8 else None

    def _follows_call(self, address: int) -> bool:
        data = self.read(address - _CALL_MAX_BYTES & MASK, _CALL_MAX_BYTES)
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
