# SPDX-License-Identifier: Apache-2.0
"""Tell all that is known of a dump: who crashed, when and of what; what was kept; what has been done with it since.

Once there is a snapshot, the stacks follow: that of the thread that crashed, then the others, threads with equal stacks
together. The rounds of a recursion are counted instead, unless --all is given.

--fresh makes a new report and shows that: after `coresnap symbols fetch` it has more names; where that had a --cache, give the
same one here. The dump, and what has been delivered of it, stay as they are. The core is read with your rights, not
in the sandbox of the service.

--html writes all of it to a new file instead, - is standard output: one page that needs nothing else, for a browser.

--json prints one object: stage, uuid, files, record (dump.json, whole), receipt and error_message. The report itself is
what `coresnap dump --snapshot` prints.

examples:
  coresnap info 8460
  coresnap info 8460 --html crash.html
  coresnap symbols fetch 8460; coresnap info 8460 --fresh
  coresnap info failed/84605573 --json
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import signal
import sys
from typing import TYPE_CHECKING, Any

from coresnap.cli import dumps, fresh, reports, stacks, terminal, words
from coresnap.cli.served import ServedDump
from coresnap.ground import settings
from coresnap.ground.errors import CoresnapError, Refused, TryLater
from coresnap.ground.text import human_bytes, human_duration, printable
from coresnap.host import debug_cache
from coresnap.snapshot.classify import MEANINGS
from coresnap.spool import stages

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from coresnap.cli.reports import Report
    from coresnap.spool.record import Record
    from coresnap.spool.stages import Dump

_RECEIPT_MAX_BYTES = 64 << 10
_SNAPSHOT_MAX_BYTES = 64 << 20
_MISSING_MOST = 6
_HELD = ("pipe", "handover", "socket")
_TRANSPORTS = {
    "pipe": "handed over by the kernel",
    "handover": "handed over by the kernel, and by archive to the capture service",
    "socket": "sent by the kernel through its coredump socket",
    "hand": "given to archive by hand",
    "import": "imported from a file",
    "salvage": "salvaged after its archive was killed",
}


#: Where the process belonged, in the words of systemctl.
_PLACE = (
    ("Unit", "unit"),
    ("User unit", "user_unit"),
    ("Slice", "slice"),
    ("Session", "session"),
    ("Container", "container"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("dump", metavar="UUID", help="the dump, [STAGE/]BEGINNING-OF-UUID")
    parser.add_argument("--all", action="store_true", help="print every frame of the stacks")
    parser.add_argument("--fresh", action="store_true", help="make a new report, with the debug files of now")
    parser.add_argument("--cache", metavar="DIR", help=f"with --fresh: debug files are here, not in {debug_cache.PATH}")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--html", metavar="FILE", help="write a page for a browser to this new file; - is stdout")
    output.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.cache is not None and not args.fresh:
        terminal.note("info: --cache goes with --fresh")
        return 2
    if args.cache is not None and not os.path.isdir(args.cache):
        terminal.note(f"info: {args.cache}: no such directory, so no debug files")
    in_force = settings.load(args.settings)
    with dumps.open_to_read(in_force.dump_root) as spool, dumps.open_dump(spool, args.dump) as dump:
        document = dumps.load_record(dump)
        receipt = _json_object(dump, dumps.RECEIPT, _RECEIPT_MAX_BYTES)
        report = reports.parse(fresh.take(dump, document, in_force, args.cache)) if args.fresh else _report(dump)
        files = sorted(dumps.names_of(dump))
    if args.json:
        whole = {"stage": dump.stage, "uuid": dump.uuid, "files": files, "record": document}
        terminal.print_json({**whole, "receipt": receipt, "error_message": (report and report.message) or None})
        return 0
    told = _receipt(receipt or {})
    if receipt is None and dump.stage == stages.COMMITTED:
        told = "shown to root alone" if isinstance(dump, ServedDump) else "missing, or unreadable"
    rows = [("Dump", f"{dump.stage}/{dump.uuid}"), *_crash(document), *_error(report or reports.Report())]
    rows += [*_kept(document, files), *_done(document), ("Receipt", told)]
    if args.html:
        if report is None:
            raise Refused(f"{dump.stage}/{dump.uuid} has no report to show", hint="`coresnap info` tells what there is")
        from coresnap.cli import page

        _write(args.html, page.page(_title(document), rows, report))
        return 0
    terminal.fields(rows)
    if report and report.stacks:
        print()
        for line in stacks.lines(report, whole=args.all):
            print(line)
        print()
    print("History:")
    for line in document["history"]:
        detail = f": {printable(line['detail'])}" if line["detail"] else ""
        print(f"  {words.when(line['time_usec'])}  {printable(line['event'])}{detail}")
    return 0


def _error(report: Report) -> list[tuple[str, str]]:
    """Return what the report says of the error, and of itself."""
    meanings = [MEANINGS[name] for name in report.classifiers if name in MEANINGS]
    missing = [printable(text, 300) for text in report.missing[:_MISSING_MOST]]
    if len(report.missing) > _MISSING_MOST:
        missing.append(f"{len(report.missing) - _MISSING_MOST} more")
    return [
        ("Error", printable(" ".join(report.message.split("\n")), 2000)),
        ("Kind", "; ".join(meanings)),
        ("Runtime", printable(report.runtime, 100)),
        ("Fingerprint", printable(report.fingerprint, 64)),
        ("Threads", stacks.count(report.stacks)),
        ("Not in the report", "; ".join(missing)),
    ]


def _title(document: Record) -> str:
    """Return who crashed of what: `vim.basic: SIGSEGV`."""
    victim = document["victim"]
    return f"{words.name(victim)}: {words.signal_name(victim['signal'])}"


def _write(path: str, text: str) -> None:
    """Write the page to a new file, for its owner alone: the report may tell of secrets."""
    data = text.encode("utf-8", "replace")
    if path == "-":
        sys.stdout.buffer.write(data)
        return
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise Refused(f"{path} exists", hint="name a new file") from error
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}") from error
    try:
        with open(fd, "wb") as file:
            file.write(data)
    except OSError as error:
        os.unlink(path)
        raise TryLater(f"{path}: {error.strerror}", hint="nothing is left of it") from error


def _crash(document: Record) -> list[tuple[str, str]]:
    victim, captured, place = document["victim"], document["captured"], document["place"]
    held = f", the process held for {human_duration(captured['held_usec'])}" if captured["transport"] in _HELD else ""
    transport = _TRANSPORTS.get(captured["transport"], printable(captured["transport"]))
    return [
        ("Crashed", f"{words.when(captured['time_usec'])}, {words.ago(captured['time_usec'])}"),
        ("Host", printable(captured["hostname"])),
        ("Executable", printable(victim["exe"] or "")),
        ("Package", _package(document["package"] or {})),
        ("Name", printable(victim["comm"] or "")),
        ("Command line", printable(victim["cmdline"] or "")),
        ("Process", _process(victim)),
        ("User", _known(victim["uid"], lambda number: pwd.getpwuid(number).pw_name)),
        ("Group", _known(victim["gid"], lambda number: grp.getgrgid(number).gr_name)),
        ("Signal", _signal(victim["signal"])),
        *((title, printable(str(place[name] or ""), 1000)) for title, name in _PLACE),
        ("Captured", f"{transport}{held}"),
        ("Also read by", _known(document["reader_uid"], lambda number: pwd.getpwuid(number).pw_name)),
    ]


def _package(package: dict[str, str | None]) -> str:
    """Return name and version, then what kind of package it is and for what machine."""
    name = " ".join(filter(None, (package.get("name"), package.get("version"))))
    kind = ", ".join(filter(None, (package.get("type"), package.get("architecture"))))
    return printable(f"{name} ({kind})" if name and kind else name or kind)


def _process(victim: dict[str, Any]) -> str:
    if victim["pid"] is None:
        return ""
    thread = f", its thread {victim['tid']}" if victim["tid"] not in (None, victim["pid"]) else ""
    return f"{victim['pid']}{thread}"


def _known(number: int | None, look_up: Callable[[int], str]) -> str:
    """Return a user's or group's number, with its name where this machine has one."""
    if number is None:
        return ""
    try:
        return f"{number} ({printable(look_up(number))})"
    except (KeyError, OverflowError):
        return str(number)


def _signal(number: int | None) -> str:
    if number is None:
        return ""
    if number == 0:
        return "none: the core is of a living process"
    try:
        words_for_it = signal.strsignal(number) or ""
    except (ValueError, OverflowError):
        words_for_it = ""
    return f"{number}, {words.signal_name(number)}" + (f": {words_for_it}" if words_for_it else "")


def _kept(document: Record, files: list[str]) -> list[tuple[str, str]]:
    core, assets, snapshot = document["core"], document["assets"], document["snapshot"]
    truncated = core["truncated"]
    missing = [printable(name, 100) for name in assets["missing"]]
    if len(missing) > _MISSING_MOST:
        missing[_MISSING_MOST:] = [f"{len(missing) - _MISSING_MOST} more"]
    why = f"{words.TRUNCATED.get(truncated['reason'], printable(truncated['reason']))}; " if truncated else ""
    core_text = f"{human_bytes(core['size_bytes'])}, {core['class']} bit, {human_bytes(core['disk_bytes'])} on disk"
    core_text += ", compressed" if core["compressed_bytes"] is not None else ""
    sealed = document["encrypted"]
    names = ", ".join(printable(one, 100) for one in sealed["recipients"]) if sealed else ""
    to = f"core and asset, by {printable(sealed['tool'], 40)}, to {names}" if sealed else ""

    def there(name: str, text: str) -> str:
        if dumps.has_file(files, name):
            return text
        if name == dumps.CORE and document["core_removed"]:
            return f"none: {dumps.core_gone(document)}; it had {text}"
        return f"MISSING, deleted by something other than coresnap; it had {text}"

    return [
        ("Core", there(dumps.CORE, core_text)),
        ("Truncated", f"{why}whole it has {human_bytes(truncated['expected_bytes'])}" if truncated else ""),
        ("Asset", there(dumps.ASSETS, human_bytes(assets["size_bytes"])) if assets["size_bytes"] else "none"),
        ("Encrypted", to),
        ("Missing in it", ", ".join(missing)),
        ("Snapshot", there(dumps.SNAPSHOT, human_bytes(snapshot["size_bytes"])) if snapshot else "none"),
    ]


def _done(document: Record) -> list[tuple[str, str]]:
    attempts, failure, next_try_usec = document["attempts"], document["failure"], document["next_try_usec"]
    pinned_usec = document["pinned_usec"]
    return [
        ("Pinned", f"since {words.when(pinned_usec)}: purge does not remove it" if pinned_usec is not None else ""),
        ("Attempts", f"{attempts['process']} at its snapshot, {attempts['send']} at its delivery"),
        ("Next try", f"{words.when(next_try_usec)}, {words.ago(next_try_usec)}" if next_try_usec is not None else ""),
        ("Failure", f"{printable(failure['reason'])}: {printable(failure['detail'], 2000)}" if failure else ""),
    ]


def _receipt(receipt: dict[str, Any]) -> str:
    """Return in words what the store acknowledged; a receipt may have anything behind any key."""
    if not receipt:
        return ""
    store, place = (printable(str(receipt.get(key, "?")), 200) for key in ("store", "object"))
    time_usec = receipt.get("acknowledged_usec")
    when = f", {words.when(time_usec)}" if isinstance(time_usec, int) else ""
    again = ", which had it already" if receipt.get("already_there") is True else ""
    return f"{store} took it as {place}{when}{again}"


def _json_object(dump: Dump, name: str, limit_bytes: int) -> dict[str, Any] | None:
    """Return a JSON object from a file of the dump; None where there is none. What it says only informs."""
    try:
        found = json.loads(dumps.read_file(dump, name, limit_bytes))
    except (CoresnapError, OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _report(dump: Dump) -> Report | None:
    """Return the snapshot, where it is a JSON report."""
    try:
        return reports.parse(dumps.read_file(dump, dumps.SNAPSHOT, _SNAPSHOT_MAX_BYTES))
    except (CoresnapError, OSError):
        return None
