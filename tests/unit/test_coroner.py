# SPDX-License-Identifier: Apache-2.0
"""coroner.cf: both forms, every key, and nothing of a value in what is said of a wrong one."""

from __future__ import annotations

import codecs
import os
import time
from pathlib import Path

import pytest

from coresnap.ground.errors import BadSettings
from coresnap.store import Parked, Secret, address, coroner
from coresnap.store.coroner import Coroner, parse

HEX = "0123456789abcdef" * 4
PATH = "/etc/coroner.cf"


def _tokens(read: Coroner) -> dict[str, str]:
    return {name: token.reveal() for name, token in read.tokens.items()}


def test_the_form_with_sections() -> None:
    text = f"""
        # Our own store in Köln.
        [universe]
        name = universe
        write = https://crashes.example:6098
        read = crashes.example:4097
        read.ssl.enabled = true
        read.ssl.method = TLSv1.2
        curl.ssl_verifyhost = 2
        curl.ssl_verifypeer = 1

        [token]
        blackhole = {HEX}
        name = "{HEX[::-1]}"
        """
    read = parse(codecs.BOM_UTF8 + text.replace("\n", "\r\n").encode(), PATH)
    assert (read.universe, read.write) == ("universe", "https://crashes.example:6098")
    assert _tokens(read) == {"blackhole": HEX, "name": HEX[::-1]}
    assert read.verify_host
    assert read.verify_peer
    assert read.warnings == ()


def test_the_oldest_form() -> None:
    read = parse(f"name=u\nwrite=https://h\nread=h:4097\nread.ssl.enabled=true\nweb={HEX}\n".encode(), PATH)
    assert (read.universe, read.write, _tokens(read)) == ("u", "https://h", {"web": HEX})


def test_keys_of_our_own() -> None:
    text = "ssl.ca_file=ca.pem\nssl.certificate=/c.pem\nssl.key=k\nproxy=none\nconnect_timeout=5\nidle_timeout=3600\n"
    for head in ("", "[universe]\n", "[coresnap]\n"):
        read = parse((head + text).encode(), PATH)
        assert (read.ca_file, read.certificate, read.key) == ("/etc/ca.pem", "/c.pem", "/etc/k")
        assert (read.proxy, read.connect_usec, read.idle_usec) == ("none", 5_000_000, 3_600_000_000)
    assert parse(b"[other]\nproxy=x\nproxy=y\n", PATH).proxy == "", "sections of others are passed over"


def test_what_is_risky_is_said() -> None:
    tokens = f"[token]\nweb={HEX}\n".encode()
    assert "chmod 600" in parse(tokens, PATH, 0o100644).warnings[0]
    assert parse(tokens, PATH, 0o100640).warnings == ()
    assert parse(b"write=https://h\n", PATH, 0o100644).warnings == (), "no token is in it"
    read = parse(b"curl.ssl_verifypeer = 0\n", PATH)
    assert not read.verify_peer
    assert "verify" in read.warnings[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"[token]\nweb = {HEX}!\n", "2: the token of web is none"),
        ("[token]\nweb =\n", "2: the token of web is none"),
        ("[token]\nweb = ../" + HEX, "2: the token of web is none"),
        (f"{HEX}\n", "1: KEY = VALUE expected"),
        (f"= {HEX}\n", "1: KEY = VALUE expected"),
        (f"[token]\na={HEX}\na={HEX}\n", "3: a stands there a second time"),
        ("write=https://h\nwrite=https://i\n", "2: write stands there a second time"),
        (f"[{HEX}\n", "1: not the name of a section"),
        ("curl.ssl_verifypeer = maybe\n", "1: curl.ssl_verifypeer: true or false"),
        ("connect_timeout = 0\n", "1: connect_timeout: seconds expected"),
        ("idle_timeout = 1e3\n", "1: idle_timeout: seconds expected"),
        ("x = " + HEX * 100, "1: a line of more than"),
        ("a\0b = 1\n", "1: a line of more than"),
        ("\n\nü = 1\n", "3: not ASCII"),
    ],
)
def test_what_is_wrong_is_named_by_its_line_and_not_quoted(text: str, said: str) -> None:
    with pytest.raises(BadSettings) as caught:
        parse(text.encode(), PATH)
    assert caught.value.line().startswith(f"{PATH}:{said}")
    assert HEX not in caught.value.line()


def test_a_file_is_read_within_bounds(tmp_path: Path) -> None:
    path = tmp_path / "coroner.cf"
    with pytest.raises(Parked, match="No such file"):
        coroner.read(str(path))
    path.write_bytes(b"#" * (1 << 19))
    with pytest.raises(BadSettings, match="more than 262144 bytes"):
        coroner.read(str(path))
    with pytest.raises(Parked, match="not a regular file"):
        coroner.read(str(tmp_path))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(Parked, match="not a regular file"):
        coroner.read(str(tmp_path / "fifo"))


def test_a_services_credential_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named, credential = str(tmp_path / "named"), tmp_path / "coroner.cf"
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert coroner.for_service(named) == named
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert coroner.for_service(named) == named
    credential.write_text("#")  # the unit's default where there is no file
    assert coroner.for_service(named) == named
    credential.write_text(f"[token]\nweb = {HEX}\n")
    assert coroner.for_service(named) == str(credential)
    # A credential can be read by its service alone; what was copied may be another matter.
    credential.chmod(0o400)
    Path(named).write_text("x")
    Path(named).chmod(0o644)
    assert named in coroner.read(str(credential), named).warnings[0]
    Path(named).chmod(0o600)
    assert not coroner.read(str(credential), named).warnings


def test_a_persons_own_goes_before_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(coroner, "SYSTEM", str(tmp_path / "system"))
    with pytest.raises(Parked, match="no coroner.cf"):
        coroner.for_person(None)
    (tmp_path / "system").touch()
    assert coroner.for_person(None) == str(tmp_path / "system")
    (tmp_path / ".coroner.cf").touch()
    assert coroner.for_person(None) == str(tmp_path / ".coroner.cf")
    assert coroner.for_person("/named") == "/named"


def test_a_file_that_has_changed_in_the_future_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock was set back since: no worker would ever have it as it is."""
    named, credential = tmp_path / "named", tmp_path / "coroner.cf"
    assert not coroner.is_outdated(str(named))
    named.touch()
    credential.touch()
    os.utime(credential, ns=(0, 0))
    assert not coroner.is_outdated(str(named)), "no service"
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert coroner.is_outdated(str(named))
    monkeypatch.setattr(time, "time_ns", lambda: named.stat().st_ctime_ns - 1)
    assert not coroner.is_outdated(str(named))


# Addresses.


@pytest.mark.parametrize(
    ("text", "url", "shown"),
    [
        ("https://submit.backtrace.io", "https://submit.backtrace.io/u/T/json", "https://submit.backtrace.io/u"),
        ("https://submit.backtrace.io/", "https://submit.backtrace.io/u/T/json", "https://submit.backtrace.io/u"),
        ("https://submit.backtrace.io:443/v", "https://submit.backtrace.io/v/T/json", "https://submit.backtrace.io/v"),
        ("submit.backtrace.io/v/abc/btt", "https://submit.backtrace.io/v/T/json", "https://submit.backtrace.io/v"),
        ("submit.backtrace.io/v/abc/plcrash", "https://submit.backtrace.io/v/T/json", "https://submit.backtrace.io/v"),
        ("https://Store.example/v/abc/json", "https://store.example/v/T/json", "https://store.example/v"),
        ("https://h:6098", "https://h:6098/post?format=json&token=T", "https://h:6098"),
        ("https://h:6098/api/post", "https://h:6098/api/post?format=json&token=T", "https://h:6098"),
        ("https://h/post?format=btt&token=abc", "https://h/post?format=json&token=T", "https://h"),
        ("http://[::1]:6097/", "http://[::1]:6097/post?format=json&token=T", "http://[::1]:6097"),
        ("https://[fe80::1%eth0]/", "https://[fe80::1%eth0]/post?format=json&token=T", "https://[fe80::1%eth0]"),
    ],
)
def test_the_two_forms(text: str, url: str, shown: str) -> None:
    parsed = address.parse(text, "u", where="x")
    assert parsed.url(Secret("T"), "json") == url
    assert parsed.shown == shown
    assert "abc" not in repr(parsed)
    assert (parsed.token.reveal() if parsed.token else "") == ("abc" if "abc" in text else "")


def test_attributes_stand_in_the_query() -> None:
    more = [("a b", "c&d=é\n")]
    assert address.parse("https://h", where="x").url(Secret("T"), "btt", more).endswith("token=T&a+b=c%26d%3D%C3%A9%0A")
    assert (
        address.parse("https://h/u/t/json", where="x")
        .url(Secret("T"), "btt", more)
        .endswith("/u/T/btt?a+b=c%26d%3D%C3%A9%0A")
    )


@pytest.mark.parametrize(
    "text",
    [
        "ftp://h/",
        "https://",
        "https:///post",
        "https://h:99999/",
        "https://h:x/",
        "https://user@h/",
        "https://user:secret@h/",
        "https://h/#secret",
        "https://h h/",
        "https://h/\r\nX: y",
        "https://h\u0456/",
        "https://submit.backtrace.io/a/secret",
        "https://h/u/se%63ret/json",
        "https://h/post?token=../secret",
        "https://[::1/",
        "https://h/" + "x" * 5000,
        "javascript:alert(1)",
    ],
)
def test_what_is_no_address_is_not_quoted(text: str) -> None:
    with pytest.raises(BadSettings) as caught:
        address.parse(text, "", where="here")
    assert caught.value.line().startswith("here: ")
    assert "secret" not in caught.value.line()


@pytest.mark.parametrize("location", ["", "/x", "?y", "https://h/x", "HTTPS://H:443/x"])
def test_a_redirection_to_the_same_origin(location: str) -> None:
    assert address.redirected("https://h/post?token=T", location)[0] == "https://h"


@pytest.mark.parametrize(
    "location", ["//i/x", "http://h/x", "https://h:444/", "https://a@h/", "https://h.i/", "mailto:x", "https://["]
)
def test_a_redirection_to_another(location: str) -> None:
    assert address.redirected("https://h/post?token=T", location)[0] != "https://h"
