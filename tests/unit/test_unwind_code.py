# SPDX-License-Identifier: Apache-2.0
"""What code says of calls, assembled by hand; machines that are not unwound; stacks that threads share."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from coresnap.snapshot.core import Core, open_core
from coresnap.snapshot.images import Images
from coresnap.snapshot.modules import list_modules
from coresnap.snapshot.stacks import End, Found
from coresnap.snapshot.unwind.code import Code
from coresnap.snapshot.unwind.machine import MACHINES
from coresnap.snapshot.unwind.unwinder import Unwinder
from tests.fixtures import cores
from tests.unit.test_unwind import opened

_TEXT = 0x10000
_SIGRETURN = MACHINES["x86_64"].sigreturn


def _opened(*loads: cores.Load, machine: int = 62, notes: bytes = b"") -> Core:
    fd = os.memfd_create("core")
    os.pwrite(fd, cores.core(notes or cores.prstatus(1), loads, machine=machine), 0)
    return open_core(fd)


def _code(text: bytes, flags: int = 5, data: bytes = b"") -> Code:
    core = _opened(cores.Load(_TEXT, text, flags), cores.Load(0x80000, data or bytes(8), 6))
    return Code(core.memory, list_modules(core), Images(core, {}), _SIGRETURN)


@pytest.mark.parametrize(
    "call",
    [
        "e8 00 00 00 00",  # call rel32
        "66 66 48 e8 00 00 00 00",  # as to __tls_get_addr
        "ff d0",  # call *%rax
        "41 ff d7",  # call *%r15
        "3e ff d0",  # notrack call *%rax
        "ff 10",  # call *(%rax)
        "ff 50 08",  # call *8(%rax)
        "ff 90 00 01 00 00",  # call *256(%rax)
        "ff 14 c8",  # call *(%rax,%rcx,8)
        "ff 14 25 00 00 01 00",  # call *0x10000
        "ff 14 c5 00 00 01 00",  # call *0x10000(,%rax,8)
        "ff 54 24 08",  # call *8(%rsp)
        "ff 94 24 00 01 00 00",  # call *256(%rsp)
        "ff 15 00 00 00 00",  # call *(%rip)
        "41 ff 55 00",  # call *0(%r13)
    ],
)
def test_what_follows_a_call_is_a_return_address(call: str) -> None:
    text = b"\x90" * 16 + bytes.fromhex(call)
    code = _code(text + b"\x90" * 16)
    assert code.is_return_address(_TEXT + len(text))


@pytest.mark.parametrize(
    "other", ["c3", "e9 00 00 00 00", "ff e0", "ff 25 00 00 00 00", "ff 74 24 08", "0f 1f 84 00 00 00 00 00"]
)
def test_what_follows_no_call_is_none(other: str) -> None:
    text = b"\x90" * 16 + bytes.fromhex(other)
    code = _code(text + b"\x90" * 16)
    assert not code.is_return_address(_TEXT + len(text))


def test_data_has_no_return_addresses() -> None:
    code = _code(b"\x90" * 16 + b"\xff\xd0" + b"\x90" * 16, flags=6)
    assert not code.is_return_address(_TEXT + 18)
    assert not code.is_return_address(0)


def test_what_a_handler_returns_to_is_one() -> None:
    for instructions in _SIGRETURN:
        assert _code(b"\x90" * 16 + instructions + bytes(8)).is_return_address(_TEXT + 16)


@pytest.mark.parametrize(
    ("place", "callee", "strictly", "believed"),
    [
        (0x25, 0x100, True, True),  # the call leads to 0x100
        (0x25, 0x120, True, True),
        (0x25, 0xF0, True, False),
        (0x25, 0xF0, False, True),
        (0x40, 0x108, True, True),
        (0x40, 0xF0, False, False),
        (0x50, 0x100, True, True),  # an indirect call
        (0x72, 0x110, True, True),  # through the procedure linkage table
        (0x72, 0xF0, True, False),
        (0x95, 0x110, True, False),  # through an entry of it that has never been used
        (0x95, 0x110, False, True),
    ],
)
def test_where_a_call_leads(place: int, callee: int, strictly: bool, believed: bool) -> None:
    text = bytearray(b"\x90" * 0x200)
    for at in (0x25, 0x40):
        text[at - 5 : at] = b"\xe8" + struct.pack("<i", 0x100 - at)
    text[0x4E:0x50] = b"\xff\xd0"
    text[0x72 - 5 : 0x72] = b"\xe8" + struct.pack("<i", 0x80 - 0x72)
    text[0x80:0x8A] = b"\xf3\x0f\x1e\xfa\xff\x25" + struct.pack("<i", 0x80000 - (_TEXT + 0x8A))
    text[0x95 - 5 : 0x95] = b"\xe8" + struct.pack("<i", 0xA0 - 0x95)
    text[0xA0:0xA6] = b"\xff\x25" + struct.pack("<i", 0x80008 - (_TEXT + 0xA6))
    code = _code(bytes(text), data=struct.pack("<QQ", _TEXT + 0x100, _TEXT + 0xA6))
    assert code.may_have_called(_TEXT + place, _TEXT + callee, strictly=strictly) == believed


def test_a_machine_that_is_not_unwound() -> None:
    """aarch64: its innermost frames are there."""
    registers = [*range(100, 131), 0x7000, 0x4000, 0]
    note = cores.note(cores.NT_PRSTATUS, struct.pack("<12xH18xI76x34Q8x", 11, 1, *registers))
    core = _opened(machine=183, notes=note)
    unwinder = Unwinder(core, list_modules(core), Images(core, {}))
    [thread] = core.notes.threads
    for stack in (unwinder.stack(thread), unwinder.bare_stack(thread)):
        assert [(frame.address, frame.found) for frame in stack.frames] == [(0x4000, Found.REGISTERS)]
        assert stack.end is End.NOT_UNWOUND


def test_stacks_without_registers_are_shared(real_core: Path) -> None:
    with opened(real_core) as core:
        images = Images(core, {})
        unwinder = Unwinder(core, list_modules(core), images)
        whole = {thread.tid: unwinder.stack(thread) for thread in core.notes.threads}
        bare = {thread.tid: unwinder.bare_stack(thread) for thread in core.notes.threads}
        images.close()
    for tid, stack in bare.items():
        assert [frame[:3] for frame in stack.frames] == [frame[:3] for frame in whole[tid].frames]
        assert not any(frame.registers for frame in stack.frames)
        assert (stack.end, stack.omitted) == (whole[tid].end, whole[tid].omitted)
    with opened(real_core) as core:
        images = Images(core, {})
        unwinder = Unwinder(core, list_modules(core), images)
        first = core.notes.threads[-1]
        assert unwinder.bare_stack(first) is unwinder.bare_stack(first)
        images.close()
