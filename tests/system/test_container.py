# SPDX-License-Identifier: Apache-2.0
"""The units at full speed, in a container: its kernel is the host's, so cores come by `coresnap import`."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from coresnap.ground.elf_file import ElfFile
from coresnap.snapshot.core import pread
from tests.crash import build, crash
from tests.system import backlog
from tests.system.booted import GuestError
from tests.system.conftest import SUITES
from tests.system.container import Container
from tests.system.debugged import frames
from tests.system.waiting import dumps, no_journal, until, with_lines

_UNITS = "/usr/local/lib/systemd/system"
_PROCESSOR, _SENDER = "coresnap-processor.service", "coresnap-sender.service"


@pytest.fixture(scope="module", params=SUITES)
def container(request: pytest.FixtureRequest) -> Iterator[Container]:
    """Boot a container in which the stages are worked on, but core_pattern is nobody's business."""
    with Container(request.param) as container:
        container.install()
        container.sh(
            "systemctl mask coresnapd.service 2>&1; coresnapd --prepare\n"
            "systemctl add-wants multi-user.target coresnap.target 2>&1; systemctl start coresnap.target"
        )
        yield container


@pytest.fixture(scope="module")
def core(real_core: Path) -> bytes:
    return real_core.read_bytes()


def test_the_host_s_core_pattern_is_out_of_reach(container: Container) -> None:
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    assert container.run("cat", "/proc/sys/kernel/core_pattern").stdout == before
    with pytest.raises(GuestError, match="Read-only file system"):
        container.sh(
            "cat /proc/sys/kernel/core_pattern > /root/pattern; cp /root/pattern /proc/sys/kernel/core_pattern"
        )


def test_the_units_are_in_order(container: Container) -> None:
    """As the systemd of each release sees them, beside all other units."""
    verified = container.sh(f"systemd-analyze verify --man=no {_UNITS}/coresnap* 2>&1")
    assert "coresnap" not in verified.stdout
    assert backlog.failed_units(container) == ""
    sockets = "coresnap-process.socket coresnap-send.socket coresnap-pending.path coresnap-sending.path"
    active = container.sh(f"systemctl is-active {sockets} coresnap-purge.timer coresnap-rescue.timer").stdout
    assert active == "active\n" * 6
    container.sh("systemctl start coresnap-archive.service coresnap-purge.service")
    assert backlog.failed_units(container) == ""
    container.sh("systemctl stop coresnap-archive.service coresnap-archive.socket coresnap-handover.socket")


def test_a_core_goes_all_the_way_and_again_after_the_owners_have_gone(container: Container, core: bytes) -> None:
    linger = "ExecStart=/usr/local/lib/coresnap/{0} --linger 0.5 --worker-socket /run/coresnap/{0}"
    with (
        with_lines(container, _PROCESSOR, "Service", "ExecStart=", linger.format("process")),
        with_lines(container, _SENDER, "Service", "ExecStart=", linger.format("send")),
    ):
        container.sh(f"systemctl stop {_PROCESSOR} {_SENDER} 2>&1")
        before = backlog.started(container, _PROCESSOR), backlog.started(container, _SENDER)
        for times in (1, 2):
            (uuid,) = uuids = backlog.take_in(container, core, 1)
            backlog.wait_until_committed(container, uuids, 30)
            until(container, f"! systemctl is-active -q {_PROCESSOR} && ! systemctl is-active -q {_SENDER}", 30)
            after = backlog.started(container, _PROCESSOR), backlog.started(container, _SENDER)
            assert after == (before[0] + times, before[1] + times), "woken once each, and not while nothing waits"
    owners = container.sh(
        f"stat -c %U:%a /var/lib/coresnap/committed/{uuid} /var/lib/coresnap-store/blackhole/{uuid}.json"
    )
    assert owners.stdout == "coresnap:700\ncoresnap-send:600\n"
    log = container.sh(f"journalctl -b -o json CORESNAP_DUMP={uuid}").stdout.splitlines()
    stages = [entry["CORESNAP_STAGE"] for entry in map(json.loads, log) if "CORESNAP_STAGE" in entry]
    assert stages == ["pending", "sending", "committed"]


def test_a_journal_that_is_away_holds_nothing_up(container: Container, core: bytes) -> None:
    """Nor do those who were started meanwhile stay without it once it is back."""
    container.sh(f"systemctl stop {_PROCESSOR} {_SENDER}")
    with no_journal(container):
        backlog.wait_until_committed(container, backlog.take_in(container, core, 1), 30)
    (uuid,) = uuids = backlog.take_in(container, core, 1)
    backlog.wait_until_committed(container, uuids, 30)
    for field in (
        f"COREDUMP_FILENAME={backlog.SPOOL}/by-uuid/{uuid}.core.zst",
        f"CORESNAP_DUMP={uuid} CORESNAP_STAGE=committed",
    ):
        until(container, f"journalctl --no-pager -q -b {field} | grep -q .", 30)


def test_workers_and_owners_that_are_killed_lose_nothing(container: Container, core: bytes) -> None:
    uuids = backlog.take_in(container, core, 40)
    for count, unit in enumerate((_PROCESSOR, _SENDER, "coresnap-process@*", "coresnap-send@*"), 1):
        until(container, f"[ $(ls {backlog.SPOOL}/pending | wc -l) -le {40 - 8 * count} ]")
        until(container, f"systemctl kill -s KILL '{unit}' 2>/dev/null")  # between two cores there is no worker
    assert "the worker died" in container.sh(f"journalctl --no-pager -b -o cat _SYSTEMD_UNIT={_PROCESSOR}").stdout
    backlog.wait_until_committed(container, uuids, 120)
    assert {dump["uuid"] for dump in dumps(container)} >= uuids
    assert container.run("ls", "-A", f"{backlog.SPOOL}/staging").stdout == ""


def test_what_comes_while_the_target_is_stopped_waits(container: Container, core: bytes) -> None:
    uuids = backlog.take_in(container, core, 20)
    until(container, "[ -n \"$(systemctl list-units --no-legend 'coresnap-process@*')\" ]")
    container.sh("systemctl stop coresnap.target")
    active = "systemctl list-units --no-legend --plain --state=active,activating,deactivating 'coresnap*'"
    until(container, f'[ -z "$({active} | grep -v ^coresnap.slice)" ]')
    assert (
        "Failed with result"
        not in container.sh("journalctl --sync; journalctl -b -o cat -u 'coresnap-process@*' | tail -n 5").stdout
    )
    uuids |= backlog.take_in(container, core, 3)
    assert backlog.in_stage(container, "pending")
    container.sh("systemctl start coresnap.target")
    backlog.wait_until_committed(container, uuids, 60)


def test_both_debug_commands_open_a_compressed_core(container: Container, core: bytes) -> None:
    container.put(build("crash").parent, "/usr/local/bin")
    container.run("sh", "-c", "cat > /root/crashed", stdin=core)
    uuid = container.sh("coresnap import --exe /usr/local/bin/crash /root/crashed").stdout.strip()
    backlog.wait_until_committed(container, {uuid}, 30)
    assert re.search(r"\bstore \(.* at .*crash\.c:\d+", frames(container, uuid)[0])


def test_a_core_is_encrypted_in_the_sandbox(container: Container, core: bytes) -> None:
    """A program in Go, whose start asks for more than the worker's unit grants."""
    age = shutil.which("age")
    if age is None:
        pytest.skip("age is not installed")
    made = subprocess.run(["age-keygen"], capture_output=True, text=True, check=True)
    drop_in = "/etc/coresnap/coresnap.conf.d/20-encrypt.conf"
    container.run("sh", "-c", "cat > /usr/local/bin/age; chmod 755 /usr/local/bin/age", stdin=Path(age).read_bytes())
    container.sh(f"echo 'encrypt.recipients = {made.stderr.split()[-1]}' > {drop_in}; systemctl stop {_PROCESSOR} 2>&1")
    try:
        (uuid,) = uuids = backlog.take_in(container, core, 1)
        backlog.wait_until_committed(container, uuids, 60)
        names = set(container.run("ls", f"{backlog.SPOOL}/committed/{uuid}").stdout.split())
        assert {"assets.tar.age", "core.zst.age", "snapshot"} <= names
        assert not {"core", "core.zst", "assets.tar"} & names
    finally:
        container.sh(f"rm {drop_in} /usr/local/bin/age; systemctl stop {_PROCESSOR} 2>&1")


def test_names_of_cxx_are_demangled_in_the_sandbox(container: Container, tmp_path: Path) -> None:
    """A child, foreign code, limits: what the worker's unit forbids must not be among what this needs."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    (tmp_path / "it.cc").write_text(
        "namespace shop { void take(int) { __builtin_trap(); } }\nint main() { shop::take(1); }\n"
    )
    subprocess.run(["g++", "-O0", "it.cc", "-o", "it"], cwd=tmp_path, check=True)
    container.run("mkdir", "-p", str(tmp_path))
    container.put(tmp_path, str(tmp_path))
    with crash([tmp_path / "it"]) as crashed:
        uuids = backlog.take_in(container, crashed.core.read_bytes(), 1)
    backlog.wait_until_committed(container, uuids, 30)
    report = json.loads(container.run("cat", f"{backlog.SPOOL}/committed/{uuids.pop()}/snapshot").stdout)
    frames_ = report["threads"][report["mainThread"]]["stack"]
    assert [frame["funcName"] for frame in frames_[:2]] == ["shop::take(int)", "main"]
    assert "missing" not in report["annotations"]


def test_debug_files_are_fetched_by_a_unit_that_sees_no_dump(container: Container, core: bytes) -> None:
    """A server of debug files in the container; what crashed is its own debug file, which has its build-id."""
    backlog.wait_until_committed(container, backlog.take_in(container, core, 1), 30)
    assert container.sh("systemctl is-enabled coresnap-symbols.timer", check=False).stdout == "disabled\n"
    program = build("crash")
    with program.open("rb") as file:
        build_id = ElfFile(partial(pread, file.fileno()), str(program)).build_id()
    container.put(program.parent, "/usr/local/bin")
    container.sh(
        f"mkdir -p /srv/buildid/{build_id} && cp /usr/local/bin/crash /srv/buildid/{build_id}/debuginfo\n"
        "mkdir -p /etc/coresnap; echo 'symbols.urls = http://127.0.0.1:8002' >> /etc/coresnap/coresnap.conf\n"
        "systemd-run -u debuginfod python3 -m http.server -d /srv -b 127.0.0.1 8002 2>&1"
    )
    until(container, "python3 -c 'import urllib.request as u; u.urlopen(\"http://127.0.0.1:8002\")' 2>/dev/null")
    container.sh("systemctl start coresnap-symbols.service")
    fetched = f"/var/cache/coresnap/debug/.build-id/{build_id[:2]}/{build_id[2:]}.debug"
    assert (
        container.sh(f"stat -c %U:%a {fetched}; cmp {fetched} /usr/local/bin/crash").stdout == "coresnap-symbols:644\n"
    )
    assert backlog.failed_units(container) == ""
    with with_lines(container, "coresnap-symbols.service", "Service", "ExecStart=", "ExecStart=ls /var/lib/coresnap"):
        assert container.sh("systemctl start coresnap-symbols.service", check=False).status != 0
        container.sh("systemctl reset-failed coresnap-symbols.service")
    container.sh("sed -i /symbols.urls/d /etc/coresnap/coresnap.conf; systemctl stop debuginfod")


@pytest.mark.parametrize("result", backlog.LIMITS)
def test_a_path_unit_that_has_failed_recovers_by_itself(container: Container, core: bytes, result: str) -> None:
    backlog.a_failed_path_unit_recovers(container, core, result)


@pytest.mark.long
def test_hundreds_that_wait_at_boot_are_all_delivered(container: Container, core: bytes) -> None:
    backlog.hundreds_wait_at_boot(container, core, 300, 240)
