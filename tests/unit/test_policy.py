# SPDX-License-Identifier: Apache-2.0
"""Which cores the settings do not want."""

from __future__ import annotations

import pytest

from coresnap.capture import policy
from coresnap.capture.place import place_of
from coresnap.capture.victim import Victim
from coresnap.ground.asterisk import matches
from coresnap.ground.flat import ArchiveSettings

_LIMITS = (
    b"Limit                     Soft Limit           Hard Limit           Units     \n"
    b"Max cpu time              0                    unlimited            seconds   \n"
    b"Max core file size        %s                   unlimited            bytes     \n"
)


def _victim(limit: int | None) -> Victim:
    victim = Victim()
    victim.rlimit_core = limit
    return victim


def _settings(value: str) -> ArchiveSettings:
    settings = ArchiveSettings()
    settings.rlimit_core = value
    return settings


@pytest.mark.parametrize(
    ("limit", "limits"), [(0, b""), (0, _LIMITS % b"unlimited"), (None, _LIMITS % b"0"), (None, _LIMITS % b"1")]
)
def test_a_limit_of_nothing_is_honoured_where_that_is_asked_for(limit: int | None, limits: bytes) -> None:
    """The kernel tells the limit on the pipe; over its socket /proc does: the meaning is the same."""
    with pytest.raises(policy.Declined) as declined:
        policy.decide(_settings("honour"), _victim(limit), limits)
    assert declined.value.reason == "rlimit"
    policy.decide(_settings("ignore"), _victim(limit), limits)


@pytest.mark.parametrize(
    ("limit", "limits"),
    [(4096, _LIMITS % b"0"), (None, _LIMITS % b"unlimited"), (None, b""), (None, b"Max core file size\n")],
)
def test_any_other_limit_cuts_and_forbids_nothing(limit: int | None, limits: bytes) -> None:
    policy.decide(_settings("honour"), _victim(limit), limits)


def test_what_has_to_be_read_first() -> None:
    assert policy.needs_limits(_settings("honour"), _victim(None))
    assert not policy.needs_limits(_settings("honour"), _victim(0))
    assert not policy.needs_limits(_settings("ignore"), _victim(None))


def _known(exe: str | None = "/usr/bin/vim", cgroup: bytes = b"0::/system.slice/a@1.service\n") -> policy.Known:
    return policy.Known(exe, cgroup)


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        *(("/usr/bin/vim", text, text == "/usr/bin/vim") for text in ("/usr/bin/vim", "/usr/bin/vi", "/usr/bin/vimx")),
        *(("*", text, True) for text in ("", "a", "/a/b c")),
        *(("/opt/*", text, text.startswith("/opt/")) for text in ("/opt/", "/opt/a/b", "/op")),
        *(("*.so", text, expected) for text, expected in (("a.so", True), (".so", True), ("a.so.1", False))),
        *(
            ("a*b*c", text, expected)
            for text, expected in (("abc", True), ("a-b-b-c", True), ("acb", False), ("ab", False))
        ),
        *(("aa*aa", text, len(text) > 3) for text in ("aa", "aaa", "aaaa", "aaaaa")),
        ("a[b]?", "abc", False),
        ("a[b]?", "a[b]?", True),
    ],
)
def test_an_asterisk_is_all_that_a_pattern_knows(pattern: str, text: str, expected: bool) -> None:
    assert matches(pattern, text) is expected


def test_a_pattern_that_backtracks_elsewhere_is_looked_for_once() -> None:
    """Cut off by the clock of the test's runner, were it not: 40 asterisks over text that all but matches."""
    assert not matches("*" + "a*" * 40 + "b", "a" * 4096)


@pytest.mark.parametrize(
    ("include", "exclude", "is_wanted"),
    [
        ("", "", True),
        ("", "vim", False),
        ("", "/usr/bin/*", False),
        ("", "vi", True),
        ("", "bin/vim", True),
        ("", "uid:12", False),
        ("", "uid:1", True),
        ("", "unit:a@*.service", False),
        ("", "unit:b.service", True),
        ("vim", "", True),
        ("emacs", "", False),
        ("vim", "/usr/*", False),
        ("emacs uid:12", "", True),
    ],
)
def test_patterns_say_what_is_captured(include: str, exclude: str, is_wanted: bool) -> None:
    settings = ArchiveSettings()
    settings.include, settings.exclude = tuple(include.split()), tuple(exclude.split())
    if is_wanted:
        policy.decide_by_name(settings, 12, _known())
    else:
        with pytest.raises(policy.Declined) as declined:
            policy.decide_by_name(settings, 12, _known())
        assert declined.value.reason == "excluded"


def test_a_process_of_which_nothing_is_known_is_captured() -> None:
    settings = ArchiveSettings()
    settings.include, settings.exclude = ("/usr/bin/vim",), ("*",)
    policy.decide_by_name(settings, None, _known(None, b""))
    assert policy.limits_of(settings, None, _known(None, b"")) == []


def test_a_deleted_executable_counts_as_the_one_that_it_was() -> None:
    assert _known("/usr/bin/vim (deleted)").exe == "/usr/bin/vim"


def test_what_is_larger_than_a_core_may_be() -> None:
    settings = ArchiveSettings()
    policy.decide_by_size(settings, 1 << 50)
    settings.core_max_bytes = 1000
    policy.decide_by_size(settings, 1000)
    with pytest.raises(policy.Declined) as declined:
        policy.decide_by_size(settings, 1001)
    assert declined.value.reason == "too-large"


@pytest.mark.parametrize(
    ("path", "unit", "service"),
    [
        ("/system.slice/a@1.service", "a@1.service", "a"),
        ("/system.slice/a.service/sub", "a.service", "a.service"),
        ("/user.slice/user-1.slice/user@1.service/app.slice/x.scope", "user@1.service/x.scope", "user"),
        ("/user.slice/user-1.slice/user@1.service/init.scope", "user@1.service", "user"),
        ("/user.slice/user-1.slice/session-3.scope", "session-3.scope", ""),
        ("/system.slice/docker-0123456789abcdef.scope", "docker-0123456789abcdef.scope", ""),
        ("/system.slice/run-u123.service", "run-u123.service", ""),
        ("/_odd.service", "odd.service", "odd.service"),
        ("/", None, ""),
    ],
)
def test_the_unit_is_the_one_that_the_place_tells(path: str, unit: str | None, service: str) -> None:
    file = f"3:cpu:/x.service\n0::{path}\n".encode()
    assert policy.unit_of(file) == (unit, service)
    place = place_of(file)
    assert (unit or "").split("/") == [text for text in (place["unit"] or "", place["user_unit"]) if text is not None]


def test_a_session_is_no_unit_that_is_limited() -> None:
    kinds = [
        one.kind for one in policy.limits_of(ArchiveSettings(), 1, _known(cgroup=b"0::/x.slice/session-3.scope\n"))
    ]
    assert kinds == ["exe", "user"]
    kinds = [one.kind for one in policy.limits_of(ArchiveSettings(), 1, _known())]
    assert kinds == ["exe", "unit", "user"]


def test_a_program_counts_by_itself_in_each_service_and_for_each_user() -> None:
    settings = ArchiveSettings()

    def identity(uid: int, cgroup: bytes) -> str:
        return policy.limits_of(settings, uid, _known(cgroup=cgroup))[0].identity

    here = identity(1, b"0::/system.slice/a@1.service\n")
    assert here == identity(1, b"0::/system.slice/a@2.service\n")
    assert (
        len({here, identity(2, b"0::/system.slice/a@1.service\n"), identity(1, b"0::/system.slice/b.service\n")}) == 3
    )
    scopes = (b"0::/system.slice/docker-%d.scope\n" % number for number in range(3))
    assert len({identity(1, scope) for scope in scopes}) == 1, "a scope is a new one for each start"
