# SPDX-License-Identifier: Apache-2.0
"""Frames as the report has them: named where a name is known, with their module and its build-id always.

Threads share most of their frames: each is looked up and encoded once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from coresnap.snapshot.modules import Module, Modules
from coresnap.snapshot.room import encode, member
from coresnap.snapshot.stacks import Frame

TEXT_MAX = 1024
_CACHED_MAX = 65536
_SOURCES_MAX = 10000


class Called(Protocol):
    """What a function is called: for people, and as the symbol table has it."""

    @property
    def function(self) -> str:
        """The name, demangled."""

    @property
    def symbol(self) -> str:
        """The name as the file has it."""


class Place(NamedTuple):
    """Where in its source a frame is. `function` is that of an inlined call, empty of the frame's own function."""

    function: str
    path: str
    line: int
    column: int


class Naming(Protocol):
    """Who knows the functions. Addresses are those of the process, of Frame.lookup."""

    def find(self, wanted: Iterable[tuple[Module, int]]) -> None:
        """Look for the names of these addresses at once."""

    def name(self, module: Module, address: int) -> Called | None:
        """Return the name of an address; None where none is known."""


#: The places of an address in its module's source, the innermost inlined call first.
Places = Callable[[Module, int], Sequence[Place]]


class Named(NamedTuple):
    """A frame with its module and its names; an address is `bias` above that in the module's file."""

    frame: Frame
    module: Module | None
    function: str = ""
    symbol: str = ""
    places: tuple[Place, ...] = ()


def placeless(_module: Module, _address: int) -> Sequence[Place]:
    """Know no place."""
    return ()


class Frames:
    """The frames of all threads. `sources` are the encoded members of the report's sourceCode so far."""

    def __init__(self, listed: Modules, names: Naming, places: Places = placeless) -> None:
        self._listed = listed
        self._names = names
        self._places = places
        self._known: dict[int, tuple[Module | None, str, str, tuple[Place, ...]]] = {}
        self._entries: dict[tuple[int, int, bool], list[bytes]] = {}
        self._source_numbers: dict[str, str] = {}
        self.sources: list[bytes] = []

    def find(self, addresses: Iterable[int]) -> None:
        """Look for the names of these addresses at once."""
        pairs = ((self._listed.find(address), address) for address in addresses)
        self._names.find([(module, address) for module, address in pairs if module])

    def named(self, frame: Frame) -> Named:
        """Return the frame with its names."""
        known = self._known.get(frame.lookup)
        if known is None:
            if len(self._known) >= _CACHED_MAX:
                self._known.clear()
            known = self._known[frame.lookup] = self._look_up(frame.lookup)
        return Named(frame, *known)

    def _look_up(self, address: int) -> tuple[Module | None, str, str, tuple[Place, ...]]:
        module = self._listed.find(address)
        if module is None:
            return None, "", "", ()
        called = self._names.name(module, address)
        function, symbol = (called.function, called.symbol) if called else ("", "")
        return module, function, symbol, tuple(self._places(module, address))

    def entries(self, frame: Frame) -> list[bytes]:
        """Return the frame as members of objects, one object for each inlined call in it, innermost first."""
        key = (frame.address, frame.lookup, frame.guessed)
        entries = self._entries.get(key)
        if entries is None:
            if len(self._entries) >= _CACHED_MAX:
                self._entries.clear()
            entries = self._entries[key] = self._encode(self.named(frame))
        return entries

    def _encode(self, named: Named) -> list[bytes]:
        module = named.module
        common: dict[str, Any] = {"address": str(named.frame.address)}
        if module:
            common["library"] = module.path[:TEXT_MAX]
            if module.build_id:
                common["debug_identifier"] = module.build_id
        if named.frame.guessed:
            common["guessed_frame"] = True
        result = []
        for place in named.places or (None,):
            function = (place.function if place else "") or named.function
            entry: dict[str, Any] = {"funcName": function[:TEXT_MAX]} if function else {}
            entry |= common
            if place:
                entry |= self._source(place)
            result.append(encode(entry)[1:-1])
        return result

    def _source(self, place: Place) -> dict[str, Any]:
        """Return line, column and source of a place; Backtrace has sources by a key of the report's own."""
        result: dict[str, Any] = {"line": place.line} if place.line > 0 else {}
        if place.column > 0:
            result["column"] = place.column
        number = self._source_numbers.get(place.path)
        if number is None and place.path and len(self.sources) < _SOURCES_MAX:
            number = self._source_numbers[place.path] = str(len(self.sources))
            self.sources.append(member(number, encode({"path": place.path[:TEXT_MAX]})))
        return result | ({"sourceCode": number} if number is not None else {})
