# SPDX-License-Identifier: Apache-2.0
"""Whose a dump is: every single sign that something else's secrets may be in it makes it nobody's."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from coresnap.capture.place import place_of
from coresnap.capture.reader import reader_of
from coresnap.capture.victim import Victim
from coresnap.ground import elf
from tests.fixtures import cores

_STATUS = b"Name:\tx\nUid:\t1000\t1000\t1000\t1000\nGid:\t100\t100\t100\t100\nCapPrm:\t0000000000000000\n"
_VECTOR = {11: 1000, 12: 1000, 13: 100, 14: 100, 23: 0, 6: 4096}


def _reader(status: bytes = _STATUS, vector: dict[int, int] | None = None, **changes: Any) -> int | None:
    victim = Victim()
    victim.uid, victim.gid, victim.dumpable = 1000, 100, 1
    place = place_of(b"0::/user.slice/user-1000.slice/session-2.scope\n")
    transport = changes.pop("transport", "pipe")
    for name, value in changes.items():
        if name in place:
            place[name] = value
        else:
            setattr(victim, name, value)
    return reader_of(victim, transport, status, place, _VECTOR if vector is None else vector)


@pytest.mark.parametrize("transport", ["pipe", "handover", "socket"])
def test_a_plain_process_is_its_user_s(transport: str) -> None:
    assert _reader(transport=transport) == 1000


@pytest.mark.parametrize(
    "changes",
    [
        {"dumpable": 2},
        {"dumpable": 0},
        {"dumpable": None},
        {"uid": None},
        {"uid": 1001},
        {"gid": 101},
        {"gid": None},
        {"transport": "hand"},
        {"transport": "import"},
        {"transport": "salvage"},
        {"container": "docker:0123456789ab"},
        {"container": "pid namespace", "owner_uid": None},
        {"container": "pid namespace", "owner_uid": 1001},
    ],
)
def test_it_is_nobody_s(changes: dict[str, Any]) -> None:
    assert _reader(**changes) is None


def test_a_sandbox_of_the_user_s_own_is_his() -> None:
    assert _reader(container="pid namespace", owner_uid=1000) == 1000


@pytest.mark.parametrize("uid", [0, 33, 999, 61184, 65519, 65534, 65535, 2**32 - 1])
def test_users_of_services_have_none(uid: int) -> None:
    status = _STATUS.replace(b"1000", str(uid).encode())
    vector = {**_VECTOR, 11: uid, 12: uid}
    assert _reader(status, vector, uid=uid) is None


@pytest.mark.parametrize("uid", [1000, 61183, 65520, 100_000, 2_000_000_000])
def test_people_have(uid: int) -> None:
    status = _STATUS.replace(b"1000", str(uid).encode())
    assert _reader(status, {**_VECTOR, 11: uid, 12: uid}, uid=uid) == uid


@pytest.mark.parametrize("key", [11, 12, 13, 14, 23])
def test_it_is_nobody_s_where_the_program_was_started_as_another(key: int) -> None:
    """Set-uid, set-gid, capabilities of a file; root that has become the user since; and where it is not told."""
    assert _reader(vector={**_VECTOR, key: 1 if key == 23 else 0}) is None
    assert _reader(vector={name: value for name, value in _VECTOR.items() if name != key}) is None


@pytest.mark.parametrize(
    ("line", "other"),
    [
        (b"1000\t1000\t1000\t1000\n", b"1000\t0\t1000\t1000\n"),
        (b"1000\t1000\t1000\t1000\n", b"1000\t1000\t0\t1000\n"),
        (b"1000\t1000\t1000\t1000\n", b"1000\t1000\t1000\t0\n"),
        (b"100\t100\t100\t100\n", b"100\t100\t42\t100\n"),
        (b"CapPrm:\t0000000000000000\n", b"CapPrm:\t0000000000000400\n"),
        (b"CapPrm:\t0000000000000000\n", b""),
        (_STATUS, b""),
    ],
)
def test_it_is_nobody_s_where_it_died_as_another(line: bytes, other: bytes) -> None:
    assert _reader(_STATUS.replace(line, other)) is None


def test_a_name_cannot_speak_for_the_kernel() -> None:
    """A process's name comes first in status, with its line breaks escaped; of lines that are there twice the first counts."""
    assert _reader(b"Uid:\t0\t0\t0\t0\n" + _STATUS) is None


def _core(contents: bytes) -> Callable[[int, int], bytes]:
    data = cores.core(cores.note(elf.NT_AUXV, contents))

    def pread(count: int, offset: int) -> bytes:
        return data[offset : offset + count]

    return pread


def test_the_vector_is_read_up_to_its_end_and_no_further() -> None:
    pairs = [(11, 5), (11, 6), (0, 0), (12, 7)]
    assert elf.auxiliary_vector(_core(b"".join(struct.pack("<QQ", *pair) for pair in pairs))) == {11: 5}


@pytest.mark.parametrize("contents", [b"", b"x", struct.pack("<QQ", 11, 5) + b"torn", bytes(100_000)])
def test_a_vector_that_is_torn_or_empty_does_no_harm(contents: bytes) -> None:
    assert set(elf.auxiliary_vector(_core(contents))) <= {11}
