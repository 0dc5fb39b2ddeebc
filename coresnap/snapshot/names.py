# SPDX-License-Identifier: Apache-2.0
"""The names of functions by address, demangled."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from coresnap.snapshot import go_functions, linkage, symbols
from coresnap.snapshot.demangle import demangle
from coresnap.snapshot.images import Images
from coresnap.snapshot.linkage import PLT
from coresnap.snapshot.modules import Module
from coresnap.snapshot.symbols import Limits, Symbol


class Name(NamedTuple):
    """A function: its name for people, its symbol as in the file, and how many bytes behind its start the address is."""

    function: str
    symbol: str
    offset: int


class Names:
    """The names of addresses. `missing` says what of the symbols could not be read.

    All addresses of a report are best asked for at once, by find(): a module's tables are passed through once then.
    """

    def __init__(self, images: Images) -> None:
        self._images = images
        self._limits = Limits()
        self._found: dict[tuple[int, int], Name | None] = {}
        self.missing = self._limits.missing

    def find(self, wanted: Iterable[tuple[Module, int]]) -> None:
        """Look for the names of these addresses of the process (Frame.lookup), each in its module."""
        modules: dict[int, tuple[Module, set[int]]] = {}
        for module, address in wanted:
            if (module.start, address) not in self._found:
                modules.setdefault(module.start, (module, set()))[1].add(address)
        found: dict[tuple[int, int], tuple[Symbol, int]] = {}
        for module, addresses in modules.values():
            self._found |= dict.fromkeys((module.start, address) for address in addresses)
            image = self._images.image(module)
            files = [*image.debug, *([image.file] if image.file else [])]
            here = {address - image.bias: address for address in addresses}
            known = symbols.find(files, list(here), self._limits)
            if image.file and len(known) < len(here):
                known |= go_functions.find(image.file, [at for at in here if at not in known])
                known |= linkage.find(image.file, [at for at in here if at not in known])
            found |= {(module.start, here[at]): (symbol, at - symbol.address) for at, symbol in known.items()}
        functions = demangle({symbol.name.removesuffix(PLT) for symbol, _offset in found.values()}, self.missing)
        for key, (symbol, offset) in found.items():
            name = symbol.name.removesuffix(PLT)
            function = functions.get(name, name) + symbol.name[len(name) :]
            self._found[key] = Name(function, symbol.name, offset)

    def name(self, module: Module, address: int) -> Name | None:
        """Return the name of an address of the process; None where no symbol has it."""
        if (module.start, address) not in self._found:
            self.find([(module, address)])
        return self._found[module.start, address]
