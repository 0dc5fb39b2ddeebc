# SPDX-License-Identifier: Apache-2.0
"""A store that is down for an hour: it is left alone meanwhile, and gets everything, once, when it is back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import outage
from tests.support.hours import HOUR, MINUTE

pytestmark = pytest.mark.walk
_DUMPS = 1000


@pytest.mark.parametrize("down", ["503", "busy", "silent"])
def test_an_hour(tmp_path: Path, down: str) -> None:
    seen = outage.suffer(tmp_path, _DUMPS, down)
    assert seen.first_tries <= (6 if down == "busy" else 3)
    assert seen.most_in_a_minute() == 1
    assert 45 <= len(seen.asked_usec) <= 66
    assert len(seen.acknowledged_usec) == _DUMPS
    assert seen.offered == [1] * _DUMPS
    assert seen.acknowledged_usec[-1] <= HOUR + 2 * MINUTE
