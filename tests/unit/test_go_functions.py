# SPDX-License-Identifier: Apache-2.0
"""Functions of stripped Go programs, held against the symbols that the same programs have before they are stripped."""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
from functools import partial
from pathlib import Path

import pytest

from coresnap.ground.elf_file import ElfFile
from coresnap.snapshot import symbols
from coresnap.snapshot.core import open_core, pread
from coresnap.snapshot.go_functions import find
from coresnap.snapshot.images import Images
from coresnap.snapshot.modules import list_modules
from coresnap.snapshot.names import Names
from tests.crash import crash

_SOURCE = """
package main
import "fmt"
type shelf struct{ at *int }
//go:noinline
func (s *shelf) take() int { return *s.at }
func main() { fmt.Println((&shelf{}).take()) }
"""


@pytest.fixture(scope="module", params=["exe", "pie"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program of Go's, `it`, and the same without symbols, `stripped`."""
    if shutil.which("go") is None:
        pytest.skip("go is not installed")
    directory = tmp_path_factory.mktemp("go")
    (directory / "it.go").write_text(_SOURCE)
    environment = os.environ | {"GOCACHE": str(directory / "cache"), "HOME": str(directory), "CGO_ENABLED": "0"}
    argv = ["go", "build", f"-buildmode={request.param}", "-o", "it", "it.go"]
    subprocess.run(argv, cwd=directory, env=environment, check=True)
    subprocess.run(["strip", "-o", "stripped", "it"], cwd=directory, check=True)
    return directory / "it"


def _open(path: Path) -> ElfFile:
    fd = os.open(path, os.O_RDONLY)  # the test's process is short
    return ElfFile(partial(pread, fd), str(path))


def test_names_are_those_before_it_was_stripped(program: Path) -> None:
    whole, stripped = _open(program), _open(program.parent / "stripped")
    code = whole.section(".text")
    assert code
    chance = random.Random(3)
    addresses = [chance.randrange(code.address, code.address + code.size_bytes) for _ in range(500)]
    known = symbols.find([whole], addresses, symbols.Limits())
    assert symbols.find([stripped], addresses, symbols.Limits()) == {}
    found = find(stripped, addresses)
    theirs = {address: (symbol.name.removesuffix(".abi0"), symbol.address) for address, symbol in known.items()}
    ours = {address: (symbol.name.removesuffix(".abi0"), symbol.address) for address, symbol in found.items()}
    differ = {hex(address): (name, ours.get(address)) for address, name in theirs.items() if name != ours.get(address)}
    assert len(known) > 400
    assert not differ
    assert find(stripped, [0, 1, code.address - 1, code.address + code.size_bytes + (1 << 20), -5, 1 << 64]) == {}


def test_a_stripped_program_that_crashes_has_names(program: Path) -> None:
    argv: list[str | Path] = ["/usr/bin/env", "GOTRACEBACK=crash", program.parent / "stripped"]
    with crash(argv) as crashed, crashed.core.open("rb") as file:
        core = open_core(file.fileno())
        listed, images = list_modules(core), Images(core, {})
        names = Names(images)
        address = core.notes.threads[0].registers()[core.machine.program_counter]
        module = listed.find(address)
        assert module
        found = names.name(module, address)
        images.close()
    assert found
    assert found.function.startswith("runtime."), "it raises the signal again"


def test_tables_that_lie(program: Path) -> None:
    path = program.parent / "stripped"
    whole, data = _open(path), path.read_bytes()
    section = whole.section(".gopclntab") or whole.section(".data.rel.ro.gopclntab")
    assert section
    for seed in range(200):
        chance = random.Random(seed)
        forged = bytearray(data[section.offset : section.offset + 8192])
        for _ in range(3):
            value = chance.choice([0, 1, 0xFFFFFFFF, 0x7FFFFFFF, chance.randrange(1 << 32)])
            struct.pack_into("<I", forged, chance.randrange(0, 72 if seed % 2 else 4096, 4), value)
        pieces = data[: section.offset], bytes(forged), data[section.offset + 8192 :]
        file = ElfFile(partial(_read, b"".join(pieces)), "forged")
        for symbol in find(file, [section.address, 0x401000, 0x460000, 1 << 40]).values():
            assert len(symbol.name) <= 4 * 4096


def _read(data: bytes, count: int, offset: int) -> bytes:
    return data[offset : offset + count]
