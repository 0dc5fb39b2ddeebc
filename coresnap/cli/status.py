# SPDX-License-Identifier: Apache-2.0
"""Tell how coresnap stands: the stages, the room that is left, what was not kept, who gets the kernel's cores.

--json prints one object: root, stages (dumps, disk_bytes, oldest_usec of each), free_bytes, total_bytes, keep_bytes
(what dump.quota keeps free), ceiling_bytes, ledger (entries, last), foreign, core_pattern, core_pattern_is_ours.

examples:
  coresnap status
  coresnap status --json | jq .stages.failed.dumps
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from coresnap.cli import dumps, kernel, losses, terminal, words
from coresnap.ground import durable, settings
from coresnap.ground.text import human_bytes, printable
from coresnap.spool import stages
from coresnap.spool.stages import Dump

if TYPE_CHECKING:
    import argparse

    from coresnap.ground.settings import Settings
    from coresnap.spool.stages import Spool

_FOREIGN_MOST = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    loaded = settings.load(args.settings)
    with dumps.open_spool(loaded.dump_root) as spool:
        known = _gather(spool, loaded)
    if args.json:
        terminal.print_json(known)
    else:
        _print(known, loaded)
    return 0


def _gather(spool: Spool, loaded: Settings) -> dict[str, Any]:
    disk = os.fstatvfs(spool.root_fd)
    total_bytes = disk.f_blocks * disk.f_frsize
    entries = dumps.look_all(spool, stages.STAGES)
    found = losses.read(spool.path, spool)
    pattern, ours = kernel.core_pattern()
    return {
        "root": spool.path,
        "stages": {stage: _stage(spool, stage, entries) for stage in stages.STAGES},
        "free_bytes": disk.f_bavail * disk.f_frsize,
        "total_bytes": total_bytes,
        "keep_bytes": total_bytes * loaded.dump_quota_percent // 100,
        "ceiling_bytes": loaded.dump_ceiling_bytes,
        "ledger": {"entries": len(found), "last": found[-1] if found else None},
        "foreign": sorted(spool.foreign())[:_FOREIGN_MOST],
        "core_pattern": pattern,
        "core_pattern_is_ours": ours,
    }


def _stage(spool: Spool, stage: str, entries: list[dumps.Entry]) -> dict[str, Any]:
    here = [entry for entry in entries if entry.stage == stage]
    return {
        "dumps": len(here),
        "disk_bytes": sum(_disk_bytes(spool, entry) for entry in here),
        "oldest_usec": min((entry.time_usec for entry in here), default=None),
    }


def _disk_bytes(spool: Spool, entry: dumps.Entry) -> int:
    """Return what the dump really takes; nothing where it has just moved, or may not be looked into."""
    try:
        fd = durable.open_directory(entry.uuid, spool.stage_fds[entry.stage])
        with Dump(entry.uuid, entry.stage, fd) as dump:
            return dump.disk_bytes()
    except OSError:
        return 0


def _print(known: dict[str, Any], loaded: Settings) -> None:
    foreign = ", ".join(printable(name, 100) for name in known["foreign"])
    ours = "coresnap's" if known["core_pattern_is_ours"] else f"NOT coresnap's: {kernel.REMEDY}"
    terminal.fields(
        [
            ("spool", printable(known["root"])),
            *((stage, _held(held)) for stage, held in known["stages"].items()),
            ("room", _room(known, loaded)),
            ("ceiling", f"{human_bytes(known['ceiling_bytes'])} (dump.ceiling)" if known["ceiling_bytes"] else ""),
            ("not kept", _lost(known["ledger"])),
            ("foreign", foreign),
            ("core_pattern", f"`{printable(known['core_pattern'], 200)}`, {ours}"),
        ]
    )


def _held(held: dict[str, Any]) -> str:
    if not held["dumps"]:
        return "empty"
    count = "1 dump" if held["dumps"] == 1 else f"{held['dumps']} dumps"
    return f"{count}, {human_bytes(held['disk_bytes'])}, the oldest {words.ago(held['oldest_usec'])}"


def _room(known: dict[str, Any], loaded: Settings) -> str:
    free_bytes, keep_bytes = known["free_bytes"], known["keep_bytes"]
    quota = f"{human_bytes(keep_bytes)} have to stay so (dump.quota {loaded.dump_quota_percent}%)"
    warning = terminal.paint(": NO CORE IS KEPT", terminal.RED) if free_bytes <= keep_bytes else ""
    return f"{human_bytes(free_bytes)} free, {quota}{warning}"


def _lost(known: dict[str, Any]) -> str:
    last = known["last"]
    if last is None:
        return "nothing on record"
    what = f"{words.name(last)}, {printable(last['reason'])}"
    return f"{known['entries']} on record; the last {words.ago(last['time_usec'])}: {what}: `coresnap why`"
