# SPDX-License-Identifier: Apache-2.0
"""The names of a real core's addresses: the function that crashed is the one that nm has there."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from coresnap.snapshot.core import open_core
from coresnap.snapshot.images import Images
from coresnap.snapshot.modules import VDSO, list_modules
from coresnap.snapshot.names import Name, Names
from tests.crash import crash

_SOURCE = """
#include <csignal>
#include <vector>
namespace shop {
template <typename T> struct Shelf {
    __attribute__((noinline)) T take(std::vector<T> const &all, unsigned at) { *(volatile char *)0 = 1; return all[at]; }
};
}
int main() { std::vector<int> all{1, 2}; return shop::Shelf<int>{}.take(all, 1); }
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    directory = tmp_path_factory.mktemp("shop")
    (directory / "shop.cc").write_text(_SOURCE)
    subprocess.run(["g++", "-O0", "shop.cc", "-o", "shop"], cwd=directory, check=True)
    return directory / "shop"


def test_where_it_crashed(program: Path) -> None:
    with crash([program]) as crashed, crashed.core.open("rb") as file:
        core = open_core(file.fileno())
        modules, images = list_modules(core), Images(core, {})
        names = Names(images)
        registers = core.notes.threads[0].registers()
        module = modules.find(registers["rip"])
        assert module
        assert module.path == str(program)
        found = names.name(module, registers["rip"])
        symbol = "_ZN4shop5ShelfIiE4takeERKSt6vectorIiSaIiEEj"
        listed = subprocess.run(["nm", program], capture_output=True, text=True, check=True).stdout
        start = next(int(line.split()[0], 16) for line in listed.splitlines() if line.endswith(symbol))
        function = "shop::Shelf<int>::take(std::vector<int, std::allocator<int> > const&, unsigned int)"
        assert found == Name(function, symbol, registers["rip"] - module.bias - start)
        assert names.name(module, module.start) is None, "the ELF header is no function"
        assert not names.missing
        images.close()


def test_the_kernels_own_code_has_names(program: Path) -> None:
    """The vDSO is in no file: its symbols are read from the core."""
    with crash([program]) as crashed, crashed.core.open("rb") as file:
        core = open_core(file.fileno())
        [vdso] = [module for module in list_modules(core).listed if module.path == VDSO]
        images = Images(core, {})
        data = core.memory.read(vdso.start, (vdso.end - vdso.start + 0xFFF) & ~0xFFF)
        Path(program.parent / "vdso").write_bytes(data)
        argv = ["nm", "-D", str(program.parent / "vdso")]
        listed = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        starts = {int(row[0], 16) for row in map(str.split, listed.splitlines()) if len(row) == 3 and row[1] in "TW"}
        assert starts
        names = Names(images)
        names.find((vdso, vdso.bias + start) for start in starts)
        for start in starts:
            found = names.name(vdso, vdso.bias + start)
            assert found
            assert (found.offset, found.symbol in listed) == (0, True)


def test_modules_whose_files_are_gone_have_no_names(program: Path, tmp_path: Path) -> None:
    with crash([program]) as crashed, crashed.core.open("rb") as file:
        core = open_core(file.fileno())
        images = Images(core, {}, root=str(tmp_path))
        names = Names(images)
        address = core.notes.threads[0].registers()["rip"]
        module = list_modules(core).find(address)
        assert module
        assert names.name(module, address) is None
