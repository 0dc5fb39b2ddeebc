#!/usr/bin/python3 -I
# SPDX-License-Identifier: Apache-2.0
"""coresnap-capture - the resident capture service: every crash of the machine, each in a process of its own

SYNOPSIS
    coresnap-capture [--settings FILE] [--jobs N]

DESCRIPTION
    Serves two sockets that the service manager passes by name (sd_listen_fds(3)): `kernel`, to which a kernel from 6.17
    on connects for each crash where core_pattern is @@ and its path, and `handover`, on which archive hands over what
    an older kernel gave it. For each crash a child captures as archive does. At most N run at once; the others
    wait, held, in the sockets' queues.

    --settings FILE  the flat settings that `coresnap config --compile` wrote, read anew for each crash
    --jobs N         most captures at once (default 16)

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
import os
import signal
import socket
import struct
import sys
import time

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

import select
from typing import NoReturn

from coresnap.capture import handover
from coresnap.capture.capture import Capture
from coresnap.capture.finish import finish, sweep
from coresnap.capture.handover import HandedOver
from coresnap.capture.kernel_socket import KernelSocket, victim_of
from coresnap.capture.source import Source
from coresnap.capture.tell import tell
from coresnap.capture.victim import Victim, from_core_pattern
from coresnap.ground import flat, notify, program
from coresnap.ground.errors import BadInput, CoresnapError, Refused
from coresnap.ground.listen import listen_fds
from coresnap.ground.log import Log
from coresnap.host.transport import is_probe
from coresnap.spool import ledger
from coresnap.spool.stages import Spool

_PR_SET_DUMPABLE = 4
_PEER = struct.Struct("=iII")


class Service:
    """The sockets, and the captures under way."""

    def __init__(self, listeners: dict[str, socket.socket], settings: str, jobs: int, log: Log) -> None:
        self.listeners = listeners
        self.settings = settings
        self.jobs = jobs
        self.log = log
        self.running: set[int] = set()

    def run(self, caught: program.Signals) -> None:
        """Serve until asked to stop, and until what is under way has ended."""
        notify.ready()
        while self.running or not caught.stop:
            poll = select.poll()
            poll.register(caught.fd, select.POLLIN)
            if len(self.running) < self.jobs and not caught.stop:
                for listener in self.listeners.values():
                    poll.register(listener, select.POLLIN)
            ready = {fd for fd, _events in poll.poll()}
            if caught.fd in ready:
                caught.drain()
                self._reap()
            for name, listener in self.listeners.items():
                if listener.fileno() in ready and len(self.running) < self.jobs:
                    self._take(name, listener)
        notify.stopping()

    def _take(self, name: str, listener: socket.socket) -> None:
        """Accept one crash, and have a child capture it."""
        started_nsec = time.monotonic_ns()
        try:
            connection, _address = listener.accept()
        except OSError:
            return  # it has gone again
        pid = os.fork()
        if pid == 0:
            self._be_the_child(name, connection, started_nsec)
        connection.close()
        self.running.add(pid)

    def _reap(self) -> None:
        """Bury the children that have ended; one that was killed has left something to put on record."""
        while self.running:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self.running.discard(pid)
            if os.WIFSIGNALED(status):
                self.log.error(f"a capture was killed by signal {os.WTERMSIG(status)}")
                self._sweep(os.WTERMSIG(status))

    def _sweep(self, number: int) -> None:
        """Have a child keep, or put on record, what a killed capture has left."""
        pid = os.fork()
        if pid:
            self.running.add(pid)
            return
        try:
            settings, _problem = flat.read(self.settings)
            with Spool(settings.root) as spool:
                if not list(sweep(spool, settings)):
                    ledger.append(spool.root_fd, "interrupted", f"killed by signal {number} before the first byte")
        except (CoresnapError, OSError) as error:
            self.log.error(f"sweep: {error}")
        finally:
            os._exit(0)

    def _be_the_child(self, name: str, connection: socket.socket, started_nsec: int) -> NoReturn:
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)  # what it holds it finishes
            for listener in self.listeners.values():
                listener.close()
            connection.setblocking(True)
            self._capture(name, connection, started_nsec)
            status = 0
        except (CoresnapError, OSError) as error:
            self.log.error(f"{name}: a crash could not be taken: {error}")
        finally:
            os._exit(status)

    def _capture(self, name: str, connection: socket.socket, started_nsec: int) -> None:
        settings, problem = flat.read(self.settings)
        source: Source
        if name == "kernel":
            victim, source, proc = _from_kernel(connection)
            if is_probe(victim.pid):
                source.acknowledge()
                connection.close()
                return
        else:
            victim, source, proc, started_nsec = _from_archive(connection)
        capture = Capture(settings, victim, source.transport, started_nsec)
        capture.hold(source, proc)
        for fd in {source.fd, connection.fileno()}:
            os.close(fd)  # the process is let go
        connection.detach()
        outcome = finish(capture)
        if problem:
            self.log.warning(problem)
        tell(self.log, capture, outcome)


def _from_kernel(connection: socket.socket) -> tuple[Victim, KernelSocket, str]:
    victim = victim_of(connection)
    return victim, KernelSocket(connection), f"/proc/{victim.pid}"


def _from_archive(connection: socket.socket) -> tuple[Victim, Source, str, int]:
    """Take what archive hands over. Raises BadInput where it is not archive, or not root."""
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    _pid, uid, _gid = _PEER.unpack(peer)
    if uid not in (0, os.geteuid()):
        raise BadInput(f"user {uid} at the hand-over socket")
    message, fds, _flags, _address = socket.recv_fds(connection, handover.LIMIT_BYTES, handover.FDS_MAX)
    known = handover.read(message)
    if known is None or len(fds) < 2:
        raise BadInput("what came over the hand-over socket is not archive's")
    started_nsec, arguments = known
    for fd in fds:
        os.set_inheritable(fd, False)
    victim = from_core_pattern(arguments)
    victim.pidfd = fds[2] if len(fds) > 2 else None
    return victim, HandedOver(fds[0], connection), f"/proc/self/fd/{fds[1]}", started_nsec


def _never_dump_core() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def main(arguments: list[str] | None = None) -> int:
    """Run the capture service; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="coresnap-capture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", metavar="FILE", default=flat.PATH, help="archive's settings, compiled")
    parser.add_argument("--jobs", metavar="N", type=int, default=16, help="most captures at once")
    options = parser.parse_args(arguments)
    log = Log.open()
    return program.run("coresnap-capture", lambda: _run(options, log), log.error)


def _run(options: argparse.Namespace, log: Log) -> int:
    listeners = {name: socket.socket(fileno=fd) for name, fd in listen_fds()}
    if not listeners or listeners.keys() - {"kernel", "handover"}:
        raise Refused("no sockets by the names kernel and handover", hint="`systemctl start coresnap-archive.socket`")
    _never_dump_core()
    for listener in listeners.values():
        listener.setblocking(False)
    with program.signals() as caught:
        Service(listeners, options.settings, options.jobs, log).run(caught)
    return 0


if __name__ == "__main__":
    sys.exit(main())
