# SPDX-License-Identifier: Apache-2.0
"""The walk up a stack: by unwind tables as far as they go, by guesses where there are none.

Of a stack with very many frames, as after a recursion without end, the innermost and the outermost ones are kept.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from coresnap.ground.errors import BadInput
from coresnap.snapshot.core import Core
from coresnap.snapshot.images import Images
from coresnap.snapshot.modules import AT_ENTRY, Modules
from coresnap.snapshot.stacks import End, Found
from coresnap.snapshot.unwind.code import Code
from coresnap.snapshot.unwind.encoding import MASK
from coresnap.snapshot.unwind.expressions import Unread
from coresnap.snapshot.unwind.guesses import Guesses
from coresnap.snapshot.unwind.machine import Machine
from coresnap.snapshot.unwind.steps import Last, NoStep, Plain, Special, Step, Steps, special
from coresnap.snapshot.unwind.words import Words

#: Between two looks at the clock.
_RUN_STEPS = 4096
#: How often a walk may go down, and how many steps it may take that are not plain.
_DOWN_MAX = 4096
_SLOW_MAX = 1 << 16
#: A start routine without a table is no longer than this.
_ENTRY_MAX_BYTES = 64


class Limits(NamedTuple):
    """How many frames of a stack are kept, innermost and outermost; how many are walked; how long all stacks may take."""

    innermost: int = 768
    outermost: int = 256
    walked: int = 1 << 20
    seconds: float = 5.0


#: What is kept of a frame: program counter, address to be named, how it was found, registers.
Kept = tuple[int, int, Found, Sequence[int]]


class Walk:
    """A stack under way: the frame it has reached, and those that it has passed, with that one the last."""

    def __init__(self, registers: list[int], machine: Machine, limits: Limits) -> None:
        self._machine = machine
        self._limits = limits
        self.registers = registers
        self.lookup = registers[machine.program_counter]
        self.found = Found.REGISTERS
        self.count = self.slow_count = 0
        self.inner: list[Kept] = []
        self.outer: deque[Kept] = deque(maxlen=limits.outermost)
        self._seen: set[tuple[int, int]] = set()
        self.add(registers, Found.REGISTERS, exact=True)

    @property
    def is_exact(self) -> bool:
        """Say whether the frame was stopped where it is, and has not called."""
        return self.found in (Found.REGISTERS, Found.SIGNAL)

    def add(self, registers: list[int], found: Found, *, exact: bool) -> None:
        """Go on to a frame with these registers."""
        address = registers[self._machine.program_counter]
        self.registers, self.found = registers, found
        self.lookup = address if exact else address - 1 & MASK
        self.count += 1
        (self.inner if self.count <= self._limits.innermost else self.outer).append(
            (address, self.lookup, found, tuple(registers))
        )

    def name_exactly(self) -> None:
        """Have the last frame named by where it is: it has not called, or nothing has called it."""
        kept = self.outer or self.inner
        address, _lookup, found, registers = kept[-1]
        kept[-1] = (address, address, found, registers)
        self.lookup = address

    def goes_round(self, address: int, stack: int, from_stack: int) -> bool:
        """Say whether a walk to there would go in a circle. It may go down the stack, as to another one, but not twice."""
        if stack > from_stack:
            return False
        if (address, stack) in self._seen or len(self._seen) >= _DOWN_MAX:
            return True
        self._seen.add((address, stack))
        return False


class Walker:
    """Walks stacks of one core; what it learns of the code is kept for the next one."""

    def __init__(self, core: Core, modules: Modules, images: Images, machine: Machine, limits: Limits) -> None:
        self._limits = limits
        self._deadline = time.monotonic() + limits.seconds
        self._machine = machine
        self._entry = core.notes.auxv.get(AT_ENTRY, 0)
        self._words = Words(core.memory)
        self._steps = Steps(core, modules, images, machine)
        self._code = Code(core.memory, modules, images, machine.sigreturn)
        self._guesses = Guesses(core.memory, self._code, self._steps, self._words, machine)

    @property
    def damages(self) -> list[str]:
        """Return which tables could not be read, and why; frames may have been guessed all the same."""
        return [f"unwind tables: {damage}" for damage in self._steps.damages]

    def walk(self, walk: Walk) -> tuple[End, str]:
        """Walk to the end of a stack; return why it ends."""
        self._words.begin()
        while True:
            if walk.count > self._limits.walked:
                return End.FRAMES, ""
            if time.monotonic() > self._deadline:
                return End.TIME, ""
            end = self._run(walk)
            if end is None:
                end = self._one(walk)
            if end is not None:
                return end

    def _run(self, walk: Walk) -> tuple[End, str] | None:
        """Take plain steps as long as there are any, all of them in the window of the stack."""
        steps, words, pc_at, sp_at = (
            self._steps.plain,
            self._words,
            self._machine.program_counter,
            self._machine.stack_pointer,
        )
        base, end, array = words.base, words.end, words.array
        registers, lookup = walk.registers, walk.lookup
        innermost, keep = self._limits.innermost, walk.inner.append
        for count in range(walk.count + 1, walk.count + _RUN_STEPS):
            step = steps.get(lookup)
            if step is None:
                break
            register, offset, lowest, return_place, saved = step
            cfa = registers[register] + offset
            index = cfa - base >> 3
            if cfa & 7 or index + lowest < 0 or cfa > end:
                break
            address = array[index + return_place]
            if not address:
                return End.BOTTOM, ""
            if cfa <= registers[sp_at] and walk.goes_round(address, cfa, registers[sp_at]):
                return End.CYCLE, ""
            registers = registers.copy()
            for number, place in saved:
                registers[number] = array[index + place]
            registers[sp_at], registers[pc_at] = cfa, address
            lookup = address - 1
            if count > innermost:
                keep = walk.outer.append
            keep((address, lookup, Found.CFI, registers))
            walk.count, walk.found = count, Found.CFI
        walk.registers, walk.lookup = registers, lookup
        return None

    def _one(self, walk: Walk) -> tuple[End, str] | None:
        """Take any one step; return why there is none."""
        machine, registers = self._machine, walk.registers
        if walk.found in (Found.CFI, Found.FRAME_POINTER) and self._code.is_fault_of_go(
            registers[machine.program_counter]
        ):
            walk.name_exactly()
        step = self._step(walk)
        if isinstance(step, Last):
            return End.BOTTOM, ""
        walk.slow_count += not isinstance(step, Plain)
        if walk.slow_count > _SLOW_MAX:
            return End.FRAMES, ""
        try:
            found, caller = self._caller(step, walk)
        except Unread as error:
            return End.NO_STACK, str(error)
        except BadInput as error:
            return End.BAD_TABLE, str(error)
        if caller is None:
            return self._no_caller(step, walk)
        address, stack = caller[machine.program_counter], caller[machine.stack_pointer]
        if found is Found.SIGNAL:
            walk.name_exactly()
        elif not address:
            return End.BOTTOM, ""
        if walk.goes_round(address, stack, registers[machine.stack_pointer]):
            return End.CYCLE, ""
        walk.add(caller, found, exact=found is Found.SIGNAL)
        return None

    def _no_caller(self, step: Plain | Special | NoStep, walk: Walk) -> tuple[End, str]:
        """Say why there is no caller. The ABI has the outermost frame marked by a frame pointer of 0."""
        if not walk.registers[self._machine.frame_pointer]:
            return End.BOTTOM, ""
        damage = step.damage if isinstance(step, NoStep) else ""
        return (End.BAD_TABLE, damage) if damage else (End.NO_CALLER, "")

    def _caller(self, step: Plain | Special | NoStep, walk: Walk) -> tuple[Found, list[int] | None]:
        """Return the caller's registers, None where nothing tells of one."""
        registers = walk.registers
        if isinstance(step, Plain):
            return Found.CFI, self._plain(step, registers)
        if isinstance(step, Special):
            return self._special(step, walk)
        interrupted = self._guesses.signal(registers)
        if interrupted is not None:
            return Found.SIGNAL, interrupted
        return self._guesses.caller(registers, exact=walk.is_exact) or (Found.SCAN, None)

    def _special(self, step: Special, walk: Walk) -> tuple[Found, list[int]]:
        """Take a step that is not plain. Raises Unread, BadInput where the table is damaged and nothing can be guessed."""
        try:
            caller = special(step, walk.registers, self._words, self._machine)
        except Unread:
            raise
        except BadInput:
            guess = self._guesses.caller(walk.registers, exact=walk.is_exact)
            if guess is None:
                raise
            return guess
        if step.is_signal:
            return Found.SIGNAL, caller
        # A stack has something on it; a table may lead anywhere.
        self._words.word(caller[self._machine.stack_pointer] - 8)
        return Found.CFI, caller

    def _step(self, walk: Walk) -> Step:
        """Return the step from the frame; where no table has the call, one that has the return address may tell.

        It is that of a signal, or of a function that a stack was made to return to and that nothing has called: makecontext(3).
        A start routine without a table has no caller either.
        """
        step, address = self._steps.find(walk.lookup), walk.registers[self._machine.program_counter]
        if not isinstance(step, NoStep) or self._code.is_sigreturn(address):
            return step  # what a handler returns to may have a table as any function has: Go's has
        if 0 <= address - self._entry < _ENTRY_MAX_BYTES:
            return Last(self._machine.program_counter)
        behind = step if walk.is_exact else self._steps.find(address)
        if isinstance(behind, NoStep):
            return step
        walk.name_exactly()
        return behind if isinstance(behind, Special) and behind.is_signal else Last(self._machine.program_counter)

    def _plain(self, step: Plain, registers: list[int]) -> list[int]:
        """Take a plain step, wherever the stack is. Raises Unread."""
        word = self._words.word
        cfa = registers[step.register] + step.offset & MASK
        self._words.move(cfa + 8 * step.lowest & MASK)
        caller = registers.copy()
        for number, place in step.saved:
            caller[number] = word(cfa + 8 * place)
        caller[self._machine.program_counter] = word(cfa + 8 * step.return_place)
        caller[self._machine.stack_pointer] = cfa
        return caller
