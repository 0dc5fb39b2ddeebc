# SPDX-License-Identifier: Apache-2.0
"""A guest with coresnap in it, and its kernel's cores going to archive."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from coresnap.capture.victim import CORE_PATTERN
from tests.system.machine import Machine


@pytest.fixture(scope="module", params=["bookworm"])
def guest(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """Boot a guest of the suite, install coresnap and hand it the kernel's cores."""
    with Machine(request.param) as machine:
        machine.install()
        machine.sh(
            "useradd --system --no-create-home coresnap\n"
            "mkdir -p /usr/local/etc/coresnap\n"
            "echo 'dump.quota = 1%' > /usr/local/etc/coresnap/coresnap.conf\n"
            "coresnapd --prepare\n"
            "{ echo kernel.core_pipe_limit=64\n"
            f"echo 'kernel.core_pattern=|/usr/local/lib/coresnap/archive {CORE_PATTERN}'; }} > /etc/sysctl.d/60-cores.conf\n"
            "/usr/lib/systemd/systemd-sysctl\n"
        )
        yield machine
