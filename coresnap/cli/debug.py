# SPDX-License-Identifier: Apache-2.0
"""Open a dump's core in the debugger, with its executable if that is still there.

gdb is started so that nothing the crashed process left (scripts beside its files, debuginfo servers) is run or asked. It
finds the debug files that `coresnap symbols fetch` has fetched.
What stands after -- is the debugger's. What it prints is its own: names of the crashed process stand in it as they are.

examples:
  coresnap debug 8460
  coresnap debug 8460 -- -batch -ex 'thread apply all bt'
  coresnap debug 8460 --debugger gdb-multiarch --exe ./build/server
"""

from __future__ import annotations

import os
import shutil
import stat
from typing import TYPE_CHECKING

from coresnap.cli import cores, dumps, terminal
from coresnap.ground.errors import Refused
from coresnap.ground.text import printable
from coresnap.host import debug_cache

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("dump", metavar="UUID", help="the dump, [STAGE/]BEGINNING-OF-UUID")
    parser.add_argument(
        "arguments", nargs="*", default=[], metavar="-- ARGUMENT", help="what else the debugger is told"
    )
    parser.add_argument("--debugger", metavar="NAME", default="gdb", help="another one; gdb unless told")
    parser.add_argument("--identity", metavar="FILE", help="the private key, of age or ssh, for an encrypted core")
    parser.add_argument("--cache", metavar="DIR", help=f"debug files fetched ({debug_cache.PATH})")
    parser.add_argument("--exe", metavar="FILE", help="the executable, where it is not where it was")


def run(args: argparse.Namespace) -> int:
    """Become the debugger."""
    debugger = shutil.which(args.debugger)
    if debugger is None:
        raise Refused(f"{args.debugger} is not installed", hint=f"apt install {os.path.basename(args.debugger)}")
    with dumps.open_to_read(dumps.dump_root(args.settings)) as spool, dumps.open_dump(spool, args.dump) as dump:
        document = dumps.load_record(dump)
        victim = document["victim"]
        core_fd = cores.plain_core(dump, document, args.identity)
    exe = args.exe or _executable(victim["exe"])
    if exe is None:
        terminal.note(f"no executable {printable(victim['exe'] or '')} is there: no symbols; --exe FILE names another")
    if args.cache is not None and not os.path.isdir(f"{args.cache}/.build-id"):
        terminal.note(
            f"{args.cache}: no debug files are there; `coresnap symbols fetch --cache` fills such a directory"
        )
    os.set_inheritable(core_fd, True)
    argv = _argv(debugger, exe, f"/proc/self/fd/{core_fd}", args.arguments, args.cache or debug_cache.PATH)
    environment = {name: value for name, value in os.environ.items() if name not in ("DEBUGINFOD_URLS", "PAGER")}
    os.execve(debugger, argv, environment)


def _executable(path: str | None) -> str | None:
    """Return the path, as the record has it, if a regular file is there. The crashed process chose it."""
    try:
        if path and path.startswith("/") and stat.S_ISREG(os.stat(path).st_mode):
            return path
    except (OSError, ValueError):
        pass
    return None


def _argv(debugger: str, exe: str | None, core: str, arguments: list[str], cache: str) -> list[str]:
    """Return the debugger's command line. The core goes by its descriptor: the dump may move meanwhile."""
    name = os.path.basename(debugger)
    safe: list[str] = []
    if "gdb" in name:
        safe = ["-q", "-iex", "set auto-load off", "-iex", "set debuginfod enabled off"]
        if os.path.isdir(f"{cache}/.build-id"):  # `coresnap symbols fetch` has been at work
            safe += ["-iex", f"set debug-file-directory {debug_cache.SYSTEM}:{os.path.abspath(cache)}"]
        if os.geteuid() == 0:
            safe += ["-nh", "-iex", "set pagination off"]  # as root no user's .gdbinit, no pager
    return [name, *safe, *arguments, *([exe] if exe else []), "--core", core]
