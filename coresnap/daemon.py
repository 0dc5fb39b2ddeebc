#!/usr/bin/python3 -I
# SPDX-License-Identifier: Apache-2.0
"""coresnapd - keep coresnap's stages at work

SYNOPSIS
    coresnapd [--settings FILE] [-f | --once | --prepare]

DESCRIPTION
    Ends the captures whose archive was killed, and supervises the stage processor and the sender as child processes. A
    spool has one coresnapd at a time.

    -f               foreground: the output of defaults.command and snapshot.command is shown here
    --once           process and send what is due, then end: for cron; ends at once where a coresnapd is at work
    --prepare        make the spool, try a rename through all stages, write archive's settings, and end
    --settings FILE  read this configuration file, and no other; archive's settings are not written then
    --compiled FILE  write archive's settings to this file

SIGNALS
    SIGHUP reads the settings again; wrong ones are refused and the old ones go on. SIGTERM ends the stages and coresnapd.

EXIT STATUS
    0 ended as asked; 69 the spool cannot be made; 78 the settings are wrong.
"""

import argparse
import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

import fcntl
import select
import time
from dataclasses import dataclass

from coresnap.capture.finish import sweep
from coresnap.ground import flat, notify, program, runner, settings
from coresnap.ground.errors import CoresnapError, Refused, TryLater
from coresnap.ground.log import Log
from coresnap.ground.settings import Settings
from coresnap.ground.text import printable
from coresnap.spool import ledger, stages
from coresnap.spool.stages import Spool

_SWEEP_USEC = 60_000_000
_PURGE_USEC = 3_600_000_000
_RESTART_USEC = (1_000_000, 60_000_000)
_STEADY_USEC = 60_000_000


def main(arguments: list[str] | None = None) -> int:
    """Run coresnapd; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="coresnapd", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", metavar="FILE", help="read this configuration file, and no other")
    parser.add_argument("--compiled", metavar="FILE", help="write archive's settings here")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("-f", "--foreground", action="store_true", help="show the commands' output here")
    mode.add_argument("--once", action="store_true", help="process and send what is due, then end")
    mode.add_argument("--prepare", action="store_true", help="make the spool and archive's settings, then end")
    options = parser.parse_args(arguments)
    log = Log.open()
    return program.run("coresnapd", lambda: _run(options, log), log.error)


def _run(options: argparse.Namespace, log: Log) -> int:
    loaded = read_settings(options, log)
    if options.prepare:
        prepare(loaded)
        return 0
    with Spool(loaded.dump_root) as spool, program.signals() as caught:
        if not _alone(spool):
            if options.once:
                return 0
            raise TryLater(f"a coresnapd is at work on {spool.path} already", hint="`coresnap status` shows the stages")
        stages.probe(spool)
        _sweep(spool, loaded, log)
        for name in spool.foreign():
            log.warning(f"{spool.path}/{printable(name)} is no dump, ignoring")
        if options.once:
            return _once(options, caught)
        log.info(f"at work on {spool.path}: {_totals(spool)}")
        Daemon(options, spool, log, loaded).run(caught)
        log.info("ended")
    return 0


def read_settings(options: argparse.Namespace, log: Log) -> Settings:
    """Read the settings and compile them for archive. Raises BadSettings, or Refused where that cannot be written."""
    loaded = settings.load(options.settings)
    for warning in loaded.warnings:
        log.warning(warning)
    compiled = options.compiled or (None if options.settings else flat.PATH)
    if compiled:
        try:
            settings.write_compiled(loaded, compiled)
        except OSError as error:
            raise Refused(
                f"{compiled}: {error.strerror}", hint="run it as root, or name another file by --compiled"
            ) from error
    return loaded


def prepare(loaded: Settings) -> None:
    """Make the spool, as far as it is not there. Raises Refused, TryLater."""
    _mode, uid, gid = loaded.dump_owner()
    stages.prepare(loaded.dump_root, uid, gid)
    with Spool(loaded.dump_root) as spool:
        try:
            ledger.prepare(spool.root_fd, uid, gid)
        except OSError as error:
            raise TryLater(f"{spool.path}/{ledger.NAME}: {error.strerror}", hint="the ledger needs 2 MiB") from error


def _alone(spool: Spool) -> bool:
    """Be the one coresnapd of this spool, for as long as its root is open; false where another is."""
    try:
        fcntl.flock(spool.root_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _totals(spool: Spool) -> str:
    return ", ".join(f"{stage} {len(spool.uuids(stage))}" for stage in stages.STAGES[1:])


def _sweep(spool: Spool, loaded: Settings, log: Log) -> None:
    for outcome in sweep(spool, settings.archive_settings(loaded)):
        if outcome.kept:
            log.warning(
                f"{outcome.uuid}: salvaged, its archive was killed: {outcome.truncated}", CORESNAP_DUMP=outcome.uuid
            )
        else:
            log.error(f"{outcome.uuid}: lost, {outcome.reason}: {outcome.detail}", CORESNAP_DUMP=outcome.uuid)


def _once(options: argparse.Namespace, caught: program.Signals) -> int:
    """Run each stage's owner once, the way of a dump, or until asked to stop; return the worst exit status."""
    worst = 0
    poll = select.poll()
    poll.register(caught.fd, select.POLLIN)
    for name in ("process", "send"):
        child = runner.spawn([*_argv(name, options), "--once"])
        while (status := child.poll()) is None and not caught.stop:
            poll.poll()  # SIGCHLD is among what is caught
            caught.drain()
        worst = max(worst, child.end() if status is None else status)
        if caught.stop:
            break
    return worst


def _argv(name: str, options: argparse.Namespace) -> list[str]:
    argv = program.argv_of(name, packages=True)
    if options.settings:
        argv += ["--settings", options.settings]
    if options.foreground and name == "process":
        argv += ["--output", "inherit"]
    return argv


@dataclass
class _Supervised:
    """A child that is kept running, or run now and then (`every_usec`)."""

    name: str
    every_usec: int = 0
    child: runner.Child | None = None
    next_usec: int = 0
    started_usec: int = 0
    failures: int = 0


class Daemon:
    """coresnapd at work."""

    def __init__(self, options: argparse.Namespace, spool: Spool, log: Log, loaded: Settings) -> None:
        self.loaded = loaded
        self.options = options
        self.spool = spool
        self.log = log
        self.children = [_Supervised("process"), _Supervised("send"), _Supervised("purge", every_usec=_PURGE_USEC)]
        self.sweep_usec = _now_usec() + _SWEEP_USEC

    def run(self, caught: program.Signals) -> None:
        """Supervise until asked to stop."""
        poll = select.poll()
        poll.register(caught.fd, select.POLLIN)
        notify.ready()
        try:
            while not caught.stop:
                self._start_due()
                notify.status(_totals(self.spool))
                wake_usec = min([self.sweep_usec, *(child.next_usec for child in self.children if not child.child)])
                if poll.poll(max(0, wake_usec - _now_usec()) // 1000 + 1):
                    caught.drain()
                self._reap()
                if caught.reload:
                    caught.reload = False
                    self._reload()
                if _now_usec() >= self.sweep_usec:
                    _sweep(self.spool, self.loaded, self.log)
                    self.sweep_usec = _now_usec() + _SWEEP_USEC
        finally:
            notify.stopping()
            self._end()

    def _start_due(self) -> None:
        for supervised in self.children:
            if supervised.child is None and _now_usec() >= supervised.next_usec:
                supervised.child = runner.spawn(_argv(supervised.name, self.options))
                supervised.started_usec = _now_usec()

    def _reap(self) -> None:
        """Take note of children that have ended, and when each is to run again."""
        for supervised in self.children:
            status = supervised.child.poll() if supervised.child else None
            if status is None:
                continue
            supervised.child = None
            if supervised.every_usec and status == 0:
                supervised.next_usec = _now_usec() + supervised.every_usec
                continue
            steady = _now_usec() - supervised.started_usec > _STEADY_USEC
            supervised.failures = 1 if steady else supervised.failures + 1
            wait_usec = min(_RESTART_USEC[0] << min(supervised.failures - 1, 20), _RESTART_USEC[1])
            supervised.next_usec = _now_usec() + wait_usec
            self.log.error(
                f"{supervised.name} ended with status {status}; starting it again in {wait_usec // 1_000_000} s"
            )

    def _reload(self) -> None:
        notify.reloading()
        try:
            self.loaded = read_settings(self.options, self.log)
        except CoresnapError as error:
            self.log.error(f"reload refused, the old settings go on: {error.line()}")
        else:
            self._end()
            self.log.info("settings read again")
        notify.ready()

    def _end(self) -> None:
        for supervised in self.children:
            if supervised.child:
                supervised.child.end()
                supervised.child = None
                supervised.next_usec = 0


def _now_usec() -> int:
    return time.monotonic_ns() // 1000


if __name__ == "__main__":
    sys.exit(main())
