# SPDX-License-Identifier: Apache-2.0
"""Where is my core? Tell of a process, a dump or a program what became of its cores, newest first, and what to do.

Looked through are the stages and the ledger, which has a record of every core that was not kept. Without an argument:
the latest crashes of all.

examples:
  coresnap why 4711          of the process with this number
  coresnap why vim           of this program: its name, its path, or a pattern of either
  coresnap why 84605573      of this dump, also if it has been removed from staging

Exit status 69: nothing is known of it; the line then says whether cores come to coresnap at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from coresnap.cli import dumps, kernel, losses, terminal, waits, words
from coresnap.cli.dumps import Entry
from coresnap.ground import settings
from coresnap.ground.errors import Refused
from coresnap.ground.text import printable
from coresnap.spool import index, ledger, outlook, stages

if TYPE_CHECKING:
    import argparse

    from coresnap.spool.inventory import Row
    from coresnap.spool.outlook import Standing

_MOST = 10
_TIME_MAX_USEC = 1 << 53
_STAGES = {
    stages.STAGING: "its core is being captured",
    stages.PENDING: "its core is kept and waits for its snapshot",
    stages.SENDING: "its core is kept and its snapshot made; that waits for delivery",
    stages.COMMITTED: "its core is kept and its snapshot delivered",
    stages.FAILED: "its core is kept, but it has been given up on",
}
#: Of a parked store or project: it is probed ever more rarely, and nothing goes until somebody has done something.
_MEND = "mend that; a changed coroner.cf is tried within a minute; "
_GONE = "its core was kept, and is gone from the spool"
_WITHOUT_CORE = {
    stages.PENDING: "no snapshot can be made any more",
    stages.SENDING: "its snapshot is made, and waits for delivery",
    stages.COMMITTED: "its snapshot is delivered",
    stages.FAILED: "it has been given up on",
}
_REMEDIES = {
    "quota": "free some space, `coresnap rm` dumps, or change dump.quota or dump.ceiling; see `coresnap status`",
    "disk-full": "free some space, or raise dump.quota so that captures stop before the disk is full",
    "write-error": "look at the disk: `journalctl -k`",
    "empty": "was archive started by something else than the kernel? else `journalctl -k` says why the kernel gave up",
    "not-a-core": "give archive, or `coresnap import`, the core itself, unpacked",
    "cut-short": "a kernel's core ends early when its process is killed meanwhile; a file when its copy did",
    "interrupted": "archive was killed: `journalctl` says by whom; a lack of memory does it",
    "skipped": "more crashes at once than kernel.core_pipe_limit? else the kernel could not start archive, or reach its socket",
    "rate": "`coresnap list` has those that were kept; `coresnap limits` can reset the counts; the settings limit.* say how many",
    "excluded": "change archive.include or archive.exclude, if it is wanted after all",
    "too-large": "raise archive.core_max_bytes, or set it to 0",
    "purged": "`coresnap pin` keeps a dump; purge.protected_age and the other settings purge.* say how long others are kept",
    "rlimit": "raise it (LimitCORE= of its unit, ulimit -c), or set archive.rlimit_core = ignore",
    "no-spool": "mount its file system, or `coresnapd --prepare` the spool",
    "internal": "this is a mistake in coresnap: report it with this line",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("what", nargs="?", metavar="PID|UUID|NAME", help="a process, a dump, or a program")
    parser.add_argument(
        "-n", type=words.count, default=_MOST, metavar="N", dest="most", help=f"at most N; {_MOST} unless told"
    )
    parser.add_argument("--json", action="store_true", help="print JSON: dumps as list does, and lines of the ledger")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    loaded = settings.load(args.settings)
    entries, unread, lost, known_stores = _search(loaded.dump_root, args.what, args.most)
    known: list[tuple[int, Entry | dict[str, Any]]] = [
        *((entry.time_usec, entry) for entry in entries),
        *((loss["time_usec"], loss) for loss in lost),
    ]
    latest = sorted(known, key=lambda pair: pair[0], reverse=True)[: args.most]
    if args.json:
        terminal.print_json([_as_json(one) for _time_usec, one in latest])
    if not known and not unread:
        raise Refused(f"nothing is known of {args.what or 'any crash'}", hint=kernel.cores_go_where())
    if args.json:
        return 0
    for _time_usec, one in latest:
        if not isinstance(one, Entry):
            _tell_lost(one)
            continue
        is_sent = one.record is not None and one.stage == stages.SENDING
        _tell_kept(one, waits.of(one.record, loaded, known_stores) if is_sent and one.record else [])
    count = len(known) + unread
    if count > len(latest):
        terminal.note(f"{count - len(latest)} earlier ones are not shown: -n {count} shows them")
    return 0


def _as_json(one: Entry | dict[str, Any]) -> dict[str, Any]:
    """Return it as --json prints it; whether a core is kept that may not be looked at is null."""
    if not isinstance(one, Entry):
        return {"kept": False, **one}
    return {"kept": None if one.names is None else one.has(dumps.CORE), **one.as_json()}


def _search(root: str, what: str | None, most: int) -> tuple[list[Entry], int, list[dict[str, Any]], list[Standing]]:
    """Return the latest dumps that are meant, and how many more there are; the lines of the ledgers; how the stores stand.

    A spool that is not there is one reason to ask.
    """
    entries: list[Entry] = []
    unread = 0
    known_stores: list[Standing] = []
    try:
        with dumps.open_to_read(root) as spool:
            found = dumps.inventory_of(spool, index.SEEN)
            meant = [row for row in map(found.row, found.oldest_first()) if _is_meant(row, what)]
            meant, unread = meant[len(meant) - min(most, len(meant)) :], max(0, len(meant) - most)
            entries = list(dumps.look_at(spool, meant))
            lost = losses.read(root, spool)
            known_stores = waits.standings(spool)
    except Refused as error:
        terminal.note(error.line())
        lost = losses.read(root, None)
    lost = [loss for loss in lost if _matches(loss, str(loss.get("uuid", "")), what)]
    return entries, unread, lost, known_stores


def _is_meant(row: Row, what: str | None) -> bool:
    return _matches({**row.victim, "pid": row.pid}, row.uuid, what)


def _matches(victim: dict[str, Any], uuid: str, what: str | None) -> bool:
    if what is None:
        return True
    beginning = what.rpartition("/")[2].removesuffix("...").lower()
    if len(beginning) >= 4 and uuid.startswith(beginning):
        return True
    if what.isascii() and what.isdigit():
        return str(victim.get("pid")) == what.lstrip("0")
    return words.matches(victim, what)


def _tell_kept(entry: Entry, waits_for: list[Standing]) -> None:
    document = entry.record
    if document is None:
        print(f"{words.when(entry.time_usec)}  {entry.short}")
        if entry.stage == stages.STAGING:
            print(f"  {_STAGES[entry.stage]}, or was when archive was killed: coresnapd sweeps it then")
        else:
            there = "it may be kept" if entry.names is None else _gone(entry) if entry.core_is_gone else "it is kept"
            print(f"  {there}, but its record cannot be read: {printable(entry.problem)}")
        return
    print(f"{words.when(entry.time_usec)}  {_who(document['victim'])}")
    told = f"{_gone(entry)}; {_WITHOUT_CORE[entry.stage]}" if entry.core_is_gone else _STAGES[entry.stage]
    print(f"  {told}: {entry.short}")
    truncated, failure, next_try_usec = document["core"]["truncated"], document["failure"], document["next_try_usec"]
    if truncated:
        print(f"  the core is not whole: {words.TRUNCATED.get(truncated['reason'], printable(truncated['reason']))}")
    if failure:
        print(f"  {printable(failure['reason'])}: {printable(failure['detail'], 2000)}")
    elif next_try_usec is not None and document["history"]:
        print(f"  {printable(document['history'][-1]['event'])}: {printable(document['history'][-1]['detail'])}")
        print(f"  next try {words.ago(next_try_usec)}")
    for standing in waits_for:
        print(f"  {waits.line(standing)}")
    parked = any(standing.state == outlook.PARKED for standing in waits_for)
    print(f"  to do: {_MEND if parked else ''}{_to_do(entry)}")


def _gone(entry: Entry) -> str:
    return f"{_GONE}: {dumps.core_gone(entry.record)}"


def _to_do(entry: Entry) -> str:
    beginning = entry.uuid[:8]
    key = " --identity KEY" if entry.record and entry.record["encrypted"] else ""
    opens = f"`coresnap debug {beginning}{key}` opens the core"
    if entry.core_is_gone:
        if entry.stage == stages.COMMITTED:
            return f"`coresnap info {beginning}` has its receipt"
        if entry.has(dumps.SNAPSHOT):
            return f"`coresnap retry {beginning}` delivers its snapshot now"
        return f"`coresnap rm {beginning}` removes what is left"
    if entry.stage == stages.COMMITTED:
        return f"`coresnap info {beginning}` has its receipt, {opens}"
    if entry.stage in (stages.FAILED, stages.SENDING) or (entry.record and entry.record["next_try_usec"] is not None):
        return f"`coresnap retry {beginning}` tries again now, {opens}"
    return f"nothing, as long as coresnapd runs; {opens}"


def _tell_lost(loss: dict[str, Any]) -> None:
    reason = loss["reason"]
    print(f"{words.when(loss['time_usec'])}  {_who(loss)}")
    print(f"  its core was not kept: {ledger.REASONS.get(reason, printable(reason))}")
    if loss["ledger"] == losses.fallback() and "root" not in loss:
        print(f"  on record in {loss['ledger']}, without the spool that it was meant for: it may be another one")
    detail = loss.get("detail")
    if isinstance(detail, str) and detail:
        print(f"  {printable(reason)}: {printable(detail)}")
    until_usec = loss.get("until_usec")
    if isinstance(until_usec, int) and 0 < until_usec < _TIME_MAX_USEC:
        print(f"  the next one is kept from {words.when(until_usec)} on")
    if reason in _REMEDIES:
        print(f"  to do: {_REMEDIES[reason]}")


def _who(victim: dict[str, Any]) -> str:
    """Return the crashed process in words; a line of the ledger may have any type behind any key."""
    known = [f"{key} {victim[key]}" for key in ("pid", "uid") if isinstance(victim.get(key), int)]
    number = victim.get("signal")
    if isinstance(number, int):
        known.append(words.signal_name(number))
    return f"{words.name(victim)} ({', '.join(known)})" if known else words.name(victim)
