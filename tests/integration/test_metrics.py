# SPDX-License-Identifier: Apache-2.0
"""`coresnap metrics` is read with a strict parser of the exposition format; its labels stay few whatever crashes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest

from coresnap.cli import exposition
from coresnap.spool import ledger, outlook, stages
from tests.support import spools
from tests.support.site import REPOSITORY, Site

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.spools import Made

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(?:,|$)')
_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (-?[0-9]+(?:\.[0-9]+)?)")
_HOSTILE = 'evil"} 1\n# TYPE x counter\nx{a="\\\x1b[2J\udc80'

Series = dict[str, dict[tuple[tuple[str, str], ...], float]]


def _parse(text: str) -> tuple[Series, dict[str, str]]:
    """Read the format as its specification has it; return the samples by metric, and the types."""
    assert text.endswith("\n")
    series: Series = defaultdict(dict)
    kinds: dict[str, str] = {}
    current = ""
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            current = line.split(" ")[2]
            assert _NAME.fullmatch(current)
            assert current not in kinds, "a metric's lines stand together"
            assert len(line.split(" ", 3)[3]) > 10
        elif line.startswith("# TYPE "):
            _hash, _type, name, kind = line.split(" ")
            assert (name, kind in ("gauge", "counter")) == (current, True)
            kinds[name] = kind
        else:
            found = _SAMPLE.fullmatch(line)
            assert found, line
            assert found[1] == current
            assert current in kinds, "the type comes first"
            labels, rest = [], found[2] or ""
            while rest:
                pair = _LABEL.match(rest)
                assert pair, line
                labels.append((pair[1], pair[2]))
                rest = rest[pair.end() :]
            assert tuple(labels) not in series[current], "each series once"
            series[current][tuple(labels)] = float(found[3])
    return series, kinds


def _metrics(configuration: Path, *arguments: str, status: int = 0) -> str:
    argv = [sys.executable, "-m", "coresnap.cli", "--settings", str(configuration), "metrics", *arguments]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, check=False, timeout=120)
    assert done.returncode == status, done
    return done.stdout.decode()


def _stores(made: Made, count: int) -> None:
    standings = [
        {**vars(outlook.Standing(f"https://{_HOSTILE}{number}")), "delivered": 2, "failed": 1}
        for number in range(count)
    ]
    (made.root / outlook.NAME).write_text(json.dumps({"version": 1, "stores": standings}))


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Make a spool of hostile dumps, stores and losses."""
    spool = spools.make(tmp_path)
    for number in range(30):
        hostile: dict[str, Any] = {"exe": _HOSTILE + str(number), "comm": _HOSTILE, "hostname": _HOSTILE, "uid": number}
        spools.add(spool, stages.STAGES[number % 5], fingerprint=_HOSTILE + str(number), **hostile)
    (spool.path("failed", spools.add(spool, "failed")) / "dump.json").write_text("{")
    spools.add(spool, "committed", pinned_usec=5)
    with spool.open() as opened:
        for number in range(40):
            ledger.append(opened.root_fd, "quota", _HOSTILE, "", {"exe": f"{_HOSTILE}{number}"})
        ledger.append(opened.root_fd, "rate", _HOSTILE, "", {"exe": _HOSTILE})
    _stores(spool, 90)
    return spool


def test_what_is_printed_is_declared_and_the_other_way_round(made: Made) -> None:
    series, kinds = _parse(_metrics(made.configuration))
    assert kinds == {name: metric.kind for name, metric in exposition.METRICS.items()}
    for name, metric in exposition.METRICS.items():
        assert (metric.kind == "counter") == name.endswith("_total"), name
        assert {tuple(label for label, _value in labels) for labels in series[name]} <= {metric.labels}, name
    unused = {name for name in exposition.METRICS if not series[name]}
    assert unused == {"coresnap_store_next_try_timestamp_seconds"}, "no store waits here"


def test_series_do_not_grow_with_what_crashes(made: Made) -> None:
    text = _metrics(made.configuration)
    series, _kinds = _parse(text)
    values = {value for some in series.values() for labels in some for _label, value in labels}
    assert not any("/usr/bin" in value or re.search("[0-9a-f]{8}-[0-9a-f]{4}", value) for value in values)
    assert len(series["coresnap_store_up"]) == 17
    assert series["coresnap_deliveries_total"][("store", "others"),] == 74 * 2
    assert sum(series["coresnap_deliveries_total"].values()) == 90 * 2
    assert set(series["coresnap_cores_not_kept_total"]) == {(("reason", reason),) for reason in ledger.REASONS}
    assert sum(len(some) for some in series.values()) < 150
    assert "\x1b" not in text


def test_the_numbers_are_right(made: Made) -> None:
    series, _kinds = _parse(_metrics(made.configuration))
    assert {labels[0][1]: value for labels, value in series["coresnap_dumps"].items()} == {
        "staging": 6,
        "pending": 6,
        "sending": 6,
        "committed": 7,
        "failed": 7,
    }
    failed = sum(file.stat().st_blocks * 512 for file in (made.root / "failed").glob("*/*"))
    assert series["coresnap_dumps_disk_bytes"][("stage", "failed"),] == failed
    assert series["coresnap_dumps_pinned"][()] == 1
    assert series["coresnap_dumps_unreadable"][()] == 1
    assert series["coresnap_cores_not_kept_total"][("reason", "quota"),] == 40
    assert series["coresnap_cores_not_kept_total"][("reason", "rate"),] == 1
    assert series["coresnap_last_capture_held_seconds"][()] == 0.001


def test_a_store_that_waits_says_until_when(made: Made) -> None:
    standing = vars(outlook.Standing("https://store")) | {"state": "waiting", "next_try_usec": 5_000_000, "failures": 3}
    parked = vars(outlook.Standing("https://store", "project")) | {"state": "parked"}
    (made.root / outlook.NAME).write_text(json.dumps({"version": 1, "stores": [standing, parked]}))
    series, _kinds = _parse(_metrics(made.configuration))
    store = (("store", "https://store"),)
    assert series["coresnap_store_up"][store] == 0
    assert series["coresnap_store_next_try_timestamp_seconds"][store] == 5
    assert series["coresnap_projects_parked"][()] == 1


@pytest.mark.parametrize(
    "sample", [("coresnap_nothing", {}, 1), ("coresnap_dumps", {}, 1), ("coresnap_dumps", {"exe": "x"}, 1)]
)
def test_what_is_not_declared_is_a_mistake(sample: exposition.Sample) -> None:
    with pytest.raises(ValueError, match="is not declared"):
        exposition.text([sample])


def test_counters_do_not_go_down_when_the_ring_comes_round(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "LINES", 8)
    with made.open() as spool:
        before = ledger.totals(spool.root_fd)
        for _ in range(30):
            ledger.append(spool.root_fd, "empty", "")
        after = ledger.totals(spool.root_fd)
    assert after == before | {"empty": 30}


def test_a_textfile_is_replaced_at_once(tmp_path: Path, real_core: Path) -> None:
    site = Site(tmp_path / "site", metrics__textfile=str(tmp_path / "collected" / "coresnap.prom"))
    site.archive(real_core).check_returncode()
    site.once().check_returncode()
    _metrics(site.settings, "--write", status=69)
    (tmp_path / "collected").mkdir()
    assert _metrics(site.settings, "--write") == ""
    path = tmp_path / "collected" / "coresnap.prom"
    first = path.stat()
    assert first.st_mode & 0o777 == 0o644
    series, _kinds = _parse(path.read_text())
    assert series["coresnap_dumps"][("stage", "committed"),] == 1
    assert sum(series["coresnap_deliveries_total"].values()) == 1
    _metrics(site.settings, "--textfile", str(path))
    assert path.stat().st_ino != first.st_ino
    assert [entry.name for entry in (tmp_path / "collected").iterdir()] == [path.name]
    os.symlink("/dev/null", tmp_path / "link")
    _metrics(site.settings, "--textfile", str(tmp_path / "link"))
    assert not (tmp_path / "link").is_symlink(), "it has been replaced, not followed"


def test_without_a_textfile_nothing_is_written(made: Made) -> None:
    assert _metrics(made.configuration, "--write") == ""
    assert _metrics(made.configuration, "--textfile", "/proc/none", status=69) == ""
