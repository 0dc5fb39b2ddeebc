# SPDX-License-Identifier: Apache-2.0
"""A worker of the capture service: it waits, everything imported, and takes crashes, one at a time."""

from __future__ import annotations

import _socket
import gc
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import coresnap.capture.memory  # noqa: F401  # a large crash wants it while it is held
from coresnap.capture.aftermath import lose, spool_or_none
from coresnap.capture.board import CAPTURES, CRASHES, WAITS, Board, Crash
from coresnap.capture.capture import Capture
from coresnap.capture.carry import somebody_waits
from coresnap.capture.finish import finish
from coresnap.capture.handed_over import from_archive
from coresnap.capture.kernel_socket import KernelSocket, learn, peer_of
from coresnap.capture.resident import ResidentReader
from coresnap.capture.source import Gone, Source, Withdrawn
from coresnap.capture.tell import tell
from coresnap.capture.victim import Victim
from coresnap.ground import flat
from coresnap.ground.errors import BadInput, CoresnapError
from coresnap.ground.log import Log
from coresnap.spool.stages import new_uuid

#: Workers that wait for a crash; one more than one, so that none has to be forked while a process is held.
WAITING = 2
#: A worker serves so many crashes; what they may have left behind in it ends with it.
_CRASHES_MOST = 256
#: A process that has been let go has still to end, and its parent to hear of it: that comes before its dump is finished.
_LET_GO_SECONDS = 0.02
#: So many captures wait to be finished while further processes crash; each has some ten descriptors open.
_HELD_MOST = CRASHES - 2
#: So long after its crash a dump is finished, however many processes wait.
_DEFERRED_MOST_NSEC = 20_000_000_000
#: How often it is looked whether any still waits: each of many workers does that, and a crash wakes one anyway.
_DEFERS_SECONDS = 0.5


class _Lost(CoresnapError):
    """A process has crashed, and its core cannot be had; `reason` is one of the ledger's."""

    def __init__(self, victim: Victim, reason: str, why: str) -> None:
        super().__init__(why)
        self.victim = victim
        self.reason = reason


class Worker:
    """One worker, in a process of its own."""

    def __init__(
        self,
        place: int,
        board: Board,
        listeners: dict[str, socket.socket],
        settings: flat.Compiled,
        within: str,
        log: Log,
    ) -> None:
        """`place` is its own on the board; `within` is where the machine's file systems are, see Spool."""
        self.place = place
        self.board = board
        self.listeners = listeners
        self.settings = settings
        self.within = within
        self.log = log
        self.held: deque[tuple[Capture, str, Crash]] = deque()
        self.next: tuple[Crash, str] = self._prepare()
        self.types: dict[str, int] = {name: int(listener.type) for name, listener in listeners.items()}

    def run(self, stopped_fd: int, want_fd: int, is_probe: Callable[[Victim], bool]) -> None:
        """Take crashes, until `stopped_fd` is closed at its other end, or until more wait than have to.

        A byte into `want_fd` asks for another worker. `is_probe` says of a process that it crashes only to see who comes.
        """
        # A crash wakes one of those that wait, not all of them: EPOLLEXCLUSIVE, epoll_ctl(2).
        epoll = select.epoll()
        epoll.register(stopped_fd, select.EPOLLIN)
        names = {listener.fileno(): name for name, listener in self.listeners.items()}
        for fd in names:
            epoll.register(fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        reader = ResidentReader(self._close_listeners)
        crashes = 0
        pause_seconds = 0.0
        try:
            while crashes < _CRASHES_MOST and self.board.count(WAITS) <= WAITING:
                with suppress(OSError):  # it will be tried again, and a core without evidence is a core
                    reader.make_ready()
                ready = [fd for fd, _events in epoll.poll(pause_seconds if self.held else None)]
                pause_seconds = 0.0
                if stopped_fd in ready:
                    break
                # No process waits for what another one's dump needs after that has been let go.
                if ready and len(self.held) < _HELD_MOST:
                    for fd in ready:
                        if self._take(names[fd], want_fd, reader, is_probe):
                            self.next = self._prepare()
                            crashes += 1
                    pause_seconds = _LET_GO_SECONDS
                elif self.held and self._defers():
                    pause_seconds = _DEFERS_SECONDS
                elif self.held:
                    self._finish()
                if not self.held:
                    self.board.put(self.place, WAITS)
                    gc.collect()
        finally:
            while self.held:
                self._finish()
            reader.end(whole=False)

    def _defers(self) -> bool:
        """Say whether the dumps are to wait because processes do: in a storm the processors are theirs first."""
        deadline_nsec = self.held[0][0].started_nsec + _DEFERRED_MOST_NSEC
        return len(self.held) < _HELD_MOST and time.monotonic_ns() < deadline_nsec and somebody_waits()

    def _prepare(self) -> tuple[Crash, str]:
        """Have a place on the board, and a UUID, for the next crash."""
        crash, uuid = self.board.crash(self.place), new_uuid()
        crash.prepare(uuid)
        return crash, uuid

    def _close_listeners(self) -> None:
        for listener in self.listeners.values():
            listener.close()

    def _take(self, name: str, want_fd: int, reader: ResidentReader, is_probe: Callable[[Victim], bool]) -> bool:
        """Accept one crash, and capture it; say no where another worker was faster."""
        started_nsec = time.monotonic_ns()
        self.board.put(self.place, CAPTURES)
        crash, uuid = self.next
        try:
            # What socket.accept() adds, enumerations of families and types, takes longer than the call.
            fd, _address = _socket.socket._accept(self.listeners[name])  # type: ignore[attr-defined]  # noqa: SLF001
        except OSError:
            return False
        connection = socket.socket(socket.AF_UNIX, self.types[name], 0, fd)
        victim = None
        if name == "kernel":  # nobody else has it
            peer = peer_of(connection)
            crash.claim(*peer)
            victim = Victim()
            victim.pid, victim.uid, victim.gid = peer
        if not self.board.count(WAITS):
            try:
                os.write(want_fd, b"+")
            except BlockingIOError:
                pass  # it has been told often enough
        try:
            if self._capture(victim, connection, crash, uuid, started_nsec, reader, is_probe):
                return True
        except Withdrawn:
            pass  # archive captures it
        except _Lost as lost:
            self._put_on_record(lost, uuid)
        except BadInput as error:
            self.log.error(f"{name}: refused: {error}")
        finally:
            connection.close()
        crash.clear()
        return True

    def _put_on_record(self, lost: _Lost, uuid: str) -> None:
        settings, _problem = self.settings.read()
        with spool_or_none(settings.root, self.within) as spool:
            lose(self.log, settings, spool, lost.victim, lost.reason, str(lost), uuid)

    def _capture(
        self,
        victim: Victim | None,
        connection: socket.socket,
        crash: Crash,
        uuid: str,
        started_nsec: int,
        reader: ResidentReader,
        is_probe: Callable[[Victim], bool],
    ) -> bool:
        """Capture the crash until its process is let go; say whether it is to be finished.

        `victim` is what is known of it where it is the kernel that has connected.
        """
        settings, problem = self.settings.read()
        source: Source
        fds: list[int] = []
        try:
            if victim is not None:
                learn(victim, connection)
                crash.put(victim, uuid)
                source = _from_kernel(connection, victim)
                if is_probe(victim):
                    with suppress(Gone, OSError):
                        source.acknowledge()
                    return False
                proc = f"/proc/{victim.pid}"
            else:
                victim, source, proc, started_nsec = from_archive(connection, fds, crash, uuid)
            capture = Capture(settings, victim, source.transport, started_nsec, self.within, uuid)
            capture.hold(source, proc, reader)
            if not capture.reason and not capture.copied.reason:
                crash.copied(capture.copied.size_bytes)
        finally:
            connection.close()
            if victim is not None and victim.pidfd is not None and victim.pidfd not in fds:
                fds.append(victim.pidfd)
            for fd in fds:
                os.close(fd)  # the process is let go
        capture.wait_for_host()  # its reader is wanted for the next one
        self.held.append((capture, problem, crash))
        return True

    def _finish(self) -> None:
        """Bring the oldest capture whose process has been let go to its end."""
        capture, problem, crash = self.held.popleft()
        outcome = finish(capture)
        if problem:
            self.log.warning(problem)
        tell(self.log, capture, outcome)
        crash.clear()


def _from_kernel(connection: socket.socket, victim: Victim) -> KernelSocket:
    """Take what the kernel asks. Raises _Lost where it asks in no known way."""
    try:
        return KernelSocket(connection)
    except Gone as error:
        raise _Lost(victim, "empty", str(error)) from error
    except (BadInput, OSError) as error:
        raise _Lost(victim, "internal", str(error)) from error
