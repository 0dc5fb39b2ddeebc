# SPDX-License-Identifier: Apache-2.0
"""The sender's rules: who waits for whom when a store, a project or one dump is in trouble.

The owner is the real one, on a clock of the test's own; its worker is a process that answers what the test says.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from coresnap.cli import parse, why
from coresnap.ground import settings
from coresnap.ground.log import Log
from coresnap.send import Sending
from coresnap.spool import outlook, record, stages, tally
from tests.support import hours, spools
from tests.support.deliveries import TOKEN
from tests.support.hours import HOUR, MINUTE, SECOND, Hours
from tests.support.lying_store import LyingStore
from tests.support.site import Site, assert_whole

BUSY = {"status": "later", "detail": "503 Service Unavailable"}
_ANSWERING = Path(__file__).parents[1] / "support" / "answering.py"


class Sender:
    """A spool with dumps that wait for their delivery, and what the store says to each."""

    def __init__(self, directory: Path, *more: str) -> None:
        self.directory = directory
        self.made = spools.make(
            directory, f"send.coroner = {directory}/none", f"send.store = file:{directory}/store", *more
        )
        self.clock = Hours()
        self.says()

    def dump(self, exe: str = "/usr/bin/vim", **changes: Any) -> str:
        """Add a dump."""
        return spools.add(self.made, stages.SENDING, report=b"{}", exe=exe, **changes)

    def says(self, *rules: tuple[str, str, dict[str, Any] | None]) -> None:
        """Have the store answer by these rules from now on; there is a whole file at any time."""
        (self.directory / "rules.new").write_text(json.dumps(rules))
        os.rename(self.directory / "rules.new", self.directory / "rules")

    def live(self, until_usec: int, **more: Any) -> list[tuple[str, str, int | None]]:
        """Let the owner live for so long; return what it told: dump, status, when it is tried again."""
        trade = Sending(settings.load(str(self.made.configuration)), Log([]))
        trade.worker = [sys.executable, str(_ANSWERING), str(self.directory)]
        with self.made.open() as spool:
            owner, told = hours.live(spool, trade, self.clock, self.clock.passed_usec + until_usec, **more)
        self.shown = owner.shown
        return [(uuid, verdict.status, verdict.retry_usec) for uuid, verdict in told]

    def requests(self) -> list[dict[str, Any]]:
        """Return what the store was asked since the last call."""
        path = self.directory / "asked"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    def asked(self) -> list[str]:
        """Return the dumps that the store was asked to take since the last call."""
        return [request["uuid"] for request in self.requests()]

    def stage(self, uuid: str) -> str:
        """Return the stage of a dump."""
        return next(stage for stage in stages.STAGES if self.made.path(stage, uuid).exists())

    def standing(self, project: str | None = None) -> outlook.Standing:
        """Return how the store stands, from the file."""
        with self.made.open() as spool:
            return next(standing for standing in outlook.read(spool.root_fd) if standing.project == project)


@pytest.fixture
def sender(tmp_path: Path) -> Sender:
    return Sender(tmp_path)


def test_a_store_that_is_down_is_probed_once_a_minute_whatever_waits(tmp_path: Path) -> None:
    sender = Sender(tmp_path, "send.jobs = 1")
    dumps = {sender.dump() for _ in range(20)}
    sender.says(("job", "send", BUSY))
    told = sender.live(10 * MINUTE)
    asked = sender.asked()
    assert len(asked) == 10
    assert len(set(asked)) == 10, "not always the same one"
    assert [status for _uuid, status, _retry in told] == ["later"], "it is said once"
    attempts = [sender.made.record("sending", uuid)["attempts"]["send"] for uuid in dumps]
    assert sorted(attempts) == [0] * 19 + [1], "who waits for the store is not to blame"
    standing = sender.standing()
    assert (standing.state, standing.failures, standing.failed) == ("waiting", 10, 10)
    assert standing.detail == BUSY["detail"]
    assert "is waited for until" in sender.shown
    sender.says()
    sender.live(2 * MINUTE)
    assert {sender.stage(uuid) for uuid in dumps} == {"committed"}
    assert len(sender.asked()) == 20, "each once"
    standing = sender.standing()
    assert (standing.state, standing.failures, standing.delivered, standing.next_try_usec) == ("up", 0, 20, None)


def test_what_is_under_way_when_a_store_goes_down_is_one_failure(tmp_path: Path) -> None:
    sender = Sender(tmp_path, "send.jobs = 2")
    dumps = [sender.dump() for _ in range(40)]
    sender.says(("job", "send", BUSY))
    sender.live(10 * MINUTE)
    assert len(sender.asked()) <= 11
    assert sum(sender.made.record("sending", uuid)["attempts"]["send"] for uuid in dumps) == 1


def test_chance_makes_probes_later_never_sooner(sender: Sender) -> None:
    sender.dump()
    sender.says(("job", "send", BUSY))
    sender.live(HOUR, chance=lambda: 1.0)
    assert len(sender.asked()) == 48


def test_retry_after_is_kept_and_bounded(tmp_path: Path) -> None:
    sender = Sender(tmp_path, "send.retry_max = 10min")
    uuid = sender.dump()
    sender.says(("job", "send", {**BUSY, "retry_after_usec": 5 * MINUTE}))
    assert sender.live(5 * MINUTE - SECOND) == [(uuid, "later", 5 * MINUTE)]
    assert len(sender.asked()) == 1
    sender.live(2 * SECOND)
    assert len(sender.asked()) == 1
    assert sender.made.record("sending", uuid)["attempts"]["send"] == 0, "the store asked for it"
    sender.says(("job", "send", {**BUSY, "retry_after_usec": 10**15}))
    sender.live(5 * MINUTE)
    assert len(sender.asked()) == 1
    sender.live(10 * MINUTE - SECOND)
    assert sender.asked() == []
    sender.says(("job", "send", {**BUSY, "retry_after_usec": SECOND}))
    sender.live(12 * SECOND)
    few = len(sender.asked())
    assert 1 <= few <= 3, "a store that asks for a second gets a second, as long as that leads somewhere"
    sender.live(HOUR)
    assert len(sender.asked()) <= 61


def test_one_dump_that_a_store_fails_on_does_not_block_the_others(sender: Sender) -> None:
    dumps = sorted(sender.dump() for _ in range(10))
    poison = dumps[0]
    sender.says(("uuid", poison, {"status": "later", "detail": "500"}))
    sender.live(2 * MINUTE)
    assert {sender.stage(uuid) for uuid in dumps[1:]} == {"committed"}
    first = sender.asked()
    assert first[0] == poison
    assert first[1] != poison
    assert sender.made.record("sending", poison)["attempts"]["send"] >= 1
    # From now on it is known for what it is: others that come are not held up at all, and it comes later each time.
    late = []
    for minute in range(1, 240):
        sender.clock.at(sender.clock.passed_usec + minute * MINUTE, lambda: late.append(sender.dump()))
    sender.live(4 * HOUR)
    tries = sender.asked().count(poison)
    assert 4 <= tries <= 8
    assert {sender.stage(uuid) for uuid in late} == {"committed"}
    assert sender.standing().state == "up"


def test_attempts_are_counted_where_others_get_through(tmp_path: Path) -> None:
    sender = Sender(tmp_path, "send.attempts = 3")
    poison = sender.dump()
    sender.says(("uuid", poison, {"status": "later", "detail": "500"}))
    sender.live(6 * HOUR)
    assert sender.stage(poison) == "sending", "alone it cannot be told from a store that is down"
    for minute in range(1, 240):
        sender.clock.at(sender.clock.passed_usec + minute * MINUTE, sender.dump)
    sender.live(5 * HOUR)
    assert sender.stage(poison) == "failed"
    assert "after 3 attempts: 500" in sender.made.record("failed", poison)["failure"]["detail"]


@pytest.mark.parametrize("answer", [None, {"status": "?"}])
def test_a_dump_that_kills_its_worker_is_to_blame_alone(sender: Sender, answer: dict[str, Any] | None) -> None:
    dumps = sorted(sender.dump() for _ in range(5))
    sender.says(("uuid", dumps[0], answer))
    sender.live(SECOND)
    assert [sender.stage(uuid) for uuid in dumps] == ["sending"] + ["committed"] * 4
    assert sender.standing().state == "up"


def test_a_worker_that_always_dies_is_not_started_for_each_dump(sender: Sender) -> None:
    for _ in range(10):
        sender.dump()
    sender.says(("job", "send", None))
    sender.live(10 * MINUTE)
    assert len(sender.asked()) <= 12


def test_a_refusal_is_of_one_dump(sender: Sender) -> None:
    dumps = sorted(sender.dump() for _ in range(3))
    sender.says(("uuid", dumps[1], {"status": "refused", "detail": "422"}))
    sender.live(SECOND)
    assert [sender.stage(uuid) for uuid in dumps] == ["committed", "failed", "committed"]


def test_a_project_is_parked_alone(tmp_path: Path) -> None:
    sender = Sender(tmp_path, "format.1 = web %e ^nginx$", "format.1 = other")
    web = [sender.dump("/usr/sbin/nginx") for _ in range(5)]
    other = [sender.dump() for _ in range(5)]
    sender.says(("project", "web", {"status": "parked", "detail": "no token", "scope": "project"}))
    told = sender.live(10 * SECOND)
    assert {sender.stage(uuid) for uuid in other} == {"committed"}
    assert {sender.stage(uuid) for uuid in web} == {"sending"}
    assert len([uuid for uuid in sender.asked() if uuid in web]) == 1, "the others of it wait"
    assert [status for uuid, status, _retry in told if uuid in web] == ["parked"]
    assert "project web is parked until" in sender.shown
    assert "no token" in sender.shown
    assert (sender.standing("web").state, sender.standing().state) == ("parked", "up")
    assert sender.standing("other").delivered == 5
    later = [sender.dump() for _ in range(3)]
    sender.live(HOUR)
    assert 4 <= len([uuid for uuid in sender.asked() if uuid in web]) <= 8, "now and then"
    assert {sender.stage(uuid) for uuid in later} == {"committed"}
    assert {sender.made.record("sending", uuid)["attempts"]["send"] for uuid in web} == {0}
    sender.says()
    sender.live(16 * MINUTE)
    assert {sender.stage(uuid) for uuid in web} == {"committed"}


def test_a_store_that_is_parked_parks_all(sender: Sender) -> None:
    dumps = [sender.dump() for _ in range(5)]
    sender.says(("job", "send", {"status": "parked", "detail": "401", "scope": "store"}))
    sender.live(HOUR)
    assert len(sender.asked()) <= 8
    assert {sender.stage(uuid) for uuid in dumps} == {"sending"}
    assert sender.standing().state == "parked"
    sender.says()
    sender.live(SECOND)
    assert {sender.stage(uuid) for uuid in dumps} == {"committed"}, "a new start tries at once: it may have been mended"


def test_what_is_known_of_a_store_outlives_the_sender(sender: Sender) -> None:
    for _ in range(3):
        sender.dump()
    sender.says(("job", "send", BUSY))
    for _ in range(60):
        sender.live(10 * SECOND)
    assert len(sender.asked()) <= 10
    assert sender.standing().failures >= 9


def test_a_clock_that_is_set_back_stalls_nothing(sender: Sender) -> None:
    uuid = sender.dump()
    sender.says(("job", "send", BUSY))
    sender.live(SECOND)
    sender.says()
    sender.clock.wall_base_usec -= 365 * 24 * HOUR
    sender.live(SECOND)
    assert sender.stage(uuid) == "committed"


@pytest.mark.parametrize("scope", ["store", "project"])
def test_what_nothing_waits_for_is_no_trouble_any_more(tmp_path: Path, scope: str) -> None:
    """Somebody has removed the dump, or named another store: no probe will ever tell that the one before is mended."""
    sender = Sender(tmp_path)
    uuid = sender.dump()
    sender.says(("job", "send", {"status": "parked", "detail": "no token", "scope": scope}))
    sender.live(2 * MINUTE)
    place = None if scope == "store" else "blackhole"
    assert sender.standing(place).state == "parked"
    sender.clock.at(sender.clock.passed_usec + SECOND, lambda: shutil.rmtree(sender.made.path("sending", uuid)))
    sender.live(2 * MINUTE)
    assert sender.standing(place).state == "up"
    assert "parked" not in sender.shown


def test_a_store_that_reports_do_not_go_to_any_more_is_no_trouble(tmp_path: Path) -> None:
    sender = Sender(tmp_path)
    sender.dump()
    sender.says(("job", "send", BUSY))
    sender.live(SECOND)
    before = sender.standing()
    assert before.state == "waiting"
    text = sender.made.configuration.read_text()
    sender.made.configuration.write_text(text.replace(f"file:{tmp_path}/store", f"file:{tmp_path}/other"))
    sender.live(5 * MINUTE)
    with sender.made.open() as spool:
        states = {
            standing.store: standing.state for standing in outlook.read(spool.root_fd) if standing.project is None
        }
    assert states == {before.store: "up", f"file:{tmp_path}/other": "waiting"}


def test_why_tells_which_store_a_dump_waits_for(sender: Sender, capsys: pytest.CaptureFixture[str]) -> None:
    uuid = sender.dump()
    for answer, said in (
        (BUSY, "store is waited for since"),
        ({"status": "parked", "detail": "no token", "scope": "project"}, "project blackhole is parked since"),
    ):
        sender.says(("job", "send", answer))
        sender.live(2 * MINUTE)
        assert why.run(parse("why", [uuid, "--settings", str(sender.made.configuration)])) == 0
        shown = capsys.readouterr().out
        assert said in shown
        assert str(answer["detail"]) in shown
        assert f"`coresnap retry {uuid[:8]}` tries again now" in shown
        assert ("to do: mend that" in shown) == (answer["status"] == "parked"), "what is down may come back by itself"


def test_a_changed_coroner_cf_has_what_is_parked_tried_within_a_minute(tmp_path: Path) -> None:
    sender = Sender(tmp_path)
    coroner = tmp_path / "none"
    coroner.write_text("x")
    uuid = sender.dump()
    sender.says(("job", "send", {"status": "parked", "detail": "no token", "scope": "project"}))
    sender.clock.at(20 * MINUTE + SECOND, lambda: os.utime(coroner))
    sender.clock.at(20 * MINUTE + SECOND, sender.says)
    sender.live(22 * MINUTE)
    assert sender.stage(uuid) == "committed"


@pytest.mark.parametrize(
    "answer",
    [
        BUSY,
        {"status": "parked", "detail": "401", "scope": "store"},
        {"status": "parked", "detail": "no token", "scope": "project"},
    ],
)
def test_a_touched_dump_is_tried_now(sender: Sender, answer: dict[str, Any]) -> None:
    """As `coresnap retry` touches it; when it gets through all do, but for the one that was tried first, which has its own wait."""
    dumps = sorted(sender.dump() for _ in range(5))
    sender.says(("job", "send", answer))
    sender.clock.at(10 * SECOND, sender.says)
    sender.clock.at(11 * SECOND, lambda: os.utime(sender.made.path("sending", dumps[3])))
    sender.live(12 * SECOND)
    assert {sender.stage(uuid) for uuid in dumps[1:]} == {"committed"}
    assert sender.asked()[:2] == [dumps[0], dumps[3]]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version":1,"stores":[{}]}', b"x" * 10**6, b"[" * 10**5])
def test_a_broken_file_is_as_none(sender: Sender, content: bytes) -> None:
    (sender.made.root / outlook.NAME).write_bytes(content)
    uuid = sender.dump()
    sender.live(SECOND)
    assert sender.stage(uuid) == "committed"
    assert sender.standing().delivered == 1


def test_no_more_stores_and_projects_are_kept_than_that(tmp_path: Path) -> None:
    sender = Sender(tmp_path, *(f"format.{n} = p{n} %e ^e{n}$" for n in range(150)))
    for number in range(150):
        sender.dump(f"/bin/e{number}")
    sender.live(SECOND)
    assert len(list((sender.made.root / "committed").iterdir())) == 150
    with sender.made.open() as spool:
        kept = outlook.read(spool.root_fd)
    assert len(kept) == outlook.STORES_MAX
    assert sender.standing().delivered == 150


def _of_one_bug(sender: Sender, count: int, bug: str = "f" * 64, **changes: Any) -> list[str]:
    return [sender.dump(fingerprint=bug, **changes) for _ in range(count)]


def test_the_first_of_a_bug_are_sent_whole_and_the_rest_small(tmp_path: Path) -> None:
    sender = Sender(tmp_path, "send.whole_per_day = 3")
    dumps = _of_one_bug(sender, 20) + _of_one_bug(sender, 3, "0" * 64)
    sender.live(SECOND)
    records = {uuid: sender.made.record("committed", uuid) for uuid in dumps}
    numbers = sorted(records[uuid]["sent_small"] or 0 for uuid in dumps[:20])
    assert numbers == [0, 0, 0, *range(4, 21)]
    assert {records[uuid]["sent_small"] for uuid in dumps[20:]} == {None}, "each bug by itself"
    assert any("small, number 20 of its bug" in records[uuid]["history"][-1]["detail"] for uuid in dumps)
    for request in sender.requests():
        small = records[request["uuid"]]["sent_small"]
        assert (request["small"], request["files"]) == (
            (small, ["snapshot"]) if small else (0, ["snapshot", "assets.tar"])
        )
    [late] = _of_one_bug(sender, 1)
    sender.live(SECOND)
    assert sender.made.record("committed", late)["sent_small"] == 21, "a restart forgets nothing"
    sender.clock.wall_base_usec += 24 * HOUR
    [next_day] = _of_one_bug(sender, 1)
    sender.live(SECOND)
    assert sender.made.record("committed", next_day)["sent_small"] is None


def test_what_is_not_delivered_does_not_count(tmp_path: Path) -> None:
    sender = Sender(tmp_path, "send.whole_per_day = 2")
    _of_one_bug(sender, 2)
    sender.says(("job", "send", BUSY))
    sender.live(HOUR)
    sender.says()
    sender.live(5 * MINUTE)
    assert {
        sender.made.record("committed", path.name)["sent_small"] for path in (sender.made.root / "committed").iterdir()
    } == {None}


@pytest.mark.parametrize(
    "content", [b"{", b'{"version":1,"day":1,"counts":{"x":-1}}', b'{"version":1,"day":99999999,"counts":[]}']
)
def test_a_broken_count_begins_anew(tmp_path: Path, content: bytes) -> None:
    sender = Sender(tmp_path)
    (sender.made.root / tally.NAME).write_bytes(content)
    [uuid] = _of_one_bug(sender, 1)
    sender.live(SECOND)
    assert sender.stage(uuid) == "committed"
    with sender.made.open() as spool:
        assert list(tally.read(spool.root_fd)[1].values()) == [1]


def test_without_a_limit_all_are_whole(tmp_path: Path) -> None:
    sender = Sender(tmp_path, "send.whole_per_day = 0")
    dumps = _of_one_bug(sender, 20)
    sender.live(SECOND)
    assert {sender.made.record("committed", uuid)["sent_small"] for uuid in dumps} == {None}


@pytest.mark.parametrize(("value", "core"), [("no", []), ("yes", ["core"])])
def test_the_core_goes_where_the_settings_say_so(tmp_path: Path, value: str, core: list[str]) -> None:
    sender = Sender(tmp_path, f"send.core = {value}", "send.whole_per_day = 1")
    _of_one_bug(sender, 2)
    sender.live(SECOND)
    assert [request["files"] for request in sender.requests()] == [["snapshot", "assets.tar", *core], ["snapshot"]]


def test_a_receipt_of_another_snapshot_is_none(sender: Sender) -> None:
    uuid = sender.dump()
    receipt = {
        **dict.fromkeys(("store", "project", "object"), "x"),
        **{"version": 1, "uuid": uuid, "acknowledged_usec": 1, "size_bytes": 2, "sha256": "11", "already_there": False},
    }
    sender.says(("uuid", uuid, {"status": "delivered", "receipt": receipt}))
    [(_uuid, status, _retry)] = sender.live(SECOND)
    assert status == "later"
    assert sender.stage(uuid) == "sending"
    assert not (sender.made.path("sending", uuid) / "receipt.json").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"{}"])
def test_of_a_broken_receipt_the_store_is_asked_again(sender: Sender, content: bytes) -> None:
    dumps = sorted(sender.dump() for _ in range(3))
    (sender.made.path("sending", dumps[0]) / "receipt.json").write_bytes(content)
    sender.live(SECOND)
    assert [sender.stage(uuid) for uuid in dumps] == ["committed"] * 3
    assert sorted(sender.asked()) == dumps
    assert json.loads((sender.made.path("committed", dumps[0]) / "receipt.json").read_bytes())["uuid"] == dumps[0]


def test_small_reports_reach_the_store_through_the_real_programs(tmp_path: Path, real_core: Path) -> None:
    site = Site(tmp_path / "site", **{"send.whole_per_day": "2"})
    for _ in range(5):
        assert site.archive(real_core).returncode == 0
    assert site.once().returncode == 0
    assert_whole(site, real_core.read_bytes())
    reports = [json.loads(path.read_bytes()) for path in site.stored()]
    numbers = [report["attributes"].get("coresnap.small.number") for report in reports]
    assert sorted(filter(None, numbers)) == [3, 4, 5]
    with_asset = {path.name[:36] for path in site.store.glob("*/*.assets.tar")}
    assert with_asset == {report["uuid"] for report, number in zip(reports, numbers, strict=True) if number is None}
    for _stage, path in site.dumps():
        stored = next(report for report in reports if report["uuid"] == path.name)
        assert _record(path)["sent_small"] == stored["attributes"].get("coresnap.small.number")
        assert len(stored["threads"]) == (1 if _record(path)["sent_small"] else 3)


def test_a_snapshot_waits_a_little_before_it_goes_to_an_object_store_first(tmp_path: Path, real_core: Path) -> None:
    coroner = tmp_path / "coroner.cf"
    moments = []
    for number, (jitter, command) in enumerate([("1h", ""), ("1h", ""), ("0", ""), ("1h", "true")]):
        more = {"send.jitter": jitter, "send.coroner": str(coroner), "send.command": command}
        site = Site(tmp_path / str(number), **more)
        if number == 0:
            assert site.archive(real_core).returncode == 0
            assert site.once().returncode == 0
            assert site.stages() == ["committed"], "where there is no coroner.cf the store is a directory, and near"
            coroner.write_text("[universe]\nwrite = http://127.0.0.1:9\n")
        assert site.archive(real_core).returncode == 0
        before_usec = time.time_ns() // 1000
        assert site.run("process", "--once").returncode == 0
        path = next(path for stage, path in site.dumps() if stage == "sending")
        moment_usec = _record(path)["next_try_usec"]
        assert moment_usec is None or before_usec <= moment_usec <= time.time_ns() // 1000 + HOUR
        moments.append(moment_usec)
        if moment_usec:
            site.run("send", "--once").check_returncode()
            assert _record(path)["next_try_usec"] == moment_usec, "it is not tried before"
    assert None not in moments[:2]
    assert moments[0] != moments[1]
    assert moments[2:] == [None, None]


def _record(path: Path) -> dict[str, Any]:
    return record.parse((path / record.NAME).read_bytes())


def test_the_core_reaches_the_store(tmp_path: Path, real_core: Path) -> None:
    """A file: store, and one over HTTP; the bytes are those that are kept."""
    coroner = tmp_path / "coroner.cf"
    with LyingStore() as store:
        for number in range(2):
            site = Site(tmp_path / str(number), **{"send.core": "yes", "send.coroner": str(coroner)})
            assert site.archive(real_core).returncode == 0
            assert site.once().returncode == 0
            ((stage, path),) = site.dumps()
            assert stage == "committed"
            kept = (path / "core.zst").read_bytes()
            if number == 0:
                assert [stored.read_bytes() for stored in site.store.glob("*/*.core.zst")] == [kept]
            else:
                told = store.objects[path.name].attachments["core.zst"]
                assert told == (len(kept), hashlib.sha256(kept).hexdigest())
            coroner.write_text(f"[universe]\nname = u\nwrite = {store.address}\n[token]\nblackhole = {TOKEN}\n")
            coroner.chmod(0o600)
