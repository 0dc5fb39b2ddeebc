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
from coresnap.snapshot.unwind.functions import Functions
from coresnap.snapshot.unwind.tables import loaded

_KNOWN_MAX = 65536
#: The longest call: an opcode, ModRM, SIB and 4 bytes of displacement.
_CALL_MAX_BYTES = 7
_CALL, _GROUP_5 = 0xE8, 0xFF
#: The lengths of an indirect call without prefixes.
_INDIRECT = (2, 3, 4, 6, 7)
#: Functions begin at multiples of this; a return address is one only where a call is the last instruction before.
_ALIGNED_BYTES = 16
#: push %rbp and mov %rsp, %rbp, in both encodings; lea of a place in the frame, as Go's compiler had it.
_PROLOGUES = (b"\x55\x48\x89\xe5", b"\x55\x48\x8b\xec", b"\x48\x8d\x6c\x24", b"\x48\x8d\xac\x24")
_PROLOGUE_BYTES = (512, 64, 32, 16, 8)
#: How much of a function is looked through for such.
_FRAMELESS_MAX_BYTES = 4096
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
        self._functions = Functions(modules, images, self.read)

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

    def called_frameless(self, address: int, callee: int) -> bool:
        """Say whether a direct call before a return address leads to the callee's function, which has set up no frame so far."""
        if not self.is_return_address(address):
            return False
        target = self._target(address)
        if target is None or not 0 <= callee - target < _FRAMELESS_MAX_BYTES:
            return False
        body = self.read(target, callee - target)
        return len(body) == callee - target and not any(code in body for code in _PROLOGUES)

    def may_be_function(self, address: int) -> bool:
        """Say whether an address is aligned like a function's, and it cannot be read whether a call is before it."""
        return not (address % _ALIGNED_BYTES or self.can_read(address))

    def can_read(self, address: int) -> bool:
        """Say whether the bytes before an address can be had."""
        return bool(self.read(address - 1 & MASK, 1))

    def is_return_address(self, address: int) -> bool:
        """Say whether an address is executable and, if its bytes can be had, follows a call, or returns from a signal."""
        known = self._returns.get(address)
        if known is None:
            if len(self._returns) >= _KNOWN_MAX:
                self._returns.clear()
            known = self.is_executable(address) and (self._follows_call(address) or self.is_sigreturn(address))
            self._returns[address] = known
        return known

    def is_fault_of_go(self, address: int) -> bool:
        """Say whether Go's runtime has left this return address: where it faulted, with a call of sigpanic that nothing made."""
        module = self._modules.find(address)
        if module is None or not module.go_build_id:
            return False
        return self.is_executable(address) and not self.is_return_address(address)

    def is_sigreturn(self, address: int) -> bool:
        """Say whether an address is that of the instructions that a signal handler returns to."""
        return any(self.read(address, len(code)) == code for code in self._sigreturn)

    def sets_up_frame(self, address: int) -> bool:
        """Say whether there are instructions before an address that set up a frame pointer."""
        for size_bytes in _PROLOGUE_BYTES:  # code that was made at run time may begin right at its mapping
            before = self.read(address - size_bytes & MASK, size_bytes)
            if before:
                return any(code in before for code in _PROLOGUES)
        return False

    def may_have_called(self, address: int, callee: int, *, strictly: bool) -> bool:
        """Say whether the call before a return address may have led to where `callee` is.

        `strictly`: nothing else speaks for it. Stacks have words of calls that are over: a direct call is believed then only if
        it leads to the callee. They also have functions' addresses, one of which may follow a call that does not return: so it is
        with an address that is aligned like a function's. Indirect calls hardly ever end a function; of code that cannot be read
        it is not known what ends it.
        """
        if not strictly and address % _ALIGNED_BYTES:
            return True
        target = self._target(address)
        if target is None:
            return not (strictly and self.may_be_function(address))
        if not target:
            return False
        if not self.is_executable(callee):
            return True
        leads = self._functions.leads(target, callee)
        if leads is not None:
            return leads
        within = self._modules.find(target) is self._modules.find(callee)
        return within and 0 <= callee - target < _FUNCTION_MAX_BYTES

    def _target(self, address: int) -> int | None:
        """Return where a direct call before an address leads, through the procedure linkage table, too; 0 where it never has led.

        None where that is not known, as of an indirect call.
        """
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
        if len(word) < 8:
            return None
        to = int.from_bytes(word, "little")
        return 0 if to == target + start + 6 else to  # an entry that leads on to itself has not been used so far

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
