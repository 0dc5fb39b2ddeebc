# SPDX-License-Identifier: Apache-2.0
"""Dumps that wait by the hundred when the machine has booted, and path units that have failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system import backlog
from tests.system.machine import Machine

pytestmark = pytest.mark.long


@pytest.mark.parametrize("result", backlog.LIMITS)
def test_a_path_unit_that_has_failed_recovers_by_itself(enabled: Machine, real_core: Path, result: str) -> None:
    backlog.a_failed_path_unit_recovers(enabled, real_core.read_bytes(), result)


def test_hundreds_that_wait_at_boot_are_all_delivered(enabled: Machine, real_core: Path) -> None:
    backlog.hundreds_wait_at_boot(enabled, real_core.read_bytes(), 300, 3600)
