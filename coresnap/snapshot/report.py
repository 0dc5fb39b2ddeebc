# SPDX-License-Identifier: Apache-2.0
"""The report: Backtrace's JSON format, of what the core and the asset tell; report.schema.json describes it.

64-bit numbers are texts in it, registers and program counters in decimal. Frames have their module and its build-id, so that
names can be found anywhere later. The fingerprint is the second member: it can be had without reading the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from coresnap import __version__
from coresnap.ground.elf_file import Pread
from coresnap.ground.redact import Redaction
from coresnap.snapshot.analysis import Analysis, analyse
from coresnap.snapshot.attributes import Scalar
from coresnap.snapshot.core import Core
from coresnap.snapshot.facts import annotations_of, attributes_of, missing_of
from coresnap.snapshot.frames import TEXT_MAX, Naming, Place, Places
from coresnap.snapshot.images import DEBUG_DIRECTORIES, Images
from coresnap.snapshot.modules import Module
from coresnap.snapshot.notes import Thread
from coresnap.snapshot.room import Room, array, encode, member, object_of
from coresnap.snapshot.stacks import Stack
from coresnap.snapshot.surroundings import MEMORY_MAX_BYTES, environment, stack_memory
from coresnap.snapshot.threads import REGISTERS_MAX, Threads

#: What a report takes where nobody allows less, and what modules may take of it.
REPORT_MAX_BYTES = 64 << 20
MODULES_MAX_BYTES = 8 << 20
_ATTRIBUTES_MAX = 1000
#: The attributes that no report is without.
_REQUIRED = ("coresnap.object", "thread.count", "uname.machine")
_MISSING_MAX = 100
_MISSING_MAX_BYTES = 1 << 20
_MORE_BYTES = 32
_HEAD = re.compile(rb'\{"uuid":"[0-9a-f-]{36}","fingerprint":"([0-9a-f]{64})",')
HEAD_BYTES = 256


_NOTHING = Redaction()
_CONFIDENTIAL = "memory, registers, the error's own message, arguments, environment: snapshot.confidential"


class Options(NamedTuple):
    """What the report is to have, and what else there is to make it of.

    `stack_bytes` is the memory around each stack pointer; `variables` are the names of the environment's that are allowed, *
    at the end for any rest; `kept` what archive kept of modules' files, by the modules' start. `redaction` takes secrets out of
    texts; `confidential` leaves out what was in memory and registers altogether. `debug_directories` are looked through for debug
    files, in this order.
    """

    stack_bytes: int = 1024
    variables: tuple[str, ...] = ()
    kept: Mapping[int, Pread] = MappingProxyType({})
    max_bytes: int = REPORT_MAX_BYTES
    redaction: Redaction = _NOTHING
    confidential: bool = False
    debug_directories: tuple[str, ...] = DEBUG_DIRECTORIES


_DEFAULT = Options()


def build(
    core: Core,
    asset: dict[str, bytes],
    *,
    uuid: str,
    executable: str,
    more: dict[str, str],
    missing: list[str],
    options: Options = _DEFAULT,
    stack: Callable[[Thread], Stack] | None = None,
    names: Naming | None = None,
    places: Places | None = None,
) -> bytes:
    """Return the report, encoded. `more` are attributes that the caller knows; `missing` what it could not read.

    It has at most `max_bytes`, if these are 4 KiB or more. What there is no room for is left out, and said to be. `stack`,
    `names` and `places` take the place of the report's own ways to find them.
    """
    images = Images(core, options.kept, options.debug_directories)
    try:
        analysis = analyse(core, images, stack=stack, names=names, places=places)
        analysis = analysis._replace(message="" if options.confidential else options.redaction.text(analysis.message))
        if options.confidential:
            options = options._replace(stack_bytes=0, variables=())
            missing = [*missing, _CONFIDENTIAL]
        own = attributes_of(core, asset, analysis, executable)
        parts = _Parts(core, asset, analysis, options, uuid)
        parts.fill(own, more)
        return parts.joined([*missing_of(core), *analysis.missing, *missing])
    finally:
        images.close()


def fingerprint_of(head: bytes) -> str:
    """Return the fingerprint by the first HEAD_BYTES of a report; empty where they are of something else."""
    found = _HEAD.match(head)
    return found[1].decode() if found else ""


class _Parts:
    """The parts of a report, as they are encoded, while it is put together."""

    def __init__(self, core: Core, asset: dict[str, bytes], analysis: Analysis, options: Options, uuid: str) -> None:
        self._core = core
        self._asset = asset
        self._analysis = analysis
        self._options = options
        self._gaps: list[str] = []
        self._head = _head(core, analysis, uuid)
        arguments = "" if options.confidential else options.redaction.text(core.notes.arguments)
        annotations = annotations_of(core, analysis) | {"arguments": arguments}
        self._annotations = [member(key, encode(value)) for key, value in annotations.items()]
        self._attributes: list[bytes] = []
        self._modules: list[bytes] = []
        self._memory: list[bytes] = []
        self._extra: list[bytes] = []
        self._threads = Threads(core, asset, analysis.frames, analysis.stacks)
        self._for_missing_bytes = min(_MISSING_MAX_BYTES, options.max_bytes // 8)
        empty = len(self._whole([]))
        self._room = Room(options.max_bytes - empty - len(b',"missing":[]') - self._for_missing_bytes)

    def fill(self, own: dict[str, Scalar], more: dict[str, str]) -> None:
        """Fill in what there is room for, by what it is worth."""
        threads, room, entries = self._core.notes.threads, self._room, self._threads
        entries.add(threads[:1], room)
        tells = not self._options.confidential
        registers = entries.add_registers(threads[:1], room) if tells else 0
        self._say("attributes", self._add_attributes(own, more), len(own | more))
        entries.add(threads[1:], room)
        self._say("threads", len(entries), len(threads))
        self._add_modules()
        if registers:
            registers += entries.add_registers(threads[1 : min(len(entries), REGISTERS_MAX)], room)
        if tells:
            self._say("registers of threads", registers, len(entries))
            entries.add_callers_registers(threads[0], room)
        entry = member("entryThread", encode(str(self._core.notes.pid)))
        if self._core.notes.pid in entries and room.take(entry):
            self._head.append(entry)
        self._annotate()
        self._add_memory(threads[: len(entries)])

    def joined(self, missing: list[str]) -> bytes:
        """Return the report; `missing` is what could not be read, besides what there was no room for."""
        lines = _lines([*self._gaps, *missing], Room(self._for_missing_bytes))
        return self._whole([member("missing", array(lines))] if lines else [])

    def _whole(self, missing: list[bytes]) -> bytes:
        sources = self._threads.sources()
        return object_of(
            [
                *self._head,
                member("attributes", object_of(self._attributes)),
                member("annotations", object_of([*self._annotations, *missing])),
                member("threads", self._threads.encoded()),
                member("sourceCode", object_of(sources)),
                member("modules", array(self._modules)),
                member("memory", array(self._memory)),
            ]
        )

    def _say(self, what: str, has: int, of: int) -> None:
        if has < of:
            self._gaps.append(f"{what}: {has} of {of}, the report would be too large")

    def _add_attributes(self, own: dict[str, Scalar], more: dict[str, str]) -> int:
        """Add attributes, `more` over the report's own; return how many there was room for."""
        asked = sorted((own | more).items(), key=lambda item: item[0] not in _REQUIRED)
        room, given = self._room, 0
        leave_bytes = room.left_bytes // 2
        for key, value in asked[:_ATTRIBUTES_MAX]:
            item = member(key, encode(value))
            if room.take(item, leave_bytes=leave_bytes):
                given += 1
            elif key in own:
                item = member(key, encode(own[key]))
                if not room.take(item, leave_bytes=leave_bytes):
                    continue
            else:
                continue
            self._attributes.append(item)
        return given

    def _add_modules(self) -> None:
        """Add the modules, by address. Those that the frames are in take room first, in the threads' order."""
        listed, places, room = self._analysis.listed, dict[int, int](), self._room
        for module in map(listed.find, self._threads.addresses):
            if module:
                places.setdefault(module.start, len(places))
        leave_bytes = max(0, room.left_bytes - MODULES_MAX_BYTES)
        kept: dict[int, bytes] = {}
        for module in sorted(listed.listed, key=lambda module: places.get(module.start, len(places))):
            entry = encode(_module(module, self._analysis.unread.get(module.start, "")))
            if not room.take(entry, leave_bytes=leave_bytes):
                break
            kept[module.start] = entry
        self._modules = [kept[start] for start in sorted(kept)]
        self._say("modules", len(kept), len(listed.listed))

    def _annotate(self) -> None:
        """Add what Backtrace's format has no other place for."""
        notes, has, of = self._threads.notes(self._room)
        self._annotations.append(member("stacks", notes))
        self._say("notes on the stacks", has, of)
        made_of = member("fingerprint", encode([text[:TEXT_MAX] for text in self._analysis.fingerprint.made_of]))
        allowed = environment(self._asset, self._options.variables)
        variables = {name: self._options.redaction.value(name, value) for name, value in allowed.items()}
        items = [made_of, *([member("environment", encode(variables))] if variables else [])]
        python = {str(tid): [*map(_python, frames)] for tid, frames in self._analysis.python.items()}
        items += [member("python", encode(python))] if python else []
        for item in items:
            if self._room.take(item):
                self._annotations.append(item)
            else:
                self._gaps.append(f"{item[1 : item.index(b':') - 1].decode()}: the report would be too large")

    def _add_memory(self, threads: list[Thread]) -> None:
        """Add the memory around the stack pointers, that of the thread that crashed first."""
        if not self._options.stack_bytes:
            return
        leave_bytes = max(0, self._room.left_bytes - MEMORY_MAX_BYTES)
        count = 0
        for count, region in enumerate(stack_memory(self._core, threads, self._options.stack_bytes), 1):
            if not self._room.take(region, leave_bytes=leave_bytes):
                self._gaps.append(f"memory around the stacks: of {count - 1} threads, the report would be too large")
                return
            self._memory.append(region)


def _head(core: Core, analysis: Analysis, uuid: str) -> list[bytes]:
    """Return the members that stand first."""
    head: dict[str, Any] = {
        "uuid": uuid,
        "fingerprint": analysis.fingerprint.digest,
        "timestamp": core.time,
        "lang": analysis.runtime.lang,
        "langVersion": analysis.runtime.version or "unknown",
        "agent": "coresnap",
        "agentVersion": __version__,
        "mainThread": str(core.notes.threads[0].tid),
        "arch": {"name": core.machine.name, "registers": dict.fromkeys(core.machine.registers, "u64")},
    }
    if analysis.classifiers:
        head["classifiers"] = analysis.classifiers
    return [member(key, encode(value)) for key, value in head.items()]


def _module(module: Module, unread: str) -> dict[str, Any]:
    result: dict[str, Any] = {
        "path": module.path[:TEXT_MAX],
        "start": str(module.start),
        "size": str(module.end - module.start),
    }
    if module.build_id:
        result["build_id"] = module.build_id
    if module.package:
        result["package"] = module.package
    if unread:
        result["missing"] = unread
    return result


def _python(place: Place) -> dict[str, Any]:
    return {"funcName": place.function, "path": place.path, "line": place.line}


def _lines(missing: list[str], room: Room) -> list[bytes]:
    """Return the lines that there is room for; the last one says how many more there are."""
    kept: list[bytes] = []
    for line in missing[:_MISSING_MAX]:
        encoded = encode(line[:TEXT_MAX])
        if not room.take(encoded, leave_bytes=_MORE_BYTES):
            break
        kept.append(encoded)
    more = len(missing) - len(kept)
    return [*kept, encode(f"and {more} more")] if more else kept
