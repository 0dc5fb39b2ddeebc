#!/usr/bin/python3 -I
# SPDX-License-Identifier: Apache-2.0
"""coresnap-capture - the resident capture service: takes every crash of the machine

SYNOPSIS
    coresnap-capture [--settings FILE] [--jobs N]

DESCRIPTION
    Serves two sockets that the service manager passes by name (sd_listen_fds(3)): `kernel`, to which a kernel from 6.17
    on connects for each crash where core_pattern is @@ and its path, and `handover`, on which archive hands over what
    an older kernel gave it. Workers, forked beforehand, capture as archive does, each one crash at a time; there is
    always one that waits, until N capture at once: further crashes wait then, held, in the sockets' queues.

    It writes down whose crash each worker has taken, in $RUNTIME_DIRECTORY/board: where it is killed with all of them, the
    next service puts on record what became of those.

    --settings FILE  the flat settings that `coresnap config --compile` wrote, read anew for each crash
    --jobs N         most captures at once (default: archive.jobs)

SIGNALS
    SIGTERM: no further crash is taken; it ends once those under way are whole.

EXIT STATUS
    0 ended as asked; 69 no sockets were passed.

SECURITY
    It never dumps core itself (PR_SET_DUMPABLE): its own crash would wait for itself. A process at the kernel's socket
    that has not crashed is refused, as is a hand-over by anybody but root and its own user.
"""

import argparse
import ctypes
import gc
import os
import signal
import socket
import sys
import time

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

import select
from typing import NoReturn

from coresnap.capture.aftermath import settle
from coresnap.capture.board import CAPTURES, FREE, LEFT, WAITS, find, former_boards, open_board, open_former
from coresnap.capture.reach import machine_s_root
from coresnap.capture.victim import Victim
from coresnap.capture.worker import WAITING, Worker
from coresnap.ground import flat, notify, program
from coresnap.ground.errors import CoresnapError, Refused
from coresnap.ground.listen import listen_fds
from coresnap.ground.log import Log
from coresnap.host.transport import PROBE_NAME, is_probe
from coresnap.spool import stages

_PR_SET_DUMPABLE = 4
#: How often it is looked whether anything is left behind, and the watchdog told that we live.
_LOOK_SECONDS = 60
_JOBS_MOST = 1024


class Service:
    """The sockets, and the workers that take crashes from them."""

    def __init__(self, listeners: dict[str, socket.socket], settings: flat.Compiled, jobs: int, log: Log) -> None:
        self.listeners = listeners
        self.settings = settings
        self.jobs = jobs
        self.log = log
        self.board = open_board(2 * jobs, log.warning)  # half of it for workers that have died
        self.within = machine_s_root()
        self.workers: dict[int, int] = {}
        self.sweeper = 0
        self.sweeps = True  # a former service may have been killed
        self.wanted_fd, self.want_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.stopped_fd, self.stop_fd = os.pipe2(os.O_CLOEXEC)

    def run(self, caught: program.Signals) -> None:
        """Serve until asked to stop, and until what is under way has ended."""
        gc.collect()
        gc.freeze()  # what has been imported is the workers' too, as long as nobody writes to it
        self._fork_workers()
        self._sweep()
        notify.ready()
        poll = select.poll()
        poll.register(caught.fd, select.POLLIN)
        poll.register(self.wanted_fd, select.POLLIN)
        look_at = time.monotonic() + _LOOK_SECONDS
        while not caught.stop or self.workers or self.sweeper:
            notify.watchdog()
            notify.status(f"{self.board.count(CAPTURES)} captures under way")
            ready = {fd for fd, _events in poll.poll(max(0.0, look_at - time.monotonic()) * 1000)}
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + _LOOK_SECONDS
                self.sweeps = True
            if self.wanted_fd in ready:
                os.read(self.wanted_fd, 4096)
            if caught.fd in ready:
                caught.drain()
                self._reap()
            self._sweep()
            if not caught.stop:
                self._fork_workers()
            elif self.stop_fd >= 0:
                os.close(self.stop_fd)  # those that wait see it
                self.stop_fd = -1
        notify.stopping()

    def _fork_workers(self) -> None:
        while self.board.count(WAITS) < WAITING and len(self.workers) < self.jobs:
            place = self._place()
            self.board.put(place, WAITS)
            try:
                pid = os.fork()
            except OSError as error:
                self.board.put(place, FREE)
                if not self.workers:
                    raise
                self.log.error(f"no further worker can be started: {error.strerror}")
                return
            if pid == 0:
                self._be_a_worker(place)
            self.workers[pid] = place

    def _place(self) -> int:
        """Return a place for another worker; where none is free, one whose crashes could not be settled, again and again."""
        try:
            return self.board.place()
        except ValueError:
            place = self.board.left()[0]
        for crash in self.board.crashes(place):
            self.log.error(f"{crash.taken().uuid}: its capture was killed, and what is left of it cannot be settled")
            crash.clear()
        return place

    def _reap(self) -> None:
        """Bury the children that have ended; what a worker has left is for the sweep."""
        while self.workers or self.sweeper:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            if pid == self.sweeper:
                self.sweeper = 0
                if os.WIFSIGNALED(status):
                    self.log.error(f"a sweep was killed by signal {os.WTERMSIG(status)}; it will be tried again")
                for place in self.board.left():
                    self._free(place)
            elif pid in self.workers:
                place = self.workers.pop(pid)
                if os.WIFSIGNALED(status):
                    self.log.error(f"a capture was killed by signal {os.WTERMSIG(status)}")
                self._free(place)
                self.sweeps |= self.board.at(place) == LEFT

    def _free(self, place: int) -> None:
        self.board.put(place, LEFT if self.board.crashes(place) else FREE)

    def _sweep(self) -> None:
        """Have a child keep, or put on record, what is left of captures that were killed: archive, a worker, a whole service."""
        if not self.sweeps or self.sweeper:
            return
        self.sweeps = False
        settings, _problem = self.settings.read()
        try:
            staging = os.listdir(os.path.join(self.within + settings.root, stages.STAGING))
        except OSError:
            staging = []  # no spool yet
        left, aside = self.board.left(), former_boards()
        if not staging and not left and not aside:
            return
        try:
            self.sweeper = os.fork()
        except OSError as error:
            self.log.error(f"no sweep can be started: {error.strerror}")
            return
        if self.sweeper:
            return
        try:
            self._be_a_child()
            for listener in self.listeners.values():
                listener.close()
            former = open_former(aside, self.log.warning)
            boards = [self.board, *former.values()]
            crashes = [crash for board in former.values() for crash in board.everything()]
            crashes += [crash for place in left for crash in self.board.crashes(place)]
            settle(self.log, settings, self.within, crashes, lambda uuid: find(boards, uuid))
            for path, board in former.items():
                if not board.everything():
                    os.unlink(path)
        except Exception as error:  # noqa: BLE001  # else nobody would hear of it
            self.log.error(f"sweep: {error!r}; it will be tried again")
        finally:
            os._exit(0)

    def _be_a_child(self) -> None:
        """Be rid of what is the service's: its signals, and what tells the workers to stop."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # what it holds it finishes
        if self.stop_fd >= 0:
            os.close(self.stop_fd)

    def _be_a_worker(self, place: int) -> NoReturn:
        status = 1
        try:
            self._be_a_child()
            gc.disable()
            Worker(place, self.board, self.listeners, self.settings, self.within, self.log).run(
                self.stopped_fd, self.want_fd, _is_probe
            )
            status = 0
        except (CoresnapError, OSError) as error:
            self.log.error(f"a crash could not be taken: {error}")
        except Exception as error:  # noqa: BLE001  # else nobody would hear of it
            self.log.error(f"a crash could not be taken: a mistake in coresnap: {error!r}")
        finally:
            os._exit(status)


def _is_probe(victim: Victim) -> bool:
    """Say whether it crashes only to see who comes. Of any other its name tells that, and no file is looked for."""
    return victim.comm == PROBE_NAME and is_probe(victim.pid)


def _never_dump_core() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def main(arguments: list[str] | None = None) -> int:
    """Run the capture service; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="coresnap-capture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", metavar="FILE", default=flat.PATH, help="archive's settings, compiled")
    parser.add_argument("--jobs", metavar="N", type=int, help="most captures at once, in place of archive.jobs")
    options = parser.parse_args(arguments)
    if options.jobs is not None and not 1 <= options.jobs <= _JOBS_MOST:
        parser.error(f"--jobs: {options.jobs} is not from 1 to {_JOBS_MOST}")
    log = Log.open()
    return program.run("coresnap-capture", lambda: _run(options, log), log.error)


def _run(options: argparse.Namespace, log: Log) -> int:
    listeners = {name: socket.socket(fileno=fd) for name, fd in listen_fds()}
    if not listeners or listeners.keys() - {"kernel", "handover"}:
        raise Refused("no sockets by the names kernel and handover", hint="`systemctl start coresnap-archive.socket`")
    _never_dump_core()
    for listener in listeners.values():
        listener.setblocking(False)
    compiled = flat.Compiled(options.settings)
    jobs = options.jobs or compiled.read()[0].jobs
    with program.signals() as caught:
        Service(listeners, compiled, jobs, log).run(caught)
    return 0


if __name__ == "__main__":
    sys.exit(main())
