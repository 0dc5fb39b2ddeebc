# SPDX-License-Identifier: Apache-2.0
"""Crashes in words: who, of what, when; and the words by which a person picks some of them."""

from __future__ import annotations

import argparse
import fnmatch
import os
import pwd
import re
import signal
import time
from typing import TYPE_CHECKING, Any

from coresnap.ground.text import human_duration, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_NAME_MOST = 40
_QUARTER_SECONDS = 900
WHEN_WIDTH = len("Fri Apr 14 22:49:40 2017")
_YEAR_10000_USEC = 253402214400 * 10**6  # where days begin latest
_UNITS_USEC = {"s": 10**6, "m": 60 * 10**6, "h": 3600 * 10**6, "d": 86400 * 10**6, "w": 7 * 86400 * 10**6}
_SPAN = re.compile(r"(\d{1,9}) ?(s|m|h|d|w)(?:ec|in|ours?|ays?|eeks?|econds?|inutes?)?(?: ago)?")

#: Why a core is not whole: record's reasons.
TRUNCATED = {
    "disk-full": "the disk was full",
    "write-error": "the disk gave an error",
    "cut-short": "its writer ended early",
    "interrupted": "archive was killed",
    "quota": "the spool had no room left",
}


def executable(victim: dict[str, Any]) -> str:
    """Return the executable's name without its directory, or else the process's; as it came, not to be printed."""
    exe = str(victim.get("exe") or "").removesuffix(" (deleted)")
    return os.path.basename(exe) or str(victim.get("comm") or "")


def name(victim: dict[str, Any]) -> str:
    """Return the executable's name, fit to be printed."""
    return printable(executable(victim), _NAME_MOST) or "?"


def signal_name(number: int | None) -> str:
    """Return SIGSEGV for 11, and what it can for others."""
    if number is None:
        return "unknown signal"
    if number == 0:
        return "no signal"
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def when(time_usec: int) -> str:
    """Return a moment in local time, as ctime(3) has it."""
    try:
        return time.strftime("%a %b %d %H:%M:%S %Y", time.localtime(time_usec // 1_000_000))
    except (OverflowError, ValueError, OSError):
        return f"@{time_usec // 1_000_000}"  # a record may have any number


class Moments:
    """Says what when() says, of many moments: what a quarter of an hour has in common is made once.

    Offsets from UTC change on such a boundary, if at all; where they do not, each moment is made by itself.
    """

    def __init__(self) -> None:
        self._quarters: dict[int, tuple[str, int, str] | None] = {}
        self._minutes = [f"{minute:02}:{second:02}" for minute in range(60) for second in range(60)]

    def when(self, times_usec: Iterable[int]) -> Iterator[str]:
        """Yield each moment in local time, as ctime(3) has it, and as wide as in a year of four digits."""
        quarters, minutes = self._quarters, self._minutes
        for time_usec in times_usec:
            quarter, second = divmod(time_usec // 1_000_000, _QUARTER_SECONDS)
            if quarter not in quarters:
                quarters[quarter] = self._quarter(quarter * _QUARTER_SECONDS)
            known = quarters[quarter]
            if known is None:
                yield when(time_usec).ljust(WHEN_WIDTH)
            else:
                hour, offset, year = known
                yield f"{hour}{minutes[offset + second]}{year}"

    def _quarter(self, start: int) -> tuple[str, int, str] | None:
        """Return what stands before and behind the minutes, and the second of the hour; None where it is not that simple."""
        try:
            first, last = time.localtime(start), time.localtime(start + _QUARTER_SECONDS - 1)
        except (OverflowError, ValueError, OSError):
            return None
        if first.tm_sec or (first.tm_hour, first.tm_min + 14, 59) != (last.tm_hour, last.tm_min, last.tm_sec):
            return None
        return time.strftime("%a %b %d %H:", first), first.tm_min * 60, time.strftime(" %Y", first)

    def width(self, latest_first: Iterable[int]) -> int:
        """Return the width of the widest, at least that of a year of four digits."""
        width = WHEN_WIDTH
        for time_usec in latest_first:
            if time_usec < _YEAR_10000_USEC:
                break
            width = max(width, len(when(time_usec)))
        return width


def ago(time_usec: int) -> str:
    """Return how far a moment is from now."""
    away_usec = time.time_ns() // 1000 - time_usec
    return f"{human_duration(away_usec)} ago" if away_usec >= 0 else f"in {human_duration(-away_usec)}"


def matches(victim: dict[str, Any], wanted: str) -> bool:
    """Say whether `wanted` is the victim's executable, path or process name; shell wildcards may stand in it."""
    exe = str(victim.get("exe") or "").removesuffix(" (deleted)")
    known = (exe, os.path.basename(exe), str(victim.get("comm") or ""))
    return any(text and fnmatch.fnmatchcase(text, wanted) for text in known)


def signal_number(text: str) -> int:
    """Read a signal: 11, SEGV or SIGSEGV. For argparse."""
    if text.isascii() and text.isdigit() and len(text) < 4:
        return int(text)
    known = {item.name: item.value for item in signal.Signals}
    number = known.get("SIG" + text.upper().removeprefix("SIG"))
    if number is None:
        raise argparse.ArgumentTypeError(f"{text} is no signal")
    return number


def count(text: str) -> int:
    """Read how many there are to be. For argparse."""
    if text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text} is no number, from 0 on")


def user_number(text: str) -> int:
    """Read a user: a name or a number. For argparse."""
    if text.isascii() and text.isdigit() and len(text) < 11:
        return int(text)
    try:
        return pwd.getpwnam(text).pw_uid
    except KeyError as error:
        raise argparse.ArgumentTypeError(f"this machine has no user {text}") from error


def moment(text: str) -> int:
    """Read a moment, in local time, as microseconds since 1970: 2026-04-14, `2026-04-14 22:49`, today, now, 2h ago.

    For argparse.
    """
    import datetime as dt

    now = dt.datetime.now()  # noqa: DTZ005  # a person at a terminal means local time
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if span := _SPAN.fullmatch(text):
        return time.time_ns() // 1000 - int(span[1]) * _UNITS_USEC[span[2]]
    named = {"now": now, "today": midnight, "yesterday": midnight - dt.timedelta(days=1)}
    try:
        found = named.get(text) or dt.datetime.fromisoformat(text)
        return int(found.timestamp() * 1e6)
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(
            f"{text}: no moment; 2026-04-14, `2026-04-14 22:49`, today, yesterday and `2h ago` are"
        ) from error
