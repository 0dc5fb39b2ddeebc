# SPDX-License-Identifier: Apache-2.0
"""The owner of a stage: it takes dumps, has a worker do the work on each, and moves them on.

The owner renames and records; it reads nothing of a dump but its record, and of a worker nothing but a small typed
answer. What a stage's work is, its Trade says. Workers do the dangerous part in processes of their own: each is handed
the open descriptors of one dump at a time over a socket and can name no other dump.
"""

from __future__ import annotations

import os
import random
import select
from typing import TYPE_CHECKING, Any

from coresnap.ground import inotify, notify, wire
from coresnap.ground.clock import Clock
from coresnap.ground.errors import BadInput, CoresnapError
from coresnap.spool import record, stages
from coresnap.spool.conclusion import Conclusion
from coresnap.spool.line import Line
from coresnap.spool.outlook import Outlook
from coresnap.spool.trade import Tell, Trade, Verdict
from coresnap.spool.worker import Worker, Workers

if TYPE_CHECKING:
    from collections.abc import Callable

    from coresnap.ground.program import Signals
    from coresnap.spool.record import Record
    from coresnap.spool.stages import Spool

_RESCAN_USEC = 60_000_000
_NO_WORKER_USEC = 5_000_000


class Owner:
    """A stage's owner at work. `run` is its whole life."""

    def __init__(
        self,
        spool: Spool,
        trade: Trade,
        tell: Tell,
        worker_socket: str | None = None,
        *,
        clock: Clock | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`worker_socket` is where a supervisor starts a worker for each connection; else they are children of this one."""
        self.spool = spool
        self.trade = trade
        self.tell = tell
        self.clock = clock or Clock()
        self.line = Line()
        self.workers = Workers(trade.worker, worker_socket, trade.workers, reuse=trade.reuse)
        self.parked_until_usec = 0
        self.scan_usec = 0
        self.said: Verdict | None = None
        self.shown = ""
        self.outlook: Outlook | None = None
        if trade.store() is not None:
            self.outlook = Outlook(
                spool.root_fd,
                trade.owner,
                self.clock,
                interval_usec=trade.first_retry_usec,
                most_usec=trade.last_retry_usec,
                chance=chance,
            )
        trade.enter(spool, self.clock)
        self.conclusion = Conclusion(spool, trade, self.line, self.outlook, self.clock, chance)

    def run(self, caught: Signals, *, once: bool, linger_usec: int | None = None) -> None:
        """Work until a signal asks to stop; with `once` until nothing is due; with `linger_usec` until idle for that long."""
        with inotify.Watch(self.spool.stage_fds[self.trade.stage]) as watch:
            poll = select.poll()
            poll.register(watch.fd, select.POLLIN)
            poll.register(caught.fd, select.POLLIN)
            idle_since_usec = self.clock.now_usec()
            try:
                while True:
                    if self.clock.now_usec() >= self.scan_usec:
                        self._scan()
                    self._start_due()
                    if not once:
                        self.workers.keep_one_ready(len(self.line.due))
                    busy = len(self.workers.working())
                    if busy or self.line.known:
                        idle_since_usec = self.clock.now_usec()
                    if not busy:
                        self._settle(last=False)
                        if self.outlook and not self.line.known:
                            self.outlook.forgive()
                    if once and not busy:
                        return
                    self._show(busy)
                    wait_usec = self._wait_usec(idle_since_usec, linger_usec)
                    if wait_usec < 0:
                        return
                    ready = self._poll(poll, wait_usec)
                    if caught.fd in ready:
                        caught.drain()
                        if caught.stop:
                            return
                    if watch.fd in ready:
                        self._take_in(watch)
                    for worker in list(self.workers.all):
                        self._look_at(worker, ready)
            finally:
                for worker in list(self.workers.all):
                    self.workers.end(worker)
                self._settle(last=True)
                if self.outlook:
                    self.outlook.write_counts(now=True)

    def _look_at(self, worker: Worker, ready: set[int]) -> None:
        """Take a worker's answer, or act on its death or its delay."""
        answered = worker.socket.fileno() in ready
        if worker.dump is None:
            if answered:  # it has nothing to say: it died
                self.workers.end(worker)
        elif answered:
            self._take_answer(worker)
        elif self.clock.now_usec() >= worker.deadline_usec:
            self.workers.end(worker)
            self._conclude(worker, None)

    def _poll(self, poll: select.poll, wait_usec: int) -> set[int]:
        for worker in self.workers.all:
            poll.register(worker.socket, select.POLLIN)
        ready = {fd for fd, _events in self.clock.poll(poll, wait_usec, busy=bool(self.workers.working()))}
        for worker in self.workers.all:
            poll.unregister(worker.socket)
        return ready

    def _wait_usec(self, idle_since_usec: int, linger_usec: int | None) -> int:
        """Return how long there is nothing to do; negative: the linger has passed."""
        now_usec = self.clock.now_usec()
        moments = [self.scan_usec, *(worker.deadline_usec for worker in self.workers.all if worker.dump)]
        moments += self._next_tries() if self._has_free() else []
        if self.outlook and (write_usec := self.outlook.write_counts()):
            moments.append(write_usec)
        if linger_usec is not None and not self.line.known and not self.workers.working():
            end_usec = idle_since_usec + linger_usec
            if now_usec >= end_usec:
                return -1
            moments.append(end_usec)
        return max(0, min(moments) - now_usec)

    def _next_tries(self) -> list[int]:
        """Return when what waits is to be tried again, as far as only time is needed for it."""
        moments = [moment_usec for moment_usec, _uuid in self.line.later[:1]]
        if self.line.waits() and self.parked_until_usec > self.clock.now_usec():
            return [*moments, self.parked_until_usec]
        store = self.trade.store()
        if self.outlook and store is not None and self.line.waits():
            moments += self.outlook.next_tries(store, self.line.held, others=bool(self.line.due))
        return moments

    def _show(self, busy: int) -> None:
        """Have the service manager show what is at work, and what waits until when."""
        line = f"{busy} at work, {len(self.line.known)} waiting"
        if moments := [moment for moment in self._next_tries() if moment > self.clock.now_usec()]:
            line += f", next try at {self.clock.time_of_day(min(moments))}"
        if self.outlook:
            line += "".join(f"; {text}" for text in self.outlook.troubles())
        if line != self.shown:
            notify.status(line)
        self.shown = line

    def _scan(self) -> None:
        """Look what is in the stage."""
        self.scan_usec = self.clock.now_usec() + _RESCAN_USEC
        if self.outlook:
            self.outlook.forgive(but=self.trade.store())
            if self.trade.mended():
                self.outlook.look_again()
        there = set(self.spool.uuids(self.trade.stage))
        self.line.prune(there)
        self.line.add(there - self.workers.working())

    def _take_in(self, watch: inotify.Watch) -> None:
        """Take in what has come into the stage, and what was touched in it: `coresnap retry` does that."""
        names = watch.drain()
        if "" in names:
            self._scan()
        for uuid in sorted(names - self.workers.working()):
            if not stages.is_uuid(uuid) or not self.spool.holds(self.trade.stage, uuid):
                continue
            if uuid in watch.touched:
                self.line.touch(uuid)
            else:
                self.line.add({uuid})

    def _admits(self, project: str | None) -> bool:
        """Say whether a dump may go to the store, or to a project of it, now."""
        store = self.trade.store()
        return self.outlook is None or store is None or self.outlook.admits(store, project)

    def _start_due(self) -> None:
        now_usec = self.clock.now_usec()
        self.line.wake(now_usec)
        while now_usec >= self.parked_until_usec and self._has_free():
            found = self.line.next(self._admits)
            if found is None:
                return
            uuid, touched = found
            try:
                worker = self.workers.free()
            except OSError as error:
                self.line.due.appendleft(uuid)
                self._park_without_worker(uuid, error)
                return
            self.said = None
            self._start(worker, uuid, touched=touched)

    def _settle(self, *, last: bool) -> None:
        """Have all on the disk, now that there is time for it."""
        try:
            self.conclusion.sync_moves()
            self.trade.rest(last=last)
        except OSError as error:
            self.tell(self.trade.stage, None, Verdict("parked", _line(error)), self.trade.next_stage)

    def _has_free(self) -> bool:
        return self.workers.has_free(len(self.line.due))

    def _park_without_worker(self, uuid: str, error: OSError) -> None:
        """Wait for workers to be had again; no dump is to blame."""
        self.parked_until_usec = self.clock.now_usec() + _NO_WORKER_USEC
        verdict = Verdict("parked", f"no worker: {self.workers.whence}: {error.strerror or error}")
        if verdict != self.said:
            self.tell(uuid, None, verdict, self.trade.stage)
        self.said = verdict

    def _start(self, worker: Worker, uuid: str, *, touched: bool) -> None:
        """Hand the dump to the worker, if it is there, ours and due."""
        try:
            dump = self.spool.take(self.trade.stage, uuid)
        except CoresnapError as error:
            self._leave(uuid, error)
            return
        if dump is None:
            if self.spool.holds(self.trade.stage, uuid):
                self.line.wait_for_lock(uuid, self.clock.now_usec())
            else:
                self.line.forget(uuid)
            return
        try:
            document = record.load(dump)
            place = self._place(document)
            if not touched and self._has_to_wait(uuid, document, place):
                dump.close()
                return
            self.line.forget(uuid)
            worker.dump, worker.document, worker.place = dump, document, None
            worker.started_usec = self.clock.now_usec()
            worker.deadline_usec = worker.started_usec + self.trade.limit_usec
            job = self.trade.request(dump, document)
        except CoresnapError as error:
            worker.dump = None
            dump.close()
            self._leave(uuid, error)
            return
        except OSError as error:  # a full disk, say
            worker.dump = None
            dump.close()
            self.line.schedule(uuid, self.clock.now_usec() + self.trade.first_retry_usec)
            self.tell(uuid, None, Verdict("later", _line(error), self.trade.first_retry_usec), self.trade.stage)
            return
        if isinstance(job, Verdict):
            self._conclude(worker, {"verdict": job})
            return
        if job is None:
            self._conclude(worker, {"status": "done"})
            return
        message, fds = job
        if self.outlook and place:
            worker.place = place
            self.outlook.begin(*place)
        try:
            wire.send(worker.socket, message, fds)
        except OSError:
            self.workers.end(worker)
            self._conclude(worker, None)
        finally:
            for fd in fds:
                os.close(fd)

    def _place(self, document: Record) -> tuple[str, str] | None:
        store = self.trade.store()
        return None if store is None else (store, self.trade.project(document))

    def _has_to_wait(self, uuid: str, document: Record, place: tuple[str, str] | None) -> bool:
        """Put a dump back into the line where its own next try is later, or its project takes nothing now."""
        wait_usec = record.until_due_usec(document, self.clock.wall_usec(), self.trade.last_retry_usec)
        if wait_usec > 0:
            self.line.schedule(uuid, self.clock.now_usec() + wait_usec)
            return True
        if self.outlook and place and not self.outlook.admits(*place):
            self.line.hold(uuid, place[1])
            return True
        return False

    def _leave(self, uuid: str, error: CoresnapError) -> None:
        """Say once what is wrong with a dump that stays where it is, untouched; a restart, or a touch, looks at it again."""
        self.line.leave(uuid)
        self.tell(uuid, None, Verdict("parked", error.line()), self.trade.stage)

    def _take_answer(self, worker: Worker) -> None:
        try:
            received = wire.receive(worker.socket, max_fds=0)
        except (BadInput, OSError):
            received = None
        # What parked a store is mended in files that a worker may have as they were when it was started.
        if received is None or not self.trade.reuse or received[0].get("status") == "parked":
            self.workers.end(worker)
        self._conclude(worker, None if received is None else received[0])

    def _conclude(self, worker: Worker, answer: dict[str, Any] | None) -> None:
        """Act on what the work has come to."""
        dump, document, place = worker.dump, worker.document, worker.place
        worker.dump, worker.document, worker.place = None, {}, None
        assert dump is not None
        tells: Verdict | None
        try:
            document["attempts"][self.trade.name] += 1
            judged = answer.get("verdict") if answer else None
            verdict = judged if isinstance(judged, Verdict) else self.trade.conclude(dump, document, answer)
            tells = self.conclusion.draw(dump, document, verdict, answer, place)
        except (CoresnapError, OSError) as error:
            if self.outlook and place:
                self.outlook.abandon(*place)
            tells = Verdict("later", _line(error), self.trade.first_retry_usec)
            self.line.schedule(dump.uuid, self.clock.now_usec() + self.trade.first_retry_usec)
        if tells:
            self.tell(dump.uuid, document, tells, dump.stage)
        dump.close()


def _line(error: CoresnapError | OSError) -> str:
    if isinstance(error, CoresnapError):
        return error.line()
    where = error.filename if isinstance(error.filename, str) else "the file system"
    return f"{where}: {error.strerror}"
