# SPDX-License-Identifier: Apache-2.0
"""Stacks in lines: the thread that crashed first, equal stacks once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coresnap.cli import terminal
from coresnap.ground.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from coresnap.cli.reports import Frame, Report, Stack, Thread

_THREADS_MOST = 4
_FUNCTION_MOST, _PATH_MOST = 240, 160
#: A recursion is told of in words from so many rounds on, of at most so many frames.
_ROUNDS_LEAST, _PERIOD_MOST = 4, 12
_BOTTOM = "bottom"


def lines(report: Report, *, whole: bool = False) -> Iterator[str]:
    """Yield the lines; with `whole` every frame is printed."""
    for number, stack in enumerate(report.stacks):
        if number:
            yield ""
        heading = title(stack)
        yield terminal.paint(heading, terminal.RED) if stack.fault else heading
        yield from _frames(stack, whole)
        yield from (f"  Python: {_python(frame)}" for frame in stack.python)


def title(stack: Stack) -> str:
    """Return whose stack it is: `Thread 4711 (worker-1), which crashed`, or `3 threads: 12, 13, 14 (pool)`."""
    names = [_thread(thread) for thread in stack.threads[:_THREADS_MOST]]
    if len(stack.threads) == 1:
        return f"Thread {names[0]}" + (", which crashed" if stack.fault else "")
    more = len(stack.threads) - len(names)
    return f"{len(stack.threads)} threads: {', '.join(names)}" + (f" and {more} more" if more else "")


def _thread(thread: Thread) -> str:
    return printable(f"{thread.tid} ({thread.name})" if thread.name else thread.tid, 80)


def _frames(stack: Stack, whole: bool) -> Iterator[str]:
    width = len(str(len(stack.frames) + stack.left_out))
    for number, what in rows(stack, whole=whole):
        yield f"  … {printable(what)}" if isinstance(what, str) else f"  #{number:<{width}} {line(what)}"


def _python(frame: Frame) -> str:
    where = f" at {printable(frame.place, _PATH_MOST)}" if frame.place else ""
    return f"{printable(frame.function, _FUNCTION_MOST) or '?'}{where}"


def rows(stack: Stack, *, whole: bool = False) -> Iterator[tuple[int, Frame | str]]:
    """Yield the frames with their numbers, and in words what stands for others: a recursion's rounds, and what is left out.

    With `whole` every frame that there is.
    """
    at = stack.left_out_at if stack.left_out else len(stack.frames)
    yield from _folded(stack.frames[:at], 0, whole)
    if stack.left_out:
        yield 0, f"{stack.left_out} frames that the report does not have"
    yield from _folded(stack.frames[at:], at + stack.left_out, whole)
    if stack.end and stack.end != _BOTTOM:
        yield 0, f"the stack ends here: {stack.end}"


def _folded(frames: list[Frame], first: int, whole: bool) -> Iterator[tuple[int, Frame | str]]:
    """Yield frames, of which the first is number `first`, a recursion's rounds but one in words."""
    index = 0
    while index < len(frames):
        period, rounds = (0, 0) if whole else _rounds(frames, index)
        shown = max(period, 1)
        yield from ((first + number, frames[number]) for number in range(index, index + shown))
        if period:
            times = f"{rounds - 1} times more"
            yield 0, f"the same {times}" if period == 1 else f"these {period} frames {times}"
        index += max(period * rounds, 1)


def _rounds(frames: list[Frame], index: int) -> tuple[int, int]:
    """Return of how many frames a round is, from here on, and how many rounds there are; nothing where they are too few."""
    for period in range(1, min(_PERIOD_MOST, len(frames) - index) + 1):
        round_of = [frame.key for frame in frames[index : index + period]]
        rounds, at = 1, index + period
        while [frame.key for frame in frames[at : at + period]] == round_of:
            rounds, at = rounds + 1, at + period
        if rounds >= _ROUNDS_LEAST:
            return period, rounds
    return 0, 0


def line(frame: Frame) -> str:
    """Return a frame in a line: address, function, where in which file, where in which source, and whether it was guessed."""
    function = printable(frame.function, _FUNCTION_MOST) or "?"
    file = printable(frame.file, _PATH_MOST)
    parts = [f"{frame.address:#018x}", function]
    if file:
        parts.append(f"({file} + {frame.offset:#x})" if frame.offset else f"({file})")
    if frame.place:
        parts.append(f"at {printable(frame.place, _PATH_MOST)}")
    if frame.guessed:
        parts.append("(guessed)")
    elif frame.found == "inlined":
        parts.append("(inlined)")
    return " ".join(parts)


def count(stacks: Sequence[Stack]) -> str:
    """Return how many threads there are, in how many stacks."""
    threads = sum(len(stack.threads) for stack in stacks)
    return f"{threads} in {len(stacks)} stacks" if threads > len(stacks) else str(threads) if threads else ""
