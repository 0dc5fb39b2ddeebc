# SPDX-License-Identifier: Apache-2.0
"""The report: Backtrace's JSON format, of what the core and the asset tell; report.schema.json describes it.

64-bit numbers are texts in it, registers and program counters in decimal. Frames are addresses here, with the module that
has them and its build-id, so that names can be found anywhere later.
"""

from __future__ import annotations

from typing import Any

from coresnap import __version__
from coresnap.snapshot import attributes, modules, signals
from coresnap.snapshot.asset import thread_names
from coresnap.snapshot.attributes import Scalar
from coresnap.snapshot.core import Core
from coresnap.snapshot.modules import Module, Modules
from coresnap.snapshot.notes import Signal, Thread
from coresnap.snapshot.room import Room, encode
from coresnap.snapshot.stacks import stack

#: What a report takes where nobody allows less, and what threads and modules may take of it.
REPORT_MAX_BYTES = 64 << 20
THREADS_MAX_BYTES = 20 << 20
MODULES_MAX_BYTES = 8 << 20
#: Registers are listed of this many threads, the one that crashed among them.
REGISTERS_MAX = 2048
_TEXT_MAX = 1024
_ATTRIBUTES_MAX = 1000
#: The attributes that no report is without.
_REQUIRED = ("coresnap.object", "thread.count", "uname.machine")
_MISSING_MAX = 100
_MISSING_MAX_BYTES = 1 << 20
_MORE_BYTES = 32
_ALIVE = "no signal: the core is of a process that was alive, as gcore writes them"


def build(
    core: Core,
    asset: dict[str, bytes],
    *,
    uuid: str,
    executable: str,
    more: dict[str, str],
    missing: list[str],
    max_bytes: int = REPORT_MAX_BYTES,
) -> dict[str, Any]:
    """Return the report. `more` are attributes that the caller knows; `missing` what it could not read.

    Encoded it has at most `max_bytes`, if these are 4 KiB or more. What there is no room for is left out, and said to be.
    """
    notes, listed = core.notes, modules.list_modules(core)
    report: dict[str, Any] = {
        "uuid": uuid,
        "timestamp": core.time,
        "lang": "c",
        "langVersion": "unknown",
        "agent": "coresnap",
        "agentVersion": __version__,
        "mainThread": str(notes.threads[0].tid),
        "threads": {},
        "arch": {"name": core.machine.name, "registers": dict.fromkeys(core.machine.registers, "u64")},
        "attributes": {},
        "annotations": _annotations(core) | {"missing": []},
        "modules": [],
    }
    if notes.signal:
        report["classifiers"] = [signals.name(notes.signal.number)]
    for_missing_bytes = min(_MISSING_MAX_BYTES, max_bytes // 8)
    room = Room(max_bytes - len(encode(report)) - for_missing_bytes)
    own = _attributes(core, asset, listed, executable)
    gaps = _fill(report, core, _names(core, asset), listed, own, more, room)
    if str(notes.pid) in report["threads"] and room.take(str(notes.pid), "entryThread"):
        report["entryThread"] = str(notes.pid)
    gaps = _lines([*gaps, *_missing(core), *listed.missing, *missing], Room(for_missing_bytes))
    if gaps:
        report["annotations"]["missing"] = gaps
    else:
        del report["annotations"]["missing"]
    return report


def _fill(
    report: dict[str, Any],
    core: Core,
    names: dict[int, str],
    listed: Modules,
    own: dict[str, Scalar],
    more: dict[str, str],
    room: Room,
) -> list[str]:
    """Fill in what there is room for, by what it is worth; return what is left out."""
    threads, entries = core.notes.threads, report["threads"]
    _add_threads(entries, core, threads[:1], listed, names, room)
    registers = _add_registers(entries, core, threads[:1], room)
    given = _add_attributes(report["attributes"], own, more, room)
    _add_threads(entries, core, threads[1:], listed, names, room)
    report["modules"] = _modules(listed, entries, room)
    if registers:
        registers += _add_registers(entries, core, threads[1 : min(len(entries), REGISTERS_MAX)], room)
    parts = (
        ("threads", len(entries), len(threads)),
        ("registers of threads", registers, len(entries)),
        ("modules", len(report["modules"]), len(listed.listed)),
        ("attributes", given, len(own | more)),
    )
    return [f"{what}: {n} of {all_}, the report would be too large" for what, n, all_ in parts if n < all_]


def _add_threads(
    entries: dict[str, Any], core: Core, threads: list[Thread], listed: Modules, names: dict[int, str], room: Room
) -> None:
    """Add threads without their registers. The first of all, which crashed, is always there, if need be without its library."""
    leave_bytes = max(room.left_bytes // 3, room.left_bytes - THREADS_MAX_BYTES)
    for thread in threads:
        is_first, tid = not entries, str(thread.tid)
        fault = is_first and core.notes.signal is not None
        frames = [_frame(frame.address, listed) for frame in stack(core, thread).frames]
        frames[0]["faulted"] = fault
        entry = {"name": names.get(thread.tid, ""), "fault": fault, "stack": frames}
        if not room.take(entry, tid, leave_bytes=leave_bytes):
            if not is_first:
                return
            entry["stack"] = [{"address": frames[0]["address"], "faulted": fault}]
            room.take(entry, tid)
        entries[tid] = entry


def _frame(address: int, listed: Modules) -> dict[str, Any]:
    result: dict[str, Any] = {"address": str(address)}
    module = listed.find(address)
    if module:
        result["library"] = module.path[:_TEXT_MAX]
        if module.build_id:
            result["debug_identifier"] = module.build_id
    return result


def _add_registers(entries: dict[str, Any], core: Core, threads: list[Thread], room: Room) -> int:
    """Add the registers of the threads that have entries; return of how many there was room for them."""
    for count, thread in enumerate(threads):
        for frame, entry in zip(stack(core, thread).frames, entries[str(thread.tid)]["stack"], strict=False):
            registers = {name: str(value) for name, value in frame.registers.items()}
            if not room.take(registers, "registers"):
                return count
            entry["registers"] = registers
    return len(threads)


def _names(core: Core, asset: dict[str, bytes]) -> dict[int, str]:
    """Return the threads' names. A core has only that of the process's first thread.

    The asset numbers threads as the host does, a core as the process's own pid namespace does: names fit where the numbers do.
    """
    names = thread_names(asset.get("proc/task", b""))
    return names if core.notes.pid in names else {core.notes.pid: core.notes.command}


def _add_attributes(result: dict[str, Scalar], own: dict[str, Scalar], more: dict[str, str], room: Room) -> int:
    """Add attributes, `more` over the report's own; return how many there was room for."""
    asked = sorted((own | more).items(), key=lambda item: item[0] not in _REQUIRED)
    leave_bytes = room.left_bytes // 2
    given = 0
    for key, value in asked[:_ATTRIBUTES_MAX]:
        if room.take(value, key, leave_bytes=leave_bytes):
            result[key] = value
            given += 1
        elif key in own and room.take(own[key], key, leave_bytes=leave_bytes):
            result[key] = own[key]
    return given


def _modules(listed: Modules, entries: dict[str, Any], room: Room) -> list[dict[str, Any]]:
    """Return the modules by address. Those that the frames are in take room first, in the threads' order."""
    places: dict[int, int] = {}
    for frame in (frame for entry in entries.values() for frame in entry["stack"]):
        module = listed.find(int(frame["address"]))
        if module:
            places.setdefault(module.start, len(places))
    leave_bytes = max(0, room.left_bytes - MODULES_MAX_BYTES)
    result = []
    for module in sorted(listed.listed, key=lambda module: places.get(module.start, len(places))):
        entry = _module(module)
        if not room.take(entry, leave_bytes=leave_bytes):
            break
        result.append(entry)
    return sorted(result, key=lambda entry: int(entry["start"]))


def _module(module: Module) -> dict[str, Any]:
    result: dict[str, Any] = {
        "path": module.path[:_TEXT_MAX],
        "start": str(module.start),
        "size": str(module.end - module.start),
    }
    if module.build_id:
        result["build_id"] = module.build_id
    if module.package:
        result["package"] = module.package
    return result


def _attributes(core: Core, asset: dict[str, bytes], listed: Modules, executable: str) -> dict[str, Scalar]:
    signal = core.notes.signal
    result: dict[str, Scalar] = {"error.message": signals.sentence(signal) if signal else _ALIVE}
    if signal:
        result["signal"] = signal.number
        result["signal.name"] = signals.name(signal.number)
        if signal.code is not None:
            result["signal.code"] = signal.code
        if signal.address is not None:
            result["fault.address"] = f"{signal.address:#x}"
    if core.truncated:
        result["core.truncated"] = True
    result["thread.count"] = len(core.notes.threads)
    return result | attributes.collect(core, asset, listed, executable)


def _missing(core: Core) -> list[str]:
    """Say what of the core could not be read."""
    result = []
    if core.truncated:
        result.append(f"the core is cut: {core.size_bytes} of {core.expected_bytes} bytes")
    if core.notes_are_cut:
        result.append(f"the notes are cut: {len(core.notes.threads)} threads could be read")
    return [*result, *core.notes.missing]


def _lines(missing: list[str], room: Room) -> list[str]:
    """Return the lines that there is room for; the last one says how many more there are."""
    lines = [text[:_TEXT_MAX] for text in missing]
    kept = []
    for line in lines[:_MISSING_MAX]:
        if not room.take(line, leave_bytes=_MORE_BYTES):
            break
        kept.append(line)
    return kept if len(kept) == len(lines) else [*kept, f"and {len(lines) - len(kept)} more"]


def _annotations(core: Core) -> dict[str, Any]:
    result: dict[str, Any] = {
        "command": core.notes.command,
        "arguments": core.notes.arguments,
        "stacks": "the innermost frame of each thread",
    }
    if core.notes.signal:
        result["siginfo"] = _siginfo(core.notes.signal)
    return result


def _siginfo(signal: Signal) -> dict[str, Any]:
    result: dict[str, Any] = {"signo": signal.number}
    if signal.code is not None:
        symbol, meaning = signals.code(signal)
        result |= {"code": signal.code, "name": symbol, "meaning": meaning}
    if signal.address is not None:
        result["address"] = f"{signal.address:#x}"
    if signal.sender_pid is not None:
        result |= {"sender": signal.sender_pid, "sender_uid": signal.sender_uid}
    return result
