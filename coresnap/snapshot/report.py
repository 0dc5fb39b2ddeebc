# SPDX-License-Identifier: Apache-2.0
"""The report: Backtrace's JSON format, of what the core and the asset tell. 64-bit numbers are texts in it.

Frames are addresses here, with the module that has them and its build-id, so that names can be found anywhere later.
"""

from __future__ import annotations

import os
from typing import Any

from coresnap import __version__
from coresnap.snapshot import attributes, modules, signals
from coresnap.snapshot.asset import thread_names
from coresnap.snapshot.attributes import Scalar
from coresnap.snapshot.core import MACHINES, PROGRAM_COUNTER, Core, Thread
from coresnap.snapshot.modules import Module

_TEXT_MAX = 4096
_ATTRIBUTES_MAX = 1000


def build(
    core: Core, asset: dict[str, bytes], *, uuid: str, executable: str, more: dict[str, str], missing: list[str]
) -> dict[str, Any]:
    """Return the report. `more` are attributes that the caller knows; `missing` what it could not read."""
    listed = modules.list_modules(core)
    names = thread_names(asset.get("proc/task", b""))
    machine = core.header.machine
    threads = {
        str(thread.tid): _thread(core, thread, names, listed, index == 0) for index, thread in enumerate(core.threads)
    }
    report: dict[str, Any] = {
        "uuid": uuid,
        "timestamp": int(os.fstat(core.fd).st_mtime),
        "lang": "c",
        "langVersion": "unknown",
        "agent": "coresnap",
        "agentVersion": __version__,
        "mainThread": str(core.threads[0].tid),
        "threads": threads,
        "arch": {
            "name": MACHINES[machine],
            "registers": dict.fromkeys(core.threads[0].registers, "u64"),
        },
        "attributes": _attributes(core, asset, executable, more, len(threads)),
        "annotations": _annotations(core, listed, [*core.missing, *missing]),
        "modules": [_module(module) for module in listed],
    }
    if core.signal:
        report["classifiers"] = [signals.name(core.signal.number)]
    return report


def _thread(core: Core, thread: Thread, names: dict[int, str], listed: list[Module], faulted: bool) -> dict[str, Any]:
    address = thread.registers[PROGRAM_COUNTER[core.header.machine]]
    frame: dict[str, Any] = {"address": str(address), "faulted": faulted}
    frame["registers"] = {name: str(value) for name, value in thread.registers.items()}
    module = modules.find(listed, address)
    if module:
        frame["library"] = module.path[:_TEXT_MAX]
        if module.build_id:
            frame["debug_identifier"] = module.build_id
    name = names.get(thread.tid, core.command if faulted else "")
    return {"name": name, "fault": faulted, "stack": [frame]}


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


def _attributes(
    core: Core, asset: dict[str, bytes], executable: str, more: dict[str, str], threads: int
) -> dict[str, Scalar]:
    result = attributes.collect(core, asset, executable)
    result["thread.count"] = threads
    if core.signal:
        result["signal"] = core.signal.number
        result["signal.name"] = signals.name(core.signal.number)
        result["signal.code"] = core.signal.code
        result["error.message"] = signals.sentence(core.signal)
        if core.signal.address is not None:
            result["fault.address"] = f"{core.signal.address:#x}"
    if core.missing:
        result["core.truncated"] = True
    return result | dict(list(more.items())[:_ATTRIBUTES_MAX])


def _annotations(core: Core, listed: list[Module], missing: list[str]) -> dict[str, Any]:
    result: dict[str, Any] = {"command": core.command, "arguments": core.arguments}
    if core.signal:
        symbol, meaning = signals.code(core.signal)
        result["siginfo"] = {"signo": core.signal.number, "code": core.signal.code, "name": symbol, "meaning": meaning}
        if core.signal.address is not None:
            result["siginfo"]["address"] = f"{core.signal.address:#x}"
        if core.signal.sender_pid is not None:
            result["siginfo"]["sender"] = core.signal.sender_pid
    packages = {module.package["name"]: module.package for module in listed if "name" in module.package}
    if packages:
        result["packages"] = packages
    if missing:
        result["missing"] = missing
    return result
