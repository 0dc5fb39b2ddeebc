# SPDX-License-Identifier: Apache-2.0
"""What the report says of the crash itself: the signal in words and numbers, the runtime, what of the core could not be read."""

from __future__ import annotations

from typing import Any

from coresnap.snapshot import attributes, runtimes, signals
from coresnap.snapshot.analysis import Analysis
from coresnap.snapshot.attributes import Scalar
from coresnap.snapshot.core import Core
from coresnap.snapshot.notes import Signal
from coresnap.snapshot.surroundings import environment

_ALIVE = "no signal: the core is of a process that was alive, as gcore writes them"


def attributes_of(core: Core, asset: dict[str, bytes], analysis: Analysis, executable: str) -> dict[str, Scalar]:
    """Return the attributes: of the error, and what core and asset tell of process and host."""
    signal, earlier = core.notes.signal, analysis.earlier
    told = signals.sentence(signal) if signal else _ALIVE
    if earlier:
        told += f"; in the handler of {signals.sentence(earlier)}"
    result: dict[str, Scalar] = {"error.message": analysis.message or told}
    if signal:
        result["signal"] = signal.number
        result["signal.name"] = signals.name(signal.number)
        if signal.code is not None:
            result["signal.code"] = signal.code
    fault = earlier or signal
    if fault and fault.address is not None:
        result["fault.address"] = f"{fault.address:#x}"
    if core.truncated:
        result["core.truncated"] = True
    result["thread.count"] = len(core.notes.threads)
    if analysis.runtime.name:
        result["runtime"] = " ".join(filter(None, (analysis.runtime.name, analysis.runtime.version)))
    hint = runtimes.hint(analysis.runtime, environment(asset, ("*",)))
    if hint:
        result["runtime.hint"] = hint
    return result | attributes.collect(core, asset, analysis.listed, executable)


def annotations_of(core: Core, analysis: Analysis) -> dict[str, Any]:
    """Return what every report is annotated with."""
    result: dict[str, Any] = {"command": core.notes.command, "arguments": core.notes.arguments}
    if core.notes.signal:
        result["siginfo"] = _siginfo(core.notes.signal)
    if analysis.earlier:
        result["earlier_siginfo"] = _siginfo(analysis.earlier)
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


def missing_of(core: Core) -> list[str]:
    """Say what of the core could not be read."""
    result = []
    if core.truncated:
        result.append(f"the core is cut: {core.size_bytes} of {core.expected_bytes} bytes")
    if core.notes_are_cut:
        result.append(f"the notes are cut: {len(core.notes.threads)} threads could be read")
    if core.memory.overlapping:
        result.append(
            f"the memory: {core.memory.overlapping} segments lie over others, which is damage; what they hide is left out"
        )
    return [*result, *core.notes.missing]
