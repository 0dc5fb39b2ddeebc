# SPDX-License-Identifier: Apache-2.0
"""Programs that the snapshot's sandbox does not find under their paths: their stacks are whole all the same."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.crash import build
from tests.system.machine import Machine
from tests.system.waiting import all_committed, dumps, settings

pytestmark = pytest.mark.long

_SPOOL = "/var/lib/coresnap"
_RUN = "systemd-run -q --wait -p LimitCORE=0"
#: How a program comes to be out of reach of whoever makes its snapshot. It is at /usr/local/bin/crash for all.
_OUT_OF_REACH = {
    "private tmp": f"{_RUN} -p PrivateTmp=yes sh -c 'cp /usr/local/bin/crash /tmp/program; exec /tmp/program segv 3'",
    "container": "systemd-nspawn -q -D / --volatile=yes -M box sh -c"
    " 'cp /usr/local/bin/crash /var/program; /var/program segv 3; true'",
    "root of its own": "for file in $(ldd /usr/local/bin/crash | grep -o '/[^ ]*'); do"
    " mkdir -p /srv/root$(dirname $file); cp $file /srv/root$file; done;"
    " mkdir -p /srv/root/proc /srv/root/sys /srv/root/dev /srv/root/run;"
    f" cp /usr/local/bin/crash /srv/root/program; {_RUN} -p RootDirectory=/srv/root /program segv 3",
    "deleted": "cp /usr/local/bin/crash /root/program; sh -c 'exec 3< /root/program; rm /root/program;"
    " exec /proc/self/fd/3 segv 3'",
    "home": "mkdir -m 700 -p /home/user; cp /usr/local/bin/crash /home/user/program; chown -R 1234:1234 /home/user;"
    " setpriv --reuid=1234 --regid=1234 --clear-groups /home/user/program segv 3",
}


@pytest.fixture(scope="module")
def machine(enabled: Machine) -> Machine:
    with tempfile.TemporaryDirectory() as directory:
        shutil.copy(build("crash"), directory)
        enabled.put(Path(directory), "/usr/local/bin")
    return enabled


def _crashed(guest: Machine, script: str) -> tuple[dict[str, Any], list[str]]:
    """Run a script in which one process crashes; return its dump, once it is delivered, and what its asset has of modules."""
    before = {dump["uuid"] for dump in dumps(guest)}
    done = guest.sh(script, check=False)
    found = [dump for dump in dumps(guest) if dump["uuid"] not in before]
    assert len(found) == 1, done
    all_committed(guest)
    names = guest.sh(f"tar -tf {_SPOOL}/committed/{found[0]['uuid']}/assets.tar").stdout.split()
    return found[0], [name for name in names if name.startswith("modules/")]


def _faulting(guest: Machine, dump: dict[str, Any]) -> list[dict[str, Any]]:
    report = json.loads(guest.sh(f"cat {_SPOOL}/committed/{dump['uuid']}/snapshot").stdout)
    stack: list[dict[str, Any]] = report["threads"][report["mainThread"]]["stack"]
    return stack


@pytest.mark.parametrize("how", _OUT_OF_REACH)
def test_what_is_out_of_reach_is_kept(machine: Machine, how: str) -> None:
    dump, kept = _crashed(machine, _OUT_OF_REACH[how])
    record = dump["record"]
    transport = "socket" if machine.image.suite == "forky" else "handover"
    assert record["captured"]["transport"] == transport
    assert record["assets"]["missing"] == []
    assert kept
    stack = _faulting(machine, dump)
    assert [frame.get("funcName") for frame in stack[:3]] == ["store", "die", "run"]
    assert not [frame for frame in stack if frame.get("guessed_frame")]
    assert len(stack) >= 4


def test_where_archive_captures_alone(machine: Machine) -> None:
    """With the service away: over a pipe, or, where the kernel has a socket, by the service that PID 1 starts for it."""
    machine.sh("systemctl stop coresnap-handover.socket coresnap-archive.service 2>&1")
    try:
        dump, kept = _crashed(machine, _OUT_OF_REACH["private tmp"])
    finally:
        machine.sh("systemctl start coresnap-handover.socket coresnap-archive.service")
    assert dump["record"]["captured"]["transport"] == ("socket" if machine.image.suite == "forky" else "pipe")
    assert dump["record"]["assets"]["missing"] == []
    assert kept
    assert [frame.get("funcName") for frame in _faulting(machine, dump)[:3]] == ["store", "die", "run"]


@pytest.mark.parametrize("protect", ["", "-p PrivateTmp=yes -p ProtectSystem=strict -p PrivateDevices=yes"])
def test_of_the_system_s_own_nothing_is_kept(machine: Machine, protect: str) -> None:
    """A service in a mount namespace of its own has the machine's programs all the same."""
    dump, kept = _crashed(machine, f"{_RUN} {protect} /usr/local/bin/crash segv 3")
    assert dump["record"]["assets"]["missing"] == []
    assert kept == []
    assert [frame.get("funcName") for frame in _faulting(machine, dump)[:3]] == ["store", "die", "run"]


def test_nothing_is_kept_where_that_is_set(machine: Machine) -> None:
    with settings(machine, "archive.modules_max_bytes = 0"):
        dump, kept = _crashed(machine, _OUT_OF_REACH["private tmp"])
    assert kept == []
    assert [frame.get("funcName") for frame in _faulting(machine, dump)[:3]] == [None] * 3
