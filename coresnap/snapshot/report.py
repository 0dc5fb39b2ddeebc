# SPDX-License-Identifier: Apache-2.0
"""The report: Backtrace's JSON format, of what the core and the asset tell; report.schema.json describes it.

64-bit numbers are texts in it, registers and program counters in decimal. Frames are addresses here, with the module that
has them and its build-id, so that names can be found anywhere later.
"""

from __future__ import annotations

import json
from typing import Any

from coresnap import __version__
from coresnap.snapshot import attributes, modules, signals
from coresnap.snapshot.asset import thread_names
from coresnap.snapshot.attributes import Scalar
from coresnap.snapshot.core import Core
from coresnap.snapshot.modules import Modules
from coresnap.snapshot.notes import Signal
from coresnap.snapshot.stacks import Frame, stack

#: What threads and modules may take of the report, each counted as if every character had to be escaped.
THREADS_MAX_BYTES = 20 << 20
MODULES_MAX_BYTES = 8 << 20
#: Registers are listed of this many threads, the one that crashed among them.
REGISTERS_MAX = 2048
_TEXT_MAX = 1024
_ESCAPED_BYTES = 6
_FRAME_BYTES, _REGISTER_BYTES, _MODULE_BYTES = 160, 40, 200
_ATTRIBUTES_MAX = 1000
_MISSING_MAX = 100


def build(
    core: Core, asset: dict[str, bytes], *, uuid: str, executable: str, more: dict[str, str], missing: list[str]
) -> dict[str, Any]:
    """Return the report. `more` are attributes that the caller knows; `missing` what it could not read."""
    notes, listed = core.notes, modules.list_modules(core)
    threads, modules_ = _threads(core, asset, listed), _modules(listed)
    missing = [*_missing(core), *listed.missing, *missing]
    for what, here, all_ in (("threads", threads, notes.threads), ("modules", modules_, listed.listed)):
        if len(here) < len(all_):
            missing.append(f"{what}: {len(here)} of {len(all_)}, the report would be too large")
    faulting = str(notes.threads[0].tid)
    report: dict[str, Any] = {
        "uuid": uuid,
        "timestamp": core.time,
        "lang": "c",
        "langVersion": "unknown",
        "agent": "coresnap",
        "agentVersion": __version__,
        "mainThread": faulting,
        "threads": threads,
        "arch": {"name": core.machine.name, "registers": dict.fromkeys(core.machine.registers, "u64")},
        "attributes": _attributes(core, asset, listed, executable, more),
        "annotations": _annotations(core, missing),
        "modules": modules_,
    }
    if str(notes.pid) in threads:
        report["entryThread"] = str(notes.pid)
    if notes.signal:
        report["classifiers"] = [signals.name(notes.signal.number)]
    return report


def encode(report: dict[str, Any]) -> bytes:
    """Return the report as JSON. What is no Unicode, as half of a surrogate pair in somebody's note, becomes a question mark."""
    return json.dumps(report, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


def _threads(core: Core, asset: dict[str, bytes], listed: Modules) -> dict[str, Any]:
    """Return the threads, the one that crashed first, as many as the report has room for."""
    result: dict[str, Any] = {}
    names = _names(core, asset)
    left_bytes = THREADS_MAX_BYTES
    for index, thread in enumerate(core.notes.threads):
        frames = [_frame(frame, listed, with_registers=index < REGISTERS_MAX) for frame in stack(core, thread)]
        for frame in frames:
            left_bytes -= _FRAME_BYTES + _ESCAPED_BYTES * len(frame.get("library", ""))
            left_bytes -= _REGISTER_BYTES * len(frame.get("registers", ()))
        if left_bytes < 0:
            break
        frames[0]["faulted"] = index == 0
        result[str(thread.tid)] = {"name": names.get(thread.tid, ""), "fault": index == 0, "stack": frames}
    return result


def _names(core: Core, asset: dict[str, bytes]) -> dict[int, str]:
    """Return the threads' names. A core has only that of the process's first thread.

    The asset numbers threads as the host does, a core as the process's own pid namespace does: names fit where the numbers do.
    """
    names = thread_names(asset.get("proc/task", b""))
    return names if core.notes.pid in names else {core.notes.pid: core.notes.command}


def _frame(frame: Frame, listed: Modules, *, with_registers: bool) -> dict[str, Any]:
    result: dict[str, Any] = {"address": str(frame.address)}
    module = listed.find(frame.address)
    if module:
        result["library"] = module.path[:_TEXT_MAX]
        if module.build_id:
            result["debug_identifier"] = module.build_id
    if with_registers and frame.registers:
        result["registers"] = {name: str(value) for name, value in frame.registers.items()}
    return result


def _modules(listed: Modules) -> list[dict[str, Any]]:
    """Return the modules by address, as many as the report has room for."""
    result = []
    left_bytes = MODULES_MAX_BYTES
    for module in listed.listed:
        entry: dict[str, Any] = {
            "path": module.path[:_TEXT_MAX],
            "start": str(module.start),
            "size": str(module.end - module.start),
        }
        if module.build_id:
            entry["build_id"] = module.build_id
        if module.package:
            entry["package"] = module.package
        texts = sum(len(key) + len(value) for key, value in module.package.items()) + len(entry["path"])
        left_bytes -= _MODULE_BYTES + _ESCAPED_BYTES * texts
        if left_bytes < 0:
            break
        result.append(entry)
    return result


def _attributes(
    core: Core, asset: dict[str, bytes], listed: Modules, executable: str, more: dict[str, str]
) -> dict[str, Scalar]:
    result = attributes.collect(core, asset, listed, executable)
    result["thread.count"] = len(core.notes.threads)
    signal = core.notes.signal
    if signal:
        result["signal"] = signal.number
        result["signal.name"] = signals.name(signal.number)
        result["error.message"] = signals.sentence(signal)
        if signal.code is not None:
            result["signal.code"] = signal.code
        if signal.address is not None:
            result["fault.address"] = f"{signal.address:#x}"
    if core.truncated:
        result["core.truncated"] = True
    return result | dict(list(more.items())[:_ATTRIBUTES_MAX])


def _missing(core: Core) -> list[str]:
    """Say what of the core could not be read."""
    result = []
    if core.truncated:
        result.append(f"the core is cut: {core.size_bytes} of {core.expected_bytes} bytes")
    if core.notes_are_cut:
        result.append(f"the notes are cut: {len(core.notes.threads)} threads could be read")
    return [*result, *core.notes.missing]


def _annotations(core: Core, missing: list[str]) -> dict[str, Any]:
    result: dict[str, Any] = {
        "command": core.notes.command,
        "arguments": core.notes.arguments,
        "stacks": "the innermost frame of each thread",
    }
    if core.notes.signal:
        result["siginfo"] = _siginfo(core.notes.signal)
    if missing:
        result["missing"] = [text[:_TEXT_MAX] for text in missing[:_MISSING_MAX]]
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
