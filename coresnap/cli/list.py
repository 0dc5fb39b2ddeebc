# SPDX-License-Identifier: Apache-2.0
"""List the dumps, oldest first.

Each line has the dump's stage and the beginning of its UUID; which of core (c), snapshot (s) and asset (a) there are;
the executable; the time of the crash; what it takes on the disk. The last line counts dumps and bytes by stage:

    pending/84605573-9de... c-a vim.basic Fri Apr 14 22:49:40 2017 3.12mB
    [pending]/1O/3.12mB

A dump whose record cannot be read is listed with ? and a note on standard error. A dump without c has lost its core
to something other than coresnap.

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

from coresnap.cli import dumps, groups, terminal, words
from coresnap.ground.text import human_bytes, printable
from coresnap.spool import stages

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from coresnap.cli.dumps import Entry
    from coresnap.cli.groups import Group

_FLAGS = ((dumps.CORE, "c"), (dumps.SNAPSHOT, "s"), (dumps.ASSETS, "a"))


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
        found = dumps.look_all(spool, [stage for stage in stages.STAGES if stage in (args.stage or dumps.LISTED)])
    chosen = [entry for entry in found if _wanted(entry, args)]
    if args.most is not None:
        chosen = chosen[-args.most :] if args.most > 0 else []
    if args.group and (args.json or chosen):
        _print_groups(groups.group(chosen), as_json=args.json)
    elif args.json:
        terminal.print_json([entry.as_json() for entry in chosen])
    elif chosen:
        _print(chosen, whole=args.uuid)
    else:
        terminal.note("no such dump" if found else "no dumps")
    for entry in found:
        if entry.problem and entry.stage != stages.STAGING:
            terminal.note(f"{entry.stage}/{entry.uuid}: {printable(entry.problem)}")
    return 0


def _wanted(entry: Entry, args: argparse.Namespace) -> bool:
    """Say whether the dump passes the filters; one whose record cannot be read passes no filter on what is in it."""
    if args.since is not None and entry.time_usec < args.since:
        return False
    if args.until is not None and entry.time_usec >= args.until:
        return False
    victim = entry.record["victim"] if entry.record else {}
    for name in ("pid", "uid", "signal"):
        wanted = getattr(args, name)
        if wanted is not None and victim.get(name) != wanted:
            return False
    return args.exe is None or words.matches(victim, args.exe)


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


def _print(entries: Sequence[Entry], *, whole: bool) -> None:
    """Print the lines in columns, and the count."""
    rows = [_row(entry, whole) for entry in entries]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for where, flags, name, time, size in rows:
        shown = where.ljust(widths[0])
        if where.startswith(stages.FAILED):
            shown = terminal.paint(shown, terminal.RED)
        print(f"{shown} {flags} {name:<{widths[2]}} {time:<{widths[3]}} {size:>{widths[4]}}")
    print(_footer(entries))


def _row(entry: Entry, whole: bool) -> tuple[str, str, str, str, str]:
    flags = "???" if entry.names is None else "".join(flag if entry.has(name) else "-" for name, flag in _FLAGS)
    where = f"{entry.stage}/{entry.uuid}" if whole else entry.short
    time = words.when(entry.time_usec)
    if entry.record is None:
        return where, flags, "?", time, "?"
    return where, flags, words.name(entry.record["victim"]), time, human_bytes(entry.disk_bytes)


def _footer(entries: Sequence[Entry]) -> str:
    parts = []
    for stage in stages.STAGES:
        here = [entry for entry in entries if entry.stage == stage]
        if here:
            parts.append(f"[{stage}]/{len(here)}O/{human_bytes(sum(entry.disk_bytes for entry in here))}")
    return " ".join(parts)
