# SPDX-License-Identifier: Apache-2.0
"""What is guessed of a frame's caller where no table tells: by the code's own words, by frame pointers, by a scan.

A guess counts only if the return address that it gives is executable and, where the code can be read, follows a call; and if,
where a table tells of that caller, its own return address is one as well.
"""

from __future__ import annotations

from coresnap.snapshot.core import Memory
from coresnap.snapshot.stacks import Found
from coresnap.snapshot.unwind.code import Code
from coresnap.snapshot.unwind.encoding import MASK
from coresnap.snapshot.unwind.expressions import Unread
from coresnap.snapshot.unwind.machine import Machine
from coresnap.snapshot.unwind.steps import Plain, Steps
from coresnap.snapshot.unwind.words import Words

#: How far a stack is looked through, and how far up a frame pointer may point.
_SCAN_WORDS = 512
_FRAME_MAX_BYTES = 1 << 20

Guess = tuple[Found, list[int]]


class Guesses:
    """Guesses at the callers of frames of a machine whose calls push the return address."""

    def __init__(self, memory: Memory, code: Code, steps: Steps, words: Words, machine: Machine) -> None:
        self._memory = memory
        self._code = code
        self._steps = steps
        self._words = words
        self._machine = machine

    def caller(self, registers: list[int], *, exact: bool) -> Guess | None:
        """Return the caller's registers, and how they were found. `exact`: the frame has not called, it was stopped."""
        jumped = exact and not self._code.is_executable(registers[self._machine.program_counter])
        stack = registers[self._machine.stack_pointer]
        top = self._popped(registers, stack, strictly=not jumped) if exact else None
        if top is not None:
            return Found.RETURN_ADDRESS if jumped else Found.SCAN, top
        frameless = self._frameless(registers)
        if frameless is not None:
            return Found.SCAN, frameless
        framed = self._framed(registers)
        if framed is not None and self._is_framed(registers, framed):
            return Found.FRAME_POINTER, framed
        scanned = self._scanned(registers)
        if scanned is not None:
            return Found.SCAN, scanned
        return (Found.FRAME_POINTER, framed) if framed is not None else None

    def signal(self, registers: list[int]) -> list[int] | None:
        """Return the registers that a signal interrupted, where the frame is the instructions that return from its handler.

        Raises Unread where the core does not have them.
        """
        machine = self._machine
        address, stack = registers[machine.program_counter], registers[machine.stack_pointer]
        if not self._code.is_sigreturn(address) and (self._code.can_read(address) or not self._is_interrupted(stack)):
            return None
        return [self._words.word(stack + machine.context[number]) for number in range(len(registers))]

    def _popped(
        self, registers: list[int], place: int, *, strictly: bool = False, framed: bool = False
    ) -> list[int] | None:
        """Return the registers behind a return that finds its address at a place, if that may be one.

        `strictly`: nothing else speaks for that place; `framed`: a frame pointer does, and it may be a fault of Go's.
        """
        machine = self._machine
        try:
            address = self._words.word(place)
        except Unread:
            return None
        if not self._code.is_return_address(address) and not (framed and self._code.is_fault_of_go(address)):
            return None
        if not self._code.may_have_called(address, registers[machine.program_counter], strictly=strictly):
            return None
        caller = list(registers)
        caller[machine.program_counter] = address
        caller[machine.stack_pointer] = place + 8 & MASK
        return caller if self._goes_on(caller) else None

    def _goes_on(self, caller: list[int]) -> bool:
        """Say whether the caller, if a plain step leads on from it, has been called itself, or is what a signal made."""
        if self._code.is_sigreturn(caller[self._machine.program_counter]):
            return self._has_context(caller[self._machine.stack_pointer])
        step = self._steps.find(caller[self._machine.program_counter] - 1)
        if not isinstance(step, Plain) or step.register == self._machine.frame_pointer:
            return True
        try:
            address = self._words.word(caller[step.register] + step.offset + 8 * step.return_place)
        except Unread:
            return False
        return not address or self._code.is_return_address(address)

    def _has_context(self, stack: int) -> bool:
        """Say whether the registers that a signal saved are there. A sigaction(2) that is over left the address alone."""
        offset, selector = self._machine.selector
        try:
            return self._words.word(stack + offset) & 0xFFFF == selector
        except Unread:
            return False

    def _is_interrupted(self, stack: int) -> bool:
        """Say whether what is on the stack cannot well be anything but what a signal saved, whatever the code may be."""
        machine = self._machine
        if not self._has_context(stack):
            return False
        try:
            address, pointer = (
                self._words.word(stack + machine.context[number])
                for number in (machine.program_counter, machine.stack_pointer)
            )
        except Unread:
            return False
        return self._code.is_executable(address) and bool(self._memory.read(pointer, 1))

    def _framed(self, registers: list[int]) -> list[int] | None:
        """By the frame pointer: it points to where the caller's is saved, and above that the return address."""
        machine = self._machine
        frame = registers[machine.frame_pointer]
        if frame & 7 or not 0 <= frame - registers[machine.stack_pointer] <= _FRAME_MAX_BYTES:
            return None
        caller = self._popped(registers, frame + 8, framed=True)
        if caller is not None:
            caller[machine.frame_pointer] = self._words.word(frame)
        return caller

    def _frameless(self, registers: list[int]) -> list[int] | None:
        """By a call between the stack pointer and the frame pointer to the frame's function: that one is the caller's then."""
        machine = self._machine
        stack, callee = registers[machine.stack_pointer], registers[machine.program_counter]
        if not 0 <= registers[machine.frame_pointer] - stack <= _FRAME_MAX_BYTES:
            return None
        try:
            for place in range(stack + 7 & ~7, min(registers[machine.frame_pointer], stack + 8 * _SCAN_WORDS), 8):
                if self._code.called_frameless(self._words.word(place), callee):
                    return self._popped(registers, place)
        except Unread:
            pass  # the end of the stack
        return None

    def _is_framed(self, registers: list[int], caller: list[int]) -> bool:
        """Say whether the frame pointer is used as one: it leads to another one further up, or the code sets one up."""
        machine = self._machine
        upper = caller[machine.frame_pointer] - registers[machine.frame_pointer]
        if 0 < upper <= _FRAME_MAX_BYTES and not upper & 7:
            return True
        return self._code.sets_up_frame(registers[machine.program_counter])

    def _scanned(self, registers: list[int]) -> list[int] | None:
        """By the words of the stack, from its pointer on, or, if that has run into a guard page, from where there is memory."""
        stack = registers[self._machine.stack_pointer]
        start = stack if self._memory.read(stack, 1) else self._memory.next_after(stack)
        if start is None or start - stack > _FRAME_MAX_BYTES:
            return None
        start = start + 7 & ~7
        for strictly in (True, False):  # a tail call leads from where a call led to anywhere
            for place in range(start, start + 8 * _SCAN_WORDS, 8):
                caller = self._popped(registers, place, strictly=strictly)
                if caller is not None and not self._code.may_be_function(caller[self._machine.program_counter]):
                    return caller
        return None
