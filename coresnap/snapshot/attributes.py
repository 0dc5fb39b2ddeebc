# SPDX-License-Identifier: Apache-2.0
"""Attributes of process and host under the names that Backtrace's tools use. Sizes in bytes, times in seconds."""

from __future__ import annotations

import os
from collections.abc import Iterator

from coresnap.snapshot.asset import table
from coresnap.snapshot.core import Core
from coresnap.snapshot.modules import AT_ENTRY, Modules

Scalar = str | int | float | bool

_MEMORY = {
    **{"MemTotal": "total", "MemFree": "free", "MemAvailable": "available", "Buffers": "buffers", "Cached": "cached"},
    **{"Active": "active", "Inactive": "inactive", "Dirty": "dirty", "Writeback": "writeback", "Slab": "slab"},
    **{"SwapTotal": "swap.total", "SwapFree": "swap.free", "SwapCached": "swap.cached"},
    **{"VmallocTotal": "vmalloc.total", "VmallocUsed": "vmalloc.used", "VmallocChunk": "vmalloc.chunk"},
}
_PROCESS = {
    **{"VmPeak": "vm.vma.peak", "VmSize": "vm.vma.size", "VmHWM": "vm.rss.peak", "VmRSS": "vm.rss.size"},
    **{"VmData": "vm.data.size", "VmStk": "vm.stack.size", "VmLck": "vm.locked.size", "VmPTE": "vm.pte.size"},
    **{"VmSwap": "vm.swap.size", "RssShmem": "vm.shared.size"},
    **{"FDSize": "descriptor.count", "voluntary_ctxt_switches": "sched.cs.voluntary"},
    **{"nonvoluntary_ctxt_switches": "sched.cs.involuntary"},
}
_CPU = ("user", "nice", "kernel", "idle", "iowait", "irq", "softirq")
_CPU_COUNTS = {
    **{"ctxt": "cpu.context", "btime": "cpu.boottime", "processes": "cpu.process.count"},
    **{"procs_running": "cpu.process.running", "procs_blocked": "cpu.process.blocked"},
}


def collect(core: Core, asset: dict[str, bytes], listed: Modules, executable: str) -> dict[str, Scalar]:
    """Return what core and asset tell; what they do not tell is left out."""
    result: dict[str, Scalar] = {}
    main = listed.find(core.notes.auxv.get(AT_ENTRY, 0))
    path = _line(asset, "proc/exe") or executable or (main.path if main else "")
    application = os.path.basename(path.removesuffix(" (deleted)"))[:1024] or core.notes.command
    if application:
        result["application"] = application
    if main:
        result |= {f"package.{key}": main.package[key] for key in ("name", "version") if key in main.package}
    if core.notes.pid:
        result["process.id"] = core.notes.pid
    hostname = _line(asset, "host/hostname")
    if hostname:
        result["hostname"] = hostname
    result |= dict(_uname(core, asset))
    result |= dict(_numbers(table(asset.get("host/meminfo", b"")), _MEMORY, "system.memory."))
    result |= dict(_numbers(table(asset.get("proc/status", b"")), _PROCESS, ""))
    result |= dict(_cpu(asset))
    age = _age(asset)
    if age is not None:
        result["process.age"] = age
    return result


def _line(asset: dict[str, bytes], name: str) -> str:
    return asset.get(name, b"").decode("utf-8", "replace").strip()[:1024]


def _uname(core: Core, asset: dict[str, bytes]) -> Iterator[tuple[str, Scalar]]:
    """/proc/version reads `Linux version RELEASE (builder) (compiler) VERSION`."""
    yield "uname.machine", core.machine.name
    yield "uname.sysname", "Linux"
    line = _line(asset, "host/version")
    words = line.split()
    if words[:2] == ["Linux", "version"] and len(words) > 2:
        yield "uname.release", words[2]
    _head, hash_sign, version = line.partition(" #")
    if hash_sign:
        yield "uname.version", "#" + version


def _number(text: str) -> int | None:
    """Read a number, in bytes where it is given in kB. What is none, or above 64 bits, counts as not told."""
    digits, _blank, unit = text.partition(" ")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
        return None
    value = int(digits) * (1024 if unit == "kB" else 1)
    return value if value < 1 << 63 else None


def _numbers(texts: dict[str, str], names: dict[str, str], prefix: str) -> Iterator[tuple[str, Scalar]]:
    for theirs, ours in names.items():
        value = _number(texts.get(theirs, ""))
        if value is not None:
            yield prefix + ours, value


def _cpu(asset: dict[str, bytes]) -> Iterator[tuple[str, Scalar]]:
    """/proc/stat: the line cpu is in clock ticks."""
    texts = table(asset.get("host/stat", b""))
    for name, ticks in zip(_CPU, texts.get("cpu", "").split(), strict=False):
        value = _number(ticks)
        if value is not None:
            yield f"cpu.{name}", value
    yield from _numbers(texts, _CPU_COUNTS, "")


def _age(asset: dict[str, bytes]) -> int | None:
    """Return the seconds from the process's start (field 22 of /proc/PID/stat, in clock ticks) to the host's uptime."""
    fields = asset.get("proc/stat", b"").rpartition(b")")[2].split()
    uptime = _number(_line(asset, "host/uptime").partition(".")[0])
    ticks = _number(fields[19].decode("ascii", "replace")) if len(fields) > 19 else None
    if uptime is None or ticks is None:
        return None
    return max(0, uptime - ticks // os.sysconf("SC_CLK_TCK"))
