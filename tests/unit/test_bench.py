# SPDX-License-Identifier: Apache-2.0
"""The benchmark's own reckoning: a ratio, a bar and a watched pipe that are wrong would flatter everything else."""

import signal
import socket
from pathlib import Path

import pytest

from tests.bench import cores, page
from tests.bench.pairs import Figure, Pairs, alternate, attempt, judge
from tests.bench.pipe import WatchedPipe
from tests.bench.programs import Unmeasurable, python, run, start
from tests.bench.watch import IN_ACCESS, IN_CLOSE_NOWRITE

#: Acts on its standard input just after it has told the time, then waits for leave to go on.
_READER = """
import os, time
{prelude}
os.write(1, time.monotonic_ns().to_bytes(8, "little"))
{act}
os.read(1, 1)
"""
_FIRST_READ = _READER.format(prelude="", act="os.read(0, 1)")
_CLOSE = _READER.format(prelude="while os.read(0, 65536): pass", act="os.close(0)")


def test_ratio_is_the_median_of_the_pairs_ratios() -> None:
    pairs = Pairs([10, 100, 30], [10, 50, 10])
    ratio = pairs.ratio()
    assert (ratio.median, ratio.low, ratio.high) == (2.0, 1.0, 3.0)


@pytest.mark.parametrize(("ours", "result"), [(200, "met"), (201, "missed")])
def test_the_bar_itself_is_met_and_a_hair_above_it_is_missed(ours: int, result: str) -> None:
    assert judge("m", "p", 2, Pairs([ours], [100]), "").result == result


def test_peers_runs_far_apart_are_called_noisy() -> None:
    assert Pairs([1, 1], [100, 151]).noisy()
    assert not Pairs([1, 9], [100, 150]).noisy()


def test_pairs_alternate_and_the_warm_up_does_not_count() -> None:
    calls: list[str] = []

    def ours() -> int:
        calls.append("ours")
        return len(calls)

    def peer() -> int:
        calls.append("peer")
        return len(calls)

    assert alternate(2, ours, peer) == Pairs([3, 5], [4, 6])
    assert calls == ["ours", "peer"] * 3


def test_a_measure_that_cannot_be_taken_is_not_met() -> None:
    def take() -> list[Figure]:
        raise Unmeasurable("no room")

    [figure] = attempt("m", "b", take)
    assert (figure.result, figure.detail) == ("not-run", "no room")


def test_a_program_that_fails_says_why() -> None:
    with pytest.raises(Unmeasurable, match=r"exit status 3 .*: the reason$"):
        run(python("-c", "import sys; print('the reason', file=sys.stderr); sys.exit(3)"))


def test_usage_is_of_the_whole_process() -> None:
    usage = run(python("-IS", "-c", "block = bytearray(b'x') * (96 << 20)"))
    assert usage.maxrss_bytes > 96 << 20
    assert 0 < usage.user_usec + usage.system_usec < usage.wall_usec * 2


def test_nonzero_pages_are_counted_page_by_page(tmp_path: Path) -> None:
    core = tmp_path / "core"
    core.write_bytes(bytes(4096) + b"x" + bytes(4095) + bytes(2 << 20) + bytes(4095) + b"y" + bytes(100) + b"z")
    assert cores.nonzero_page_bytes(core) == 3 * 4096


@pytest.mark.parametrize(("event", "reader"), [(IN_ACCESS, _FIRST_READ), (IN_CLOSE_NOWRITE, _CLOSE)])
def test_a_watched_pipe_tells_when_its_reader_acts(tmp_path: Path, event: int, reader: str) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(1 << 20))
    ours, theirs = socket.socketpair()
    with ours, theirs, WatchedPipe(tmp_path, event) as pipe:
        feeder = pipe.feed(source)
        program = start(python("-IS", "-c", reader), stdin=pipe.read_fd, stdout=theirs.fileno())
        pipe.let_go()
        event_nsec = pipe.event_nsec()  # comes while the reader waits for us: neither late nor of its end
        acts_nsec = int.from_bytes(ours.recv(8), "little")
        ours.send(b"g")
        program.wait()
        feeder.wait(0, -signal.SIGPIPE)
    assert program.started_nsec < acts_nsec < event_nsec


def test_a_measure_replaces_its_own_figures_and_none_that_could_not_be_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "_KEPT", tmp_path / "benchmarks.json")
    monkeypatch.setattr(page, "_PAGE", tmp_path / "benchmarks.md")
    order = ["first", "second"]
    page.keep("second", [Figure("b", "≤ 2 × cat", "met", "1.5 ×")], tmp_path, order)
    page.keep("first", [Figure("a", "≤ 2 × cat", "missed", "2.5 ×", "in words")], tmp_path, order)
    page.keep("second", [Figure("b", "≤ 2 × cat", "not-run", "–", "no cat")], tmp_path, order)
    page.keep("first", [Figure("a", "≤ 2 × cat", "met", "1.9 ×")], tmp_path, order)
    text = page._PAGE.read_text()
    assert text.index("| a | ≤ 2 × cat | 1.9 × | met |") < text.index("| b | ≤ 2 × cat | 1.5 × | met |")
    assert not any(word in text for word in ("2.5 ×", "in words", "no cat"))
