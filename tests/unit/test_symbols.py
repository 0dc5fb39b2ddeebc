# SPDX-License-Identifier: Apache-2.0
"""Which function has an address: real programs and libraries, held against nm and gdb; and tables that lie."""

from __future__ import annotations

import lzma
import os
import random
import re
import struct
import subprocess
from functools import partial
from pathlib import Path

import pytest

from coresnap.ground.elf_file import ElfFile
from coresnap.snapshot import symbols
from coresnap.snapshot.core import pread
from coresnap.snapshot.symbols import Limits, find

_SOURCE = """
#include <stdio.h>
static __attribute__((noinline)) int hidden(int x) { return x * 3 + printf("%d", x); }
__attribute__((noinline)) int exported(int x) { return hidden(x) + 1; }
extern int second_name(int) __attribute__((alias("exported")));
extern int __inner(int) __attribute__((alias("exported")));
static int chosen(void) { return 7; }
static void *choose(void) { return chosen; }
int indirect(void) __attribute__((ifunc("choose")));
extern int assembled(void), sized(void);
__asm__(".text\\n.globl assembled\\nassembled: nop\\nnop\\nnop\\nret\\n"
        ".globl sized\\n.type sized, @function\\nsized: nop\\nret\\n.size sized, .-sized\\nnop\\nnop\\n"
        ".section .text.other,\\"ax\\"\\nelsewhere: ret\\n.text\\n");
__asm__(".symver old, old_name@@V1\\n.globl old\\n.type old, @function\\nold: ret\\n.size old, 1\\n");
int main(void) { return exported(3) + indirect() + assembled() + sized(); }
"""


def _open(path: Path | str) -> ElfFile:
    fd = os.open(path, os.O_RDONLY)  # the test's process is short
    return ElfFile(partial(pread, fd), str(path))


def _nm(path: Path | str, *options: str) -> dict[str, int]:
    listed = subprocess.run(["nm", *options, path], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return {row[2].split("@")[0]: int(row[0], 16) for row in rows if len(row) == 3 and row[1] in "TtWwi"}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of all kinds of symbols, with its debug file beside it, and stripped ones."""
    directory = tmp_path_factory.mktemp("symbols")
    (directory / "it.c").write_text(_SOURCE)
    (directory / "map").write_text(
        "V1 { global: exported; second_name; __inner; assembled; sized; old_name; indirect; main; local: *; };\n"
    )
    argv = ["gcc", "-O1", "-g", "-fPIC", "-shared", "it.c", "-o", "it.so", "-Wl,--version-script=map"]
    subprocess.run(argv, cwd=directory, check=True)
    for options in (["--only-keep-debug", "it.so", "it.debug"], ["--strip-all", "it.so", "stripped.so"]):
        subprocess.run(["objcopy", *options], cwd=directory, check=True)
    return directory / "it.so"


def _names(files: list[ElfFile], addresses: list[int]) -> dict[int, str]:
    limits = Limits()
    found = find(files, addresses, limits)
    assert not limits.missing
    return {address: symbol.name for address, symbol in found.items()}


@pytest.mark.parametrize("tables", [["it.so"], ["it.debug"], ["it.debug", "stripped.so"]], ids="+".join)
def test_every_kind_of_symbol(library: Path, tables: list[str]) -> None:
    at = _nm(library)
    files = [_open(library.parent / name) for name in tables]
    wanted = {
        at["hidden"] + 1: "hidden",
        at["exported"] + 2: "exported",
        at["main"]: "main",
        at["choose"]: "indirect",
        at["assembled"]: "assembled",
        at["assembled"] + 3: "assembled",
        at["sized"] + 1: "sized",
        at["elsewhere"]: "elsewhere",
        at["old_name"]: "old_name",
    }
    assert _names(files, list(wanted)) == wanted
    assert _names(files, [at["sized"] + 3, 1, 1 << 63, (1 << 64) - 1, -5]) == {}, (
        "behind a function's end nothing is named"
    )
    assert find(files, [at["exported"] + 2], Limits())[at["exported"] + 2].address == at["exported"]


def test_what_is_stripped_has_what_it_exports(library: Path) -> None:
    at = _nm(library)
    stripped = [_open(library.parent / "stripped.so")]
    wanted = [at["hidden"] + 1, at["exported"] + 2, at["sized"], at["old_name"]]
    assert set(_names(stripped, wanted).values()) == {"exported", "sized", "old_name"}


def test_the_compressed_table_of_what_is_not_exported(library: Path, tmp_path: Path) -> None:
    """.gnu_debugdata as Fedora's packages have it: an ELF file of the other symbols, under xz."""
    subprocess.run(["objcopy", "-S", "-K", "hidden", library, tmp_path / "mini"], check=True)
    (tmp_path / "mini.xz").write_bytes(lzma.compress((tmp_path / "mini").read_bytes()))
    file = tmp_path / "it.so"
    argv: list[str | Path] = [
        "objcopy",
        "--add-section",
        f".gnu_debugdata={tmp_path}/mini.xz",
        library.parent / "stripped.so",
        file,
    ]
    subprocess.run(argv, check=True)
    at = _nm(library)
    wanted = {at["hidden"] + 1: "hidden", at["exported"] + 2: "exported"}
    assert _names([_open(file)], list(wanted)) == wanted
    damaged = bytearray(file.read_bytes())
    damaged[damaged.index(b"\xfd7zXZ") + 30] ^= 0xFF
    file.write_bytes(damaged)
    limits = Limits()
    assert {one.name for one in find([_open(file)], list(wanted), limits).values()} == {"exported"}
    assert [line for line in limits.missing if ".gnu_debugdata" in line]


def _c_library() -> tuple[str, list[ElfFile], dict[str, set[int]]]:
    mapped = re.search(r"(/\S+/libc\.so\.6)", Path("/proc/self/maps").read_text())
    assert mapped
    file = _open(mapped[1])
    build_id = file.build_id()
    debug = f"/usr/lib/debug/.build-id/{build_id[:2]}/{build_id[2:]}.debug"
    if not Path(debug).exists():
        pytest.skip("libc6-dbg is not installed")
    known: dict[str, set[int]] = {}
    for options in ([debug], ["-D", mapped[1]]):
        for name, address in _nm(options[-1], *options[:-1]).items():
            known.setdefault(name, set()).add(address)
    return mapped[1], [_open(debug), file], known


def test_names_of_the_c_library_are_gdbs(tmp_path: Path) -> None:
    """gdb's `info symbol`: the same function, at the same offset; of its aliases either of us may take another one."""
    path, files, known = _c_library()
    chance = random.Random(5)
    text = next(section for section in files[1].sections() if section.name == ".text")
    addresses = [chance.randrange(text.address, text.address + text.size_bytes) for _ in range(400)]
    script = tmp_path / "gdb"
    script.write_text("".join(f"info symbol {address:#x}\n" for address in addresses))
    argv = ["gdb", "-nx", "-batch", "-iex", "set debuginfod enabled off", "-x", str(script), path]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    lines = [line for line in said.splitlines() if re.search("in section|No symbol", line)]
    assert len(lines) == len(addresses)
    found = find(files, addresses, Limits())
    differ: list[object] = []
    for address, line in zip(addresses, lines, strict=True):
        theirs = re.match(r"([^\s@[]+)\S*(?: \+ (\d+))? in section", line)
        symbol = found.get(address)
        if theirs and symbol:
            same_function = address - symbol.address == int(theirs[2] or 0)
            same_name = symbol.name == theirs[1] or known.get(theirs[1], set()) & known.get(symbol.name, set())
            if not same_function or not (same_name or symbol.name.startswith(theirs[1])):
                differ.append((hex(address), line, symbol))
        elif theirs or symbol:
            differ.append((hex(address), line, symbol))
    assert not differ


def test_aliases_are_chosen_the_same_with_debug_files_and_without() -> None:
    _path, files, known = _c_library()
    names = (
        "raise",
        "abort",
        "poll",
        "puts",
        "read",
        "nanosleep",
        "pthread_create",
        "malloc",
        "qsort",
        "__libc_start_main",
    )
    wanted = {max(known[name]): name for name in names}
    with_debug, without = (_names(some, list(wanted)) for some in (files, files[1:]))
    assert with_debug == without
    assert {wanted[address]: name for address, name in with_debug.items()} == {
        **{name: name for name in names},
        "raise": "raise",
        "nanosleep": "nanosleep",
    }


def _forged(symbols_: bytes, names: bytes = b"\0a\0b\0", *, claims: int = 0, text_bytes: int = 0x1000) -> ElfFile:
    """An ELF file of .text at 0x1000, a symbol table and its names."""
    table_at, names_at, headers_at = 0x100, 0x100 + len(symbols_), 0x100 + len(symbols_) + len(names)
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 3, 62, 1, 0, 0, headers_at, 0, 64, 56, 0, 64, 4, 0
    )
    rows = [
        (0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        (0, 1, 6, 0x1000, 0, text_bytes, 0, 0, 0, 0),
        (0, 2, 0, 0, table_at, claims or len(symbols_), 3, 0, 0, 24),
        (0, 3, 0, 0, names_at, len(names), 0, 0, 0, 0),
    ]
    data = head.ljust(0x100, b"\0") + symbols_ + names + b"".join(struct.pack("<IIQQQQIIQQ", *row) for row in rows)
    return ElfFile(lambda count, at: data[at : at + count], "forged")


def _entry(name: int, start: int, size_bytes: int, info: int = 0x12, section: int = 1) -> bytes:
    return struct.pack("<IBBHQQ", name, info, 0, section, start, size_bytes)


def test_tables_that_lie() -> None:
    limits = Limits()
    data = _entry(1, 0x1000, 0x10)
    assert find([_forged(data, claims=4 << 30)], [0x1001], limits)[0x1001].name == "a"
    assert limits.missing == ["symbols of forged: 285 of 4294967296 bytes are there"]
    assert find([_forged(data, claims=(1 << 64) - 1)], [0x1001], limits)[0x1001].name == "a"
    for name in (99, 0xFFFFFFFF, 0, 2):
        assert find([_forged(_entry(name, 0x1000, 0x10))], [0x1001], limits) == {}
    long = b"\0" + b"x" * symbols.NAME_MAX_BYTES + b"\0"
    assert find([_forged(data, long)], [0x1001], limits) == {}
    assert find([_forged(_entry(1, 0x1000, (1 << 64) - 1))], [0x1001, 1 << 63], limits)[1 << 63].name == "a"
    for odd in (_entry(1, 0x1000, 16, info=0x11), _entry(1, 0x1000, 16, section=0), _entry(1, 0x1000, 0, section=77)):
        assert find([_forged(odd)], [0x1001], limits) == {}


def test_a_table_that_is_endless_is_read_up_to_a_limit() -> None:
    limits = Limits(symbols=5)
    data = b"".join(_entry(1, 0x1000 + 16 * number, 16) for number in range(10))
    assert sorted(find([_forged(data)], [0x1041, 0x1051], limits)) == [0x1041]
    find([_forged(data)], [0x1051], limits)
    assert limits.missing == [f"symbols: no more than {symbols.SYMBOLS_MAX} are looked at"]


def test_symbols_that_all_overlap_cost_no_more_than_a_limit() -> None:
    limits = Limits(matches=1000)
    data = b"".join(_entry(1, 0x1000 + number, 1 << 40) for number in range(500))
    find([_forged(data)], list(range(0x1000, 0x1400)), limits)
    assert limits.matches == 0
    assert "too many that overlap" in limits.missing[0]


def test_a_label_ends_where_another_function_starts_or_its_section_ends() -> None:
    data = _entry(1, 0x1100, 0, info=0x10) + _entry(3, 0x1200, 0x10)
    file = _forged(data)
    names = _names([file], [0x10FF, 0x1100, 0x11FF, 0x1205, 0x1210, 0x1FFF, 0x2000])
    assert names == {0x1100: "a", 0x11FF: "a", 0x1205: "b"}
    only = _forged(_entry(1, 0x1100, 0, info=0x10))
    assert _names([only], [0x1100, 0x1FFF, 0x2000]) == {0x1100: "a", 0x1FFF: "a"}


def test_a_bomb_of_xz_is_not_unpacked(library: Path, tmp_path: Path) -> None:
    packed = tmp_path / "bomb.xz"
    packed.write_bytes(lzma.compress(b"\0" * (200 << 20), preset=1))
    file = tmp_path / "it.so"
    section = f".gnu_debugdata={packed}"
    subprocess.run(["objcopy", "--add-section", section, library.parent / "stripped.so", file], check=True)
    limits = Limits()
    assert find([_open(file)], [_nm(library)["exported"] + 2], limits)
    assert limits.missing == [f"{file}: .gnu_debugdata: cut, or more than {32 << 20} bytes"]
    few = Limits(debugdata_bytes=100)
    find([_open(file)], [_nm(library)["exported"] + 2], few)
    assert "bytes are more than 100" in few.missing[0]
