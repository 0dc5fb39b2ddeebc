# SPDX-License-Identifier: Apache-2.0
"""Steps from a frame to its caller, made of rows of the unwind table and kept by address: threads wait in the same places."""

from __future__ import annotations

from typing import NamedTuple

from coresnap.ground.errors import BadInput
from coresnap.snapshot.core import Core
from coresnap.snapshot.images import Images
from coresnap.snapshot.modules import Module, Modules
from coresnap.snapshot.unwind import rows
from coresnap.snapshot.unwind.encoding import MASK
from coresnap.snapshot.unwind.entries import Fde
from coresnap.snapshot.unwind.expressions import evaluate
from coresnap.snapshot.unwind.machine import Machine
from coresnap.snapshot.unwind.rows import Row, Rule
from coresnap.snapshot.unwind.tables import Budget, Tables
from coresnap.snapshot.unwind.words import Words

_KNOWN_MAX = 65536
_DAMAGES_MAX = 16
_TABLES_MAX = 1024


class Plain(NamedTuple):
    """A step of which all is on the stack, as nearly all are: the CFA is a register and an offset, and what was saved is below.

    Places count words, of 8 bytes, from the CFA; `lowest` is the lowest of them.
    """

    register: int
    offset: int
    lowest: int
    return_place: int
    saved: tuple[tuple[int, int], ...]


class Special(NamedTuple):
    """Any other step; `is_signal` says that the frame is that of a signal, and that it is the caller it came in."""

    row: Row
    return_register: int
    is_signal: bool


class Last(NamedTuple):
    """The frame has no caller: the table says that the return address, in this register, is undefined."""

    return_register: int


class NoStep(NamedTuple):
    """There is no step by a table from here; `damage` says whether that is because it is damaged."""

    damage: str


Step = Plain | Special | Last | NoStep


class Steps:
    """The steps by address; `plain` has those that are plain, for who is in a hurry, `damages` what of tables was damaged."""

    def __init__(self, core: Core, modules: Modules, images: Images, machine: Machine) -> None:
        self._core = core
        self._modules = modules
        self._images = images
        self._machine = machine
        self._tables: dict[int, Tables] = {}
        self._budget = Budget()
        self._others: dict[int, Special | Last | NoStep] = {}
        self.plain: dict[int, Plain] = {}
        self.damages: dict[str, None] = {}

    def find(self, address: int) -> Step:
        """Return the step from an address, which is the one to be looked up: of a call, it is within the call."""
        known = self.plain.get(address) or self._others.get(address)
        if known is not None:
            return known
        step = self._make(address)
        if isinstance(step, NoStep) and step.damage and len(self.damages) < _DAMAGES_MAX:
            self.damages[step.damage] = None
        if len(self.plain) + len(self._others) >= _KNOWN_MAX:
            self.plain.clear()
            self._others.clear()
        if isinstance(step, Plain):
            self.plain[address] = step
        else:
            self._others[address] = step
        return step

    def _make(self, address: int) -> Step:
        module = self._modules.find(address)
        if module is None:
            return NoStep("")
        tables = self._of(module)
        fde = tables.find(address - module.bias & MASK)
        if fde is None:
            return NoStep(tables.damage and f"{module.path}: {tables.damage}")
        try:
            row = rows.row(fde, address - module.bias & MASK)
        except BadInput as error:
            return NoStep(f"{module.path}: {error}")
        if row.rules.get(fde.cie.return_register, (None,))[0] == rows.UNDEFINED:
            return Last(fde.cie.return_register)
        return self._plain(fde, row) or Special(row, fde.cie.return_register, fde.cie.is_signal)

    def _of(self, module: Module) -> Tables:
        tables = self._tables.get(module.start)
        if tables is None:
            if len(self._tables) >= _TABLES_MAX:
                self._tables.clear()
            tables = self._tables[module.start] = Tables(self._images.image(module), self._core, self._budget)
        return tables

    def _plain(self, fde: Fde, row: Row) -> Plain | None:
        """Return the row as a plain step; None where it is none."""
        machine = self._machine
        if not isinstance(row.cfa, tuple) or fde.cie.is_signal or row.cfa[0] >= len(machine.registers):
            return None
        places: dict[int, int] = {}
        for number, (kind, value) in row.rules.items():
            if number >= len(machine.registers):
                continue
            if kind != rows.OFFSET or not isinstance(value, int) or value % 8 or not -_FRAME_MAX_BYTES < value < 0:
                return None
            places[number] = value // 8
        back = places.pop(fde.cie.return_register, None)
        if back is None or fde.cie.return_register != machine.program_counter or machine.stack_pointer in places:
            return None
        return Plain(*row.cfa, min(back, *places.values(), back), back, tuple(places.items()))


#: What a window of the stack has to have for a plain step.
_FRAME_MAX_BYTES = 4096


def special(step: Special, registers: list[int], words: Words, machine: Machine) -> list[int]:
    """Return the caller's registers. Raises Unread where the core lacks the memory, BadInput."""
    cfa_rule, word = step.row.cfa, words.word
    if isinstance(cfa_rule, bytes):
        cfa = evaluate(cfa_rule, registers, word)
    else:
        cfa = registers[_number(cfa_rule[0], machine)] + cfa_rule[1] & MASK
    caller = list(registers)
    caller[machine.stack_pointer] = cfa
    for number, rule in step.row.rules.items():
        if number < len(caller):
            caller[number] = _value(rule, number, registers, cfa, words, machine)
    if step.return_register not in step.row.rules and step.return_register == machine.program_counter:
        raise BadInput("call frame instructions without a return address")
    caller[machine.program_counter] = caller[_number(step.return_register, machine)]
    return caller


def _number(number: int, machine: Machine) -> int:
    if number >= len(machine.registers):
        raise BadInput(f"call frame instructions with register {number}")
    return number


def _value(rule: Rule, number: int, registers: list[int], cfa: int, words: Words, machine: Machine) -> int:
    kind, value = rule
    if isinstance(value, bytes):
        result = evaluate(value, registers, words.word, cfa)
        return words.word(result) if kind == rows.EXPRESSION else result
    if kind == rows.OFFSET:
        return words.word(cfa + value)
    if kind == rows.VALUE_OFFSET:
        return cfa + value & MASK
    if kind == rows.REGISTER:
        return registers[_number(value, machine)]
    return registers[number]  # undefined: what it was is as good as any
