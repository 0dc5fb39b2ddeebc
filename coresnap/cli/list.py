# SPDX-License-Identifier: Apache-2.0
"""List the dumps, oldest first.

Each line has the dump's stage and the beginning of its UUID; which of core (c), snapshot (s) and asset (a) there are;
the executable; the time of the crash; how large these files are, the core as it lies on the disk. The last line counts
dumps and bytes by stage:

    pending/84605573-9de... c-a vim.basic Fri Apr 14 22:49:40 2017 3.12mB
    [pending]/1O/3.12mB

To whom the spool is closed are shown the dumps of his own processes, where coresnap-query.socket is there to be asked: not
those of set-uid programs, of daemons that have become him, or of containers. The same holds for info, why, dump and debug.

A dump whose record cannot be read is listed with ? and a note on standard error. A dump without c has lost its core:
to purge, or to something other than coresnap; `coresnap info` tells.

--group prints a line for each bug instead, by the fingerprint of its crashes, those with the most dumps first: how many
dumps, the executable and the signal of the latest, its time, the beginning of the fingerprint, and the latest. A dump has a
fingerprint once its snapshot is made; without one, - stands for it, and dumps of one executable and signal are together.

--json prints one array, in the same order: stage, uuid, files (null where they may not be seen), record (dump.json,
whole) and problem (why the record is null). With --group: fingerprint, count, first_usec, last_usec, executables, signals
and uuids, oldest first.

examples:
  coresnap list failed                       what has been given up on
  coresnap list --since yesterday --signal SEGV
  coresnap list --exe '/opt/*' -n 10         the latest ten of programs below /opt
  coresnap list --group --since "7d ago"    which bugs crashed most this week
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coresnap.cli import dumps, groups, lines, terminal, words
from coresnap.ground.text import printable
from coresnap.spool import index, stages

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from coresnap.cli.groups import Group
    from coresnap.spool.inventory import Inventory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("stage", nargs="*", help=f"only these stages: {', '.join(stages.STAGES)}")
    parser.add_argument("--exe", metavar="NAME", help="only of this executable: name, path, or a pattern of either")
    parser.add_argument("--pid", type=int, help="only of this process")
    parser.add_argument("--uid", type=words.user_number, metavar="USER", help="only of this user, by name or number")
    parser.add_argument("--signal", type=words.signal_number, help="only of this signal: 11, SEGV or SIGSEGV")
    parser.add_argument("--since", type=words.moment, metavar="TIME", help="from then on: 2026-04-14, today, `2h ago`")
    parser.add_argument("--until", type=words.moment, metavar="TIME", help="only up to then")
    parser.add_argument("-n", type=words.count, metavar="N", dest="most", help="only the latest N")
    parser.add_argument("-1", action="store_const", const=1, dest="most", help="only the latest one")
    parser.add_argument("--group", action="store_true", help="a line for each bug, not for each dump")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--uuid", action="store_true", help="print whole UUIDs")
    output.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    unknown = [stage for stage in args.stage if stage not in stages.STAGES]
    if unknown:
        terminal.note(f"{unknown[0]} is no stage; the stages are {', '.join(stages.STAGES)}")
        return 2
    with dumps.open_to_read(dumps.dump_root(args.settings)) as spool:
        found = dumps.inventory_of(spool, [stage for stage in index.SEEN if stage in (args.stage or dumps.LISTED)])
        chosen = _chosen(found, args)
        if args.json and not args.group:
            terminal.print_json_array(entry.as_json() for entry in dumps.look_at(spool, map(found.row, chosen)))
    if args.group and (args.json or chosen):
        _print_groups(groups.group(map(found.row, chosen)), as_json=args.json)
    elif chosen and not args.json:
        for text in lines.lines(found, chosen, whole=args.uuid):
            print(text)
    elif not args.json:
        terminal.note("no such dump" if len(found) else "no dumps")
    _note_problems(found)
    return 0


def _chosen(found: Inventory, args: argparse.Namespace) -> Sequence[int]:
    """Return the numbers of the dumps that pass the filters, oldest first.

    One whose record cannot be read passes no filter on what is in it.
    """
    chosen: Sequence[int] = found.oldest_first()
    times = found["time_usec"]
    if args.since is not None:
        chosen = [number for number in chosen if times[number] >= args.since]
    if args.until is not None:
        chosen = [number for number in chosen if times[number] < args.until]
    for name in ("pid", "uid", "signal"):
        wanted = getattr(args, name)
        if wanted is not None:
            column = found[name]
            chosen = [number for number in chosen if column[number] == wanted + 1]
    if args.exe is not None:
        matches: dict[tuple[int, int], bool] = {}
        for key in zip(found["exe"], found["comm"], strict=True):
            if key not in matches:
                matches[key] = words.matches(found.victim(*key), args.exe)
        chosen = [number for number in chosen if matches[found["exe"][number], found["comm"][number]]]
    if args.most is not None:
        chosen = chosen[-args.most :] if args.most > 0 else []
    return chosen


def _note_problems(found: Inventory) -> None:
    for number in found.oldest_first() if any(found["problem"]) else ():
        row = found.row(number)
        if row.problem and row.stage != stages.STAGING:
            terminal.note(f"{row.stage}/{row.uuid}: {printable(row.problem)}")


def _print_groups(found: Sequence[Group], *, as_json: bool) -> None:
    if as_json:
        terminal.print_json([one.as_json() for one in found])
        return
    rows = [one.row() for one in found]
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    for count, *texts in rows:
        print(
            " ".join([count.rjust(widths[0]), *(t.ljust(w) for t, w in zip(texts, widths[1:], strict=True))]).rstrip()
        )
