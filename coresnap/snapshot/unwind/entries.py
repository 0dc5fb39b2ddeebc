# SPDX-License-Identifier: Apache-2.0
"""The records of .eh_frame and .debug_frame: common information (CIE) and frame description (FDE) entries.

Layouts: LSB Core, "The .eh_frame section"; DWARF 5, 6.4.1. Addresses are those of the file, without the bias.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from coresnap.ground.errors import BadInput
from coresnap.snapshot.unwind.encoding import OMIT, pointer, raw, sleb, uleb

#: Reads at most so many bytes at an address.
Read = Callable[[int, int], bytes]

#: The largest real ones have some thousand bytes.
RECORD_MAX_BYTES = 256 << 10
#: What one read gives of a record; most are smaller.
_READ_BYTES = 256
_CIES_MAX = 4096
_AUGMENTATION_MAX = 16


class Cie(NamedTuple):
    """What FDEs have in common. `encoding` is that of their addresses; their instructions come behind `instructions`."""

    code_factor: int
    data_factor: int
    return_register: int
    encoding: int
    is_signal: bool
    has_size: bool
    instructions: bytes


class Fde(NamedTuple):
    """The unwind instructions of addresses from `start` up to `end`. `address` is that of the instructions."""

    start: int
    end: int
    cie: Cie
    instructions: bytes
    address: int


class _Record(NamedTuple):
    """A record's bytes from the field of its CIE's place on, which stands at `address`."""

    address: int
    id: int
    id_bytes: int
    data: bytes


class Entries:
    """The records of one section, each read when it is asked for; CIEs are kept."""

    def __init__(self, read: Read, start: int, *, is_eh: bool) -> None:
        """`start` is the section's address; of .debug_frame it is 0, and addresses in it are offsets."""
        self._read = read
        self._start = start
        self._is_eh = is_eh
        self._cies: dict[int, Cie] = {}

    def fde(self, address: int) -> Fde:
        """Return the FDE at an address. Raises BadInput where there is none."""
        try:
            return self._fde(address)
        except (IndexError, struct.error) as error:
            raise BadInput(f"the record at {address:#x} is cut") from error

    def _fde(self, address: int) -> Fde:
        record = self._record(address)
        cie = self._cie(record)
        data, at = record.data, record.id_bytes
        start, at = pointer(data, at, cie.encoding, address=record.address + at, table=self._start)
        size_bytes, at = raw(data, at, cie.encoding)
        if cie.has_size:
            length, at = uleb(data, at)
            at += length
        return Fde(start, start + size_bytes, cie, data[at:], record.address + at)

    def _record(self, address: int) -> _Record:
        """Read the length, of 4 bytes, or of 8 behind 0xffffffff, and what it counts."""
        data = self._read(address, _READ_BYTES)
        (length,) = struct.unpack_from("<I", data)
        head_bytes, id_bytes = 4, 4
        if length == 0xFFFFFFFF:
            (length,) = struct.unpack_from("<Q", data, 4)
            head_bytes, id_bytes = 12, 4 if self._is_eh else 8
        if not id_bytes < length <= RECORD_MAX_BYTES:
            raise BadInput(f"the record at {address:#x} has {length} bytes")
        end = head_bytes + length
        if end > len(data):
            data = self._read(address, end)
        if end > len(data):
            raise BadInput(f"the record at {address:#x} is cut at {len(data)} of {end} bytes")
        id_ = struct.unpack_from("<I" if id_bytes == 4 else "<Q", data, head_bytes)[0]
        return _Record(address + head_bytes, id_, id_bytes, data[head_bytes:end])

    def _is_cie(self, record: _Record) -> bool:
        return record.id == (0 if self._is_eh else (1 << 8 * record.id_bytes) - 1)

    def _cie(self, record: _Record) -> Cie:
        """Return the CIE of an FDE: of .eh_frame its place is relative to the field, of .debug_frame to the section."""
        if self._is_cie(record):
            raise BadInput(f"the record at {record.address:#x} is no FDE")
        address = record.address - record.id if self._is_eh else self._start + record.id
        cie = self._cies.get(address)
        if cie is None:
            its = self._record(address)
            if not self._is_cie(its):
                raise BadInput(f"the record at {address:#x} is no CIE")
            if len(self._cies) >= _CIES_MAX:
                self._cies.clear()
            cie = self._cies[address] = _parse_cie(its)
        return cie


def _parse_cie(record: _Record) -> Cie:
    data, at = record.data, record.id_bytes + 1
    version = data[record.id_bytes]
    if version not in (1, 3, 4, 5):
        raise BadInput(f"the CIE at {record.address:#x} is of version {version}")
    end = data.index(b"\0", at, at + _AUGMENTATION_MAX) if b"\0" in data[at : at + _AUGMENTATION_MAX] else -1
    if end < 0:
        raise BadInput(f"the CIE at {record.address:#x} is augmented without end")
    augmentation, at = data[at:end], end + 1
    if augmentation == b"eh":  # GCC 2's: a pointer
        at += 8
    if version >= 4:  # the sizes of addresses and of segment selectors
        if data[at : at + 2] != b"\x08\0":
            raise BadInput(f"the CIE at {record.address:#x} is of another machine")
        at += 2
    code_factor, at = uleb(data, at)
    data_factor, at = sleb(data, at)
    return_register, at = (data[at], at + 1) if version == 1 else uleb(data, at)
    encoding, is_signal, has_size = 0, False, augmentation[:1] == b"z"
    if has_size:
        length, at = uleb(data, at)
        encoding, is_signal = _augment(augmentation[1:], data, at)
        at += length
    elif augmentation not in (b"", b"eh"):
        raise BadInput(f"the CIE at {record.address:#x} is augmented in an unknown way")
    if at > len(data):
        raise BadInput(f"the CIE at {record.address:#x} is cut")
    return Cie(code_factor, data_factor, return_register, encoding, is_signal, has_size, data[at:])


def _augment(letters: bytes, data: bytes, at: int) -> tuple[int, bool]:
    """Return the encoding of addresses (R), and whether the frame is that of a signal (S)."""
    encoding, is_signal = 0, False
    for letter in letters:
        if letter == ord("R"):
            encoding, at = data[at], at + 1
        elif letter == ord("P"):  # the personality routine: an encoding, and a pointer in it
            if data[at] != OMIT:
                _value, at = raw(data, at + 1, data[at])
            else:
                at += 1
        elif letter == ord("L"):
            at += 1
        elif letter == ord("S"):
            is_signal = True
        elif letter not in b"BG":  # aarch64: signed with the B key; memory tagging
            break
    return encoding, is_signal
