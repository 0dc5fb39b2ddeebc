# SPDX-License-Identifier: Apache-2.0
"""The plan of what is to go: what is protected, in which order, and never more than is needed."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from coresnap.ground import settings
from coresnap.spool import index, removal, retention, sight, stages
from coresnap.spool.inventory import Inventory
from coresnap.spool.retention import CORE, DUMP, Policy
from tests.support import spools

if TYPE_CHECKING:
    from pathlib import Path

    from coresnap.spool.retention import Plan

_DAY = 86_400 * 10**6
_NOW = 10_000 * _DAY
_POLICY = Policy(30 * _DAY, 90 * _DAY, 365 * _DAY, 0, 0)
_KB = 1024
_FILES = {"core.zst": 100 * _KB, "snapshot": 8 * _KB, "assets.tar": 12 * _KB, "dump.json": 4 * _KB}


class _Dumps:
    """An inventory in the making."""

    def __init__(self) -> None:
        self._dumps: list[tuple[int, str, str, dict[str, Any]]] = []

    def add(self, stage: str, days: float, bug: str = "", *, without: str = "", **changes: Any) -> str:
        """Add a dump of this age; return its UUID. Each is of a bug that others have too unless `bug` says so."""
        uuid = stages.new_uuid()
        bug = bug or "common"
        sizes = {name: size for name, size in _FILES.items() if name not in without.split()}
        has = {"size_bytes": 8 * _KB, "sha256": ""} if "snapshot" in sizes else None
        known = {"time_usec": int(_NOW - days * _DAY), "snapshot": has, "fingerprint": bug}
        document = spools.document(uuid, **(known | changes))
        self._dumps.append((index.SEEN.index(stage), stage, uuid, sight.values_of(sizes, document)))
        return uuid

    def add_unreadable(self, stage: str, days: float) -> str:
        """Add a dump whose record cannot be read."""
        uuid = stages.new_uuid()
        values = sight.values_of(_FILES, None) | {"time_usec": int(_NOW - days * _DAY)}
        self._dumps.append((index.SEEN.index(stage), stage, uuid, values))
        return uuid

    def ends(self) -> set[str]:
        """Add the first and the latest of the bug that others have, so that all of those are neither."""
        return {self.add("committed", 300), self.add("committed", 0)}

    def plan(self, policy: Policy = _POLICY, *, free_bytes: int = 10**9, total_bytes: int = 10**9) -> Plan:
        """Return the plan."""
        found = Inventory()
        for _number, stage, uuid, values in sorted(self._dumps, key=lambda one: one[0]):
            found.put(stage, uuid, values)
        return retention.plan(found, policy, now_usec=_NOW, free_bytes=free_bytes, total_bytes=total_bytes)


def _steps(plan: Plan) -> list[tuple[str, str]]:
    return [(step.uuid, step.what) for step in plan.steps]


@pytest.mark.parametrize("stage", ["committed", "failed"])
def test_a_core_goes_before_the_rest(stage: str) -> None:
    dumps = _Dumps()
    dumps.ends()
    oldest, older = dumps.add(stage, 91), dumps.add(stage, 31)
    dumps.add(stage, 29)
    plan = dumps.plan()
    assert _steps(plan) == [(oldest, DUMP), (older, CORE)]
    assert [step.size_bytes for step in plan.steps] == [124 * _KB, 100 * _KB]
    assert [step.why for step in plan.steps] == ["older than purge.snapshot_age", "older than purge.age"]


def test_a_dump_without_a_snapshot_is_nothing_without_its_core() -> None:
    dumps = _Dumps()
    dumps.ends()
    old = dumps.add("failed", 31, without="snapshot")
    dumps.add("failed", 29, without="snapshot")
    assert _steps(dumps.plan()) == [(old, DUMP)]


def test_what_waits_is_pinned_or_cannot_be_read_never_goes() -> None:
    dumps = _Dumps()
    ends = dumps.ends()
    dumps.add("pending", 5000)
    dumps.add("sending", 5000)
    dumps.add("committed", 5000, pinned_usec=1)
    dumps.add_unreadable("committed", 5000)
    dumps.add_unreadable("failed", 5000)
    for policy in (_POLICY, replace(_POLICY, max_bytes=1, min_free_percent=99)):
        plan = dumps.plan(policy, free_bytes=0)
        assert {step.uuid for step in plan.steps} <= ends
        assert plan.kept == {"waiting": 2, "pinned": 1, "unreadable": 2, "protected": 1}


def test_the_first_and_the_latest_of_a_bug_are_kept() -> None:
    dumps = _Dumps()
    first = dumps.add("committed", 200, "bug")
    middle = dumps.add("committed", 150, "bug")
    latest = dumps.add("committed", 100, "bug")
    only = dumps.add("committed", 120, "other")
    assert _steps(dumps.plan()) == [(middle, DUMP)]
    assert {uuid for uuid, _what in _steps(dumps.plan(replace(_POLICY, protected_age_usec=110 * _DAY)))} == {
        first,
        middle,
        only,
    }
    for_room = dumps.plan(replace(_POLICY, min_free_percent=99), free_bytes=0)
    assert _steps(for_room) == [(middle, DUMP), (first, CORE), (only, CORE), (latest, CORE)]


def test_without_a_fingerprint_executable_and_signal_are_the_bug() -> None:
    dumps = _Dumps()
    for exe, signal in (("/a", 11), ("/a", 6), ("/b", 11)):
        dumps.add("failed", 200, fingerprint=None, exe=exe, signal=signal)
    assert _steps(dumps.plan()) == []


def test_an_age_of_zero_is_never() -> None:
    dumps = _Dumps()
    dumps.add("committed", 9000, "bug")
    assert _steps(dumps.plan(replace(_POLICY, protected_age_usec=0))) == []


def test_room_is_made_of_what_is_least_missed() -> None:
    """Cores first, of delivered dumps first, the oldest first; then the rest in the same way."""
    dumps = _Dumps()
    dumps.add("committed", 29)
    delivered = [dumps.add("committed", days) for days in (20, 10)]
    given_up = [dumps.add("failed", days) for days in (25, 15)]
    bare = dumps.add("failed", 26, without="snapshot")
    dumps.add("committed", 0)
    everything = dumps.plan(replace(_POLICY, min_free_percent=50), free_bytes=0)
    order = [uuid for uuid, _what in _steps(everything)]
    assert order[:5] == [*delivered, *given_up, bare]
    assert [what for _uuid, what in _steps(everything)] == [DUMP] * 5 + [CORE] * 2
    half = dumps.plan(replace(_POLICY, min_free_percent=50), free_bytes=5 * 10**8 - 250 * _KB)
    assert _steps(half) == [(uuid, CORE) for uuid in (*delivered, given_up[0])]


def test_what_goes_by_age_makes_room_too() -> None:
    dumps = _Dumps()
    dumps.ends()
    old = dumps.add("committed", 40)
    young = dumps.add("committed", 5)
    for short_bytes, expected in ((100 * _KB, [(old, CORE)]), (100 * _KB + 1, [(old, CORE), (young, CORE)])):
        plan = dumps.plan(replace(_POLICY, min_free_percent=10), free_bytes=10**8 - short_bytes)
        assert _steps(plan) == expected
    plan = dumps.plan(replace(_POLICY, min_free_percent=10), free_bytes=10**8 - 210 * _KB)
    assert _steps(plan) == [(old, CORE), (young, CORE), (old, DUMP)]
    assert plan.frees_bytes == (100 + 100 + 24) * _KB, "the core that goes by age is not counted twice"


def test_what_had_begun_is_ended() -> None:
    dumps = _Dumps()
    begun = dumps.add("committed", 1, "bug", core_removed={"time_usec": 1, "why": ""})
    dumps.add("committed", 1, "bug2", core_removed={"time_usec": 1, "why": ""}, without="core.zst")
    assert _steps(dumps.plan()) == [(begun, CORE)]


@pytest.mark.parametrize("seed", range(40))
def test_never_more_than_is_needed(seed: int) -> None:
    """Without the last step for room there would be too little; and what protects evidence holds whatever there is."""
    chance = random.Random(seed)
    dumps = _Dumps()
    for _ in range(chance.randrange(1, 60)):
        stage = chance.choice([*stages.STAGES[1:], "committed", "committed"])
        more: dict[str, Any] = {"pinned_usec": chance.choice([None, None, 5])}
        dumps.add(
            stage,
            chance.uniform(0, 400),
            f"bug{chance.randrange(6)}",
            without=chance.choice(["", "", "snapshot"]),
            **more,
        )
    max_bytes = chance.randrange(1, 7000) * _KB
    plan = dumps.plan(replace(_POLICY, max_bytes=max_bytes))
    for_room = [step for step in plan.steps if step.for_room]
    if for_room:
        others_bytes = sum(step.size_bytes for step in plan.steps if not step.for_room)
        needed_bytes = plan.need_bytes - others_bytes
        assert needed_bytes > 0
        largest_bytes = max(step.size_bytes for step in for_room)
        assert sum(step.size_bytes for step in for_room) < needed_bytes + largest_bytes
    assert {step.stage for step in plan.steps} <= {"committed", "failed"}
    everything = dumps.plan(replace(_POLICY, max_bytes=1))
    if plan.frees_bytes < plan.need_bytes:
        assert plan.frees_bytes == everything.frees_bytes, "there was more that may go"


def test_the_policy_is_what_the_settings_say(tmp_path: Path) -> None:
    made = spools.make(tmp_path, "purge.age = 100d", "dump.ceiling = 10G")
    policy = Policy.of(settings.load(str(made.configuration)))
    assert policy == Policy(100 * _DAY, 100 * _DAY, 365 * _DAY, 9 << 30, 12)


def test_a_step_is_left_where_the_dump_is_not_what_it_was(tmp_path: Path) -> None:
    """In work, pinned since, another one under its name, or not to be read any more: it stays."""
    made = spools.make(tmp_path, "purge.max_bytes = 1")
    cases = ["worked on", "pinned", "another", "broken", "as planned"]
    uuids = {case: spools.add(made, "committed", report=b"{}", time_usec=n + 1) for n, case in enumerate(cases)}
    spools.add(made, "committed", report=b"{}", time_usec=0)
    spools.add(made, "committed", report=b"{}", time_usec=99)
    with made.open() as spool:
        plan = retention.plan_for(spool, settings.load(str(made.configuration)))
        held = spool.take("committed", uuids["worked on"])
        for case, changes in (("pinned", {"pinned_usec": 1}), ("another", {"time_usec": 77})):
            path = made.path("committed", uuids[case])
            known: dict[str, Any] = {"snapshot": {"size_bytes": 2, "sha256": ""}, "time_usec": cases.index(case) + 1}
            known |= changes
            (path / "dump.json").write_text(json.dumps(spools.document(uuids[case], **known)))
        (made.path("committed", uuids["broken"]) / "dump.json").write_text("{")
        assert held is not None
        with held:
            done = list(removal.carry_out(spool, plan, (0o600, -1, -1)))
    told = {one.step.uuid: one.left for one in done}
    assert "in work" in told[uuids["worked on"]]
    assert "pinned" in told[uuids["pinned"]]
    assert "not what it was" in told[uuids["another"]]
    assert "dump.json" in told[uuids["broken"]]
    assert told[uuids["as planned"]] == ""
    assert not made.path("committed", uuids["as planned"]).exists()
    assert all(made.path("committed", uuids[case]).exists() for case in cases[:4])


def test_it_stops_when_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else has made room meanwhile: what the plan had for that is left."""
    made = spools.make(tmp_path, "purge.min_free = 99%")
    for n in range(4):
        spools.add(made, "committed", report=b"{}", time_usec=n + 1 + 10**15 * 5)
    with made.open() as spool:
        plan = retention.plan_for(spool, settings.load(str(made.configuration)))
        steps = [step for step in plan.steps if step.for_room]
        assert steps
        monkeypatch.setattr(removal, "_is_free", lambda *_arguments: True)
        done = list(removal.carry_out(spool, replace(plan, steps=steps), (0o600, -1, -1)))
    assert {one.left for one in done} == {"there is room enough now"}
    assert len(list((made.root / "committed").iterdir())) == 4
