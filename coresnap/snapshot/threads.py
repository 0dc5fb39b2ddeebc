# SPDX-License-Identifier: Apache-2.0
"""The threads as the report has them: names, stacks, registers, and how each stack was found and why it ends."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from coresnap.snapshot.asset import thread_names
from coresnap.snapshot.core import Core
from coresnap.snapshot.frames import Frames
from coresnap.snapshot.notes import Thread
from coresnap.snapshot.room import Room, array, encode, member, object_of
from coresnap.snapshot.stacks import Frame, Stack

#: What all threads may take of the report.
THREADS_MAX_BYTES = 20 << 20
#: Registers are listed of this many threads, the one that crashed among them.
REGISTERS_MAX = 2048
_DETAIL_MAX = 200
#: So many callers of the thread that crashed have their registers listed.
_CALLERS_MAX = 32


class _Entry(NamedTuple):
    """A thread, encoded: what stands before its innermost frame's registers, and what stands behind."""

    head: bytes
    tail: bytes


class _Body(NamedTuple):
    """The frames of a stack, encoded, and the note on them; threads share stacks."""

    stack: Stack
    shown: int
    innermost: bytes
    others: bytes
    note: bytes


class Threads:
    """The threads that the report has, in its order: the one that crashed is the first of all."""

    def __init__(self, core: Core, asset: dict[str, bytes], frames: Frames, stacks: Mapping[int, Stack]) -> None:
        """`stacks` are by thread id; a thread that is not among them is not listed."""
        self._frames = frames
        self._stacks = stacks
        self._names = _names(core, asset)
        self._crashed = core.notes.signal is not None
        self._entries: dict[int, _Entry] = {}
        self._registers: dict[int, bytes] = {}
        self._groups: dict[bytes, list[int]] = {}
        names = core.machine.registers
        self._layout = struct.Struct(f"<{len(names)}Q")
        self._registers_format = "{" + ",".join(f'"{name}":"%d"' for name in names) + "}"
        self._bodies: dict[int, _Body] = {}
        self._sources = 0
        #: What was looked up of the frames that are listed, in their order.
        self.addresses: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, tid: int) -> bool:
        return tid in self._entries

    def add(self, threads: list[Thread], room: Room) -> None:
        """Add threads without their registers. The first of all is always there, if need be with less of its stack."""
        leave_bytes = max(room.left_bytes // 3, room.left_bytes - THREADS_MAX_BYTES)
        for thread in threads:
            is_first = not self._entries
            stack = self._stacks[thread.tid]
            most = len(stack.frames)
            added = self._add(thread, stack, most, room, leave_bytes)
            while not added and is_first and most > 1:
                most //= 2
                added = self._add(thread, stack, most, room, leave_bytes)
            if not added and not is_first:
                return
            if not added:
                self._add_bare(thread, stack.frames[0], room)

    def _add(self, thread: Thread, stack: Stack, most: int, room: Room, leave_bytes: int) -> bool:
        """Add a thread with at most so many of its frames; say whether there was room for it."""
        is_first = not self._entries
        body = self._bodies.get(id(stack))  # which lives as long as its body
        if body is None or most < len(stack.frames):
            body = self._body(stack, most)
        fault = b"true" if is_first and self._crashed else b"false"
        faulted = b',"faulted":' + fault if is_first else b""
        name = encode(self._names.get(thread.tid, ""))
        head = b'"%d":{"name":%b,"fault":%b,"stack":[{%b%b' % (thread.tid, name, fault, body.innermost, faulted)
        sources = self._frames.sources
        if not room.take(b",".join((head, body.others, *sources[self._sources :])), leave_bytes=leave_bytes):
            return False
        self._sources = len(sources)
        self._entries[thread.tid] = _Entry(head, body.others)
        self._groups.setdefault(body.note, []).append(thread.tid)
        if id(stack) not in self._bodies:
            self._bodies[id(stack)] = body
            self.addresses.update(dict.fromkeys(frame.lookup for frame in stack.frames[:most]))
        return True

    def _body(self, stack: Stack, most: int) -> _Body:
        shown = stack.frames[:most]
        parts = [self._frames.entries(frame) for frame in shown]
        innermost, *others = [part for entries in parts for part in entries]
        found = [
            ("inlined",) * (len(entries) - 1) + (frame.found,) for entries, frame in zip(parts, shown, strict=True)
        ]
        note: dict[str, Any] = {"end": stack.end, "found": [one for ones in found for one in ones]}
        if stack.detail:
            note["detail"] = stack.detail[:_DETAIL_MAX]
        left_out = len(stack.frames) - len(shown) + stack.omitted
        if left_out:
            note |= {"left_out": left_out, "left_out_at": min(len(shown), stack.omitted_at or len(shown))}
        tail = b"}" + b"".join([b",{%b}" % part for part in others]) + b"]}"
        return _Body(stack, len(shown), innermost, tail, encode(note)[1:-1])

    def _add_bare(self, thread: Thread, frame: Frame, room: Room) -> None:
        fault = b"true" if self._crashed else b"false"
        head = b'"%d":{"name":"","fault":%b,"stack":[{"address":"%d","faulted":%b' % (
            *(thread.tid, fault, frame.address, fault),
        )
        room.take(head + b"}]}")
        self._entries[thread.tid] = _Entry(head, b"}]}")

    def add_registers(self, threads: list[Thread], room: Room) -> int:
        """Add the registers of the threads that have entries; return of how many there was room for them."""
        for count, thread in enumerate(threads):
            values = self._registers_format % self._layout.unpack(thread.raw)
            registers = b',"registers":' + values.encode()
            if not room.take(registers):
                return count
            self._registers[thread.tid] = registers
        return len(threads)

    def add_callers_registers(self, thread: Thread, room: Room) -> None:
        """Add what registers are known in the callers' frames of a thread that has an entry, as far as there is room."""
        body = self._bodies.get(id(self._stacks[thread.tid]))
        if body is None:
            return
        parts: list[bytes] = []
        for number, frame in enumerate(body.stack.frames[: body.shown]):
            entries = self._frames.entries(frame)[0 if number else 1 :]
            if 0 < number <= _CALLERS_MAX and frame.registers:
                values = encode({name: str(value) for name, value in frame.registers.items()})
                registers = b',"registers":' + values
                if room.take(registers):
                    entries = [entries[0] + registers, *entries[1:]]
            parts += entries
        tail = b"}" + b"".join([b",{%b}" % part for part in parts]) + b"]}"
        self._entries[thread.tid] = self._entries[thread.tid]._replace(tail=tail)

    def sources(self) -> list[bytes]:
        """Return the members of sourceCode that the frames refer to."""
        return self._frames.sources[: self._sources]

    def encoded(self) -> bytes:
        """Return the report's threads."""
        return object_of(
            entry.head + self._registers.get(tid, b"") + entry.tail for tid, entry in self._entries.items()
        )

    def notes(self, room: Room) -> tuple[bytes, int, int]:
        """Return how the stacks were found and why they end, equal ones together; of how many of how many there was room."""
        kept = []
        for note, tids in self._groups.items():
            whole = object_of((note, member("threads", array(b'"%d"' % tid for tid in tids))))
            if not room.take(whole):
                break
            kept.append(whole)
        return array(kept), len(kept), len(self._groups)


def _names(core: Core, asset: dict[str, bytes]) -> dict[int, str]:
    """Return the threads' names. A core has only that of the process's first thread.

    The asset numbers threads as the host does, a core as the process's own pid namespace does: names fit where the numbers do.
    """
    names = thread_names(asset.get("proc/task", b""))
    return names if core.notes.pid in names else {core.notes.pid: core.notes.command}
