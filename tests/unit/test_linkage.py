# SPDX-License-Identifier: Apache-2.0
"""The names of entries of procedure linkage tables: those of real programs, as objdump(1) has them; and tables that lie."""

from __future__ import annotations

import os
import re
import struct
import subprocess
from functools import partial
from pathlib import Path

import pytest

from coresnap.ground.elf_file import ElfFile
from coresnap.snapshot import linkage
from coresnap.snapshot.core import pread

_SOURCE = """
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
int main(int argc, char **argv) {
    double (*by_pointer)(double) = cos;
    printf("%zu %f", strlen(argv[0]), sin(argc) + by_pointer(argc) + by_pointer(2) + cos(argc + 1));
    return puts(getenv("HOME"));
}
"""
_KINDS = {
    "lazy": ("-Wl,-z,lazy",),
    "now": ("-Wl,-z,now",),
    "at fixed addresses": ("-no-pie", "-fno-pie", "-Wl,-z,lazy"),
    "with end branches": ("-fcf-protection=full", "-Wl,-z,ibtplt"),
    "gold's": ("-fuse-ld=gold",),
    "stripped": ("-s",),
}


def _open(path: Path) -> ElfFile:
    fd = os.open(path, os.O_RDONLY)  # the test's process is short
    return ElfFile(partial(pread, fd), str(path))


def _as_objdump_has_them(path: Path) -> dict[int, str]:
    """Return the names by address; objdump knows no addends and no first entry, and puts an address where none is named."""
    argv = ["objdump", "-d", *(f"-j{name}" for name in (".plt", ".plt.sec", ".plt.got")), str(path)]
    listed = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    found = re.findall(r"^([0-9a-f]{16}) <(?:\*ABS\*\S*|([^@>+]+)(?:@\S+)?)@plt>:$", listed, re.MULTILINE)
    return {int(address, 16): f"{name}@plt" for address, name in found if name}


@pytest.mark.parametrize("kind", _KINDS)
def test_the_entries_are_named(tmp_path: Path, kind: str) -> None:
    (tmp_path / "it.c").write_text(_SOURCE)
    argv = ["gcc", "-O1", "-fno-builtin", "it.c", "-o", "it", *_KINDS[kind], "-lm"]
    subprocess.run(argv, cwd=tmp_path, check=True)
    known = _as_objdump_has_them(tmp_path / "it")
    assert {"puts@plt", "strlen@plt", "getenv@plt", "sin@plt"} <= set(known.values())
    file = _open(tmp_path / "it")
    for inside in (0, 1, 5, 7):
        found = linkage.find(file, [address + inside for address in known])
        assert {address: symbol.name for address, symbol in found.items()} == {
            address + inside: name for address, name in known.items()
        }
        assert {symbol.address for symbol in found.values()} == set(known)
    assert linkage.find(file, [file.entry, 0, 1 << 63]) == {}


def test_tables_that_lie_name_nothing(tmp_path: Path) -> None:
    (tmp_path / "it.c").write_text(_SOURCE)
    subprocess.run(["gcc", "-fno-builtin", "it.c", "-o", "it", "-lm"], cwd=tmp_path, check=True)
    good = (tmp_path / "it").read_bytes()
    file = _open(tmp_path / "it")
    address = next(iter(_as_objdump_has_them(tmp_path / "it")))
    relocations = file.section(".rela.plt")
    assert relocations
    data = bytearray(good)
    for at in range(relocations.offset, relocations.offset + relocations.size_bytes, 24):
        struct.pack_into("<Q", data, at + 8, 0xFFFFFFFF << 32 | 7)  # symbols that are far behind the table
    lying = ElfFile(lambda count, at: bytes(data[at : at + count]), "lying")
    assert linkage.find(file, [address])
    assert linkage.find(lying, [address]) == {}
