# SPDX-License-Identifier: Apache-2.0
"""Fetch debug files of the modules that crashed, so that the next snapshot, or gdb, has names where there were none.

fetch asks the servers of symbols.urls, else of $DEBUGINFOD_URLS, for the modules that frames of the dump are in, and keeps
the files in /var/cache/coresnap/debug, by build-id. coresnap-snapshot looks there. `-` in place of a dump reads build-ids
from standard input, one a line. wanted prints the build-ids that the spool's snapshots lack debug files of.

coresnap-symbols.timer, off by default, does both from time to time: `systemctl enable --now coresnap-symbols.timer`.

examples:
  coresnap symbols fetch 8460
  DEBUGINFOD_URLS=https://debuginfod.debian.net coresnap symbols fetch --all 8460
  coresnap info 8460 --fresh
  coresnap debug 8460

Exit status 0: all that was wanted is there; 69: some of it no server has; 75: some of it could not be fetched for now.
"""

from __future__ import annotations

import json
import os
import sys
from argparse import SUPPRESS
from typing import TYPE_CHECKING, Any

from coresnap.cli import cores, dumps, terminal
from coresnap.ground import settings
from coresnap.ground.errors import BadInput, BadSettings, CoresnapError, Refused, TryLater
from coresnap.ground.text import human_bytes, printable
from coresnap.host import debug_cache
from coresnap.host.debug_cache import BUILD_ID, Cache

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from coresnap.ground.settings import Settings
    from coresnap.spool.stages import Dump

_SNAPSHOT_MAX_BYTES = 128 << 20
_BUILD_IDS_MAX = 10_000
_LINES_MAX_BYTES = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("action", choices=("fetch", "wanted"), help="what to do")
    parser.add_argument("dump", metavar="UUID", nargs="*", help="a dump, [STAGE/]BEGINNING-OF-UUID; - for build-ids")
    parser.add_argument("--all", action="store_true", help="of all modules, not only those that frames are in")
    parser.add_argument("--cache", metavar="DIR", default=debug_cache.PATH, help="keep debug files here (%(default)s)")
    # Of $CORESNAPD_OPTS, and nothing here:
    parser.add_argument("-f", action="store_true", dest="foreground", help=SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if bool(args.dump) == (args.action == "wanted"):
        terminal.note("symbols: fetch needs a dump, or -; wanted takes none")
        return 2
    loaded = settings.load(args.settings)
    if args.action == "wanted":
        return _wanted(loaded, args.cache)
    cache = Cache(args.cache)
    try:
        named = _named(args, loaded)
        return _fetch(named, loaded, cache, retry="-" not in args.dump)
    finally:
        cache.close()


def _wanted(loaded: Settings, cache_path: str) -> int:
    """Print the build-ids that frames of snapshots are in, and that there is no debug file of."""
    wanted: dict[str, str] = {}
    with dumps.open_spool(loaded.dump_root) as spool:
        for stage, uuid in [(name, uuid) for name in dumps.LISTED for uuid in spool.uuids(name)]:
            try:
                with dumps.open_dump(spool, f"{stage}/{uuid}") as dump:
                    wanted |= _of_snapshot(dump, every=False)
            except (CoresnapError, OSError):
                continue  # it has no snapshot, or moves
    print(*[build_id for build_id in wanted if not debug_cache.has(cache_path, build_id)][:_BUILD_IDS_MAX], sep="\n")
    return 0


def _named(args: argparse.Namespace, loaded: Settings) -> dict[str, str]:
    """Return what is asked for: path by build-id."""
    named: dict[str, str] = {}
    for text in args.dump:
        if text == "-":
            lines = sys.stdin.buffer.read(_LINES_MAX_BYTES).decode("ascii", "replace").split()
            named |= {line: "" for line in lines[:_BUILD_IDS_MAX] if BUILD_ID.fullmatch(line)}
            continue
        with dumps.open_spool(loaded.dump_root) as spool, dumps.open_dump(spool, text) as dump:
            named |= _of_snapshot(dump, every=args.all) if dumps.SNAPSHOT in os.listdir(dump.fd) else _of_core(dump)
    return named


def _of_snapshot(dump: Dump, *, every: bool) -> dict[str, str]:
    """Return the modules of a snapshot that is in Backtrace's JSON, or those of them that frames are in. Raises BadInput."""
    with open(dumps.open_file(dump, dumps.SNAPSHOT), "rb") as file:
        data = file.read(_SNAPSHOT_MAX_BYTES + 1)
    try:
        report: Any = json.loads(data) if len(data) <= _SNAPSHOT_MAX_BYTES else None
    except (ValueError, RecursionError):
        report = None
    if not isinstance(report, dict):
        raise BadInput(f"{dump.stage}/{dump.uuid}: its snapshot is no JSON that is read here")
    if every:
        return _build_ids(report.get("modules"), "build_id", "path")
    threads = report.get("threads")
    found: dict[str, str] = {}
    for thread in threads.values() if isinstance(threads, dict) else ():
        found |= _build_ids(thread.get("stack") if isinstance(thread, dict) else None, "debug_identifier", "library")
    return found


def _build_ids(rows: Any, key: str, path_key: str) -> dict[str, str]:
    result = {}
    for row in rows if isinstance(rows, list) else ():
        build_id, path = (row.get(key), row.get(path_key)) if isinstance(row, dict) else (None, None)
        is_file = isinstance(path, str) and path.startswith("/")
        if is_file and isinstance(build_id, str) and BUILD_ID.fullmatch(build_id):
            result[build_id] = str(path)
    return result


def _of_core(dump: Dump) -> dict[str, str]:
    """Return all modules of a core that has no snapshot yet."""
    from coresnap.snapshot.core import open_core
    from coresnap.snapshot.modules import list_modules

    fd, is_compressed = cores.open_core(dump)
    with open(fd, "rb") as file:
        if is_compressed:
            raise Refused(f"{dump.stage}/{dump.uuid} has no snapshot, and its core is compressed")
        modules = list_modules(open_core(file.fileno())).listed
    return {module.build_id: module.path for module in modules if module.build_id and module.path.startswith("/")}


def _fetch(named: dict[str, str], loaded: Settings, cache: Cache, *, retry: bool) -> int:
    """Fetch what is not there; what no server had lately is asked for again where a person does so."""
    from coresnap.host import debuginfod

    urls = debuginfod.servers(" ".join(loaded.symbols_urls) or os.environ.get("DEBUGINFOD_URLS", ""))
    wanted = [build_id for build_id in named if not cache.has(build_id)]
    if not retry:
        wanted = [build_id for build_id in wanted if not cache.is_known_missing(build_id)]
    if retry and len(named) > len(wanted):
        terminal.note(f"{len(named) - len(wanted)} of {len(named)} debug files are there already")
    if wanted and not urls:
        raise BadSettings("no server of debug files is known", hint="set symbols.urls, or DEBUGINFOD_URLS")
    worst = 0
    for build_id in wanted:
        what = printable(named[build_id]) or build_id
        most_bytes = min(loaded.symbols_max_bytes, debuginfod.free_bytes(cache))
        try:
            size_bytes = _fetch_one(urls, build_id, cache, most_bytes, what)
        except (BadInput, Refused, TryLater) as error:
            terminal.note(f"{what}: {error.line()}")
            worst = max(worst, error.exit_status)
            continue
        except OSError as error:
            raise Refused(f"{cache.path}: {error.strerror}", hint="ask as root") from error
        print(f"{build_id}: {human_bytes(size_bytes)}, {what}", flush=True)
    cache.make_room(loaded.symbols_max_bytes)
    return worst


def _fetch_one(urls: Iterable[str], build_id: str, cache: Cache, most_bytes: int, what: str) -> int:
    from coresnap.host import debuginfod

    done_bytes = 0
    with terminal.Progress(what, 0, lambda: done_bytes) as progress:

        def note(done: int, total_bytes: int) -> None:
            nonlocal done_bytes
            done_bytes, progress.total_bytes = done, total_bytes

        return debuginfod.fetch(list(urls), build_id, cache, most_bytes, note)
