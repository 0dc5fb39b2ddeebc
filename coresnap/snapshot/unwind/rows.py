# SPDX-License-Identifier: Apache-2.0
"""Rows of the unwind table: where a frame's caller has its registers, at one address. DWARF 5, 6.4.1 to 6.4.3.

A register's rule is a pair of its kind and a number or an expression; one without a rule keeps its value.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from coresnap.ground.errors import BadInput
from coresnap.snapshot.unwind.encoding import pointer, sleb, uleb
from coresnap.snapshot.unwind.entries import Fde

#: Kinds: saved at CFA + number; is CFA + number; is in another register; saved where, or is what an expression says; lost.
OFFSET, VALUE_OFFSET, REGISTER, EXPRESSION, VALUE_EXPRESSION, UNDEFINED = range(6)

Rule = tuple[int, int | bytes]
Rules = dict[int, Rule]
#: A register and an offset from it, or an expression.
CfaRule = tuple[int, int] | bytes

_REMEMBERED_MAX = 64
_REGISTERS_MAX = 1024
_ADVANCE_LOC, _OFFSET, _RESTORE = 0x40, 0x80, 0xC0


class Row(NamedTuple):
    """Where the canonical frame address is, and where each register of the caller, by its DWARF number."""

    cfa: CfaRule
    rules: Rules


class _Table:
    """The rows of an FDE, one after the other, up to the one of an address."""

    def __init__(self, fde: Fde, address: int) -> None:
        self.fde = fde
        self._wanted = address
        self._location = fde.start
        self.cfa: CfaRule | None = None
        self.rules: Rules = {}
        self._initial: Rules = {}
        self._remembered: list[tuple[CfaRule | None, Rules]] = []

    def run(self) -> None:
        """Carry out the instructions of the CIE, then those of the FDE."""
        fde = self.fde
        self._carry_out(fde.cie.instructions, 0)
        self._initial = dict(self.rules)
        self._location = fde.start
        self._carry_out(fde.instructions, fde.address)

    def _carry_out(self, code: bytes, address: int) -> None:
        at, cie = 0, self.fde.cie
        while at < len(code):
            op = code[at]
            at += 1
            low = op & 0x3F
            if op & 0xC0 == _ADVANCE_LOC:
                self._location += low * cie.code_factor
            elif op & 0xC0 == _OFFSET:
                offset, at = uleb(code, at)
                self.rules[low] = OFFSET, offset * cie.data_factor
            elif op & 0xC0 == _RESTORE:
                self._restore(low)
            elif op in _ADVANCES:
                layout = _ADVANCES[op]
                self._location += layout.unpack_from(code, at)[0] * cie.code_factor
                at += layout.size
            elif op == 0x01:  # DW_CFA_set_loc
                self._location, at = pointer(code, at, cie.encoding, address=address + at)
            else:
                operation = _OPERATIONS.get(op)
                if operation is None:
                    raise BadInput(f"call frame instruction {op:#x} is not known")
                at = operation(self, code, at)
            if self._location > self._wanted:
                return

    def set_rule(self, register: int, rule: Rule | None) -> None:
        """Give a register a rule, or none: it keeps its value."""
        if rule is None:
            self.rules.pop(register, None)
        elif register < _REGISTERS_MAX:
            self.rules[register] = rule

    def _restore(self, register: int) -> None:
        self.set_rule(register, self._initial.get(register))

    # Operations on (code, position) that return the position behind their operands.

    def nothing(self, _code: bytes, at: int) -> int:
        """DW_CFA_nop; DW_CFA_GNU_window_save, which on aarch64 negates whether the return address is signed."""
        return at

    def restore_extended(self, code: bytes, at: int) -> int:
        """DW_CFA_restore_extended."""
        register, at = uleb(code, at)
        self._restore(register)
        return at

    def undefined(self, code: bytes, at: int) -> int:
        """DW_CFA_undefined."""
        register, at = uleb(code, at)
        self.set_rule(register, (UNDEFINED, 0))
        return at

    def same_value(self, code: bytes, at: int) -> int:
        """DW_CFA_same_value."""
        register, at = uleb(code, at)
        self.set_rule(register, None)
        return at

    def register(self, code: bytes, at: int) -> int:
        """DW_CFA_register."""
        register, at = uleb(code, at)
        other, at = uleb(code, at)
        self.set_rule(register, (REGISTER, other))
        return at

    def remember_state(self, _code: bytes, at: int) -> int:
        """DW_CFA_remember_state; the CFA is part of the state."""
        if len(self._remembered) >= _REMEMBERED_MAX:
            raise BadInput("call frame instructions remember without end")
        self._remembered.append((self.cfa, dict(self.rules)))
        return at

    def restore_state(self, _code: bytes, at: int) -> int:
        """DW_CFA_restore_state."""
        if not self._remembered:
            raise BadInput("call frame instructions restore what they did not remember")
        self.cfa, self.rules = self._remembered.pop()
        return at

    def def_cfa(self, code: bytes, at: int) -> int:
        """DW_CFA_def_cfa."""
        register, at = uleb(code, at)
        offset, at = uleb(code, at)
        self.cfa = register, offset
        return at

    def def_cfa_sf(self, code: bytes, at: int) -> int:
        """DW_CFA_def_cfa_sf."""
        register, at = uleb(code, at)
        offset, at = sleb(code, at)
        self.cfa = register, offset * self.fde.cie.data_factor
        return at

    def _plain_cfa(self) -> tuple[int, int]:
        if not isinstance(self.cfa, tuple):
            raise BadInput("call frame instructions change a CFA that is no register and offset")
        return self.cfa

    def def_cfa_register(self, code: bytes, at: int) -> int:
        """DW_CFA_def_cfa_register."""
        register, at = uleb(code, at)
        self.cfa = register, self._plain_cfa()[1]
        return at

    def def_cfa_offset(self, code: bytes, at: int) -> int:
        """DW_CFA_def_cfa_offset."""
        offset, at = uleb(code, at)
        self.cfa = self._plain_cfa()[0], offset
        return at

    def def_cfa_offset_sf(self, code: bytes, at: int) -> int:
        """DW_CFA_def_cfa_offset_sf."""
        offset, at = sleb(code, at)
        self.cfa = self._plain_cfa()[0], offset * self.fde.cie.data_factor
        return at

    def def_cfa_expression(self, code: bytes, at: int) -> int:
        """DW_CFA_def_cfa_expression."""
        self.cfa, at = _block(code, at)
        return at

    def args_size(self, code: bytes, at: int) -> int:
        """DW_CFA_GNU_args_size: what is pushed of arguments concerns exceptions only."""
        _size_bytes, at = uleb(code, at)
        return at


def _block(code: bytes, at: int) -> tuple[bytes, int]:
    size_bytes, at = uleb(code, at)
    if size_bytes > len(code) - at:
        raise BadInput("an expression that is cut")
    return code[at : at + size_bytes], at + size_bytes


def _offset_rule(kind: int, read: Callable[[bytes, int], tuple[int, int]], sign: int = 1) -> _Operation:
    """Return the operation of a register and a factored offset."""

    def operation(table: _Table, code: bytes, at: int) -> int:
        register, at = uleb(code, at)
        offset, at = read(code, at)
        table.set_rule(register, (kind, sign * offset * table.fde.cie.data_factor))
        return at

    return operation


def _expression_rule(kind: int) -> _Operation:
    def operation(table: _Table, code: bytes, at: int) -> int:
        register, at = uleb(code, at)
        expression, at = _block(code, at)
        table.set_rule(register, (kind, expression))
        return at

    return operation


_Operation = Callable[[_Table, bytes, int], int]
#: DW_CFA_advance_loc1, 2, 4, and MIPS' 8.
_ADVANCES = {0x02: struct.Struct("<B"), 0x03: struct.Struct("<H"), 0x04: struct.Struct("<I"), 0x1D: struct.Struct("<Q")}
_OPERATIONS: dict[int, _Operation] = {
    0x00: _Table.nothing,
    0x05: _offset_rule(OFFSET, uleb),  # DW_CFA_offset_extended
    0x06: _Table.restore_extended,
    0x07: _Table.undefined,
    0x08: _Table.same_value,
    0x09: _Table.register,
    0x0A: _Table.remember_state,
    0x0B: _Table.restore_state,
    0x0C: _Table.def_cfa,
    0x0D: _Table.def_cfa_register,
    0x0E: _Table.def_cfa_offset,
    0x0F: _Table.def_cfa_expression,
    0x10: _expression_rule(EXPRESSION),
    0x11: _offset_rule(OFFSET, sleb),  # DW_CFA_offset_extended_sf
    0x12: _Table.def_cfa_sf,
    0x13: _Table.def_cfa_offset_sf,
    0x14: _offset_rule(VALUE_OFFSET, uleb),  # DW_CFA_val_offset
    0x15: _offset_rule(VALUE_OFFSET, sleb),  # DW_CFA_val_offset_sf
    0x16: _expression_rule(VALUE_EXPRESSION),
    0x2D: _Table.nothing,
    0x2E: _Table.args_size,
    0x2F: _offset_rule(OFFSET, uleb, -1),  # DW_CFA_GNU_negative_offset_extended
}


def row(fde: Fde, address: int) -> Row:
    """Return the row of an address that the FDE has. Raises BadInput where the instructions are damaged, or give no CFA."""
    table = _Table(fde, address)
    try:
        table.run()
    except (IndexError, struct.error) as error:
        raise BadInput("call frame instructions that are cut") from error
    if table.cfa is None:
        raise BadInput("call frame instructions without a CFA")
    return Row(table.cfa, table.rules)
