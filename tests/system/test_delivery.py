# SPDX-License-Identifier: Apache-2.0
"""Delivery as an administrator sees it: one file is copied, a program crashes, and the report is at the store.

The store is on this machine, and the guest's only way to it a cable that can be pulled.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import certificates
from tests.support.lying_store import LyingStore
from tests.system.conftest import SUITES
from tests.system.machine import Machine
from tests.system.waiting import CRASH, all_committed, end, settings, until

_ADDRESS, _STORE = "10.0.2.15", "10.0.2.2"
_TOKEN = "7a8b9c" * 10 + "d0e1"
_PROGRAMS = Path(__file__).with_name("programs")
_DAEMON = """
import ctypes, os
os.setgroups([]); os.setresgid({0}, {0}, {0}); os.setresuid({0}, {0}, {0})
ctypes.CDLL(None).prctl(4, 1)
ctypes.string_at(16)
"""
_SET_UID = "import ctypes; ctypes.CDLL(None).prctl(4, 1); ctypes.string_at(16)"


@dataclass(frozen=True)
class Site:
    """A guest, and the store that it finds at the end of its cable."""

    guest: Machine
    store: LyingStore

    def plug(self) -> None:
        """Plug the cable in."""
        self._cable("plug", _ADDRESS)

    def pull(self) -> None:
        """Pull the cable."""
        self._cable("pull")

    def _cable(self, *arguments: str) -> None:
        self.guest.run("python3", "-", *arguments, stdin=(_PROGRAMS / "cable.py").read_bytes())

    def committed(self) -> list[dict[str, Any]]:
        """Return the dumps that have been delivered."""
        found: list[dict[str, Any]] = json.loads(self.guest.sh("coresnap list committed --json").stdout)
        return found


@pytest.fixture(scope="module", params=SUITES)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Boot a guest, install coresnap and enable it; then copy one coroner.cf, and its authority beside it."""
    directory = tmp_path_factory.mktemp("authority")
    made = certificates.make(directory, f"subjectAltName=IP:{_STORE}")
    with (
        LyingStore(tokens={_TOKEN}, certificate=str(made.server)) as store,
        Machine(request.param, network=True) as guest,
    ):
        guest.install()
        guest.sh("systemctl enable --now coresnapd 2>&1; useradd -u 3001 alice; useradd -u 3002 bob")
        here = Site(guest, store)
        here.plug()
        guest.run("sh", "-c", "cat > /usr/local/etc/ca.pem", stdin=made.ca.read_bytes())
        lines = ["[universe]", "name = test", f"write = https://{_STORE}:{store.port}"]
        lines += ["ssl.ca_file = /usr/local/etc/ca.pem", "[token]", f"blackhole = {_TOKEN}"]
        coroner = "\n".join([*lines, ""])
        copy = "umask 077; cat > /usr/local/etc/coroner.cf"
        guest.run("sh", "-c", copy, stdin=coroner.encode())
        yield here


def test_a_file_is_copied_a_program_crashes_and_its_report_is_at_the_store(site: Site) -> None:
    assert site.guest.sh("stat -c %U:%a /usr/local/etc/coroner.cf").stdout == "root:600\n"
    site.guest.sh(CRASH)
    until(site.guest, '[ -n "$(ls -A /var/lib/coresnap/committed)" ]')
    (dump,) = site.committed()
    assert list(site.store.objects) == [dump["uuid"]]
    stored = site.store.objects[dump["uuid"]]
    assert stored.token == _TOKEN
    assert stored.upload == (dump["record"]["snapshot"]["size_bytes"], dump["record"]["snapshot"]["sha256"])
    receipt = json.loads(site.guest.sh(f"cat /var/lib/coresnap/committed/{dump['uuid']}/receipt.json").stdout)
    assert receipt["uuid"] == dump["uuid"]
    assert _TOKEN not in json.dumps(receipt)


@pytest.mark.long
def test_ten_crash_while_the_cable_is_pulled_and_none_is_stored_twice(site: Site) -> None:
    before = set(site.store.objects)
    site.pull()
    for _number in range(10):
        site.guest.sh(CRASH)
    until(site.guest, '[ "$(ls /var/lib/coresnap/sending | wc -l)" = 10 ]', 300)
    until(site.guest, "coresnap status | grep -q sending", 60)
    assert set(site.store.objects) == before
    site.plug()
    all_committed(site.guest, 300)
    delivered = {dump["uuid"] for dump in site.committed()}
    assert len(delivered - before) == 10
    assert set(site.store.objects) == delivered | before
    assert [stored.offered for stored in site.store.objects.values()] == [1] * len(site.store.objects)


def _as(user: str, command: str) -> str:
    return f"runuser -u {user} -- {command}"


def _listed(site: Site, user: str) -> set[str]:
    found = json.loads(site.guest.sh(_as(user, "coresnap list --json")).stdout)
    return {dump["uuid"] for dump in found}


def test_a_user_sees_his_own_and_nothing_else(site: Site) -> None:
    """Hers; his; of a set-uid program of hers that says it may be dumped; of a daemon that has become her."""
    guest = site.guest
    all_committed(guest)
    before = _listed(site, "root")
    kinds = {
        "hers": _as("alice", "python3 -c 'import ctypes; ctypes.string_at(16)'"),
        "his": _as("bob", "python3 -c 'import ctypes; ctypes.string_at(16)'"),
        "set-uid": _as("alice", f"/usr/local/bin/powerful -c '{_SET_UID}'"),
        "daemon": f"python3 -c '{_DAEMON.format(3001)}'",
    }
    guest.sh("cp -L /usr/bin/python3 /usr/local/bin/powerful; chmod 4755 /usr/local/bin/powerful")
    uuids: dict[str, str] = {}
    for kind, command in kinds.items():
        guest.sh(f"{command} || true")
        all_committed(guest)
        (uuids[kind],) = _listed(site, "root") - before - set(uuids.values())
    records = {dump["uuid"]: dump["record"] for dump in site.committed()}
    assert [records[uuids[kind]]["victim"]["uid"] for kind in kinds] == [3001, 3002, 3001, 3001]
    assert records[uuids["set-uid"]]["victim"]["dumpable"] == records[uuids["daemon"]]["victim"]["dumpable"] == 1
    assert _listed(site, "alice") == {uuids["hers"]}
    assert _listed(site, "bob") == {uuids["his"]}
    assert _listed(site, "coresnap-send") == set()
    backtrace = guest.sh(_as("alice", f"coresnap debug {uuids['hers'][:8]} -- -batch -ex bt"), seconds=300).stdout
    assert "#0" in backtrace
    for kind in ("his", "set-uid", "daemon"):
        refused = guest.sh(_as("alice", f"coresnap dump {uuids[kind]} -o /tmp/stolen 2>&1"), check=False)
        assert refused.status == 69
        assert f"no dump {uuids[kind]}" in refused.stdout


#: What a hook tries, and says in the journal.
_HOOK = b"""#!/usr/bin/python3 -I
import os, subprocess, sys
def attempt(what, body):
    try:
        body()
        print("HOOK could", what)
    except OSError as error:
        print("HOOK could not", what, error.strerror)
print("HOOK", sys.argv[1:], os.environ["CORESNAP_STAGE"], os.getuid() != 0, "CREDENTIALS_DIRECTORY" in os.environ)
attempt("read the token", lambda: open("/usr/local/etc/coroner.cf").read())
attempt("read credentials", lambda: os.listdir("/run/credentials"))
attempt("read dumps", lambda: os.listdir("/var/lib/coresnap"))
attempt("read the store", lambda: os.listdir("/var/lib/coresnap-store"))
attempt("write", lambda: open("/usr/local/bin/hook", "w"))
attempt("keep", lambda: open("/var/lib/coresnap-hook/kept", "w").close())
sys.stdout.flush()
if os.path.exists("/var/lib/coresnap-hook/hang"):
    subprocess.run(["sleep", "1000"])
"""


@pytest.mark.long
def test_a_hook_runs_in_a_sandbox_and_one_that_hangs_holds_up_nothing(site: Site) -> None:
    guest = site.guest
    guest.run("sh", "-c", "cat > /usr/local/bin/hook; chmod 755 /usr/local/bin/hook", stdin=_HOOK)
    said = "journalctl --no-pager -b -o cat -t coresnap-hook"
    with settings(guest, "on.committed = /usr/local/bin/hook %B %w", "on.timeout = 5s"):
        guest.sh(CRASH)
        until(guest, f"{said} | grep -q 'HOOK could keep'")
        lines = guest.sh(said).stdout.splitlines()
        uuid = lines[0].split("'")[1]
        assert lines[0] == f"HOOK ['{uuid}', 'committed'] committed True False"
        could = [line for line in lines if line.startswith("HOOK could ") and not line.startswith("HOOK could not")]
        assert could == ["HOOK could keep"]
        assert len([line for line in lines if line.startswith("HOOK could not")]) == 5
        guest.sh("touch /var/lib/coresnap-hook/hang")
        for _number in range(2):
            guest.sh(CRASH)
        all_committed(guest)
        until(guest, "[ $(journalctl --no-pager -b -o cat -t coresnap | grep -c 'hook: took too long') = 2 ]")
        until(guest, '[ -z "$(ls -A /var/lib/coresnap/hooks)" ]')
        until(guest, "! pgrep -x sleep")


@pytest.mark.long
def test_beyond_a_limit_the_kernel_is_told_no_and_why_tells_it(site: Site) -> None:
    guest = site.guest
    drop_in = "/etc/coresnap/coresnap.conf.d/20-limit.conf"
    reload = "systemctl reload coresnapd; coresnap config --compile"
    guest.sh(f"cp -L /usr/bin/python3 /usr/local/bin/looper; echo 'limit.exe = 2/1h' > {drop_in}; {reload}")
    try:
        dumped = [end(guest, program="/usr/local/bin/looper")[2] for _number in range(3)]
        # A pipe the kernel has opened before anybody could say no.
        assert dumped == [True, True, "forky" not in str(guest.image.disk)]
        told = json.loads(guest.sh("coresnap why looper --json").stdout)
        assert [one["kept"] for one in told] == [False, True, True]
        assert told[0]["reason"] == "rate"
    finally:
        guest.sh(f"rm {drop_in}; {reload}")


#: Has a word in its memory that stands nowhere else, not in its command line either.
_MARKED = "import ctypes; word = str(2**89 - 1) * 3; ctypes.string_at(16)"
_MARK = str(2**89 - 1) * 3


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("age"), reason="needs age(1)")
def test_what_is_encrypted_the_machine_cannot_read_and_its_user_can(site: Site, tmp_path: Path) -> None:
    guest = site.guest
    made = subprocess.run(["age-keygen", "-o", tmp_path / "key"], capture_output=True, text=True, check=True)
    age = Path(shutil.which("age") or "").read_bytes()  # needs nothing of the machine that it runs on
    guest.run("sh", "-c", "cat > /usr/local/bin/age; chmod 755 /usr/local/bin/age", stdin=age)
    drop_in = "/etc/coresnap/coresnap.conf.d/20-encrypt.conf"
    reload = "systemctl reload coresnapd; coresnap config --compile"
    before = _listed(site, "alice")
    crash = _as("alice", f"python3 -c '{_MARKED}'")
    find = f"grep -rl {_MARK} /var/lib/coresnap || true"
    guest.sh(f"echo 'core.compress = none' > {drop_in}; {reload}; {crash} || true")
    all_committed(guest)
    (plain,) = _listed(site, "alice") - before
    assert plain in guest.sh(find).stdout
    guest.sh(f"coresnap rm -y {plain}")
    guest.sh(f"echo 'encrypt.recipients = {made.stderr.split()[-1]}' >> {drop_in}; {reload}; {crash} || true")
    try:
        all_committed(guest)
        (uuid,) = _listed(site, "alice") - before
        names = guest.sh(f"ls /var/lib/coresnap/committed/{uuid}").stdout.split()
        assert set(names) == {"assets.tar.age", "core.age", "dump.json", "receipt.json", "snapshot"}
        assert guest.sh(find).stdout == ""
        assert uuid in site.store.objects
        # Without the private key root gets it as it is.
        written = guest.sh(
            f"coresnap dump {uuid} -o /root/core; head -c 22 /root/core; grep -c {_MARK} /root/core || true"
        )
        assert written.stdout == "age-encryption.org/v1\n0\n"
        guest.run("sh", "-c", "install -m 600 -o alice /dev/stdin /tmp/key", stdin=(tmp_path / "key").read_bytes())
        debug = f"coresnap debug {uuid} --identity /tmp/key -- -batch -ex bt"
        assert "#0" in guest.sh(_as("alice", debug), seconds=300).stdout
    finally:
        guest.sh(f"rm -f {drop_in} /tmp/key; {reload}")


def test_the_token_is_in_no_line_and_in_no_file_but_its_own(site: Site) -> None:
    """The pattern goes over standard input: it would be found in the command line of who looks for it."""
    guest = site.guest

    def found(command: str) -> list[str]:
        script = f'token=$(cat); journalctl --sync; printf %s "$token" | {command} || true'
        return guest.run("sh", "-c", script, stdin=_TOKEN.encode()).stdout.splitlines()

    assert found(
        "{ cat > /dev/shm/token; journalctl -o export --no-pager | grep -c -f /dev/shm/token; rm /dev/shm/token; }"
    ) == ["0"]
    where = "/var/lib/coresnap /var/lib/coresnap-store /var/log /var/cache /tmp /var/tmp /etc /run"
    files = found(f"grep -rls -f - {where}")
    assert [path for path in files if not path.startswith("/run/credentials/coresnap-send@")] == []
    assert found("grep -rls -f - /usr/local") == ["/usr/local/etc/coroner.cf"]
    assert found("grep -ls -f - /proc/[0-9]*/cmdline /proc/[0-9]*/environ") == []
