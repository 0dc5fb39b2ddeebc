# SPDX-License-Identifier: Apache-2.0
"""DWARF expressions, as far as call frame information may have them: DWARF 5, 2.5 and 6.4.2, with bounds on steps and stack."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from coresnap.ground.errors import BadInput
from coresnap.snapshot.unwind.encoding import MASK, sleb, uleb

#: Returns the 8 bytes of memory at an address as a number. Raises Unread.
Word = Callable[[int], int]

_STEPS_MAX = 4096
_STACK_MAX = 256
_ADDR, _DEREF, _PICK, _PLUS_UCONST, _BRA, _SKIP = 0x03, 0x06, 0x15, 0x23, 0x28, 0x2F
_LIT, _REG, _BREG, _BREG_END, _BREGX, _DEREF_SIZE = 0x30, 0x50, 0x70, 0x90, 0x92, 0x94
_CONSTU, _CONSTS = 0x10, 0x11
_CONSTANTS = {
    0x08 + index: struct.Struct("<" + code) for index, code in enumerate(("B", "b", "H", "h", "I", "i", "Q", "q"))
}
_SIGN = 1 << 63


class Unread(BadInput):
    """Memory that is needed is not in the core."""


def _signed(value: int) -> int:
    return value - (1 << 64) if value & _SIGN else value


def _divide(left: int, right: int) -> int:
    """DW_OP_div is signed, and drops what is behind the point."""
    left, right = _signed(left), _signed(right)
    quotient = abs(left) // abs(right)
    return quotient if (left < 0) == (right < 0) else -quotient


_BINARY: dict[int, Callable[[int, int], int]] = {
    0x1A: lambda left, right: left & right,
    0x1B: _divide,
    0x1C: lambda left, right: left - right,
    0x1D: lambda left, right: left % right,
    0x1E: lambda left, right: left * right,
    0x21: lambda left, right: left | right,
    0x22: lambda left, right: left + right,
    0x24: lambda left, right: left << right if right < 64 else 0,
    0x25: lambda left, right: left >> min(right, 64),
    0x26: lambda left, right: _signed(left) >> min(right, 64),
    0x27: lambda left, right: left ^ right,
    0x29: lambda left, right: int(left == right),
    0x2A: lambda left, right: int(_signed(left) >= _signed(right)),
    0x2B: lambda left, right: int(_signed(left) > _signed(right)),
    0x2C: lambda left, right: int(_signed(left) <= _signed(right)),
    0x2D: lambda left, right: int(_signed(left) < _signed(right)),
    0x2E: lambda left, right: int(left != right),
}
_UNARY: dict[int, Callable[[int], int]] = {
    0x19: lambda value: abs(_signed(value)),
    0x1F: lambda value: -value,
    0x20: lambda value: ~value,
}


def _duplicate(stack: list[int]) -> None:
    stack.append(stack[-1])


def _drop(stack: list[int]) -> None:
    stack.pop()


def _over(stack: list[int]) -> None:
    stack.append(stack[-2])


def _swap(stack: list[int]) -> None:
    stack[-1], stack[-2] = stack[-2], stack[-1]


def _rotate(stack: list[int]) -> None:
    stack[-1], stack[-2], stack[-3] = stack[-2], stack[-3], stack[-1]


def _nothing(_stack: list[int]) -> None:
    """DW_OP_nop."""


_SHUFFLES: dict[int, Callable[[list[int]], None]] = {
    **{0x12: _duplicate, 0x13: _drop, 0x14: _over, 0x16: _swap, 0x17: _rotate},
    0x96: _nothing,
}


def evaluate(code: bytes, registers: Sequence[int], word: Word, *stack: int) -> int:
    """Return what an expression leaves on top of its stack, which begins with `stack`.

    Raises BadInput where the expression is damaged or does not end, Unread where the core lacks memory that it reads.
    """
    try:
        return _evaluate(code, registers, word, list(stack))
    except (IndexError, struct.error) as error:
        raise BadInput("an expression that is cut, or takes more than there is") from error
    except ZeroDivisionError as error:
        raise BadInput("an expression that divides by zero") from error


def _evaluate(code: bytes, registers: Sequence[int], word: Word, stack: list[int]) -> int:
    at = 0
    for _ in range(_STEPS_MAX):
        if at == len(code):
            return stack[-1]
        op = code[at]
        at += 1
        if op in _BINARY:
            right = stack.pop()
            stack[-1] = _BINARY[op](stack[-1], right) & MASK
        elif op in _UNARY:
            stack[-1] = _UNARY[op](stack[-1]) & MASK
        elif op in _SHUFFLES:
            _SHUFFLES[op](stack)
        elif op in (_BRA, _SKIP):
            (distance,) = struct.unpack_from("<h", code, at)
            at += 2 + (distance if op == _SKIP or stack.pop() else 0)
            if not 0 <= at <= len(code):
                raise BadInput("an expression that jumps out of itself")
        elif op in (_DEREF, _DEREF_SIZE):
            size_bytes = 8
            if op == _DEREF_SIZE:
                size_bytes, at = code[at], at + 1
            stack[-1] = _dereference(stack[-1], size_bytes, word)
        else:
            value, at = _push(op, code, at, registers, stack)
            stack.append(value & MASK)
        if len(stack) > _STACK_MAX:
            break
    raise BadInput("an expression without end")


def _dereference(address: int, size_bytes: int, word: Word) -> int:
    if size_bytes not in (1, 2, 4, 8):
        raise BadInput(f"an expression that reads {size_bytes} bytes")
    return word(address) & (1 << 8 * size_bytes) - 1


def _push(op: int, code: bytes, at: int, registers: Sequence[int], stack: list[int]) -> tuple[int, int]:
    """Return the value that an operation pushes, and the place behind its operands."""
    if _LIT <= op < _REG:
        return op - _LIT, at
    if _BREG <= op < _BREG_END:
        offset, at = sleb(code, at)
        return registers[op - _BREG] + offset, at
    if op == _BREGX:
        number, at = uleb(code, at)
        offset, at = sleb(code, at)
        return registers[number] + offset, at
    if op in _CONSTANTS:
        layout = _CONSTANTS[op]
        return layout.unpack_from(code, at)[0], at + layout.size
    if op == _CONSTU:
        return uleb(code, at)
    if op == _CONSTS:
        return sleb(code, at)
    if op == _PLUS_UCONST:
        value, at = uleb(code, at)
        return stack.pop() + value, at
    if op == _PICK:
        return stack[-1 - code[at]], at + 1
    raise BadInput(f"an expression with operation {op:#x}")
