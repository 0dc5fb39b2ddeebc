# SPDX-License-Identifier: Apache-2.0
"""The long run: the power goes again and again, and crashes by the hundred meet a capture service that is killed."""

from __future__ import annotations

import random
import time

import pytest

from tests.system.machine import Machine
from tests.system.test_power_cut import check_dumps
from tests.system.waiting import all_committed, dumps, lost, until

pytestmark = pytest.mark.proof

_SEED = 20261126
_CUTS = 10
_CRASHES = "systemd-run -q sh -c 'while :; do python3 -c \"import ctypes; ctypes.string_at(16)\"; done'"
#: Crashes so many processes, twenty at a time.
_WAVES = """
import os, signal, sys
for _wave in range(int(sys.argv[1]) // 20):
    pids = [os.posix_spawn("/usr/bin/sleep", ["sleep", "1000"], {}, setsigdef=[signal.SIGSEGV]) for _ in range(20)]
    for pid in pids:
        os.kill(pid, signal.SIGSEGV)
    for pid in pids:
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGSEGV
"""


def test_the_power_goes_again_and_again(enabled: Machine) -> None:
    chance = random.Random(_SEED)
    known: dict[str, str] = {}
    for cut in range(_CUTS):
        enabled.sh(_CRASHES)
        # A power cut comes when it comes: that is what is tried here.
        time.sleep(chance.uniform(2, 20))
        enabled.cut_power()
        enabled.boot()
        until(enabled, "systemctl is-active -q coresnapd")
        after = check_dumps(enabled)
        assert set(known) <= set(after), f"cut {cut}: a dump is gone"
        assert {uuid for uuid, stage in known.items() if stage == "committed"} <= {
            uuid for uuid, stage in after.items() if stage == "committed"
        }
        known = after
    assert len(known) > _CUTS, "hardly anything had been captured when the power went"
    all_committed(enabled, 1200)
    done = check_dumps(enabled)
    assert set(known) <= set(done)
    assert set(done.values()) == {"committed"}


def test_every_crash_of_a_thousand_is_kept_or_on_record(enabled: Machine) -> None:
    """While the capture service is killed now and then, with all its workers."""
    before = len(dumps(enabled)) + len(lost(enabled))
    chance = random.Random(_SEED)
    enabled.run("sh", "-c", "cat > /root/waves.py", stdin=_WAVES.encode())
    enabled.sh("rm -f /root/done; systemd-run -q sh -c 'python3 /root/waves.py 1000 && touch /root/done'")
    while not until(enabled, "[ -e /root/done ]", chance.randint(2, 30), check=False):
        enabled.sh("systemctl kill -s KILL coresnap-archive.service")
    until(enabled, "systemctl is-active -q coresnap-archive")
    all_committed(enabled, 7200)  # a snapshot takes some four seconds without KVM
    assert len(dumps(enabled)) + len(lost(enabled)) == before + 1000
