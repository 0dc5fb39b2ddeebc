# SPDX-License-Identifier: Apache-2.0
"""Guests with coresnap in them, and their kernels' cores going to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from coresnap.capture.victim import CORE_PATTERN
from tests.system.machine import Machine

_PIPE = f"|/usr/local/lib/coresnap/archive {CORE_PATTERN}"
_SOCKET = "@@/run/coresnap/kernel"
#: `make smoke` boots the oldest and the newest.
SUITES = ["bookworm", pytest.param("trixie", marks=pytest.mark.long), "forky"]


def _prepare(machine: Machine, pattern: str) -> None:
    """Install coresnap, and hand it the kernel's cores, also after a boot."""
    machine.install()
    machine.sh(
        "mkdir -p /usr/local/etc/coresnap\n"
        "echo 'dump.quota = 1%' > /usr/local/etc/coresnap/coresnap.conf\n"
        "coresnapd --prepare\n"
        "{ echo kernel.core_pipe_limit=64\n"
        f"echo 'kernel.core_pattern={pattern}'; }} > /etc/sysctl.d/60-cores.conf\n"
    )


@pytest.fixture(scope="module", params=["bookworm"])
def guest(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """Boot a guest of the suite in which the kernel starts archive, which captures by itself."""
    with Machine(request.param) as machine:
        _prepare(machine, _PIPE)
        machine.sh("/usr/lib/systemd/systemd-sysctl")
        yield machine


@pytest.fixture(scope="module", params=SUITES)
def served(request: pytest.FixtureRequest) -> Iterator[tuple[Machine, str]]:
    """Boot a guest in which the capture service gets the crashes; yield it, and over what it gets them."""
    transport = "socket" if request.param == "forky" else "handover"
    with Machine(request.param) as machine:
        _prepare(machine, _SOCKET if transport == "socket" else _PIPE)
        machine.sh(
            "systemctl mask --now systemd-coredump.socket systemd-coredumpd.service systemd-coredump-register.service\n"
            "systemctl start coresnap-archive.service\n"
            "/usr/lib/systemd/systemd-sysctl\n"
        )
        yield machine, transport


@pytest.fixture(scope="module", params=SUITES)
def enabled(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """Boot a guest with another collector in force, install coresnap there and enable it: what an administrator does."""
    with Machine(request.param) as machine:
        machine.install()
        machine.sh("systemctl enable --now coresnapd 2>&1")
        yield machine
