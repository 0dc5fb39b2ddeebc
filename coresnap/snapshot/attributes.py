# SPDX-License-Identifier: Apache-2.0
"""Attributes of process and host under the names that Backtrace's tools use. Sizes in bytes, times in seconds."""

from __future__ import annotations

import os
from collections.abc import Iterator

from coresnap.snapshot.asset import table
from coresnap.snapshot.core import MACHINES, Core

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


def collect(core: Core, asset: dict[str, bytes], executable: str) -> dict[str, Scalar]:
    """Return what core and asset tell; what they do not tell is left out."""
    result: dict[str, Scalar] = {}
    path = _line(asset, "proc/exe") or executable
    application = os.path.basename(path) or core.command
    if application:
        result["application"] = application
    if core.pid:
        result["process.id"] = core.pid
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
    yield "uname.machine", MACHINES[core.header.machine]
    words = _line(asset, "host/version").split()
    if len(words) > 3 and words[1] == "version":
        yield "uname.sysname", words[0]
        yield "uname.release", words[2]
        _head, hash_sign, version = _line(asset, "host/version").partition(" #")
        if hash_sign:
            yield "uname.version", "#" + version


def _numbers(texts: dict[str, str], names: dict[str, str], prefix: str) -> Iterator[tuple[str, Scalar]]:
    for theirs, ours in names.items():
        number, _blank, unit = texts.get(theirs, "").partition(" ")
        if number.isascii() and number.isdigit() and len(number) < 20:
            yield prefix + ours, int(number) * (1024 if unit == "kB" else 1)


def _cpu(asset: dict[str, bytes]) -> Iterator[tuple[str, Scalar]]:
    """/proc/stat: the line cpu is in clock ticks."""
    texts = table(asset.get("host/stat", b""))
    for name, ticks in zip(_CPU, texts.get("cpu", "").split(), strict=False):
        if ticks.isascii() and ticks.isdigit():
            yield f"cpu.{name}", int(ticks)
    yield from _numbers(texts, _CPU_COUNTS, "")


def _age(asset: dict[str, bytes]) -> int | None:
    """Seconds from the process's start (field 22 of /proc/PID/stat, in ticks of 1/100 s) to the host's uptime."""
    fields = asset.get("proc/stat", b"").rpartition(b")")[2].split()
    uptime = asset.get("host/uptime", b"").split()
    try:
        return max(0, int(float(uptime[0]) - int(fields[19]) / os.sysconf("SC_CLK_TCK")))
    except (IndexError, ValueError, OverflowError):
        return None
