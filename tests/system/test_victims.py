# SPDX-License-Identifier: Apache-2.0
"""Who may crash: another one under the same number, set-uid programs, forged names, other namespaces, containers, our own."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from coresnap.capture.victim import CORE_PATTERN
from tests.crash import build
from tests.system.machine import Machine
from tests.system.waiting import CRASH, all_committed, dumps, end, lost, settings, until

pytestmark = pytest.mark.long

_HERE = Path(__file__).parent
_SPOOL = "/var/lib/coresnap"
#: In archive's place: it lets the crash wait until the test has put another process where the crashed one was.
_GATE = """#!/bin/sh
echo > /root/gate.held
read -r go < /root/gate.fifo
exec /usr/local/lib/coresnap/archive "$@"
"""
#: In the place of a program that nobody but root's processes outside should ever start.
_TRAP = """#!/bin/sh
echo "$0 $*" >> /root/marks/sprung
"""
_AS_A_USER = "setpriv --reuid=1234 --regid=1234 --clear-groups"


@pytest.fixture(scope="module")
def machine(enabled: Machine) -> Machine:
    """Put the programs into the guest that crash, and those that must not run."""
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory)
        for path in (build("crash"), _HERE / "impostor.py", _HERE / "forger.py"):
            shutil.copy(path, tree)
        for name, text in (("gate", _GATE), ("trap", _TRAP)):
            (tree / name).write_text(text)
            (tree / name).chmod(0o755)
        enabled.sh("mkdir -p /root/marks; mkfifo /root/gate.fifo")
        enabled.put(tree, "/usr/local/bin")
    return enabled


def _usual(guest: Machine) -> str:
    return "socket" if guest.image.suite == "forky" else "handover"


def _alone(guest: Machine) -> str:
    """Return how the crashes come that archive captures by itself, where the kernel has no socket for them."""
    return "socket" if guest.image.suite == "forky" else "pipe"


def _crashed(guest: Machine, script: str) -> dict[str, Any]:
    """Run a script in which one process crashes; return its dump."""
    before = {dump["uuid"] for dump in dumps(guest)}
    done = guest.sh(script, check=False)
    found = [dump for dump in dumps(guest) if dump["uuid"] not in before]
    assert len(found) == 1, done
    return found[0]


def _members(guest: Machine, dump: dict[str, Any]) -> list[str]:
    return guest.sh(f"tar -tf {_SPOOL}/*/{dump['uuid']}/assets.tar").stdout.split()


def _entry(guest: Machine, uuid: str) -> dict[str, Any]:
    """Return the journal's entry of a dump, as coredumpctl finds it."""
    query = f"journalctl -b -o json --all MESSAGE_ID=fc2e22bc6ee647b6b90729ab34a250b1 CORESNAP_DUMP={uuid}"
    until(guest, f'[ -n "$({query})" ]', 120)
    (line,) = guest.sh(query).stdout.splitlines()
    found: dict[str, Any] = json.loads(line)
    return {
        key: bytes(value).decode("utf-8", "replace") if isinstance(value, list) else value
        for key, value in found.items()
    }


@contextmanager
def _through_the_gate(guest: Machine, *, stays: bool) -> Iterator[None]:
    """Have the kernel start archive through the gate; without `stays` it does not keep the crashed process for it."""
    guest.sh(f"echo '|/usr/local/bin/gate {CORE_PATTERN}' > /proc/sys/kernel/core_pattern")
    if not stays:
        guest.sh("echo 0 > /proc/sys/kernel/core_pipe_limit")
    try:
        yield
    finally:
        guest.sh("systemctl restart coresnapd")


@contextmanager
def _archive_alone(guest: Machine) -> Iterator[None]:
    """Have archive capture by itself."""
    guest.sh("systemctl stop coresnap-handover.socket coresnap-archive.service 2>&1")
    try:
        yield
    finally:
        guest.sh("systemctl start coresnap-handover.socket coresnap-archive.service")


def _replaced(guest: Machine, where: str, how: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Have a process crash and another take its number; return the new dumps, and what is new in the ledger."""
    before, lost_before = {dump["uuid"] for dump in dumps(guest)}, lost(guest)
    pid = int(guest.run("python3", "/usr/local/bin/impostor.py", where, how).stdout)
    try:
        until(guest, f"coresnap why {pid} > /dev/null 2>&1")
    finally:
        guest.sh(f'[ "$(cat /proc/{pid}/comm)" = sleep ]; kill {pid}')
    kept = [dump for dump in dumps(guest) if dump["uuid"] not in before]
    found = lost(guest)
    missing = found[: len(found) - len(lost_before)]
    assert [entry["record"]["victim"]["pid"] for entry in kept] + [entry["pid"] for entry in missing] == [pid]
    return kept, missing


def _nothing_of_the_impostor(guest: Machine, dump: dict[str, Any]) -> None:
    record = dump["record"]
    assert record["victim"]["exe"] == "/usr/local/bin/crash"
    assert record["victim"]["comm"] in ("crash", "worker-0"), "from the core's notes"
    assert "impostor" not in (record["victim"]["cmdline"] or "")
    assert record["victim"]["uid"] == 0
    assert record["place"]["cwd"] is None
    assert record["place"]["cgroup"] is None
    members = _members(guest, dump)
    assert not [name for name in members if name.startswith("proc/")]
    assert "host/meminfo" in members
    assert "proc/cmdline" in record["assets"]["missing"]


@pytest.mark.parametrize("how", ["killed", "left"])
@pytest.mark.parametrize("transport", ["handover", "pipe"])
def test_another_process_under_the_same_number_is_not_taken_for_the_crashed_one(
    machine: Machine, transport: str, how: str
) -> None:
    """Archive is late; /proc has another process where the crashed one was. Its core is kept as far as the pipe has it."""
    alone = _archive_alone(machine) if transport == "pipe" else nullcontext()
    with alone, _through_the_gate(machine, stays=how == "killed"):
        kept, missing = _replaced(machine, "archive", how)
    if how == "left":
        assert kept, "it was all in the pipe"
    for dump in kept:
        assert dump["record"]["captured"]["transport"] == transport
        _nothing_of_the_impostor(machine, dump)
    assert all("sleep" not in json.dumps(entry) for entry in missing)


def test_nor_is_it_where_the_service_is_late(machine: Machine) -> None:
    """Over the kernel's socket nothing has moved when the process is killed: that there is no core is on record."""
    kept, missing = _replaced(machine, "service", "killed")
    for dump in kept:
        _nothing_of_the_impostor(machine, dump)
    assert all("sleep" not in json.dumps(entry) for entry in missing)
    if _usual(machine) == "socket":
        (entry,) = missing
        assert (entry["reason"], entry["uid"], entry["signal"]) == ("empty", 0, 11)
        assert "was killed before its core was asked for" in entry["detail"]


def test_a_set_uid_program_s_core_is_not_its_user_s(machine: Machine) -> None:
    machine.sh("install -m 4755 /usr/local/bin/crash /usr/local/bin/crash-as-root")
    dump = _crashed(machine, f"{_AS_A_USER} crash-as-root segv 1")
    victim = dump["record"]["victim"]
    assert (victim["exe"], victim["uid"], victim["dumpable"]) == ("/usr/local/bin/crash-as-root", 1234, 2)
    assert dump["record"]["core"]["truncated"] is None
    all_committed(machine)
    files = machine.sh(f"find {_SPOOL}/committed/{dump['uuid']} -type f -printf '%f %U %m\\n'").stdout.splitlines()
    coresnap = machine.sh("id -u coresnap").stdout.strip()
    assert len(files) >= 4
    assert {line.split(" ", 1)[1] for line in files} == {f"{coresnap} 600"}
    for path in (f"committed/{dump['uuid']}/core.zst", f"by-uuid/{dump['uuid']}.core.zst"):
        machine.sh(f"head -c 1 {_SPOOL}/{path} | grep -q .")
        assert machine.sh(f"{_AS_A_USER} head -c 1 {_SPOOL}/{path}", check=False).status != 0
    assert machine.sh(f"{_AS_A_USER} coresnap dump {dump['uuid']} -o /tmp/core", check=False).status != 0


def test_dumpable(machine: Machine) -> None:
    """0 has the kernel make no core, of which nothing is to be waited for; 2 is captured, as coresnapd has the kernel do."""
    before = {dump["uuid"] for dump in dumps(machine)}
    assert end(machine, "ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)")[1:] == (11, False)
    drop = "os.setgid(1234); os.setuid(1234)"
    assert machine.run("cat", "/proc/sys/fs/suid_dumpable").stdout == "2\n"
    machine.sh("echo 0 > /proc/sys/fs/suid_dumpable")
    try:
        assert end(machine, drop)[1:] == (11, False)
    finally:
        machine.sh("echo 2 > /proc/sys/fs/suid_dumpable")
    pid, number, dumped = end(machine, drop)
    assert (number, dumped) == (11, True)
    (dump,) = [dump for dump in dumps(machine) if dump["uuid"] not in before]
    victim = dump["record"]["victim"]
    assert (victim["pid"], victim["uid"], victim["dumpable"]) == (pid, 1234, 2)


def test_names_are_data(machine: Machine) -> None:
    """Of the executable, its directory, the arguments, the thread: new lines, escapes, and what looks like ours."""
    machine.sh("printf 'MESSAGE=forged\\nFORGED=1\\n' | logger --journald; journalctl --sync")
    forged = "journalctl -q -b -o json FORGED=1 + MESSAGE=forged + COREDUMP_UNIT=forged.service | wc -l"
    really_there = machine.sh(forged).stdout
    assert really_there != "0\n"
    before = {dump["uuid"] for dump in dumps(machine)}
    names = json.loads(machine.run("python3", "/usr/local/bin/forger.py").stdout)
    (dump,) = [dump for dump in dumps(machine) if dump["uuid"] not in before]
    record = dump["record"]
    victim = record["victim"]
    assert (victim["pid"], victim["uid"], victim["signal"]) == (names["pid"], 1234, 11)
    assert (victim["exe"], victim["comm"], record["place"]["cwd"]) == (names["exe"], names["comm"], names["cwd"])
    assert victim["cmdline"] == names["cmdline"][:8192]
    entry = _entry(machine, dump["uuid"])
    assert (entry["COREDUMP_EXE"], entry["COREDUMP_COMM"]) == (names["exe"], names["comm"])
    assert (entry["COREDUMP_CMDLINE"], entry["COREDUMP_CWD"]) == (victim["cmdline"], names["cwd"])
    assert (entry["COREDUMP_PID"], entry["COREDUMP_UNIT"]) == (str(names["pid"]), "agent.service")
    assert entry["MESSAGE"].isprintable()
    ours = {key for key in entry if not key.startswith(("_", "COREDUMP_", "SYSLOG_", "CODE_"))}
    assert ours == {"MESSAGE", "MESSAGE_ID", "PRIORITY", "CORESNAP_DUMP"}
    assert machine.sh(forged).stdout == really_there
    all_committed(machine)
    listed = machine.run("coresnap", "list").stdout
    assert len(listed.splitlines()) == len(dumps(machine)) + 1
    told = [machine.run("coresnap", *words).stdout for words in (["info", dump["uuid"]], ["why", str(names["pid"])])]
    for text in (listed, *told):
        assert "forged" in text
        assert all(line.isprintable() and not line.startswith("FORGED") for line in text.split("\n"))
    assert "forged" in machine.run("coresnap", "list", "--exe", names["exe"].replace("[", "[[]")).stdout


def test_a_name_that_no_hand_over_takes(machine: Machine) -> None:
    """The path of the executable alone is nearly as long as a message of the hand-over's may be."""
    part = "d" * 250
    deep = "/".join(["/var/tmp", *[part] * 16])
    exe = f"{deep}/{'e' * (4080 - len(deep) - 1)}"
    dump = _crashed(machine, f"mkdir -p {deep}; cp /usr/local/bin/crash {exe}; {exe} segv 1")
    assert dump["record"]["victim"]["exe"] == exe
    assert dump["record"]["captured"]["transport"] == _alone(machine)
    assert dump["record"]["core"]["truncated"] is None
    all_committed(machine)
    assert f"{'e' * 40}" in machine.run("coresnap", "list", "-1").stdout.replace("…", "e")


def test_a_pid_namespace(machine: Machine) -> None:
    script = (
        "unshare -p -f --mount-proc sh -c 'sleep 424243 & wait' & outer=$!\n"
        "until pid=$(pgrep -f '^sleep 424243'); do sleep 0.1; done\n"
        "echo $pid > /root/pid; grep NSpid /proc/$pid/status > /root/nspid; kill -SEGV $pid; wait $outer || true"
    )
    dump = _crashed(machine, script)
    outside, inside = machine.sh("cat /root/nspid").stdout.split()[1:]
    record = dump["record"]
    assert str(record["victim"]["pid"]) == str(record["victim"]["tid"]) == outside != inside
    assert record["victim"]["exe"] == machine.sh("realpath $(command -v sleep)").stdout.strip()
    assert record["victim"]["cmdline"] == "sleep 424243"
    assert record["place"]["container"] == "pid namespace"
    assert record["assets"]["missing"] == []
    assert record["captured"]["transport"] == _usual(machine)


def test_a_user_namespace(machine: Machine) -> None:
    """Root inside, somebody else outside."""
    dump = _crashed(machine, f"{_AS_A_USER} unshare -Ur sh -c 'id -u > /tmp/inside; exec crash segv 1'")
    assert machine.sh("cat /tmp/inside").stdout == "0\n"
    victim = dump["record"]["victim"]
    assert (victim["uid"], victim["gid"], victim["exe"]) == (1234, 1234, "/usr/local/bin/crash")
    assert dump["record"]["assets"]["missing"] == []


def _sprung(guest: Machine) -> str:
    return guest.sh("touch /root/marks/sprung; cat /root/marks/sprung; rm /root/marks/sprung").stdout


#: What would be started of a machine's, were it looked up where the crashed process was.
_BAITS = (
    "$(realpath /usr/bin/python3)",
    "$(realpath /usr/bin/gdb)",
    "/usr/bin/zstd",
    "/usr/local/bin/coresnap-snapshot",
)


@pytest.mark.parametrize("root", ["", "/srv/jail"])
def test_nothing_is_run_in_a_mount_namespace(machine: Machine, root: str) -> None:
    """What is run for a crash is this machine's, whatever lies under its name where the crash was: there, traps."""
    baits = " ".join([*_BAITS, "/usr/local/lib/coresnap/python/coresnap/archive.py"])
    into = f"chroot {root} " if root else ""
    bind = f"mkdir -p {root}; mount --rbind / {root}\n" if root else ""
    machine.sh(
        f"cat > /root/namespace <<'end'\n{bind}"
        f"for bait in {baits}; do mount --bind /usr/local/bin/trap {root}$(realpath $bait); done\n"
        f"{into}python3 --control; {into}/usr/local/lib/coresnap/archive --control\n"
        f"mv /root/marks/sprung /root/marks/control\n"
        f"{into}crash segv 1\n"
        "end"
    )
    dump = _crashed(machine, "unshare -m sh /root/namespace")
    assert machine.sh("cat /root/marks/control").stdout.count("--control") == 2, "the traps work"
    assert dump["record"]["captured"]["transport"] == _usual(machine)
    assert dump["record"]["victim"]["exe"] == f"{root}/usr/local/bin/crash"
    assert dump["record"]["place"]["root"] == (root or "/")
    assert dump["record"]["assets"]["missing"] == []
    all_committed(machine)
    assert _sprung(machine) == ""


def test_nothing_is_run_in_a_container(machine: Machine) -> None:
    baits = " ".join([*_BAITS, "/usr/local/lib/coresnap/python/coresnap/archive.py"])
    script = (
        f'binds=; for bait in {baits}; do binds="$binds --bind-ro=/usr/local/bin/trap:$(realpath $bait)"; done\n'
        "systemd-nspawn -q -D / --volatile=yes -M box --bind=/root/marks $binds sh -c '\n"
        "python3 --control; /usr/local/lib/coresnap/archive --control; mv /root/marks/sprung /root/marks/control\n"
        "crash segv 1 > /root/marks/said\n"
        "true'"
    )
    dump = _crashed(machine, script)
    assert machine.sh("cat /root/marks/control").stdout.count("--control") == 2, "the traps work"
    record, unit = dump["record"], "box.scope" if machine.image.suite == "forky" else "machine-box.scope"
    said = json.loads(machine.sh("cat /root/marks/said").stdout)
    assert said["pid"] < 100 < record["victim"]["pid"]
    assert record["victim"]["tid"] != said["tid"]
    assert record["place"]["container"] == "nspawn:box"
    assert record["place"]["unit"] == unit
    assert record["place"]["slice"] == "machine.slice"
    assert record["victim"]["exe"] == "/usr/local/bin/crash"
    assert record["captured"]["hostname"] == machine.sh("cat /proc/sys/kernel/hostname").stdout.strip()
    assert record["captured"]["transport"] == _usual(machine)
    assert record["assets"]["missing"] == []
    entry = _entry(machine, dump["uuid"])
    assert entry["COREDUMP_UNIT"] == unit
    assert entry["COREDUMP_CGROUP"] == f"/machine.slice/{unit}/payload"
    assert entry["COREDUMP_SLICE"] == "machine.slice"
    all_committed(machine)
    assert "nspawn:box" in machine.run("coresnap", "info", dump["uuid"]).stdout
    assert _sprung(machine) == ""


def _limited(limit: str) -> str:
    return f"resource.setrlimit(resource.RLIMIT_CORE, ({limit}, resource.getrlimit(resource.RLIMIT_CORE)[1]))"


@pytest.mark.parametrize("transport", ["usual", "pipe"])
def test_a_core_limit_is_honoured_where_that_is_asked_for(machine: Machine, transport: str) -> None:
    """A pipe's writer cannot be told no, so its parent hears of a core; of a limit of 1 the kernel tells its log alone then."""
    alone = _archive_alone(machine) if transport == "pipe" else nullcontext()
    before, lost_before = {dump["uuid"] for dump in dumps(machine)}, len(lost(machine))
    with settings(machine, "archive.rlimit_core = honour"), alone:
        over = _alone(machine) if transport == "pipe" else _usual(machine)
        ends = {limit: end(machine, _limited(limit)) for limit in ("0", "1", "-1")}
        kept = [dump["record"] for dump in dumps(machine) if dump["uuid"] not in before]
    refused = [(entry["reason"], entry["pid"]) for entry in reversed(lost(machine)[: len(lost(machine)) - lost_before])]
    assert {number for _pid, number, _dumped in ends.values()} == {11}
    (record,) = kept
    assert (record["victim"]["pid"], record["captured"]["transport"]) == (ends["-1"][0], over)
    assert ends["-1"][2]
    assert not ends["1"][2]
    if over == "socket":
        assert not ends["0"][2]
        assert refused == [("rlimit", ends["0"][0]), ("rlimit", ends["1"][0])]
    else:
        assert [loss for loss in refused if loss != ("skipped", ends["1"][0])] == [("rlimit", ends["0"][0])]
    assert "RLIMIT_CORE" in machine.run("coresnap", "why", str(ends["0"][0])).stdout


def test_a_core_limit_is_ignored_unless_asked_for(machine: Machine) -> None:
    before = {dump["uuid"] for dump in dumps(machine)}
    pid, number, dumped = end(machine, _limited("0"))
    assert (number, dumped) == (11, True)
    assert [dump["record"]["victim"]["pid"] for dump in dumps(machine) if dump["uuid"] not in before] == [pid]


def _crash_of_a_unit(guest: Machine, unit: str, over: str) -> dict[str, Any]:
    """Have a service's main process crash; return its dump, once it is there."""
    before = {dump["uuid"] for dump in dumps(guest)}
    pid = guest.sh(f"systemctl show -P MainPID {unit}").stdout.strip()
    guest.sh(f"kill -SEGV {pid}")
    until(guest, f"coresnap why {pid} > /dev/null 2>&1", 120)
    (dump,) = [dump for dump in dumps(guest) if dump["uuid"] not in before]
    assert dump["record"]["victim"]["pid"] == int(pid)
    assert dump["record"]["place"]["unit"] == unit
    assert dump["record"]["captured"]["transport"] == over
    assert dump["record"]["core"]["truncated"] is None
    return dump


def _goes_on(guest: Machine) -> None:
    """Hold that a crash is captured, processed, delivered, and that the journal takes lines."""
    dump = _crashed(guest, CRASH)
    assert dump["record"]["captured"]["transport"] == _usual(guest)
    all_committed(guest)
    guest.sh("journalctl --sync")
    until(guest, f"journalctl -q -b CORESNAP_DUMP={dump['uuid']} CORESNAP_STAGE=committed | grep -q .")


def test_a_crash_of_coresnapd_or_of_an_owner(machine: Machine) -> None:
    _crash_of_a_unit(machine, "coresnapd.service", _usual(machine))
    until(machine, "systemctl is-active -q coresnapd")
    _goes_on(machine)
    for unit in ("coresnap-processor.service", "coresnap-sender.service"):
        until(machine, f"systemctl is-active -q {unit}")
        _crash_of_a_unit(machine, unit, _alone(machine))
    _goes_on(machine)


def test_a_crash_of_a_worker(machine: Machine) -> None:
    """Its dump is tried again; its own is one like any other."""
    workers = "systemctl list-units --plain --no-legend --state=running 'coresnap-process@*' | cut -d' ' -f1"
    with settings(machine, "snapshot.command = sleep 600"):
        given = _crashed(machine, CRASH)
        until(machine, f"pgrep -f '^/usr/bin/sleep 600' && [ -n \"$({workers})\" ]")
        (unit,) = machine.sh(workers).stdout.split()
        dump = _crash_of_a_unit(machine, unit, _alone(machine))
        assert dump["record"]["victim"]["exe"].startswith("/usr/bin/python3")
    _goes_on(machine)
    history = {entry["uuid"]: [line["event"] for line in entry["record"]["history"]] for entry in dumps(machine)}
    assert "process: attempt 1 failed" in history[given["uuid"]]
    assert "process: attempt 1 failed" not in history[dump["uuid"]]


def test_a_crash_of_the_capture_service(machine: Machine) -> None:
    """It never dumps core: it would wait for itself. It is started again."""
    before = len(dumps(machine))
    service = "coresnap-archive.service"
    pid = machine.sh(f"systemctl show -P MainPID {service}").stdout.strip()
    machine.sh(f"kill -SEGV {pid}")
    until(machine, f'[ "$(systemctl show -P MainPID {service})" != {pid} ] && systemctl is-active -q {service}')
    assert len(dumps(machine)) == before
    _goes_on(machine)


def test_a_crash_of_journald(machine: Machine) -> None:
    dump = _crash_of_a_unit(machine, "systemd-journald.service", _alone(machine))
    assert dump["record"]["victim"]["exe"].endswith("/systemd-journald")
    until(machine, "systemctl is-active -q systemd-journald")
    _goes_on(machine)
