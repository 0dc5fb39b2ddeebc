# SPDX-License-Identifier: Apache-2.0
"""The unwinder: the frames of a thread's stack, each with how it was found, and why there are no more.

Of a stack with very many frames, as after a recursion without end, the innermost and the outermost ones are kept.
"""

from __future__ import annotations

from coresnap.snapshot.core import Core
from coresnap.snapshot.images import Images
from coresnap.snapshot.modules import Modules
from coresnap.snapshot.notes import Thread
from coresnap.snapshot.stacks import End, Found, Frame, Stack
from coresnap.snapshot.unwind.machine import MACHINES, Machine
from coresnap.snapshot.unwind.walk import Kept, Limits, Walk, Walker

_STACKS_MAX = 1 << 12


class Unwinder:
    """Walks the stacks of a core's threads, with a time limit on all of them together."""

    def __init__(self, core: Core, modules: Modules, images: Images, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._machine = MACHINES.get(core.machine.name)
        self._walker = Walker(core, modules, images, self._machine, self._limits) if self._machine else None
        self._bare_stacks: dict[tuple[object, ...], Stack] = {}

    @property
    def missing(self) -> list[str]:
        """Return which unwind tables were damaged, as far as stacks were asked for."""
        return self._walker.damages if self._walker else []

    def stack(self, thread: Thread) -> Stack:
        """Return the stack of a thread: at least its innermost frame, and why there are no more."""
        registers = thread.registers()
        address = registers[thread.machine.program_counter]
        first = Frame(address, address, Found.REGISTERS, registers)
        machine, walker = self._machine, self._walker
        if machine is None or walker is None:
            return Stack([first], End.NOT_UNWOUND)
        walk = Walk(machine.of(thread), machine, self._limits)
        end, detail = walker.walk(walk)
        frames = [first, *(_frame(machine, kept) for kept in (*walk.inner[1:], *walk.outer))]
        return Stack(frames, end, detail, walk.count - len(frames), len(walk.inner))

    def bare_stack(self, thread: Thread) -> Stack:
        """Return the stack of a thread without its frames' registers. Equal ones of several threads are one then."""
        if self._walker is None or self._machine is None:
            address = thread.registers()[thread.machine.program_counter]
            return Stack([Frame(address, address, Found.REGISTERS, {})], End.NOT_UNWOUND)
        walk = Walk(self._machine.of(thread), self._machine, self._limits)
        end, detail = self._walker.walk(walk)
        parts = [kept[:3] for kept in (*walk.inner, *walk.outer)]
        key = (*parts, end, detail, walk.count)
        known = self._bare_stacks.get(key)
        if known is None:
            if len(self._bare_stacks) >= _STACKS_MAX:
                self._bare_stacks.clear()
            frames = [Frame(*part, {}) for part in parts]
            known = Stack(frames, end, detail, walk.count - len(frames), len(walk.inner))
            self._bare_stacks[key] = known
        return known


def _frame(machine: Machine, kept: Kept) -> Frame:
    """Return a frame with the registers that are known in it: those that calls leave as they were, or all of them."""
    address, lookup, found, registers = kept
    names = machine.registers
    numbers = range(len(names)) if found is Found.SIGNAL else machine.kept
    return Frame(address, lookup, found, {names[number]: registers[number] for number in numbers})
