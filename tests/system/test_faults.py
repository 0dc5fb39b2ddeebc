# SPDX-License-Identifier: Apache-2.0
"""Faults around coresnap. Every crash ends whole in committed, or kept truncated, or on record; and nothing hangs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.system.machine import Machine
from tests.system.test_traps import _CORE_PATTERN
from tests.system.waiting import CRASH, all_committed, dumps, lost, settings, until, with_lines

pytestmark = pytest.mark.long
_OVER_A_PIPE = pytest.mark.parametrize("enabled", ["bookworm"], indirect=True)
#: An archive waits for the service for a minute, then the next at its gate, which is not waited for longer than two.
#: Its own offer to the service that is stopped takes another; then they capture, one after the other.
_GATES_SECONDS = 60 + 120 + 60 + 180

_SERVICE = "coresnap-archive.service"
_ROOT = "/var/lib/coresnap"
#: Prints the number of the process that copies a core.
_COPIER = f"find /proc/[0-9]*/fd -lname '*{_ROOT}/staging/*/core' 2>/dev/null | head -1 | cut -d/ -f3"
#: Prints for each dump in committed whether its core is whole: as long as on record, and as its headers say.
_WHOLE = """
import json, os, struct, subprocess, sys
root, found = sys.argv[1], {}
for uuid in os.listdir(root + "/committed"):
    record = json.load(open(f"{root}/committed/{uuid}/dump.json"))
    subprocess.run(["coresnap", "dump", uuid, "-o", "/root/core"], check=True, capture_output=True)
    with open("/root/core", "rb") as core:
        header = core.read(64)
        offset, size, count = struct.unpack_from("<Q", header, 32)[0], *struct.unpack_from("<HH", header, 54)
        core.seek(offset)
        programs = [struct.unpack("<IIQQQQQQ", core.read(size)) for _ in range(count)]
    end = max(program[2] + program[5] for program in programs)
    length = os.path.getsize("/root/core")
    found[uuid] = length == record["core"]["size_bytes"] == end and record["core"]["truncated"] is None
    os.unlink("/root/core")
print(json.dumps(found))
"""
#: Holds the lock that every capture waits for, for a few seconds, before its first byte.
_HOLD = """
import fcntl, os, signal, sys
fd = os.open(sys.argv[1] + "/reservations", os.O_RDWR | os.O_CREAT, 0o600)
os.chown(fd, os.stat(sys.argv[1]).st_uid, os.stat(sys.argv[1]).st_gid)
fcntl.lockf(fd, fcntl.LOCK_EX, 1, 4096)
open("/root/holder", "w").write(str(os.getpid()))
signal.pause()
"""
#: Stops the process that waits for it.
_STOP_WHO_WAITS = (
    "while [ ! -e /root/stopped ]; do for p in $(cat /sys/fs/cgroup/coresnap.slice/coresnap-archive.service/cgroup.procs); do"
    f" ls -l /proc/$p/fd 2>/dev/null | grep -qF '{_ROOT}/reservations' && kill -STOP $p && echo > /root/stopped && break;"
    " done; done"
)
#: Has so many processes crash at once; it ends with the last of them.
_STORM = """
rm -f /root/storm; pids=
for i in $(seq {crashes}); do sleep 1000 & pids="$pids $!"; done
kill -SEGV $pids; echo $pids > /root/storm; wait
"""
#: While the storm lasts, kills every archive that carries: its own crash has been taken, its input is the core's pipe no more.
_KILL_WHO_CARRIES = """
import os, signal, subprocess, sys, time
storm, killed = subprocess.Popen(["sh", "-c", sys.argv[1]], stderr=subprocess.DEVNULL), 0
while storm.poll() is None:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        fds = f"/proc/{pid}/fd"
        try:
            if "/python3" not in os.readlink(f"/proc/{pid}/exe") or os.readlink(f"{fds}/0").startswith("pipe:"):
                continue
            if "/run/coresnap/carriers" in [os.readlink(f"{fds}/{fd}") for fd in os.listdir(fds)]:
                os.kill(int(pid), signal.SIGKILL)
                killed += 1
        except OSError:
            continue
    time.sleep(0.02)
print(killed)
"""


def _big(mebibytes: int) -> str:
    """Return a command that crashes with a core of that size, and writes down its number."""
    program = (
        f"import ctypes, os; open('/root/victim', 'w').write(str(os.getpid())); "
        f"b = bytearray(os.urandom(1 << 20)) * {mebibytes}; ctypes.string_at(16)"
    )
    return f'rm -f /root/victim; (python3 -c "{program}" > /dev/null 2>&1 &)'


def _small(guest: Machine) -> int:
    """Crash a process, without a wait for its end; return its number."""
    program = "import ctypes, os; open('/root/small', 'w').write(str(os.getpid()) + '.'); ctypes.string_at(16)"
    guest.sh(f'rm -f /root/small; (python3 -c "{program}" > /dev/null 2>&1 &)')
    until(guest, "grep -q [.] /root/small")
    return int(guest.sh("cat /root/small").stdout.rstrip("."))


def _victim(guest: Machine) -> int:
    return int(guest.sh("cat /root/victim").stdout)


@contextmanager
def _in_mid_copy(guest: Machine, mebibytes: int = 160) -> Iterator[str]:
    """Have a big core stand still in the middle of its copy, then let it go on; yield the number of what copies it."""
    guest.sh(
        f'{_big(mebibytes)}; until p=$({_COPIER}) && [ -n "$p" ]; do sleep 0.02; done; kill -STOP $p; echo $p > /root/copier'
    )
    copier = guest.sh("cat /root/copier").stdout.strip()
    try:
        assert guest.sh(f"ls {_ROOT}/staging").stdout, "it was faster"
        assert "T (stopped)" in guest.sh(f"grep State /proc/{copier}/status").stdout
        yield copier
    finally:
        guest.sh(f"kill -CONT {copier}", check=False)


def _ours(guest: Machine, pid: int) -> dict[str, Any]:
    """Return the record of a process's dump."""
    (dump,) = [dump for dump in dumps(guest) if dump["record"]["victim"]["pid"] == pid]
    record: dict[str, Any] = dump["record"]
    return record


def _assert_whole(guest: Machine, count: int) -> None:
    """There are so many dumps, all of them are delivered, and have whole cores."""
    all_committed(guest)
    found: dict[str, bool] = json.loads(guest.run("python3", "-c", _WHOLE, _ROOT, seconds=600).stdout)
    assert len(found) == count
    assert all(found.values()), found


@pytest.fixture
def clean(enabled: Machine) -> Machine:
    """Have no dump in the spool, and the services at work."""
    until(enabled, f"systemctl is-active -q {_SERVICE} coresnapd")
    dumps(enabled)
    all_committed(enabled)
    enabled.sh(f"ls {_ROOT}/committed | xargs -r coresnap rm")
    return enabled


def _waits_in_the_queue(guest: Machine) -> None:
    until(guest, "[ $(grep -c ' /run/coresnap/kernel$\\| /run/coresnap/handover$' /proc/net/unix) -gt 2 ]")


def test_a_worker_killed_in_mid_copy(clean: Machine) -> None:
    with _in_mid_copy(clean) as copier:
        clean.sh(f"kill -KILL {copier}")
        pid = _victim(clean)
    until(clean, f"[ ! -d /proc/{pid} ]")
    record = _ours(clean, pid)
    assert record["core"]["truncated"]["reason"] == "interrupted"
    assert 0 < record["core"]["size_bytes"] < 160 << 20
    all_committed(clean)
    assert "SIGSEGV" in clean.run("coresnap", "why", str(pid)).stdout


def test_the_service_killed_in_mid_copy(clean: Machine) -> None:
    """All its processes: the next service sweeps, and knows whose core it is."""
    with _in_mid_copy(clean):
        clean.sh(f"systemctl kill -s KILL {_SERVICE}")
        pid = _victim(clean)
    until(clean, f"[ ! -d /proc/{pid} ]")
    record = _ours(clean, pid)
    assert record["core"]["truncated"]["reason"] == "interrupted"
    assert record["victim"]["signal"] == 11
    all_committed(clean)


def test_the_service_killed_before_it_takes_a_crash(clean: Machine) -> None:
    """What waits in the socket's queue the next service takes."""
    clean.sh(f"systemctl kill -s STOP {_SERVICE}")
    pid = _small(clean)
    _waits_in_the_queue(clean)
    assert clean.sh(f"ls {_ROOT}/staging").stdout == ""
    clean.sh(f"systemctl kill -s KILL {_SERVICE}")
    until(clean, f"[ ! -d /proc/{pid} ]")
    assert _ours(clean, pid)["captured"]["transport"] in ("handover", "socket")
    _assert_whole(clean, 1)


def test_the_service_killed_between_the_hand_over_and_the_first_byte(clean: Machine) -> None:
    """Archive, which waits, captures by itself; the kernel has nobody else to ask, and its crash is on record."""
    over_socket = clean.sh(f"cat {_CORE_PATTERN}").stdout.startswith("@@")
    clean.sh(
        f"rm -f /root/holder /root/stopped; (python3 -c '{_HOLD}' {_ROOT} > /dev/null 2>&1 &)\n"
        "timeout 60 sh -c 'until [ -s /root/holder ]; do sleep 0.1; done'\n"
        f"({_STOP_WHO_WAITS}) > /dev/null 2>&1 &"
    )
    try:
        pid = _small(clean)
        until(clean, "[ -e /root/stopped ]")  # a worker has it, and waited for room
        assert clean.sh(f"ls {_ROOT}/staging").stdout == "", "it waited no longer"
        if not over_socket:
            assert clean.sh("pgrep -fc '^[^ ]*python3 -IS -c .*coresnap.archive'").stdout == "1\n"
        clean.sh(f"systemctl kill -s KILL {_SERVICE}")
        if over_socket:
            until(clean, f"[ ! -d /proc/{pid} ]")
    finally:
        clean.sh("kill $(cat /root/holder)")
    until(clean, f"[ ! -d /proc/{pid} ]")
    if over_socket:
        until(clean, f"coresnap why {pid}")
        (loss,) = [loss for loss in lost(clean) if loss.get("pid") == pid]
        assert loss["reason"] == "interrupted"
        assert loss["comm"] == "python3"
        assert dumps(clean) == []
    else:
        assert _ours(clean, pid)["captured"]["transport"] == "pipe"
        assert [loss for loss in lost(clean) if loss.get("pid") == pid] == []
        _assert_whole(clean, 1)


def test_pid_1_executes_itself_anew_in_mid_copy(clean: Machine) -> None:
    with _in_mid_copy(clean):
        clean.sh("systemctl daemon-reexec; systemctl daemon-reload", seconds=300)
        clean.sh(CRASH)
    _assert_whole(clean, 2)


def test_the_service_is_restarted_in_mid_copy_under_a_storm(clean: Machine) -> None:
    with _in_mid_copy(clean) as copier:
        clean.sh(
            f"for i in 1 2 3 4 5 6 7 8 9 10; do ({CRASH}) & done\n"
            f"systemctl restart --no-block {_SERVICE}; until systemctl is-active {_SERVICE} | grep -q deactivating; do :; done\n"
            f"for i in 1 2 3 4 5 6 7 8 9 10; do ({CRASH}) & done\n"
            f"kill -CONT {copier}; wait",
            seconds=600,
        )
    until(clean, f'[ -z "$(systemctl list-jobs --no-legend {_SERVICE})" ]', 120)
    _assert_whole(clean, 21)
    assert "core_pipe_limit" not in clean.sh("dmesg").stdout


def test_the_package_s_files_are_replaced_in_mid_copy(clean: Machine) -> None:
    def change(tree: Path) -> None:
        path = tree / "usr/local/lib/coresnap/python/coresnap/capture/tell.py"
        text = path.read_text()
        assert "archived in" in text
        path.write_text(text.replace("archived in", "archived by the new files in"))

    new = "journalctl --sync; journalctl --no-pager -b -t coresnap | grep -c 'archived by the new files' || true"
    with _in_mid_copy(clean):
        clean.upgrade(change)
    until(clean, f'[ -z "$(ls -A {_ROOT}/staging)" ]', 120)
    assert clean.sh(new).stdout == "0\n"
    clean.sh(f"systemctl restart coresnapd {_SERVICE}", seconds=300)
    clean.sh(CRASH)
    _assert_whole(clean, 2)
    assert clean.sh(new).stdout == "1\n"


def test_the_clock_is_set_back_and_forward(clean: Machine) -> None:
    """Retries, path units and timers go on; a dump that is to be tried again `tomorrow` is tried now."""
    with settings(clean, "snapshot.command = false"):
        clean.sh(CRASH)
        until(clean, "systemctl show -P StatusText coresnap-processor | grep -q 'next try at'")
        with _in_mid_copy(clean):
            clean.sh("date -s '1 day ago'")
            clean.sh(CRASH)
        dumps(clean)
    clean.sh("systemctl stop coresnap-processor coresnap-sender")
    clean.sh(CRASH)
    _assert_whole(clean, 4)
    with _in_mid_copy(clean):
        clean.sh("date -s '1 day'")
        clean.sh(CRASH)
    _assert_whole(clean, 6)
    units = "coresnap-pending.path coresnap-sending.path coresnap-rescue.timer coresnap-purge.timer"
    assert clean.sh(f"systemctl is-active {units}").stdout == "active\n" * 4
    for timer in ("coresnap-rescue.timer", "coresnap-purge.timer"):
        assert clean.sh(f"systemctl show -P NextElapseUSecMonotonic {timer}").stdout.strip() not in ("", "infinity")


@contextmanager
def _small_disk(guest: Machine) -> Iterator[None]:
    """Have dump.root on a file system of its own, of 192 MiB, below which there is no spool."""
    guest.sh(
        "systemctl stop coresnapd 2>&1; systemctl stop 'coresnap*' 2>&1\n"
        f"mv {_ROOT} {_ROOT}.before; mkdir -m 700 {_ROOT}; chown coresnap: {_ROOT}\n"
        "truncate -s 192M /root/disk; mkfs.ext4 -q -m 0 /root/disk\n"
        f"mount -o loop /root/disk {_ROOT}; systemctl start coresnapd",
        seconds=300,
    )
    try:
        yield
    finally:
        guest.sh(
            "systemctl stop coresnapd 2>&1; systemctl stop 'coresnap*' 2>&1\n"
            f"umount -l {_ROOT} || true; rm -rf {_ROOT}; mv {_ROOT}.before {_ROOT}; rm /root/disk; systemctl start coresnapd",
            seconds=300,
        )


def test_a_disk_that_is_full_and_one_that_is_unmounted(clean: Machine) -> None:
    with _small_disk(clean), settings(clean, "dump.quota = 0%"):
        clean.sh(f"{_big(300)}; until [ -s /root/victim ]; do sleep 0.1; done")
        pid = _victim(clean)
        until(clean, f"[ ! -d /proc/{pid} ]", 120)
        assert {loss["pid"]: loss["reason"] for loss in lost(clean)}[pid] == "disk-full", "it was never going to fit"

        with _in_mid_copy(clean, 120):
            clean.sh(f"dd if=/dev/zero of={_ROOT}/filler bs=1M 2>&1 || true", seconds=300)
        pid = _victim(clean)
        until(clean, f"[ ! -d /proc/{pid} ]", 120)
        kept = [dump["record"] for dump in dumps(clean) if dump["record"]["victim"]["pid"] == pid]
        # Kept truncated, or on record where not even the record of a dump had room left.
        reasons = [record["core"]["truncated"]["reason"] for record in kept]
        reasons += [loss["reason"] for loss in lost(clean) if loss["pid"] == pid]
        assert reasons == ["disk-full"], "another took the room meanwhile"

        clean.sh(f"dd if=/dev/zero of={_ROOT}/filler2 bs=4k 2>&1 || true", seconds=300)
        pid = _small(clean)
        until(clean, f"coresnap why {pid}")
        assert {loss["pid"]: loss["reason"] for loss in lost(clean)}[pid] == "disk-full"

        clean.sh(f"rm {_ROOT}/filler {_ROOT}/filler2")
        pid = _small(clean)
        until(clean, f"[ ! -d /proc/{pid} ]")
        assert _ours(clean, pid)["core"]["truncated"] is None
        all_committed(clean)
        assert {dump["stage"] for dump in dumps(clean)} == {"committed"}

        _unmounted(clean)


def _unmounted(guest: Machine) -> None:
    """Nothing is written below the mount point, nor into a file system that nobody sees; the crash is on record."""
    guest.sh(f"umount -l {_ROOT}")
    pid = _small(guest)
    until(guest, f"[ ! -d /proc/{pid} ]")
    until(guest, f"coresnap why {pid} 2>/dev/null")
    shown = guest.run("coresnap", "why", str(pid)).stdout
    assert "dump.root was missing or not mounted" in shown
    assert "python3" in shown
    assert guest.sh(f"ls -A {_ROOT}").stdout == ""
    guest.sh(f"mount -o loop /root/disk {_ROOT}")
    assert not [dump for dump in dumps(guest) if dump["record"]["victim"]["pid"] == pid]
    pid = _small(guest)
    until(guest, f"[ ! -d /proc/{pid} ]")
    assert _ours(guest, pid)["core"]["truncated"] is None
    all_committed(guest)


def test_what_the_kernel_drops_is_on_record(clean: Machine) -> None:
    """Over the pipe: more helpers at once than core_pipe_limit. Over its socket: a queue that is full."""
    crashes = 8  # the newer kernel names no more than ten such processes in five seconds
    storm = f"for i in $(seq {crashes}); do ({CRASH}) & done; wait"
    if clean.sh(f"cat {_CORE_PATTERN}").stdout.startswith("|"):
        reason = "over core_pipe_limit"
        clean.sh("cat /proc/sys/kernel/core_pipe_limit > /root/limit; echo 1 > /proc/sys/kernel/core_pipe_limit")
        clean.sh(storm, seconds=300)
        clean.sh("cat /root/limit > /proc/sys/kernel/core_pipe_limit")
    else:
        reason = "/run/coresnap/kernel: "
        with with_lines(clean, "coresnap-archive.socket", "Socket", "Backlog=1"):
            clean.sh(f"systemctl restart coresnap-archive.socket {_SERVICE}; systemctl kill -s STOP {_SERVICE}")
            clean.sh(f"dmesg -C; ({storm}) > /dev/null 2>&1 &")
            queue = 2  # the kernel lets one more wait than the backlog says
            try:
                until(clean, f"[ $(dmesg | grep -c '/run/coresnap/kernel receive queue full') -eq {crashes - queue} ]")
            finally:
                clean.sh(f"systemctl kill -s CONT {_SERVICE}")
        clean.sh(f"systemctl restart coresnap-archive.socket {_SERVICE}")
    kept = len(dumps(clean))
    assert 0 < kept < crashes
    until(clean, f"[ $(coresnap why -n 1000 | grep -c '{reason}') -ge {crashes - kept} ]")
    dropped = [loss for loss in lost(clean) if loss["reason"] == "skipped"]
    assert len(dropped) == crashes - kept
    assert {loss["comm"] for loss in dropped} == {"python3"}
    assert "core_pipe_limit" in clean.run("coresnap", "why", str(dropped[0]["pid"])).stdout
    clean.sh("systemctl restart coresnapd")
    clean.sh(CRASH)
    until(clean, f"[ $(ls {_ROOT}/committed | wc -l) -eq {kept + 1} ]")
    assert len([loss for loss in lost(clean) if loss["reason"] == "skipped"]) == crashes - kept, "told once"


@contextmanager
def _only_captured(guest: Machine) -> Iterator[None]:
    """Have no dump go on from pending, where it is removed at the end: a storm's are many."""
    units = "coresnap-rescue.timer coresnap-pending.path"
    guest.sh(f"systemctl stop {units} coresnap-processor.service 2>&1")
    try:
        yield
    finally:
        guest.sh(f"ls {_ROOT}/pending | xargs -r coresnap rm; systemctl start {units}", seconds=300)


def _assert_each_once(guest: Machine, crashes: int) -> list[dict[str, Any]]:
    """Hold that each crash of the storm is kept, whole, or on record, none twice, and nobody waits; return the kept ones."""
    pids = [int(pid) for pid in guest.sh("cat /root/storm").stdout.split()]
    assert len(pids) == crashes
    kept = [dump["record"] for dump in dumps(guest)]
    found = [record["victim"]["pid"] for record in kept] + [loss["pid"] for loss in lost(guest) if "pid" in loss]
    assert sorted(pid for pid in found if pid in pids) == sorted(pids)
    assert [record["core"]["truncated"] for record in kept] == [None] * len(kept)
    assert guest.sh("ls -A /run/coresnap/waiting").stdout == ""
    return kept


@_OVER_A_PIPE
def test_those_that_carry_are_killed_in_a_storm(clean: Machine) -> None:
    with _only_captured(clean):
        storm = _STORM.format(crashes=60)
        killed = int(clean.run("python3", "-c", _KILL_WHO_CARRIES, storm, seconds=900).stdout)
        assert killed >= 3
        assert len(_assert_each_once(clean, 60)) == 60


@_OVER_A_PIPE
def test_the_service_is_stopped_in_a_storm(clean: Machine) -> None:
    """Nobody is carried. Whose crash the service has not taken within a minute wakes all that wait: they go to the gates."""
    with _only_captured(clean):
        clean.sh(f"systemctl kill -s STOP {_SERVICE}")
        try:
            clean.sh(f"rm -f /root/over; ({_STORM.format(crashes=60)}echo > /root/over) > /dev/null 2>&1 &")
            until(clean, "[ -e /root/over ]", _GATES_SECONDS)
            assert {record["captured"]["transport"] for record in _assert_each_once(clean, 60)} == {"pipe"}
        finally:
            clean.sh(f"systemctl kill -s CONT {_SERVICE}")
        pid = _small(clean)
        until(clean, f"[ ! -d /proc/{pid} ]")
        assert _ours(clean, pid)["captured"]["transport"] == "handover", (
            "it has passed over those that did not wait for it"
        )
        _assert_each_once(clean, 60)


@_OVER_A_PIPE
def test_one_that_waits_in_a_storm_is_killed(clean: Machine) -> None:
    """Its core is lost, and on record, once."""
    clean.sh(
        "(exec sleep 1000 8<>/run/coresnap/carriers) > /dev/null 2>&1 & echo $! > /root/busy\n"
        "for i in $(seq 12); do (while :; do :; done) > /dev/null 2>&1 & echo $! >> /root/busy; done"
    )
    try:
        pid = _small(clean)
        until(clean, "grep -q . /run/coresnap/waiting/*")
        clean.sh("kill -KILL $(ls /run/coresnap/waiting)")
    finally:
        clean.sh("kill $(cat /root/busy)")
    until(clean, f"coresnap why {pid} 2>/dev/null", 120)
    (loss,) = [loss for loss in lost(clean) if loss["pid"] == pid]
    assert (loss["reason"], loss["signal"], loss["uid"]) == ("interrupted", 11, 0)
    assert "python3" in loss["exe"]
    assert dumps(clean) == []
    assert clean.sh("ls -A /run/coresnap/waiting").stdout == ""


_EARLY = """[Unit]
DefaultDependencies=no
After=coresnap-early.service
Before=var-lib-coresnap.mount
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'python3 -c "import ctypes, os; print(os.getpid(), flush=True); ctypes.string_at(16)" > /root/early'
[Install]
WantedBy=local-fs.target
"""


def test_a_crash_before_the_spool_is_mounted(clean: Machine) -> None:
    """It is on record, and nothing is written below the mount point; what comes later is kept."""
    clean.run("sh", "-c", "cat > /etc/systemd/system/early.service", stdin=_EARLY.encode())
    clean.sh(
        "systemctl stop coresnapd 2>&1; systemctl stop 'coresnap*' 2>&1\n"
        "systemctl enable early.service 2>&1\n"
        f"rm -rf {_ROOT}; mkdir -m 700 {_ROOT}; chown coresnap: {_ROOT}\n"
        "truncate -s 192M /root/disk; mkfs.ext4 -q -m 0 /root/disk\n"
        f"echo '/root/disk {_ROOT} ext4 loop 0 0' >> /etc/fstab",
        seconds=300,
    )
    clean.reboot()
    until(clean, "systemctl is-active -q coresnapd")
    assert clean.sh(f"findmnt -n -o FSTYPE {_ROOT}").stdout == "ext4\n"
    pid = int(clean.sh("cat /root/early").stdout)
    shown = clean.run("coresnap", "why", str(pid)).stdout
    assert "dump.root was missing or not mounted" in shown
    below = clean.sh(f"mount --bind / /mnt; find /mnt{_ROOT} -mindepth 1; umount /mnt").stdout
    assert below == ""
    clean.sh(CRASH)
    _assert_whole(clean, 1)
