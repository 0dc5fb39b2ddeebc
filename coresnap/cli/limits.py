# SPDX-License-Identifier: Apache-2.0
"""Tell how many cores of each program, unit and user were kept, and were not, by limit.exe, limit.unit and limit.user.

The counts are of the window of time that began with the first core kept in it; once that has passed, the next crash begins
another. A limit that is reached is marked, with the moment from which the next core is kept. --json prints a list of
objects: kind, name, kept, lost, lost_total, started_usec, last_usec, reached, until_usec; lost_total counts all windows.

examples:
  coresnap limits            what has been counted, what crashed last at the end
  coresnap limits --reset    begin to count anew: the next crash of each is kept
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from coresnap.cli import dumps, terminal, words
from coresnap.ground import settings
from coresnap.ground.errors import Refused
from coresnap.ground.text import printable
from coresnap.spool import limits

if TYPE_CHECKING:
    import argparse

    from coresnap.ground.settings import Settings

_MOST_USEC = 1 << 53


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--reset", action="store_true", help="forget what has been counted")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    loaded = settings.load(args.settings)
    with dumps.open_spool(loaded.dump_root) as spool:
        try:
            if args.reset:
                limits.forget(spool.root_fd)
            known = look(spool.root_fd, loaded)
        except OSError as error:
            path = os.path.join(spool.path, limits.NAME)
            raise Refused(f"{path}: {error.strerror}", hint="ask as root, or as dump.user") from error
    if args.json:
        terminal.print_json(known)
    else:
        for one in known:
            print(_line(one))
        if not known and not args.reset:
            terminal.note("nothing is counted as yet")
    return 0


def look(root_fd: int, loaded: Settings) -> list[dict[str, Any]]:
    """Return what is counted, as --json prints it, what crashed last at the end. Raises OSError."""
    rates = {limits.EXE: loaded.limit_exe, limits.UNIT: loaded.limit_unit, limits.USER: loaded.limit_user}
    now_usec = time.time_ns() // 1000
    found = []
    for row in sorted(limits.rows(root_fd), key=lambda row: row.last_usec):
        most, window_usec = rates[row.kind]
        until_usec = min(row.started_usec + window_usec, _MOST_USEC)
        reached = bool(most) and row.kept >= most and row.started_usec <= now_usec < until_usec
        counts = {name: getattr(row, name) for name in ("kept", "lost", "lost_total", "started_usec", "last_usec")}
        found.append({"kind": row.kind, "name": row.name, **counts, "reached": reached, "until_usec": until_usec})
    return found


def _line(one: dict[str, Any]) -> str:
    lost = f", {one['lost']} not" if one["lost"] else ""
    all_lost = f" ({one['lost_total']} in all)" if one["lost_total"] > one["lost"] else ""
    reached = f"; the next is kept from {words.when(one['until_usec'])} on" if one["reached"] else ""
    name = printable(one["name"], 79)
    return (
        f"{one['kind']:<4}  {name}: {one['kept']} kept{lost}{all_lost} since {words.when(one['started_usec'])}{reached}"
    )
