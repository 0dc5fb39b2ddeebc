# SPDX-License-Identifier: Apache-2.0
"""The owner of a stage: it takes dumps, has a worker do the work on each, and moves them on.

The owner renames and records; it reads nothing of a dump but its record, and of a worker nothing but a small typed
answer. What a stage's work is, its Trade says. Workers do the dangerous part in processes of their own: each is handed
the open descriptors of one dump at a time over a socket and can name no other dump.
"""

from __future__ import annotations

import heapq
import os
import select
import time
from collections import deque
from typing import Any

from coresnap.ground import inotify, notify, wire
from coresnap.ground.errors import BadInput, CoresnapError
from coresnap.ground.program import Signals
from coresnap.spool import record, stages
from coresnap.spool.record import Record
from coresnap.spool.stages import Dump, Spool
from coresnap.spool.trade import Tell, Trade, Verdict
from coresnap.spool.worker import Worker, connect, spawn

_BUSY_USEC = (5_000, 5_000_000)
_RESCAN_USEC = 60_000_000
_NO_WORKER_USEC = 5_000_000


class Owner:
    """A stage's owner at work. `run` is its whole life."""

    def __init__(self, spool: Spool, trade: Trade, tell: Tell, worker_socket: str | None = None) -> None:
        """`worker_socket` is where a supervisor starts a worker for each connection; else they are children of this one."""
        self.spool = spool
        self.trade = trade
        self.tell = tell
        self.worker_socket = worker_socket
        self.due: deque[str] = deque()
        self.later: list[tuple[int, str]] = []
        self.known: set[str] = set()
        self.busy: dict[str, int] = {}
        self.workers: list[Worker] = []
        self.parked_until_usec = 0
        self.said: Verdict | None = None
        self.shown = ""

    def run(self, caught: Signals, *, once: bool, linger_usec: int | None = None) -> None:
        """Work until a signal asks to stop; with `once` until nothing is due; with `linger_usec` until idle for that long."""
        with inotify.Watch(self.spool.stage_fds[self.trade.stage]) as watch:
            poll = select.poll()
            poll.register(watch.fd, select.POLLIN)
            poll.register(caught.fd, select.POLLIN)
            self._scan()
            idle_since_usec = _now_usec()
            try:
                while True:
                    self._start_due()
                    if not once and self.worker_socket is None:
                        self._keep_one_ready()
                    busy = [worker for worker in self.workers if worker.dump is not None]
                    if busy or self.known:
                        idle_since_usec = _now_usec()
                    if once and not busy:
                        return
                    self._show(len(busy))
                    wait_usec = self._wait_usec(idle_since_usec, linger_usec)
                    if wait_usec < 0:
                        return
                    ready = self._poll(poll, wait_usec)
                    if caught.fd in ready:
                        caught.drain()
                        if caught.stop:
                            return
                    if watch.fd in ready:
                        self.known -= watch.drain()  # what was touched is looked at anew: `coresnap retry` does that
                        self._scan()
                    for worker in list(self.workers):
                        self._look_at(worker, ready)
            finally:
                for worker in list(self.workers):
                    self._end_worker(worker)

    def _look_at(self, worker: Worker, ready: set[int]) -> None:
        """Take a worker's answer, or act on its death or its delay."""
        answered = worker.socket.fileno() in ready
        if worker.dump is None:
            if answered:  # it has nothing to say: it died
                self._end_worker(worker)
        elif answered:
            self._take_answer(worker)
        elif _now_usec() >= worker.deadline_usec:
            self._end_worker(worker)
            self._conclude(worker, None)

    def _keep_one_ready(self) -> None:
        """Have a worker started before the dump comes that it is for."""
        if len(self.workers) < self.trade.workers and all(worker.dump for worker in self.workers):
            self._new_worker()

    def _poll(self, poll: select.poll, wait_usec: int) -> set[int]:
        for worker in self.workers:
            poll.register(worker.socket, select.POLLIN)
        ready = {fd for fd, _events in poll.poll(wait_usec // 1000 + 1)}
        for worker in self.workers:
            poll.unregister(worker.socket)
        return ready

    def _wait_usec(self, idle_since_usec: int, linger_usec: int | None) -> int:
        """Return how long there is nothing to do; negative: the linger has passed."""
        now_usec = _now_usec()
        moments = [now_usec + _RESCAN_USEC, *(worker.deadline_usec for worker in self.workers if worker.dump)]
        if self.later:
            moments.append(self.later[0][0])
        if self.due and self.parked_until_usec > now_usec:
            moments.append(self.parked_until_usec)
        if linger_usec is not None and not self.known and not any(worker.dump for worker in self.workers):
            end_usec = idle_since_usec + linger_usec
            if now_usec >= end_usec:
                return -1
            moments.append(end_usec)
        return max(0, min(moments) - now_usec)

    def _show(self, busy: int) -> None:
        """Have the service manager show what is at work, and what waits until when."""
        line = f"{busy} at work, {len(self.known)} waiting"
        moments = [self.parked_until_usec] if self.parked_until_usec > _now_usec() else []
        moments += [self.later[0][0]] if self.later and not moments else []
        line += "".join(f", next try at {_clock(moment)}" for moment in moments)
        if line != self.shown:
            notify.status(line)
        self.shown = line

    def _scan(self) -> None:
        """Look what has come into the stage since the last look."""
        there = set(self.spool.uuids(self.trade.stage))
        working = {worker.dump.uuid for worker in self.workers if worker.dump}
        self.due.extend(sorted(there - self.known - working))
        self.known = there - working

    def _start_due(self) -> None:
        now_usec = _now_usec()
        while self.later and self.later[0][0] <= now_usec:
            self.due.append(heapq.heappop(self.later)[1])
        while self.due and now_usec >= self.parked_until_usec:
            try:
                worker = self._free_worker()
            except OSError as error:
                self._park_without_worker(error)
                return
            if worker is None:
                return
            self.said = None
            self._start(worker, self.due.popleft())

    def _free_worker(self) -> Worker | None:
        for worker in self.workers:
            if worker.dump is None:
                return worker
        if len(self.workers) >= self.trade.workers:
            return None
        return self._new_worker()

    def _new_worker(self) -> Worker:
        """Have a worker started. Raises OSError where none can be had now."""
        path = self.worker_socket
        new = spawn(self.trade.worker) if path is None else connect(path)
        self.workers.append(new)
        return new

    def _park_without_worker(self, error: OSError) -> None:
        """Wait for workers to be had again; no dump is to blame."""
        self.parked_until_usec = _now_usec() + _NO_WORKER_USEC
        verdict = Verdict(
            "parked", f"no worker: {self.worker_socket or self.trade.worker[0]}: {error.strerror or error}"
        )
        if verdict != self.said:
            self.tell(self.due[0], None, verdict, self.trade.stage)
        self.said = verdict

    def _end_worker(self, worker: Worker) -> None:
        worker.end()
        if worker in self.workers:
            self.workers.remove(worker)

    def _start(self, worker: Worker, uuid: str) -> None:
        """Hand the dump to the worker, if it is there, ours and due."""
        try:
            dump = self.spool.take(self.trade.stage, uuid)
        except CoresnapError as error:
            self._leave(uuid, error)
            return
        if dump is None:
            self._wait_for_lock(uuid)
            return
        self.busy.pop(uuid, None)
        try:
            document = record.load(dump)
            wait_usec = _until_usec(document, self.trade.last_retry_usec)
            if wait_usec > 0:
                heapq.heappush(self.later, (_now_usec() + wait_usec, uuid))
                dump.close()
                return
            self.known.discard(uuid)
            worker.dump, worker.document = dump, document
            worker.started_usec = _now_usec()
            worker.deadline_usec = worker.started_usec + self.trade.limit_usec
            job = self.trade.request(dump, document)
        except (CoresnapError, OSError) as error:
            worker.dump = None
            dump.close()
            self._leave(uuid, error)
            return
        if isinstance(job, Verdict):
            self._conclude(worker, {"verdict": job})
            return
        if job is None:
            self._conclude(worker, {"status": "done"})
            return
        message, fds = job
        try:
            wire.send(worker.socket, message, fds)
        except OSError:
            self._end_worker(worker)
            self._conclude(worker, None)
        finally:
            for fd in fds:
                os.close(fd)

    def _leave(self, uuid: str, error: CoresnapError | OSError) -> None:
        """Say once what is wrong with a dump that stays where it is, untouched; a restart, or a touch, looks at it again."""
        self.known.add(uuid)
        self.tell(uuid, None, Verdict("parked", _line(error)), self.trade.stage)

    def _wait_for_lock(self, uuid: str) -> None:
        """Come back soon to a dump that another holds, each time later; forget one that has gone."""
        if self.spool.holds(self.trade.stage, uuid):
            tries = self.busy[uuid] = self.busy.get(uuid, -1) + 1
            self._schedule(uuid, min(_BUSY_USEC[0] << min(tries, 20), _BUSY_USEC[1]))
        else:
            self.busy.pop(uuid, None)
            self.known.discard(uuid)

    def _take_answer(self, worker: Worker) -> None:
        try:
            received = wire.receive(worker.socket, max_fds=0)
        except (BadInput, OSError):
            received = None
        if received is None or not self.trade.reuse:
            self._end_worker(worker)
        self._conclude(worker, None if received is None else received[0])

    def _conclude(self, worker: Worker, answer: dict[str, Any] | None) -> None:
        """Act on what the work has come to."""
        dump, document = worker.dump, worker.document
        worker.dump, worker.document = None, {}
        assert dump is not None
        try:
            document["attempts"][self.trade.name] += 1
            judged = answer.get("verdict") if answer else None
            verdict = judged if isinstance(judged, Verdict) else self.trade.conclude(dump, document, answer)
            verdict = self._apply(dump, document, verdict, answer)
        except (CoresnapError, OSError) as error:
            verdict = Verdict("later", _line(error), self.trade.first_retry_usec)
            self._schedule(dump.uuid, self.trade.first_retry_usec)
        self.tell(dump.uuid, document, verdict, dump.stage)
        dump.close()

    def _apply(self, dump: Dump, document: Record, verdict: Verdict, answer: dict[str, Any] | None) -> Verdict:
        attempts = document["attempts"][self.trade.name]
        if verdict.status == "later" and self.trade.attempts and attempts >= self.trade.attempts:
            verdict = Verdict("failed", f"given up on after {attempts} attempts: {verdict.detail}")
        if verdict.status == "parked":
            self.parked_until_usec = _now_usec() + (verdict.retry_usec or _RESCAN_USEC)
            self.known.add(dump.uuid)
            self.due.append(dump.uuid)
            return verdict
        document["next_try_usec"] = None
        if verdict.status == "later":
            retry_usec = verdict.retry_usec or min(
                self.trade.first_retry_usec << min(attempts - 1, 30), self.trade.last_retry_usec
            )
            document["next_try_usec"] = time.time_ns() // 1000 + retry_usec
            record.note(document, f"{self.trade.name}: attempt {attempts} failed", verdict.detail)
            record.store(dump, document, *self.trade.owner)
            self._schedule(dump.uuid, retry_usec)
            return Verdict("later", verdict.detail, retry_usec)
        if verdict.status == "failed":
            document["failure"] = {"reason": self.trade.name, "detail": verdict.detail[:2000]}
        record.note(document, f"{self.trade.name}: {verdict.status}", verdict.detail)
        self.trade.settle(self.spool, dump, document, answer)
        record.store(dump, document, *self.trade.owner)
        self.trade.shed(self.spool, dump, document)
        self.spool.move(dump, self.trade.next_stage if verdict.status == "done" else stages.FAILED)
        return verdict

    def _schedule(self, uuid: str, wait_usec: int) -> None:
        self.known.add(uuid)
        heapq.heappush(self.later, (_now_usec() + wait_usec, uuid))


def _now_usec() -> int:
    return time.monotonic_ns() // 1000


def _clock(moment_usec: int) -> str:
    """Return a moment of the monotonic clock as a time of the day."""
    return time.strftime("%H:%M:%S", time.localtime(time.time() + (moment_usec - _now_usec()) / 1e6))


def _until_usec(document: Record, most_usec: int) -> int:
    """Return how long until the record's next try; a clock that was set back does not make it longer than the back-off."""
    next_try_usec = document["next_try_usec"]
    if next_try_usec is None:
        return 0
    wait_usec: int = next_try_usec - time.time_ns() // 1000
    return wait_usec if wait_usec <= most_usec * 2 else 0


def _line(error: CoresnapError | OSError) -> str:
    if isinstance(error, CoresnapError):
        return error.line()
    where = error.filename if isinstance(error.filename, str) else "the file system"
    return f"{where}: {error.strerror}"
