# SPDX-License-Identifier: Apache-2.0
"""How the stores stand: which take dumps, which are waited for, which take nothing until somebody has mended something.

    <dump.root>/stores.json     {"version": 1, "stores": [one object for each store, and for each project of it]}

A store that could not be reached is waiting: it is probed with one dump at most once an interval, however many dumps
there are, and all of them go when a probe gets through. A store, or one project of it, that refuses everybody is parked:
it is probed too, later each time. The sender alone writes the file, others read it; with a store that is up it is
written now and then, for its counts. What it says is a help and no truth: where it is lost or broken the store is asked.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from coresnap.ground import durable
from coresnap.ground.errors import BadInput
from coresnap.ground.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from coresnap.ground.clock import Clock

NAME = "stores.json"
VERSION = 1
UP, WAITING, PARKED = STATES = ("up", "waiting", "parked")
WORDS = {WAITING: "is waited for", PARKED: "is parked"}
_TROUBLES_MAX = 3
LIMIT_BYTES = 512 << 10
STORES_MAX = 100
DETAIL_MAX = 300
_NAME_MAX = 1024
_INT_MAX = 2**63 - 1
_COUNTED_USEC = 10_000_000
#: Of a wait, by chance: stores of many machines that began to wait together are not probed together.
_SPREAD = 0.25
#: How many failures in a row that one dump each may be to blame for make a store one that is waited for.
_DOUBTS = 2
#: How often in a row a store may ask for less than the interval: one that limits rates takes something after that.
_SHORT_WAITS = 3


@dataclass
class Standing:
    """How a store stands, or one project of it. `next_try_usec` is null where it is up; no field holds a secret."""

    store: str
    project: str | None = None
    state: str = UP
    since_usec: int = 0
    failures: int = 0  #: tries in a row that did not get through
    next_try_usec: int | None = None
    detail: str = ""
    delivered: int = 0
    failed: int = 0  #: tries that did not get through, ever


def read(root_fd: int) -> list[Standing]:
    """Return how the stores stand, from the root of a spool. Raises BadInput, or OSError where it cannot be read."""
    try:
        data = durable.read(root_fd, NAME, LIMIT_BYTES)
    except FileNotFoundError:
        return []
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{NAME}: {error}") from error
    if not isinstance(document, dict) or document.keys() != {"version", "stores"} or document["version"] != VERSION:
        raise BadInput(f"{NAME}: version {VERSION} expected")
    stores = document["stores"]
    if not isinstance(stores, list) or len(stores) > STORES_MAX:
        raise BadInput(f"{NAME}: stores: a list of at most {STORES_MAX} expected")
    return [_standing(item, f"stores[{index}]") for index, item in enumerate(stores)]


def _standing(item: Any, key: str) -> Standing:
    if not isinstance(item, dict) or item.keys() != {field.name for field in fields(Standing)}:
        raise BadInput(f"{NAME}: {key}: an object of a standing's fields expected")
    lengths = {"store": _NAME_MAX, "project": _NAME_MAX, "state": _NAME_MAX, "detail": DETAIL_MAX}
    for name, value in item.items():
        if value is None and name in ("project", "next_try_usec"):
            continue
        if name in lengths:
            right = isinstance(value, str) and len(value) <= lengths[name]
        else:
            right = type(value) is int and 0 <= value <= _INT_MAX
        if not right:
            raise BadInput(f"{NAME}: {key}.{name}: not as it must be")
    if item["state"] not in STATES:
        raise BadInput(f"{NAME}: {key}.state: {', '.join(STATES)} expected")
    return Standing(**item)


class Outlook:
    """How the stores stand, as the sender has it. Whether a dump may go to a store is asked and told here."""

    def __init__(
        self,
        root_fd: int,
        owner: tuple[int, int, int],
        clock: Clock,
        *,
        interval_usec: int,
        most_usec: int,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`interval_usec` is the least time between two probes, `most_usec` the longest wait; `chance` gives 0 to 1."""
        self.root_fd = root_fd
        self.owner = owner
        self.clock = clock
        self.interval_usec = interval_usec
        self.most_usec = most_usec
        self.chance = chance
        self.problem = ""  #: what is wrong with the file, for the owner to tell
        self._standings: dict[tuple[str, str | None], Standing] = {}
        self._due_usec: dict[tuple[str, str | None], int] = {}
        self._probed: set[tuple[str, str | None]] = set()
        self._doubts: dict[str, int] = {}
        self._written_usec = clock.now_usec()
        self._counted = False
        self._load()

    def _load(self) -> None:
        try:
            for standing in read(self.root_fd):
                key = (standing.store, standing.project)
                self._standings[key] = standing
                wait_usec = (standing.next_try_usec or 0) - self.clock.wall_usec()
                # Where the clock was set back the wait looks longer than any. What is parked may have been mended.
                if standing.state != WAITING or wait_usec > 2 * self.most_usec:
                    wait_usec = 0
                self._due_usec[key] = self.clock.now_usec() + max(0, wait_usec)
        except (BadInput, OSError) as error:
            self.problem = str(error)
            self._standings.clear()

    def stands(self, store: str, project: str | None = None) -> Standing:
        """Return how the store stands, or a project of it."""
        return self._standings.get((store, project)) or Standing(store, project)

    def admits(self, store: str, project: str | None = None) -> bool:
        """Say whether a dump may be tried there now: all may where it is up, else one, when its time has come."""
        key = (store, project)
        if self.stands(*key).state == UP:
            return True
        return key not in self._probed and self.clock.now_usec() >= self._due_usec[key]

    def next_tries(self, store: str, projects: Iterable[str], *, others: bool) -> list[int]:
        """Return when a dump that waits is tried next, by the monotonic clock.

        `projects` are those for which dumps are held back; `others` says whether there are any besides.
        """
        if (store, None) in self._probed:
            return []
        is_up = self.stands(store).state == UP
        store_usec = 0 if is_up else self._due_usec[store, None]
        places = [(store, project) for project in projects]
        moments = [] if is_up or not others else [store_usec]
        return moments + [max(store_usec, self._due_usec.get(key, 0)) for key in places if key not in self._probed]

    def begin(self, store: str, project: str) -> None:
        """Note that a dump is being tried there: where a probe is due, this is it."""
        self._probed.update(key for key in ((store, None), (store, project)) if self.stands(*key).state != UP)

    def abandon(self, store: str, project: str) -> None:
        """Note that what has begun will tell nothing."""
        self._probed -= {(store, None), (store, project)}

    def took(self, store: str, project: str) -> None:
        """Note that the store has taken a dump of the project."""
        self.abandon(store, project)
        self._doubts.pop(store, None)
        changed = False
        for key in ((store, None), (store, project)):
            standing = self._keep(*key)
            standing.delivered += 1
            if standing.state != UP:
                self._change(standing, UP)
                changed = True
        self._counted = True
        if changed:
            self.write()

    def failed(
        self, store: str, project: str, detail: str, *, retry_usec: int | None = None, of_one: bool = False
    ) -> bool:
        """Note that a try has failed; return whether the dump is to be blamed.

        `retry_usec` is what the store itself asked for; less than the interval counts only a few times in a row. `of_one`
        says that the dump may be all that is wrong: then the store is doubted, and waited for only if the next one does not
        get through either.
        """
        self.abandon(store, project)
        standing = self._keep(store, None)
        standing.failed += 1
        self._counted = True
        blamed = standing.state == UP and retry_usec is None
        doubts = self._doubts[store] = self._doubts.get(store, 0) + 1
        if of_one and standing.state == UP and retry_usec is None and doubts < _DOUBTS:
            return True
        if standing.state != WAITING:
            self._change(standing, WAITING)
        wait_usec = 0 if retry_usec is None else min(retry_usec, self.most_usec)
        if retry_usec is None or standing.failures >= _SHORT_WAITS:
            wait_usec = max(wait_usec, self._spread(self.interval_usec))
        self._wait(standing, wait_usec, detail)
        return blamed

    def park(self, store: str, project: str | None, detail: str, *, tried: str) -> int:
        """Note that the store, or the one project, takes nothing; `tried` is the project that it was tried with.

        Returns how long it is left alone: twice as long each time.
        """
        self.abandon(store, tried)
        if project is not None and (standing := self._standings.get((store, None))) and standing.state != UP:
            self._change(standing, UP)  # the store itself has answered
        standing = self._keep(store, project)
        standing.failed += 1
        if standing.state != PARKED:
            self._change(standing, PARKED)
        most_usec = max(self.interval_usec, self.most_usec // 4)
        wait_usec = min(self.interval_usec << min(standing.failures, 30), most_usec)
        self._wait(standing, self._spread(wait_usec), detail)
        return wait_usec

    def look_again(self) -> None:
        """Have those that are parked probed now: somebody has changed something."""
        for key, standing in self._standings.items():
            if standing.state == PARKED:
                self._due_usec[key] = self.clock.now_usec()

    def forgive(self, but: str | None = None) -> None:
        """Say no more of a store, or a project, that it takes nothing: nothing waits for it that could tell when it does again.

        That holds for all but the store `but`.
        """
        changed = [standing for standing in self._standings.values() if standing.state != UP and standing.store != but]
        for standing in changed:
            self._change(standing, UP)
            self._doubts.pop(standing.store, None)
        if changed:
            self.write()

    def troubles(self) -> list[str]:
        """Return a line for each store, or project, that takes nothing now; of many the first few."""
        lines = []
        for key, standing in self._standings.items():
            if standing.state != UP:
                name = standing.store if standing.project is None else f"project {standing.project}"
                moment = self.clock.time_of_day(self._due_usec[key])
                lines.append(f"{name} {WORDS[standing.state]} until {moment}: {standing.detail}")
        return lines[:_TROUBLES_MAX]

    def write(self) -> None:
        """Put it all on the disk; what goes wrong is a `problem`, and nothing else comes of it."""
        self._counted = False
        self._written_usec = self.clock.now_usec()
        document = {"version": VERSION, "stores": [asdict(standing) for standing in self._standings.values()]}
        data = json.dumps(document, separators=(",", ":")).encode()
        try:
            durable.replace(self.root_fd, NAME, data, *self.owner)
        except OSError as error:
            self.problem = f"{NAME}: {error.strerror}"

    def write_counts(self, *, now: bool = False) -> int | None:
        """Put changed counts on the disk, if that is due; return when it will be, None where nothing has changed."""
        if not self._counted:
            return None
        due_usec = self._written_usec + _COUNTED_USEC
        if now or self.clock.now_usec() >= due_usec:
            self.write()
            return None
        return due_usec

    def _keep(self, store: str, project: str | None) -> Standing:
        """Return the standing that is kept for this store, or project; of too many a project's gives way, one that is up first."""
        key = (store, project)
        if key not in self._standings:
            if len(self._standings) >= STORES_MAX:
                least = min(self._standings.values(), key=_worth)
                del self._standings[least.store, least.project]
                self._due_usec.pop((least.store, least.project), None)
            self._standings[key] = Standing(store, project, since_usec=self.clock.wall_usec())
        return self._standings[key]

    def _change(self, standing: Standing, state: str) -> None:
        standing.state, standing.since_usec = state, self.clock.wall_usec()
        standing.failures, standing.next_try_usec, standing.detail = 0, None, ""

    def _wait(self, standing: Standing, wait_usec: int, detail: str) -> None:
        standing.failures += 1
        standing.detail = printable(detail, DETAIL_MAX)[:DETAIL_MAX]
        standing.next_try_usec = self.clock.wall_usec() + wait_usec
        self._due_usec[standing.store, standing.project] = self.clock.now_usec() + wait_usec
        self.write()

    def _spread(self, wait_usec: int) -> int:
        return wait_usec + int(wait_usec * _SPREAD * self.chance())


def _worth(standing: Standing) -> tuple[bool, bool, int]:
    return standing.project is None, standing.state != UP, standing.since_usec
