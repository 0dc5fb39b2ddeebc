# SPDX-License-Identifier: Apache-2.0
"""The words by which a person picks crashes, and those by which crashes are told."""

from __future__ import annotations

import argparse
import time

import pytest

from coresnap.cli import words
from coresnap.host.pattern import is_ours


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-02", 86400),
        ("1970-01-02 00:01", 86460),
        ("1970-01-02T00:00:01", 86401),
        ("1970-01-02T00:00:00+01:00", 82800),
    ],
)
def test_dates_are_moments(text: str, seconds: int) -> None:
    assert words.moment(text) == seconds * 10**6


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2h", 7200), ("2h ago", 7200), ("90s", 90), ("5min", 300), ("3 days ago", 259200), ("1w", 604800)],
)
def test_spans_are_moments_before_now(text: str, seconds: int) -> None:
    before_usec = time.time_ns() // 1000
    assert before_usec <= words.moment(text) + seconds * 10**6 <= time.time_ns() // 1000


def test_days_have_names() -> None:
    midnight = time.time_ns() // 10**9 // 86400 * 86400
    assert words.moment("today") in (midnight * 10**6, (midnight + 86400) * 10**6)
    assert words.moment("today") - words.moment("yesterday") == 86400 * 10**6


@pytest.mark.parametrize("text", ["", "tomorrow", "2x ago", "-1h", "2026-13-01", "9" * 30, "1999999999w", "\x1b[31m"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        words.moment(text)


@pytest.mark.parametrize(("text", "number"), [("11", 11), ("SEGV", 11), ("sigsegv", 11), ("ABRT", 6)])
def test_signals_have_names(text: str, number: int) -> None:
    assert words.signal_number(text) == number


@pytest.mark.parametrize("text", ["", "NONE", "-1", "1000", "¹"])
def test_what_is_no_signal_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        words.signal_number(text)


@pytest.mark.parametrize(
    ("victim", "name"),
    [
        ({"exe": "/usr/bin/vim", "comm": "x"}, "vim"),
        ({"exe": "/usr/bin/vim (deleted)", "comm": "x"}, "vim"),
        ({"exe": None, "comm": "worker"}, "worker"),
        ({"exe": "/", "comm": None}, "?"),
        ({}, "?"),
        ({"comm": "\u202e\n"}, "\\u202e\\n"),
    ],
)
def test_names(victim: dict[str, str | None], name: str) -> None:
    assert words.name(victim) == name


@pytest.mark.parametrize("time_usec", [0, 1, 2**63, 2**64 - 1, 10**30])
def test_any_number_is_told_as_a_time(time_usec: int) -> None:
    assert words.when(time_usec)
    assert words.ago(time_usec)


@pytest.mark.parametrize(
    ("pattern", "ours"),
    [
        ("core", False),
        ("", False),
        ("|", False),
        ("|/usr/share/apport/apport -p%p", False),
        ("|/usr/lib/systemd/systemd-coredump %P", False),
        ("/var/coresnap/archive", False),
        ("|/opt/archive %P", False),
        ("|/usr/lib/coresnap/archive %P %I", True),
        ("|/usr/lib/python3/dist-packages/coresnap/archive.py %P", True),
        ("@@/run/coresnap/kernel", True),
    ],
)
def test_whose_core_pattern_it_is(pattern: str, ours: bool) -> None:
    assert is_ours(pattern) is ours


@pytest.mark.parametrize("zone", ["UTC", "Europe/Vienna", "Asia/Kathmandu", "Australia/Lord_Howe", "Europe/Amsterdam"])
def test_many_moments_are_told_as_one_is(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also around changes of the offset, and where it is no number of minutes, as in Amsterdam before 1937."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    seconds = [*range(0, 2**31, 9_999_991), *range(1711843200, 1711854000, 7), *range(1729987200, 1729998000, 7)]
    seconds += [*range(1712404800, 1712415600, 7), 253402300799, 253402300800, 2**44]
    moments = words.Moments()
    told = list(moments.when(second * 10**6 + 999_999 for second in seconds))
    assert told == [words.when(second * 10**6).ljust(24) for second in seconds]
    beyond_usec = 253402390800 * 10**6
    assert moments.width([beyond_usec, 10**15]) == len(words.when(beyond_usec)) == 25
    assert moments.width([10**15]) == len(words.when(10**15)) == 24
