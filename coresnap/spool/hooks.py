# SPDX-License-Identifier: Apache-2.0
"""What has happened to dumps, and a hook is to be told of: a queue of small files, `<dump.root>/hooks/<time>-<uuid>-<stage>`.

A stage's owner puts an event there after the rename, and goes on; it never waits for a hook. Whoever runs the hooks
(coresnap.hook) takes the oldest, marks it by a longer name while its hook runs, and unlinks it. Of a mark that is found there
is known that its hook was interrupted; it is run once more, and never a third time.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from coresnap.ground import durable
from coresnap.ground.clock import Clock
from coresnap.ground.errors import BadInput, TryLater
from coresnap.spool import stages

if TYPE_CHECKING:
    from coresnap.ground.settings import Settings
    from coresnap.spool.record import Record
    from coresnap.spool.stages import Spool

NAME = "hooks"
WAITING_MOST = 10_000
AGAIN = "-again"
_STAGES = (stages.SENDING, stages.COMMITTED, stages.FAILED)
_NAME = re.compile(rf"[0-9]{{20}}-[0-9a-f-]{{36}}-({'|'.join(_STAGES)})({AGAIN})?")
_LIMIT_BYTES = 64 << 10
_TEXT_MAX = 8192
_COUNT_EVERY = 64
_UNTOLD = ""
_OLD_USEC = 3_600_000_000


class Event(NamedTuple):
    """A dump has come to a stage. What is not known is empty text; everything but stage, uuid and time_usec may be anything."""

    stage: str
    uuid: str
    time_usec: str
    exe: str
    comm: str
    signal: str
    pid: str
    uid: str
    fingerprint: str
    hostname: str
    detail: str

    def environment(self) -> dict[str, str]:
        """Return the event as variables of a hook's environment."""
        return {f"CORESNAP_{name.upper()}": value for name, value in self._asdict().items()}

    def formats(self) -> dict[str, str]:
        """Return what the % formats of a hook's command stand for."""
        return dict(
            zip(
                "Bwepusf",
                (self.uuid, self.stage, self.exe, self.pid, self.uid, self.signal, self.fingerprint),
                strict=True,
            )
        )


def of(stage: str, document: Record, detail: str, time_usec: int) -> Event:
    """Return the event of a dump that has just come to this stage."""
    victim = document["victim"]
    known = [victim["exe"], victim["comm"], victim["signal"], victim["pid"], victim["uid"], document["fingerprint"]]
    texts = [_UNTOLD if value is None else str(value) for value in (*known, document["captured"]["hostname"], detail)]
    return Event(stage, document["uuid"], str(time_usec), *map(_plain, texts))


def _plain(text: str) -> str:
    """Return text that can stand in an environment: no NUL, and no halves of characters, which JSON can spell."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()[:_TEXT_MAX]


def commands(settings: Settings) -> dict[str, tuple[str, ...]]:
    """Return the hooks' commands by stage; empty where there are none."""
    found = dict(zip(_STAGES, (settings.on_sending, settings.on_committed, settings.on_failed), strict=True))
    return {stage: command for stage, command in found.items() if command}


def open_queue(spool: Spool) -> int:
    """Open the directory of events, made if it is missing. Raises OSError."""
    if not durable.exists(spool.root_fd, NAME):
        try:
            return durable.mkdir(spool.root_fd, NAME, 0o700, spool.uid, spool.gid)
        except FileExistsError:
            pass  # another owner's has just come
    return durable.open_directory(NAME, spool.root_fd)


class Notice:
    """Puts events of stages that have a hook into the queue; without hooks nothing is done at all."""

    def __init__(self, spool: Spool, hooked: Mapping[str, tuple[str, ...]], clock: Clock | None = None) -> None:
        self._spool = spool
        self._hooked = hooked
        self._clock = clock or Clock()
        self._waiting = self._since = 0

    def give(self, stage: str, document: Record, detail: str) -> None:
        """Put the event into the queue. Raises OSError, TryLater where the queue is full."""
        if stage not in self._hooked:
            return
        queue_fd = open_queue(self._spool)
        try:
            if self._since % _COUNT_EVERY == 0 or self._waiting >= WAITING_MOST:
                self._waiting, self._since = len(os.listdir(queue_fd)), 0
            if self._waiting >= WAITING_MOST:
                raise TryLater(f"{WAITING_MOST} hooks wait already", hint="is a hook stuck? see on.timeout")
            self._waiting, self._since = self._waiting + 1, self._since + 1
            event = of(stage, document, detail, self._clock.wall_usec())
            data = json.dumps(event._asdict()).encode()
            name = f"{int(event.time_usec):020d}-{event.uuid}-{stage}"
            durable.replace(queue_fd, name, data, 0o600, self._spool.uid, self._spool.gid)
        finally:
            os.close(queue_fd)


def waiting(queue_fd: int) -> Iterator[str]:
    """Yield the names of the events in the queue, oldest first."""
    yield from sorted(name for name in os.listdir(queue_fd) if _NAME.fullmatch(name))


def clear(queue_fd: int, now_usec: int) -> None:
    """Unlink what is no event and has been there for an hour: what a power cut left half written."""
    for name in os.listdir(queue_fd):
        if not _NAME.fullmatch(name):
            try:
                status = os.stat(name, dir_fd=queue_fd, follow_symlinks=False)
                if status.st_mtime_ns // 1000 < now_usec - _OLD_USEC:
                    durable.unlink(queue_fd, name)
            except OSError:
                pass  # its writer has just renamed it


def read(queue_fd: int, name: str) -> Event:
    """Read an event. Raises BadInput, OSError."""
    try:
        found: Any = json.loads(durable.read(queue_fd, name, _LIMIT_BYTES))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{NAME}/{name}: {error}") from error
    if not isinstance(found, dict) or found.keys() != set(Event._fields):
        raise BadInput(f"{NAME}/{name}: an object of {', '.join(Event._fields)} expected")
    if not all(isinstance(value, str) and len(value) <= _TEXT_MAX for value in found.values()):
        raise BadInput(f"{NAME}/{name}: a value is no text, or too long")
    event = Event(**{key: _plain(value) for key, value in found.items()})
    if not stages.is_uuid(event.uuid) or event.stage not in _STAGES:
        raise BadInput(f"{NAME}/{name}: not a dump, or not a stage")
    return event


def mark(queue_fd: int, name: str) -> str:
    """Note that the hook of an event begins; return the event's name from then on, empty if it was its second beginning."""
    if name.endswith(AGAIN):
        durable.unlink(queue_fd, name)
        return ""
    try:
        durable.link(queue_fd, name, name + AGAIN)
    except FileExistsError:
        pass  # it was interrupted just there
    durable.unlink(queue_fd, name)
    return name + AGAIN
