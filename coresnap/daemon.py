#!/usr/bin/python3 -I
# SPDX-License-Identifier: Apache-2.0
"""coresnapd - keep coresnap's stages at work

SYNOPSIS
    coresnapd [--settings FILE] [-f]
              [--once | --units | --early | --release | --fallback | --check | --prepare]

DESCRIPTION
    Ends the captures whose archive was killed, and supervises the stage processor and the sender as child processes. A
    spool has one coresnapd at a time.

    -f               foreground: the output of defaults.command and snapshot.command is shown here
    --once           process and send what is due, then end: for cron; ends at once where a coresnapd is at work
    --units          own core_pattern, as coresnapd.service does: units do the stages' work; put on record what the kernel
                     has handed to nobody, and whose archive was killed while it waited
    --early          have archive get the cores until coresnapd is at work, and end
    --release        give core_pattern back to whoever had it, unless systemd is about to start coresnapd again, and end
    --fallback       start the capture service, which has failed; have archive get the cores where that fails, and end
    --check          see whether the settings are right, and end
    --prepare        make the spool, try a rename through all stages, write archive's settings, and end
    --settings FILE  read this configuration file, and no other; without --units archive's settings are not written then
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
from contextlib import ExitStack, suppress

from coresnap.capture import carry
from coresnap.capture.aftermath import lose
from coresnap.capture.sweep import sweep
from coresnap.capture.victim import CORE_PATTERN, Victim, from_core_pattern
from coresnap.ground import flat, notify, program, runner, settings
from coresnap.ground.errors import CoresnapError, Refused, TryLater
from coresnap.ground.log import Log
from coresnap.ground.settings import Settings
from coresnap.ground.supervise import Supervised, Supervisor, now_usec
from coresnap.ground.text import printable
from coresnap.host import claim
from coresnap.host.claim import Claim
from coresnap.host.kernel_log import KernelLog
from coresnap.host.pattern import Host
from coresnap.host.transport import PROBE_NAME
from coresnap.host.units import STAGES
from coresnap.spool import hooks, ledger, limits, stages, unjournaled
from coresnap.spool.stages import Spool

_LOOK_USEC = 60_000_000
_PURGE_USEC = 600_000_000
_KILLED_WAITING = "archive was killed while it waited, in a storm of crashes"


def main(arguments: list[str] | None = None) -> int:
    """Run coresnapd; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="coresnapd", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", metavar="FILE", help="read this configuration file, and no other")
    parser.add_argument("--compiled", metavar="FILE", help="write archive's settings here")
    parser.add_argument("-f", "--foreground", action="store_true", help="show the commands' output here")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="see whether the settings are right, then end")
    mode.add_argument("--once", action="store_true", help="process and send what is due, then end")
    mode.add_argument("--units", action="store_true", help="own core_pattern; units do the stages' work")
    mode.add_argument("--early", action="store_true", help="have archive get the cores until then, then end")
    mode.add_argument("--release", action="store_true", help="give core_pattern back, then end")
    mode.add_argument("--fallback", action="store_true", help="have capture go on after a failure, then end")
    mode.add_argument("--prepare", action="store_true", help="make the spool and archive's settings, then end")
    options = parser.parse_args(arguments)
    log = Log.open()
    return program.run("coresnapd", lambda: _run(options, log), log.error)


def _run(options: argparse.Namespace, log: Log) -> int:
    if options.early:
        claim.claim_early(Host(), CORE_PATTERN, log)
        return 0
    if options.release:
        claim.release(Host(), log)
        return 0
    if options.fallback:
        claim.fall_back(Host(), CORE_PATTERN, log)
        return 0
    if options.check:
        settings.load(options.settings)
        return 0
    loaded = read_settings(options, log)
    if options.prepare or options.units:
        prepare(loaded)
    if options.prepare:
        return 0
    with Spool(loaded.dump_root) as spool, program.signals() as caught:
        if not _alone(spool):
            if options.once:
                return 0
            raise TryLater(f"a coresnapd is at work on {spool.path} already", hint="`coresnap status` shows the stages")
        stages.probe(spool)
        if not options.units:
            _sweep(spool, loaded, log)
        for name in spool.foreign():
            log.warning(f"{spool.path}/{printable(name)} is no dump, ignoring")
        if options.once:
            return _once(options, spool, loaded, log, caught)
        log.info(f"at work on {spool.path}: {_totals(spool)}")
        Daemon(options, spool, log, loaded).run(caught)
        log.info("ended")
    return 0


def read_settings(options: argparse.Namespace, log: Log) -> Settings:
    """Read the settings and compile them for archive. Raises BadSettings, or Refused where that cannot be written."""
    loaded = settings.load(options.settings)
    for warning in loaded.warnings:
        log.warning(warning)
    compiled = options.compiled or (None if options.settings and not options.units else flat.PATH)
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
            limits.prepare(spool.root_fd, uid, gid)
        except OSError as error:
            raise TryLater(f"{spool.path}/{ledger.NAME}: {error.strerror}", hint="the ledger needs 4 MiB") from error


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
    sweep(log, spool, settings.archive_settings(loaded))


def _tell_late(spool: Spool, loaded: Settings, log: Log) -> None:
    try:
        told = unjournaled.tell(spool, loaded.dump_owner())
    except OSError as error:
        log.warning(f"{spool.path}/{unjournaled.NAME}: {error.strerror}: coredumpctl does not list all dumps")
        return
    if told:
        log.info(f"coredumpctl now lists {told} dumps that were processed while the journal was away")


def _once(options: argparse.Namespace, spool: Spool, loaded: Settings, log: Log, caught: program.Signals) -> int:
    """Run each stage's owner once, the way of a dump, or until asked to stop; return the worst exit status."""
    worst = 0
    poll = select.poll()
    poll.register(caught.fd, select.POLLIN)
    for name in _owners(loaded):
        child = runner.spawn([*_argv(name, options), "--once"])
        while (status := child.poll()) is None and not caught.stop:
            poll.poll()  # SIGCHLD is among what is caught
            caught.drain()
        worst = max(worst, child.end() if status is None else status)
        if caught.stop:
            break
    _tell_late(spool, loaded, log)
    return worst


def _owners(loaded: Settings) -> tuple[str, ...]:
    """Return the programs that do the work, the way of a dump; hooks only where there are any."""
    return ("process", "send", "hook") if hooks.commands(loaded) else ("process", "send")


def _argv(name: str, options: argparse.Namespace) -> list[str]:
    argv = program.argv_of(name, packages=True)
    if options.settings:
        argv += ["--settings", options.settings]
    if options.foreground and name == "process":
        argv += ["--output", "inherit"]
    return argv


class Daemon:
    """coresnapd at work: with a claim it owns core_pattern, and units do the stages' work; without, its children do."""

    def __init__(self, options: argparse.Namespace, spool: Spool, log: Log, loaded: Settings) -> None:
        self.loaded = loaded
        self.options = options
        self.spool = spool
        self.log = log
        self.claim = Claim(Host(), CORE_PATTERN, log) if options.units else None
        self.children = Supervisor(self._kept(), lambda name: _argv(name, options), log.error)
        self.look_usec = now_usec() + _LOOK_USEC
        self.kernel_log: KernelLog | None = None

    def _kept(self) -> list[Supervised]:
        if self.claim:
            return []
        return [*map(Supervised, _owners(self.loaded)), Supervised("purge", _PURGE_USEC)]

    def run(self, caught: program.Signals) -> None:
        """Work until asked to stop."""
        with ExitStack() as stack:
            poll = select.poll()
            poll.register(caught.fd, select.POLLIN)
            if self.claim:
                self._open_kernel_log(stack)
                self.claim.begin(self.loaded)
                watch = stack.enter_context(self.claim.watch())
                poll.register(watch.fd, select.POLLIN)
            stack.callback(self.children.end)
            stack.callback(notify.stopping)
            notify.ready()
            while not caught.stop:
                self.children.start_due()
                notify.status("; ".join([*([self.claim.standing()] if self.claim else []), _totals(self.spool)]))
                notify.watchdog()
                wake_usec = min([self.look_usec, *self.children.wake_usec(), *self._watch_kernel_log(poll)])
                ready = {fd for fd, _events in poll.poll(max(0, wake_usec - now_usec()) // 1000 + 1)}
                if self.kernel_log and self.kernel_log.fd in ready:
                    ready.discard(self.kernel_log.fd)
                    self._read_kernel_log(self.kernel_log, poll)
                if caught.fd in ready:
                    caught.drain()
                self.children.reap()
                if caught.reload:
                    caught.reload = False
                    self._reload()
                if self.claim and ready - {caught.fd}:
                    watch.drain()
                    self.claim.check()
                if now_usec() >= self.look_usec:
                    self._look()

    def _open_kernel_log(self, stack: ExitStack) -> None:
        try:
            self.kernel_log = stack.enter_context(KernelLog(Host()))
        except OSError as error:
            self.log.warning(f"the kernel's log: {error.strerror}: cores that the kernel skips will not be on record")

    def _watch_kernel_log(self, poll: select.poll) -> list[int]:
        """Have the kernel's log polled where it is due; return when it will be otherwise."""
        if not self.kernel_log:
            return []
        if now_usec() >= self.kernel_log.due_usec:
            poll.register(self.kernel_log.fd, select.POLLIN)
            return []
        with suppress(KeyError):
            poll.unregister(self.kernel_log.fd)
        return [self.kernel_log.due_usec]

    def _read_kernel_log(self, kernel_log: KernelLog, poll: select.poll) -> None:
        """Put on record which cores the kernel has handed to nobody."""
        archive_settings = settings.archive_settings(self.loaded)
        try:
            for drop in kernel_log.drops():
                if drop.comm == PROBE_NAME:
                    continue
                victim = Victim()
                victim.pid, victim.comm = drop.pid, drop.comm
                lose(self.log, archive_settings, self.spool, victim, "skipped", drop.detail)
        except OSError as error:
            self.log.error(
                f"the kernel's log: {error.strerror}: cores that the kernel skips are not on record any more"
            )
            poll.unregister(kernel_log.fd)
            self.kernel_log = None

    def _look(self) -> None:
        """See to what nothing tells of."""
        self.look_usec = now_usec() + _LOOK_USEC
        if self.claim:
            self.claim.check()  # the capture service sweeps
            archive_settings = settings.archive_settings(self.loaded)
            for victim in map(from_core_pattern, carry.killed()):
                lose(self.log, archive_settings, self.spool, victim, "interrupted", _KILLED_WAITING)
        else:
            _sweep(self.spool, self.loaded, self.log)
        _tell_late(self.spool, self.loaded, self.log)

    def _reload(self) -> None:
        notify.reloading()
        try:
            if settings.load(self.options.settings).dump_root != self.loaded.dump_root:
                raise Refused("dump.root has changed", hint="`systemctl restart coresnapd`, or start it again by hand")
            loaded = read_settings(self.options, self.log)
            if self.claim:
                self.claim.fit(loaded)
                self.claim.restart(STAGES)
            self.loaded = loaded
        except CoresnapError as error:
            self.log.error(f"reload refused, the old settings go on: {error.line()}")
        else:
            self.children.end()
            self.children.children = self._kept()
            self.log.info("settings read again")
        notify.ready()


if __name__ == "__main__":
    sys.exit(main())
