# SPDX-License-Identifier: Apache-2.0
"""Tell how coresnap stands: the stages, the room that is left, what was not kept, who gets the kernel's cores.

Of the stores, and of projects that one of them refuses, it tells what the sender knows: up, waiting (it could not be reached)
or parked (somebody has to mend something), since when, and when it is tried next.

--json prints one object: root, stages (dumps, disk_bytes, oldest_usec, latest_usec of each), free_bytes, total_bytes, keep_bytes
(what dump.quota keeps free), ceiling_bytes, stores (store, project, state, since_usec, next_try_usec, failures, delivered, failed,
detail of each), ledger (entries, last), limits_reached (as `coresnap limits --json` has them), foreign,
core_pattern, core_pattern_is_ours.

examples:
  coresnap status
  coresnap status --json | jq .stages.failed.dumps
"""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from coresnap.cli import dumps, kernel, limits, losses, terminal, words
from coresnap.ground import settings
from coresnap.ground.errors import BadInput
from coresnap.ground.text import human_bytes, printable
from coresnap.spool import index, inventory, outlook, stages

if TYPE_CHECKING:
    import argparse

    from coresnap.ground.settings import Settings
    from coresnap.spool.inventory import Inventory
    from coresnap.spool.stages import Spool

_FOREIGN_MOST = 100
_STORES_MOST = 20


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
    entries = inventory.take(spool, index.SEEN)
    found = losses.read(spool.path, spool)
    pattern, ours = kernel.core_pattern()
    return {
        "root": spool.path,
        "stages": {stage: stage_of(entries, stage) for stage in stages.STAGES},
        "free_bytes": disk.f_bavail * disk.f_frsize,
        "total_bytes": total_bytes,
        "keep_bytes": total_bytes * loaded.dump_quota_percent // 100,
        "ceiling_bytes": loaded.dump_ceiling_bytes,
        "stores": stores(spool),
        "ledger": {"entries": len(found), "last": found[-1] if found else None},
        "limits_reached": _limits(spool, loaded),
        "foreign": sorted(entries.foreign)[:_FOREIGN_MOST],
        "core_pattern": pattern,
        "core_pattern_is_ours": ours,
    }


def stage_of(found: Inventory, stage: str) -> dict[str, Any]:
    """Return how many dumps are in a stage, what they take on the disk, and of when they are."""
    here = found.part(stage)
    times = found["time_usec"][here]
    return {
        "dumps": len(times),
        "disk_bytes": sum(found["disk_bytes"][here]),
        "oldest_usec": min(times, default=None),
        "latest_usec": max(times, default=None),
    }


def _limits(spool: Spool, loaded: Settings) -> list[dict[str, Any]]:
    try:
        return [one for one in limits.look(spool.root_fd, loaded) if one["reached"]]
    except OSError as error:
        terminal.note(f"limits: {error.strerror}: what they leave out is not shown")
        return []


def stores(spool: Spool) -> list[dict[str, Any]]:
    """Return how the stores stand, as the sender has it; where that cannot be read a note says so."""
    try:
        return [asdict(standing) for standing in outlook.read(spool.root_fd)]
    except (BadInput, OSError) as error:
        terminal.note(f"{outlook.NAME}: {error}: how the stores stand is not shown")
        return []


def _print(known: dict[str, Any], loaded: Settings) -> None:
    foreign = ", ".join(printable(name, 100) for name in known["foreign"])
    ours = "coresnap's" if known["core_pattern_is_ours"] else f"NOT coresnap's: {kernel.REMEDY}"
    terminal.fields(
        [
            ("spool", printable(known["root"])),
            *((stage, _held(held)) for stage, held in known["stages"].items()),
            ("room", _room(known, loaded)),
            *(("store", _store(store)) for store in _told(known["stores"])),
            ("ceiling", f"{human_bytes(known['ceiling_bytes'])} (dump.ceiling)" if known["ceiling_bytes"] else ""),
            ("not kept", _lost(known["ledger"])),
            ("limits", _reached(known["limits_reached"])),
            ("foreign", foreign),
            ("core_pattern", f"`{printable(known['core_pattern'], 200)}`, {ours}"),
        ]
    )


def _reached(reached: list[dict[str, Any]]) -> str:
    """Say which limits are reached just now; the one that crashed last is named."""
    if not reached:
        return ""
    last = reached[-1]
    more = f" and {len(reached) - 1} more" if len(reached) > 1 else ""
    return f"limit.{last['kind']} of {printable(last['name'], 79)}{more} reached, {last['lost']} not kept: `coresnap limits`"


def _held(held: dict[str, Any]) -> str:
    if not held["dumps"]:
        return "empty"
    count = "1 dump" if held["dumps"] == 1 else f"{held['dumps']} dumps"
    return f"{count}, {human_bytes(held['disk_bytes'])}, {_ages(held)}"


def _ages(held: dict[str, Any]) -> str:
    oldest, latest = words.ago(held["oldest_usec"]), words.ago(held["latest_usec"])
    return f"of {oldest}" if oldest == latest else f"the oldest {oldest}, the latest {latest}"


def _told(stores: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the stores, and those of their projects that take nothing; of too many the first."""
    return [one for one in stores if one["project"] is None or one["state"] != outlook.UP][:_STORES_MOST]


def _store(store: dict[str, Any]) -> str:
    """Return in words how a store stands, or one project of it."""
    what = printable(store["store"], 200) + (
        f", project {printable(store['project'], 100)}" if store["project"] else ""
    )
    if store["state"] == outlook.UP:
        return f"{what}: up, {store['delivered']} delivered" if store["delivered"] else f"{what}: nothing waits for it"
    state = terminal.paint(store["state"], terminal.RED)
    next_try = f", next try {words.ago(store['next_try_usec'])}" if store["next_try_usec"] is not None else ""
    return f"{what}: {state} since {words.when(store['since_usec'])}{next_try}: {printable(store['detail'], 300)}"


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
