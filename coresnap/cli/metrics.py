# SPDX-License-Identifier: Apache-2.0
"""Print what there is to be watched, as text for Prometheus (exposition format 0.0.4).

--textfile FILE puts it in place of that file, at once and whole, for node_exporter's textfile collector; --write into the file that
metrics.textfile names, and nowhere where that is empty. coresnap-metrics.timer, off by default, does so every minute.

No label has a name of a program, a user or a dump in it: how many series there are does not depend on what crashes.

examples:
  coresnap metrics
  coresnap metrics --textfile /var/lib/prometheus/node-exporter/coresnap.prom
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from coresnap import __version__
from coresnap.cli import dumps, exposition, kernel, status, terminal
from coresnap.ground import durable, settings
from coresnap.ground.errors import Refused, TryLater
from coresnap.ground.text import printable
from coresnap.spool import index, inventory, ledger, outlook, stages

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from coresnap.cli.exposition import Sample
    from coresnap.ground.settings import Settings
    from coresnap.spool.inventory import Inventory
    from coresnap.spool.stages import Spool

_STORES_MOST = 16
_STORE_MOST = 200
_OTHERS = "others"
_HELD = ("pipe", "handover", "socket")
_HELD_AMONG = 20
_FILE_MODE = 0o644


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--textfile", metavar="FILE", help="put it in place of this file, for node_exporter")
    target.add_argument("--write", action="store_true", help="put it in place of the file that metrics.textfile names")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    loaded = settings.load(args.settings)
    path = args.textfile or (loaded.metrics_textfile if args.write else None)
    if args.write and not path:
        terminal.note("metrics.textfile is empty: nothing is written")
        return 0
    with dumps.open_spool(loaded.dump_root) as spool:
        text = exposition.text(_samples(spool, loaded))
    if path:
        _put(path, text)
    else:
        print(text, end="")
    return 0


def _put(path: str, text: str) -> None:
    directory, name = os.path.split(os.path.abspath(path))
    try:
        fd = durable.open_directory(directory)
        try:
            done = durable.replace_cache(fd, name, [text.encode()], _FILE_MODE)
        finally:
            os.close(fd)
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}", hint=f"may {directory} be written by this user?") from error
    if not done:
        raise TryLater(f"{path} is being written just now")


def _samples(spool: Spool, loaded: Settings) -> Iterator[Sample]:
    """Yield everything there is."""
    yield "coresnap_build_info", {"version": __version__}, 1
    found = inventory.take(spool, index.SEEN)
    for stage in stages.STAGES:
        here = status.stage_of(found, stage)
        labels = {"stage": stage}
        yield "coresnap_dumps", labels, here["dumps"]
        yield "coresnap_dumps_disk_bytes", labels, here["disk_bytes"]
        if here["dumps"]:
            yield "coresnap_oldest_dump_timestamp_seconds", labels, here["oldest_usec"] / 1e6
            yield "coresnap_latest_dump_timestamp_seconds", labels, here["latest_usec"] / 1e6
    flags = found["flags"]
    yield "coresnap_dumps_pinned", {}, sum(1 for flag in flags if flag & index.PINNED)
    yield "coresnap_dumps_unreadable", {}, sum(1 for flag in flags if not flag & index.READABLE)
    disk = os.fstatvfs(spool.root_fd)
    total_bytes = disk.f_blocks * disk.f_frsize
    yield "coresnap_filesystem_size_bytes", {}, total_bytes
    yield "coresnap_filesystem_free_bytes", {}, disk.f_bavail * disk.f_frsize
    yield "coresnap_quota_free_bytes", {}, total_bytes * loaded.dump_quota_percent // 100
    for reason, total in ledger.totals(spool.root_fd).items():
        yield "coresnap_cores_not_kept_total", {"reason": reason}, total
    yield from _stores(status.stores(spool))
    yield from _latest(spool, found)
    pattern, ours = kernel.core_pattern()
    if pattern:  # else it cannot be read
        yield "coresnap_core_pattern_owned", {}, int(ours)


def _stores(stores: list[dict[str, Any]]) -> Iterator[Sample]:
    """Yield how the stores stand; of too many, those beyond count as one."""
    known: dict[str, dict[str, Any]] = {}
    parked = 0
    for store in stores:
        if store["project"] is not None:
            parked += store["state"] == outlook.PARKED
            continue
        name = printable(store["store"], _STORE_MOST)
        name = name if name in known or len(known) < _STORES_MOST else _OTHERS
        sums = known.setdefault(name, {"delivered": 0, "failed": 0, "up": 1, "next_try_usec": None})
        sums["delivered"] += store["delivered"]
        sums["failed"] += store["failed"]
        sums["up"] &= store["state"] == outlook.UP
        tries = [usec for usec in (sums["next_try_usec"], store["next_try_usec"]) if usec is not None]
        sums["next_try_usec"] = min(tries, default=None)
    for name, sums in known.items():
        labels = {"store": name}
        yield "coresnap_deliveries_total", labels, sums["delivered"]
        yield "coresnap_delivery_failures_total", labels, sums["failed"]
        yield "coresnap_store_up", labels, sums["up"]
        if sums["next_try_usec"] is not None:
            yield "coresnap_store_next_try_timestamp_seconds", labels, sums["next_try_usec"] / 1e6
    yield "coresnap_projects_parked", {}, parked


def _latest(spool: Spool, found: Inventory) -> Iterator[Sample]:
    """Yield how long the latest crashed process was held; what was imported, say, was held by nobody."""
    for number in reversed(found.oldest_first()[-_HELD_AMONG:]):
        row = found.row(number)
        entry = dumps.look(spool, row.stage, row.uuid)
        captured = entry.record["captured"] if entry and entry.record else None
        if captured and captured["transport"] in _HELD:
            yield "coresnap_last_capture_held_seconds", {}, captured["held_usec"] / 1e6
            yield "coresnap_last_capture_timestamp_seconds", {}, captured["time_usec"] / 1e6
            return
