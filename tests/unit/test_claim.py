# SPDX-License-Identifier: Apache-2.0
"""core_pattern, claimed and given back: on files that stand for the kernel's, since no test may write to those."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from coresnap.capture.victim import CORE_PATTERN
from coresnap.ground import settings
from coresnap.ground.errors import Refused
from coresnap.ground.log import Log
from coresnap.host import pattern, rivals, transport, units
from coresnap.host.claim import Claim, claim_early, fall_back, release
from coresnap.host.pattern import Host

_SYSTEMD = "|/lib/systemd/systemd-coredump %P %u %g %s %t 9223372036854775808 %h %d"


class _Lines:
    """Where the log's lines go."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.log = Log([lambda _priority, line, _fields: self.lines.append(line)])


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """Make a machine whose collector is systemd-coredump, on a kernel without the coredump socket, and without jobs."""
    monkeypatch.setattr(units, "systemctl", lambda *_arguments: "")
    for name, value in (("kernel/core_pattern", _SYSTEMD), ("kernel/core_pipe_limit", "16"), ("fs/suid_dumpable", "0")):
        path = tmp_path / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value + "\n")
    (tmp_path / "meminfo").write_text("MemTotal:        2048000 kB\n")
    return Host(
        sys=str(tmp_path / "sys"),
        state=str(tmp_path / "state"),
        sysctl=str(tmp_path / "sysctl.d"),
        units=str(tmp_path / "units"),
        memory=str(tmp_path / "meminfo"),
    )


def _now(host: Host, name: str = pattern.PATTERN) -> str:
    return pattern.read(host)[name]


def _write(host: Host, value: str) -> None:
    Path(host.sys, "kernel/core_pattern").write_text(value + "\n")


def _claimed(host: Host, said: _Lines) -> Claim:
    claim = Claim(host, CORE_PATTERN, said.log)
    claim.begin(settings.Settings())
    return claim


def test_claimed_and_given_back(host: Host) -> None:
    said = _Lines()
    claim = _claimed(host, said)
    assert pattern.is_ours(_now(host))
    assert len(_now(host)) <= 127
    assert _now(host, pattern.PIPE_LIMIT) == "250"
    assert _now(host, pattern.SUID_DUMPABLE) == "2"
    assert _now(host) in Path(host.sysctl, "99-coresnap.conf").read_text()
    assert "through archive" in claim.standing()
    assert "systemd-coredump" in claim.standing()
    release(host, said.log)
    assert _now(host) == _SYSTEMD
    assert (_now(host, pattern.PIPE_LIMIT), _now(host, pattern.SUID_DUMPABLE)) == ("16", "0")
    assert os.listdir(host.sysctl) == []


def test_claimed_early_and_given_back_by_the_later_claim(host: Host) -> None:
    said = _Lines()
    claim_early(host, CORE_PATTERN, said.log)
    assert pattern.is_ours(_now(host))
    assert _now(host).startswith("|")
    claim_early(host, CORE_PATTERN, said.log)
    assert len(said.lines) == 1, "what is ours stays as it is"
    claim = _claimed(host, said)
    assert "systemd-coredump" in claim.standing()
    release(host, said.log)
    assert _now(host) == _SYSTEMD


def test_a_rival_is_left_alone_early_too(host: Host) -> None:
    _write(host, "|/usr/share/apport/apport %p")
    with pytest.raises(Refused, match="apport"):
        claim_early(host, CORE_PATTERN, _Lines().log)
    assert "apport" in _now(host)


def test_a_second_claim_remembers_the_first_ones_predecessor(host: Host) -> None:
    said = _Lines()
    _claimed(host, said)
    _claimed(host, said)
    release(host, said.log)
    assert _now(host) == _SYSTEMD


def test_what_another_has_written_meanwhile_is_not_ours_to_take_back(host: Host) -> None:
    said = _Lines()
    claim = _claimed(host, said)
    _write(host, "core.%p")
    claim.check()
    claim.check()
    assert [line for line in said.lines if "do not come" in line] == [
        "cores do not come to coresnap: core_pattern is now `core.%p`; `systemctl restart coresnapd` takes it back"
    ]
    assert "CORES GO ELSEWHERE" in claim.standing()
    release(host, said.log)
    assert _now(host) == "core.%p"


def test_a_collector_that_takes_it_by_itself_does_not_keep_it(host: Host) -> None:
    said = _Lines()
    claim = _claimed(host, said)
    _write(host, "@@/run/systemd/coredumpd/kernel")
    claim.check()
    assert pattern.is_ours(_now(host))
    assert "CORES GO ELSEWHERE" not in claim.standing()


@pytest.mark.parametrize(
    ("theirs", "command"),
    [
        ("|/usr/share/apport/apport -p%p -s%s -c%c -d%d -P%P -u%u -g%g -- %E", "service apport stop"),
        ("|/usr/libexec/abrt-hook-ccpp %s %c %p %u %g %t %P %I %h", "systemctl disable --now abrtd.service"),
    ],
)
def test_a_collector_that_would_take_it_back_is_named(host: Host, theirs: str, command: str) -> None:
    _write(host, theirs)
    with pytest.raises(Refused) as refused:
        _claimed(host, _Lines())
    assert command in refused.value.line()
    assert _now(host) == theirs


def _cannot_start(*arguments: str) -> str:
    if arguments[0] in ("start", "is-active"):
        raise Refused(f"systemctl {arguments[0]}: Job failed")
    return ""


def test_the_capture_service_fails_and_archive_takes_over(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    said = _Lines()
    monkeypatch.setattr(units, "systemctl", _cannot_start)
    pattern.claim(host, pattern.socket_pattern())
    fall_back(host, CORE_PATTERN, said.log)
    assert _now(host).startswith("|")
    assert pattern.is_ours(_now(host))
    assert "Job failed" in said.lines[-1]
    _write(host, _SYSTEMD)
    fall_back(host, CORE_PATTERN, said.log)
    assert _now(host) == _SYSTEMD


def test_a_capture_service_that_can_be_started_again_goes_on(host: Host) -> None:
    said = _Lines()
    pattern.claim(host, pattern.socket_pattern())
    fall_back(host, CORE_PATTERN, said.log)
    assert _now(host) == pattern.socket_pattern()
    assert said.lines == ["the capture service had failed, and is at work again"]


def test_what_archive_has_taken_over_the_capture_service_gets_back(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    said = _Lines()
    monkeypatch.setattr(transport, "socket_is_possible", lambda _host: "")
    claim = Claim(host, CORE_PATTERN, said.log)
    claim.begin(settings.Settings(), lambda: True)
    assert _now(host) == pattern.socket_pattern()
    monkeypatch.setattr(units, "systemctl", _cannot_start)
    fall_back(host, CORE_PATTERN, said.log)
    claim.check(lambda: True)
    assert _now(host).startswith("|")
    assert "capture service failed" in claim.standing()
    monkeypatch.setattr(units, "systemctl", lambda *_arguments: "active")
    claim.check(lambda: True)
    assert _now(host) == pattern.socket_pattern()
    assert "over the kernel's socket" in claim.standing()


def test_a_kernel_that_takes_the_value_otherwise_is_noticed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever has been written is read back."""
    path = pattern._path
    monkeypatch.setattr(pattern, "_path", lambda host, name: "/dev/null" if "limit" in name else path(host, name))
    with pytest.raises(Refused, match="after `250` was written"):
        pattern.claim(host, pattern.pipe_pattern(CORE_PATTERN))


def test_where_nothing_can_be_written_the_host_s_coresnapd_is_named(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container. This file of the kernel's takes nothing, not even from root."""
    path = pattern._path
    monkeypatch.setattr(
        pattern, "_path", lambda host, name: "/proc/sys/kernel/ostype" if "limit" in name else path(host, name)
    )
    with pytest.raises(Refused) as caught:
        pattern.claim(host, pattern.pipe_pattern(CORE_PATTERN))
    assert "in a container core_pattern is the host's" in caught.value.line()


def test_nothing_is_given_back_to_be_claimed_again(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    said = _Lines()
    _claimed(host, said)
    monkeypatch.setattr(units, "systemctl", lambda *_arguments: "812 coresnapd.service restart running\n")
    release(host, said.log)
    assert pattern.is_ours(_now(host))


def test_whose_a_pattern_is() -> None:
    assert rivals.owner_of("core") is None
    found = rivals.owner_of("@@/run/systemd/coredumpd/kernel")
    assert found is not None
    assert found.name == "systemd-coredump"


def test_units_follow_the_settings(tmp_path: Path, host: Host) -> None:
    file = tmp_path / "coresnap.conf"
    file.write_text("")
    assert units.install(host, settings.load(file)) == []
    file.write_text('dump.root = /srv/a "b" 50%\nsnapshot.memory = 4G\nsnapshot.timeout = 2h\n')
    changed = units.install(host, settings.load(file))
    assert "coresnap-pending.path" in changed
    path = Path(host.units, "coresnap-pending.path.d/50-settings.conf").read_text()
    assert path.endswith('[Path]\nDirectoryNotEmpty=\nDirectoryNotEmpty=/srv/a "b" 50%%/pending\n')
    capture = Path(host.units, "coresnap-archive.service.d/50-settings.conf").read_text()
    assert 'ReadWritePaths="/srv/a \\"b\\" 50%%"' in capture
    worker = Path(host.units, "coresnap-process@.service.d/50-settings.conf").read_text()
    assert f"MemoryMax={(4 << 30) + (256 << 20)}" in worker
    assert "RuntimeMaxSec=14490" in worker
    assert units.install(host, settings.load(file)) == []
    file.write_text("")
    assert sorted(units.install(host, settings.load(file))) == sorted(changed)
    assert not list(Path(host.units).glob("*/*.conf"))


def test_the_worker_is_given_the_coroner_cf_that_the_settings_name(tmp_path: Path) -> None:
    file = tmp_path / "coresnap.conf"
    file.write_text("send.coroner = /etc/50%/coroner.cf\n")
    lines = units.drop_ins(settings.load(file))[units.SEND_WORKER]
    assert lines == ["[Service]", "LoadCredential=", "LoadCredential=coroner.cf:/etc/50%%/coroner.cf"]
    shipped = Path(__file__).parents[2].joinpath("units/coresnap-send@.service").read_text()
    default = settings.Settings().send_coroner
    assert f"\nLoadCredential=coroner.cf:{default}\nSetCredential=coroner.cf:#\n" in shipped
    file.write_text("send.store = https://store.example:6098\n")
    assert units.drop_ins(settings.load(file)) == {}, "an address is no directory to be written to"


def test_the_units_as_shipped_fit_the_settings_as_shipped(tmp_path: Path) -> None:
    file = tmp_path / "coresnap.conf"
    file.write_text("")
    assert units.drop_ins(settings.load(file)) == {}
    shipped = Path(__file__).parents[2].joinpath("units/coresnap-process@.service").read_text()
    assert f"RuntimeMaxSec={units._process_seconds(settings.load(file))}" in shipped
    assert f"MemoryMax={((1 << 30) + units._WORKER_BYTES) >> 20}M" in shipped
