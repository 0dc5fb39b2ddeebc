# SPDX-License-Identifier: Apache-2.0
"""Which cores the settings do not want."""

from __future__ import annotations

import pytest

from coresnap.capture import policy
from coresnap.capture.victim import Victim
from coresnap.ground.flat import ArchiveSettings

_LIMITS = (
    b"Limit                     Soft Limit           Hard Limit           Units     \n"
    b"Max cpu time              0                    unlimited            seconds   \n"
    b"Max core file size        %s                   unlimited            bytes     \n"
)


def _victim(limit: int | None) -> Victim:
    victim = Victim()
    victim.rlimit_core = limit
    return victim


def _settings(value: str) -> ArchiveSettings:
    settings = ArchiveSettings()
    settings.rlimit_core = value
    return settings


@pytest.mark.parametrize(
    ("limit", "limits"), [(0, b""), (0, _LIMITS % b"unlimited"), (None, _LIMITS % b"0"), (None, _LIMITS % b"1")]
)
def test_a_limit_of_nothing_is_honoured_where_that_is_asked_for(limit: int | None, limits: bytes) -> None:
    """The kernel tells the limit on the pipe; over its socket /proc does: the meaning is the same."""
    with pytest.raises(policy.Declined) as declined:
        policy.decide(_settings("honour"), _victim(limit), limits)
    assert declined.value.reason == "rlimit"
    policy.decide(_settings("ignore"), _victim(limit), limits)


@pytest.mark.parametrize(
    ("limit", "limits"),
    [(4096, _LIMITS % b"0"), (None, _LIMITS % b"unlimited"), (None, b""), (None, b"Max core file size\n")],
)
def test_any_other_limit_cuts_and_forbids_nothing(limit: int | None, limits: bytes) -> None:
    policy.decide(_settings("honour"), _victim(limit), limits)


def test_what_has_to_be_read_first() -> None:
    assert policy.needs_limits(_settings("honour"), _victim(None))
    assert not policy.needs_limits(_settings("honour"), _victim(0))
    assert not policy.needs_limits(_settings("ignore"), _victim(None))
