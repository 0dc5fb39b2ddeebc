# SPDX-License-Identifier: Apache-2.0
"""The kernel's log: which of its lines mean a core that coresnap should have had, each told once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from coresnap.host.kernel_log import Drop, KernelLog, drop_of, forget
from coresnap.host.pattern import Host

_OVER = "coredump: {}(python3): over core_pipe_limit, skipping core dump"


@pytest.mark.parametrize(
    ("text", "drop"),
    [
        ("Pid 4711(a b\\x1b) over core_pipe_limit", Drop(4711, "a b\\x1b", "over core_pipe_limit")),
        ("Process 12(archive) has RLIMIT_CORE set to 1", Drop(12, "archive", "RLIMIT_CORE is set to 1")),
        (
            "Core dump to |/usr/local/lib/coresnap/archive pipe failed",
            Drop(None, None, "|/usr/local/lib/coresnap/archive pipe failed"),
        ),
        ("Core dump to |/lib/systemd/systemd-coredump pipe failed", None),
        (_OVER.format(611), Drop(611, "python3", "over core_pipe_limit, skipping core dump")),
        ("coredump: 642(x): |/nonexistent pipe failed", None),
        (
            "coredump: 642(x): |/usr/lib/coresnap/archive pipe failed",
            Drop(642, "x", "|/usr/lib/coresnap/archive pipe failed"),
        ),
        ("coredump: 637(x): Coredump socket connection /run/nobody failed -2", None),
        (
            "coredump: 637(x): Coredump socket connection /run/coresnap/kernel failed -11",
            Drop(637, "x", "/run/coresnap/kernel: Resource temporarily unavailable"),
        ),
        ("coredump: 637(x): Coredump socket /run/nobody receive queue full", None),
        (
            "coredump: 637(x): Coredump socket /run/coresnap/kernel receive queue full",
            Drop(637, "x", "/run/coresnap/kernel: its queue was full"),
        ),
        ("coredump: 5(a): over core_pipe_limit(x): nothing", None),
        ("coredump: 99999999999(a): over core_pipe_limit", None),
        ("python3[536]: segfault at 10 ip 0 sp 0 error 4", None),
        ("show_signal_msg: 33 callbacks suppressed", None),
        (
            "coredump_pipe: 7 callbacks suppressed",
            Drop(None, None, "7 more messages of this kind, whose processes the kernel did not name"),
        ),
    ],
)
def test_a_line(text: str, drop: Drop | None) -> None:
    assert drop_of(text) == drop


class _Kernel:
    """A pipe that keeps what is written to it apart, as /dev/kmsg does."""

    def __init__(self, state: Path) -> None:
        self.read_fd, self.write_fd = os.pipe2(os.O_DIRECT)
        self.host = Host(state=str(state), kernel_log=f"/proc/self/fd/{self.read_fd}")

    def say(self, number: int, text: str) -> None:
        os.write(self.write_fd, f"4,{number},{number * 1000},-;{text}\n SUBSYSTEM=x\n".encode())


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[_Kernel]:
    kernel = _Kernel(tmp_path)
    yield kernel
    os.close(kernel.read_fd)
    os.close(kernel.write_fd)


def _pids(log: KernelLog) -> list[int | None]:
    return [drop.pid for drop in log.drops()]


def test_what_was_there_before_the_claim_is_not_ours(kernel: _Kernel) -> None:
    kernel.say(1, _OVER.format(11))
    with KernelLog(kernel.host) as log:
        kernel.say(2, "something else")
        kernel.say(3, _OVER.format(12))
        assert _pids(log) == [12]
        assert _pids(log) == []


def test_after_a_restart_it_goes_on_where_it_was(kernel: _Kernel) -> None:
    with KernelLog(kernel.host) as log:
        kernel.say(2, _OVER.format(12))
        assert _pids(log) == [12]
    for number, pid in ((2, 12), (3, 13)):  # the kernel tells all that it has to whoever opens it
        kernel.say(number, _OVER.format(pid))
    with KernelLog(kernel.host) as log:
        assert _pids(log) == [13]
    forget(kernel.host)
    kernel.say(4, _OVER.format(14))
    with KernelLog(kernel.host) as log:
        assert _pids(log) == [], "core_pattern was another's meanwhile"


def test_one_that_was_not_acted_upon_is_told_again(kernel: _Kernel) -> None:
    with KernelLog(kernel.host) as log:
        kernel.say(1, _OVER.format(11))
        for _drop in log.drops():
            break  # the ledger could not be written, say, and coresnapd ended
    kernel.say(1, _OVER.format(11))
    with KernelLog(kernel.host) as log:
        assert _pids(log) == [11]


def test_a_log_that_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        KernelLog(Host(state=str(tmp_path), kernel_log=str(tmp_path / "none")))
