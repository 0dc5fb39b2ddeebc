# SPDX-License-Identifier: Apache-2.0
"""The runner: limits hold, groups end, output is bounded, nothing is inherited that was not given."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from coresnap.ground import runner
from coresnap.ground.errors import Refused

SECOND_USEC = 1_000_000


def _python(program: str, **options: object) -> runner.Result:
    arguments: dict[str, object] = {"timeout_usec": 20 * SECOND_USEC, **options}
    return runner.run([sys.executable, "-c", program], **arguments)  # type: ignore[arg-type]  # the options of run


def test_status_and_output() -> None:
    result = _python("import sys; print('out'); sys.stdout.flush(); print('err', file=sys.stderr); sys.exit(3)")
    assert (result.status, result.signal, result.timed_out) == (3, 0, False)
    assert result.output == b"out\nerr\n"


def test_a_signal_is_told() -> None:
    result = _python("import os; os.kill(os.getpid(), 9)")
    assert (result.status, result.signal) == (137, 9)


def test_the_end_of_the_output_is_kept() -> None:
    result = _python("print('x' * 1000000); print('last')", output_limit_bytes=100)
    assert len(result.output) == 100
    assert result.output.endswith(b"x\nlast\n")


def test_the_time_limit_takes_the_whole_group(tmp_path: Path) -> None:
    """The command's child, which outlives its parent, must go too: it would write the file."""
    program = (
        "import os, time, sys\n"
        "if os.fork() == 0:\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(60)\n"
        "time.sleep(60)\n"
    )
    result = _python(program, timeout_usec=SECOND_USEC)
    assert result.timed_out
    child = int(result.output)
    with pytest.raises(ProcessLookupError):
        _wait_gone(child)


def _wait_gone(pid: int) -> None:
    """Wait for the end of a process that is not ours: raises ProcessLookupError when it has gone."""
    import select

    fd = os.pidfd_open(pid)
    select.select([fd], [], [], 10)
    os.close(fd)
    state = Path(f"/proc/{pid}/stat")
    if not state.exists() or state.read_text().split()[2] == "Z":
        raise ProcessLookupError
    os.kill(pid, 0)


def test_a_child_that_keeps_the_output_open_does_not_hold_us() -> None:
    result = _python("import os, time\nif os.fork() == 0: time.sleep(60)", timeout_usec=SECOND_USEC)
    assert result.status == 0


def test_memory_and_file_sizes_are_bounded(tmp_path: Path) -> None:
    assert _python("x = bytearray(1 << 30)", memory_bytes=512 << 20).status == 1
    program = f"open({str(tmp_path / 'file')!r}, 'wb').write(bytes(1 << 20))"
    assert _python(program, file_size_bytes=1 << 16).status != 0
    assert (tmp_path / "file").stat().st_size <= 1 << 16


def test_nothing_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    given, other = socket.socketpair()
    with given, other:
        os.set_inheritable(given.fileno(), True)
        program = "import os; print(sorted(map(int, os.listdir('/proc/self/fd')))[:-1], 'SECRET' in os.environ)"
        assert _python(program).output == b"[0, 1, 2] False\n"


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(Refused, match="/no/such/program: No such file"):
        runner.run(["/no/such/program"], timeout_usec=SECOND_USEC)


def test_a_spawned_child_ends_when_asked() -> None:
    child = runner.spawn([sys.executable, "-c", "import time; time.sleep(60)"])
    assert child.poll() is None
    assert child.end() == -15
