# SPDX-License-Identifier: Apache-2.0
"""Text for people, formats of commands, service managers' variables, watched directories."""

from __future__ import annotations

import os
import select
import socket
from pathlib import Path

import pytest

from coresnap.ground import formats, listen, notify
from coresnap.ground.errors import BadSettings, Refused
from coresnap.ground.inotify import Watch
from coresnap.ground.text import human_bytes, human_duration, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain né ü 日本", "plain né ü 日本"),
        ("\x1b]0;x\x07", "\\x1b]0;x\\x07"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\u2028", "\\u2028"),
        ("\x9b31m", "\\x9b31m"),
        ("\ud800", "\\ud800"),
        ("x" * 2000, "x" * 1000 + "…"),
    ],
)
def test_nothing_unprintable_is_printed(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_sizes_and_spans() -> None:
    assert [human_bytes(n) for n in (0, 1023, 1024, 9677, 3_271_557, 5 << 30)] == [
        *("0B", "1023B", "1.00kB", "9.45kB", "3.12mB", "5.00gB"),
    ]
    assert [human_duration(n * 1000) for n in (3, 12_000, 300_000, 7_800_000, 3_600_000, 260_000_000)] == [
        *("3.0 ms", "12 s", "5 min", "2 h 10 min", "1 h", "3 d"),
    ]


def test_formats_expand_after_splitting() -> None:
    values = {"c": "/a b", "e": "%c"}
    assert formats.expand(["-o%c", "%e", "100%%", "%%c", "x%cy%e"], values) == [
        "-o/a b",
        "%c",
        "100%",
        "%c",
        "x/a by%c",
    ]


@pytest.mark.parametrize("word", ["%", "x%", "%z", "%c%"])
def test_unknown_formats_are_refused(word: str) -> None:
    with pytest.raises(BadSettings, match="%"):
        formats.expand([word], {"c": "x"})


def test_listen_fds_are_for_this_process_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() + 1))
    assert listen.listen_fds() == []
    assert "LISTEN_FDS" not in os.environ
    for count in ("x", "-1", "65", "", "٣"):
        monkeypatch.setenv("LISTEN_FDS", count)
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
        assert listen.listen_fds() == []


def test_notify_speaks_to_the_service_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        notify.ready()
        notify.status("pending 1\nREADY=0 é")
        assert manager.recv(100) == b"READY=1"
        assert manager.recv(100) == b"STATUS=pending 1 READY=0 ?"
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify.ready()


def test_a_watch_wakes_for_a_rename_into_the_directory(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "dump").mkdir()
    fd = os.open(tmp_path / "there", os.O_RDONLY)
    with Watch(fd) as watch:
        assert select.select([watch.fd], [], [], 0)[0] == []
        (tmp_path / "dump").rename(tmp_path / "there" / "dump")
        assert select.select([watch.fd], [], [], 10)[0] == [watch.fd]
        assert watch.drain() == {"dump"}
        assert select.select([watch.fd], [], [], 0)[0] == []
    os.close(fd)
    with Path("/dev/null").open() as file, pytest.raises(Refused, match="inotify"):
        Watch(file.fileno())
