# SPDX-License-Identifier: Apache-2.0
"""The power goes in the middle of it all: what is in a stage is whole, and goes its way after the boot."""

from __future__ import annotations

import json
import time

import pytest

from tests.system.machine import Machine

_CRASHES = "(while :; do python3 -c 'import ctypes; ctypes.string_at(16)'; done) > /dev/null 2>&1 &"
_STAGES = "(while :; do coresnapd --once; done) > /dev/null 2>&1 &"
#: Each dump outside staging: its core, compressed or not, has the size on record, its snapshot and its delivered copy the digest.
_CHECK = """
import glob, hashlib, json, os, subprocess
seen = {}
for path in glob.glob("/var/lib/coresnap/[pscf]*/*-*-*-*-*"):
    stage, uuid = path.split("/")[-2:]
    if stage == "staging":
        continue
    record = json.load(open(path + "/dump.json"))
    assert record["uuid"] == uuid and uuid not in seen, path
    if os.path.exists(path + "/core"):
        assert os.path.getsize(path + "/core") == record["core"]["size_bytes"], path
        assert open(path + "/core", "rb").read(4) == b"\\x7fELF", path
    else:
        assert os.path.getsize(path + "/core.zst") == record["core"]["compressed_bytes"], path
        whole = subprocess.run(["zstd", "-dc", path + "/core.zst"], check=True, capture_output=True).stdout
        assert len(whole) == record["core"]["size_bytes"] and whole[:4] == b"\\x7fELF", path
    if stage in ("sending", "committed"):
        digest = hashlib.sha256(open(path + "/snapshot", "rb").read()).hexdigest()
        assert digest == record["snapshot"]["sha256"], path
    if stage == "committed":
        receipt = json.load(open(path + "/receipt.json"))
        (stored,) = glob.glob("/var/lib/coresnap-store/" + receipt["object"])
        assert hashlib.sha256(open(stored, "rb").read()).hexdigest() == receipt["sha256"], path
    seen[uuid] = stage
print(json.dumps(seen))
"""


def check_dumps(guest: Machine) -> dict[str, str]:
    """Check every dump that is in a stage; return the stage of each."""
    found: dict[str, str] = json.loads(guest.run("python3", "-c", _CHECK).stdout)
    return found


@pytest.mark.parametrize("seconds", [6.0, 9.5])
def test_a_power_cut_loses_no_dump_that_was_in_a_stage(guest: Machine, seconds: float) -> None:
    before = check_dumps(guest)
    guest.sh("sync")
    guest.sh(_CRASHES + "\n" + _STAGES)
    time.sleep(seconds)
    guest.cut_power()
    guest.boot()
    after = check_dumps(guest)
    assert set(before) <= set(after)
    assert len(after) > len(before), "nothing had been captured when the power went"
    guest.sh("coresnapd --once", seconds=300)
    done = check_dumps(guest)
    assert set(after) <= set(done), "a dump is gone"
    assert set(done.values()) == {"committed"}
    assert guest.sh("ls -A /var/lib/coresnap/staging").stdout == ""
