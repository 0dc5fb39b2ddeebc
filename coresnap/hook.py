#!/usr/bin/python3 -I
# SPDX-License-Identifier: Apache-2.0
"""coresnap hook - run the hooks of dumps that have come to a stage

SYNOPSIS
    python3 -m coresnap.hook [--settings FILE] [--once | --linger SECONDS]

DESCRIPTION
    Owns the queue <dump.root>/hooks, into which the owners of stages put what has happened to dumps. For each event in
    turn a worker runs the command of on.sending, on.committed or on.failed, with the event in its words and in its
    environment. A hook that fails, or takes longer than on.timeout, is told of in one line, and that is all: nothing of
    the dump depends on it.

    --once           end when the queue is empty
    --linger SECONDS end when it has been empty for so long

EXIT STATUS
    0 the hooks have been run; 69 there is no spool; 78 the settings are wrong.

SECURITY
    It hands the worker a command and the event, and no descriptor of anything. The worker is another user, in a unit of
    its own.
"""

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

import argparse
import select
from typing import Any

from coresnap.ground import inotify, notify, program, settings, wire
from coresnap.ground.clock import Clock
from coresnap.ground.errors import BadInput, CoresnapError
from coresnap.ground.formats import expand
from coresnap.ground.log import Log
from coresnap.ground.program import Signals, argv_of
from coresnap.spool import hooks
from coresnap.spool.hooks import Event
from coresnap.spool.stages import Spool
from coresnap.spool.worker import Worker, connect, spawn

_GRACE_USEC = 10_000_000
_NO_WORKER_USEC = 30_000_000
_RESCAN_USEC = 600_000_000


class Hooks:
    """The hooks at work. `run` is its whole life."""

    def __init__(self, queue_fd: int, loaded: settings.Settings, log: Log, worker_socket: str | None) -> None:
        self.queue_fd = queue_fd
        self.commands = hooks.commands(loaded)
        self.timeout_usec = loaded.on_timeout_usec
        self.log = log
        self.worker_socket = worker_socket
        self.clock = Clock()
        self.said = ""

    def run(self, caught: Signals, *, once: bool, linger_usec: int | None = None) -> None:
        """Work until a signal asks to stop; with `once` until the queue is empty; with `linger_usec` until it was for so long."""
        with inotify.Watch(self.queue_fd) as watch:
            poll = select.poll()
            poll.register(watch.fd, select.POLLIN)
            poll.register(caught.fd, select.POLLIN)
            hooks.clear(self.queue_fd, self.clock.wall_usec())
            while not caught.stop:
                names = list(hooks.waiting(self.queue_fd))
                notify.status(f"{len(names)} hooks waiting")
                stuck = not all(self._take(name, caught) for name in names if not caught.stop)
                if once or caught.stop:
                    return
                wait_usec = _NO_WORKER_USEC if stuck else linger_usec if linger_usec is not None else _RESCAN_USEC
                ready = {fd for fd, _events in poll.poll(wait_usec // 1000 + 1)}
                if not ready and not stuck and linger_usec is not None:
                    return
                if watch.fd in ready:
                    watch.drain()
                if caught.fd in ready:
                    caught.drain()

    def _take(self, name: str, caught: Signals) -> bool:
        """Run the hook of an event, as far as it has one; false where no worker can be had, and the event stays."""
        try:
            event = hooks.read(self.queue_fd, name)
        except (BadInput, OSError) as error:
            self.log.warning(f"{error}: no hook is run")
            os.unlink(name, dir_fd=self.queue_fd)
            return True
        if event.stage not in self.commands:
            os.unlink(name, dir_fd=self.queue_fd)
            return True
        try:
            worker = spawn(argv_of("hook_worker")) if self.worker_socket is None else connect(self.worker_socket)
        except OSError as error:
            self._say(f"no worker for hooks: {self.worker_socket or 'hook_worker'}: {error.strerror}; they wait")
            return False
        self.said = ""
        marked = hooks.mark(self.queue_fd, name)
        try:
            answer = self._ask(worker, event, caught)
        finally:
            worker.end()
        if caught.stop and answer is None:
            return True  # interrupted, not failed: it is run again, unless this was the second time
        if marked:
            os.unlink(marked, dir_fd=self.queue_fd)
        said = _failure(answer)
        if said:
            setting, fields = f"on.{event.stage}", {"CORESNAP_DUMP": event.uuid, "CORESNAP_STAGE": event.stage}
            self.log.warning(f"{event.uuid}: {setting} {self.commands[event.stage][0]}: {said}", **fields)
        return True

    def _say(self, line: str) -> None:
        """Say what does not change once."""
        if line != self.said:
            self.log.warning(line)
        self.said = line

    def _ask(self, worker: Worker, event: Event, caught: Signals) -> dict[str, Any] | None:
        """Have the worker run the hook; return its answer, None where there is none in time, or a signal asks to stop."""
        request = {
            "version": 1,
            "argv": expand(self.commands[event.stage], event.formats()),
            "environment": event.environment(),
            "timeout_usec": self.timeout_usec,
        }
        deadline_usec = self.clock.now_usec() + self.timeout_usec + _GRACE_USEC
        poll = select.poll()
        poll.register(caught.fd, select.POLLIN)
        poll.register(worker.socket, select.POLLIN)
        try:
            wire.send(worker.socket, request)
            while not caught.stop and (left_usec := deadline_usec - self.clock.now_usec()) > 0:
                ready = {fd for fd, _events in poll.poll(left_usec // 1000 + 1)}
                if caught.fd in ready:
                    caught.drain()
                if worker.socket.fileno() in ready:
                    received = wire.receive(worker.socket, max_fds=0)
                    return received[0] if received else None
        except (CoresnapError, OSError):
            pass
        return None


def _failure(answer: dict[str, Any] | None) -> str:
    """Return how a hook has failed, in words; empty where it has not."""
    if answer is None:
        return "its worker died, or did not answer in time"
    if answer.get("status") == 0:
        return ""
    return str(answer.get("ending", "its worker's answer cannot be understood"))[:1000]


def main(arguments: list[str] | None = None) -> int:
    """Run hook; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="coresnap-hook", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", metavar="FILE", help="read this configuration file, and no other")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--once", action="store_true", help="end when the queue is empty")
    mode.add_argument("--linger", metavar="SECONDS", type=float, help="end when it has been empty for so long")
    parser.add_argument("--worker-socket", metavar="PATH", help="connect here for a worker, in place of starting it")
    parser.add_argument("-f", action="store_true", help=argparse.SUPPRESS)  # of $CORESNAPD_OPTS, and nothing here
    options = parser.parse_args(arguments)
    log = Log.open()
    return program.run("coresnap-hook", lambda: _run(options, log), log.error)


def _run(options: argparse.Namespace, log: Log) -> int:
    loaded = settings.load(options.settings)
    with Spool(loaded.dump_root) as spool, program.signals() as caught:
        queue_fd = hooks.open_queue(spool)
        notify.ready()
        linger_usec = None if options.linger is None else int(options.linger * 1e6)
        Hooks(queue_fd, loaded, log, options.worker_socket).run(caught, once=options.once, linger_usec=linger_usec)
        notify.stopping()
    return 0


if __name__ == "__main__":
    sys.exit(main())
