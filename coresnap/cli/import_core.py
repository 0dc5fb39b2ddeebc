# SPDX-License-Identifier: Apache-2.0
"""Take cores that lie about into the spool, where they are processed and delivered as any other; print their UUIDs.

A file's own time counts as the time of the crash; who crashed is read from the core's notes. The file stays as it is.

examples:
  coresnap import core.4711
  coresnap import --exe /usr/bin/vim.basic /var/tmp/core*

Exit status 65: a file is no core, or is cut within its notes; 66: it is not there, or you may not read it; 75: there is no
room for it. The others are taken all the same.
"""

from __future__ import annotations

import os
import stat
import time
from typing import TYPE_CHECKING

from coresnap.capture.capture import Capture
from coresnap.capture.finish import Outcome, finish
from coresnap.capture.source import Source
from coresnap.capture.tell import tell
from coresnap.capture.victim import Victim
from coresnap.cli import dumps, terminal, words
from coresnap.cli.terminal import Progress
from coresnap.ground import elf, settings
from coresnap.ground.errors import BadInput, CoresnapError, unreadable
from coresnap.ground.flat import ArchiveSettings
from coresnap.ground.log import Log

if TYPE_CHECKING:
    import argparse


_TRY_LATER = ("quota", "disk-full", "write-error")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("file", nargs="+", metavar="FILE", help="an ELF core")
    parser.add_argument("--exe", metavar="PATH", help="the executable that crashed; a core does not tell")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    loaded = settings.load(args.settings)
    dumps.open_spool(loaded.dump_root).close()  # refuses here, once, and not for each file
    archive_settings = settings.archive_settings(loaded)
    worst = 0
    for path in args.file:
        try:
            outcome = _import(path, args.exe, archive_settings)
        except CoresnapError as error:
            terminal.note(error.line())
            worst = max(worst, error.exit_status)
            continue
        if outcome.kept:
            print(outcome.uuid)
            if outcome.truncated:
                why = words.TRUNCATED.get(outcome.truncated, outcome.truncated)
                terminal.note(f"{path}: the core is not whole: {why}")
        else:
            terminal.note(f"{path}: not kept: {outcome.reason}: {outcome.detail}")
            worst = max(worst, _exit_status(outcome))
    return worst


def _import(path: str, exe: str | None, archive_settings: ArchiveSettings) -> Outcome:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise BadInput(f"{path} is not a regular file", hint="`archive < FILE` reads from anything")
        _check(fd, path, status.st_size)
        victim = Victim()
        victim.time = int(status.st_mtime)
        victim.exe = os.path.abspath(exe) if exe else None
        source = Source(fd, "import")
        capture = Capture(archive_settings, victim, source.transport, time.monotonic_ns())
        with Progress(path, status.st_size, lambda: os.lseek(fd, 0, os.SEEK_CUR)):
            capture.hold(source, None)
            outcome = finish(capture)
        tell(Log.open(echo=False), capture, outcome)
        return outcome
    finally:
        os.close(fd)


def _check(fd: int, path: str, size_bytes: int) -> None:
    """Raise BadInput where the file is no core that can be kept: a loss would go on record, and here none is lost."""
    try:
        header = elf.read_core(lambda count, offset: os.pread(fd, count, offset))
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error
    if not 0 < header.notes_end <= size_bytes:
        raise BadInput(f"{path}: core: cut at {size_bytes} bytes, within its notes, which end at {header.notes_end}")


def _exit_status(outcome: Outcome) -> int:
    if isinstance(outcome.error, CoresnapError):
        return outcome.error.exit_status
    return 75 if outcome.reason in _TRY_LATER else 65
