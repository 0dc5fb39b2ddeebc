# SPDX-License-Identifier: Apache-2.0
"""The one way in which coresnap runs other programs: an argv list, a clean environment, a process group, an end.

No shell, ever. A command has a time limit, and when it has ended, or must end, its whole process group goes.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from coresnap.ground.errors import Refused

ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
_TERM_GRACE_SECONDS = 5.0
_LINE_MAX = 1000
_SAID_MAX_BYTES = 4096
#: What age(1) ends each of its errors with.
_TELLS_NOTHING = "report unexpected or unhelpful errors at"
#: What a child that coresnap runs needs to find its supervisor, its journal and its settings' credentials.
_PASSED_ON = ("NOTIFY_SOCKET", "JOURNAL_STREAM", "CREDENTIALS_DIRECTORY", "NO_COLOR")


@dataclass(frozen=True)
class Result:
    """How a command ended: its exit status, or the signal that ended it (0 for none), and the tail of its output."""

    status: int
    signal: int
    output: bytes
    timed_out: bool
    elapsed_usec: int

    def ending(self) -> str:
        """Say in a line how the command ended, and the last thing that it said."""
        if self.timed_out:
            how = "took too long and was killed"
        elif self.signal:
            how = f"was killed by signal {self.signal}"
        else:
            how = f"exit status {self.status}"
        said = last_line(self.output)
        return f"{how}: {said}" if said else how


def last_line(output: bytes) -> str:
    """Return the last line of a command's output that tells of something, bounded."""
    lines = [line for line in output.decode("utf-8", "replace").strip().splitlines() if _TELLS_NOTHING not in line]
    return lines[-1][:_LINE_MAX] if lines else ""


def run(
    argv: Sequence[str],
    *,
    timeout_usec: int,
    env: Mapping[str, str] = ENVIRONMENT,
    pass_fds: Sequence[int] = (),
    stdin: int = subprocess.DEVNULL,
    output: str | int = "capture",
    output_limit_bytes: int = 64 << 10,
    errors: str = "merge",
    memory_bytes: int = 0,
    file_size_bytes: int = 0,
    abandon_fd: int = -1,
) -> Result:
    """Run a command to its end, or to its time limit.

    `output` is capture (the last `output_limit_bytes` are kept), inherit or discard; `errors` is merge (standard error goes
    where the output does) or inherit. Where `output` is a descriptor, standard error is what is captured. The command is
    killed with its group where `abandon_fd`, a socket, is hung up.
    `memory_bytes` bounds the address space, `file_size_bytes` the files that it may write; 0 is no bound.
    Raises Refused where the program cannot be started.
    """
    started_nsec = time.monotonic_ns()
    if isinstance(output, int):
        stdout: int | None = output
        stderr: int | None = subprocess.PIPE
    else:
        stdout = {"capture": subprocess.PIPE, "inherit": None, "discard": subprocess.DEVNULL}[output]
        stderr = {"merge": subprocess.STDOUT, "inherit": None}[errors]
    try:
        # The runner's callers have one thread, so preexec_fn is safe; the limits have to hold before the program's first
        # instruction.
        process = subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=dict(env),
            cwd="/",
            pass_fds=tuple(pass_fds),
            start_new_session=True,
            preexec_fn=_limits(memory_bytes, file_size_bytes),  # noqa: PLW1509  # see above
        )
    except OSError as error:
        raise Refused(f"{argv[0]}: {error.strerror}", hint="is it installed?") from error
    timed_out = True
    try:
        with _Waiting(process, abandon_fd) as waiting:
            timed_out = not waiting.until(time.monotonic() + timeout_usec / 1e6, output_limit_bytes)
    finally:
        _kill_group(process)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    code = process.returncode
    elapsed_usec = (time.monotonic_ns() - started_nsec) // 1000
    return Result(code if code >= 0 else 128 - code, max(-code, 0), bytes(waiting.kept), timed_out, elapsed_usec)


@contextmanager
def reading(argv: Sequence[str], *, stdin: int) -> Iterator[tuple[int, Callable[[], str]]]:
    """Run a command whose output is read as it comes; it is killed, with its group, at the end of the context.

    Yield the descriptor to read, and a function to be called at its end: it says how the command failed, or nothing.
    Raises Refused where the program cannot be started.
    """
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                argv,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise Refused(f"{argv[0]}: {error.strerror}", hint="is it installed?") from error

        def ending() -> str:
            status = process.wait()
            errors.seek(0)
            said = last_line(errors.read(_SAID_MAX_BYTES)).removeprefix(f"{argv[0]}: ")
            return f"{argv[0]}: {said or status}" if status else ""

        assert process.stdout is not None
        try:
            yield process.stdout.fileno(), ending
        finally:
            _kill_group(process)
            process.stdout.close()


class _Waiting:
    """Waits for a process's end, taking its output meanwhile; gives up where `abandon_fd` hangs up."""

    def __init__(self, process: subprocess.Popen[bytes], abandon_fd: int) -> None:
        self.kept = bytearray()
        pipe = process.stdout or process.stderr
        self._output_fd = pipe.fileno() if pipe else -1
        self._abandon_fd = abandon_fd
        self._process_fd = os.pidfd_open(process.pid)
        self._poll = select.poll()
        self._poll.register(self._process_fd, select.POLLIN)
        if self._output_fd >= 0:
            self._poll.register(self._output_fd, select.POLLIN)
        if abandon_fd >= 0:
            self._poll.register(abandon_fd, select.POLLHUP)

    def __enter__(self) -> _Waiting:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._process_fd)

    def until(self, deadline: float, limit_bytes: int) -> bool:
        """Wait; say whether the process has ended by itself before the deadline."""
        while (left := deadline - time.monotonic()) > 0:
            ready = {fd for fd, _events in self._poll.poll(left * 1000 + 1)}
            if self._output_fd in ready:
                self._take(limit_bytes)
            elif self._abandon_fd in ready:
                return False
            elif self._process_fd in ready:
                return True
        return False

    def _take(self, limit_bytes: int) -> None:
        block = os.read(self._output_fd, 1 << 16)
        if not block:
            self._poll.unregister(self._output_fd)
            self._output_fd = -1
        self.kept += block
        del self.kept[: max(0, len(self.kept) - limit_bytes)]


def _limits(memory_bytes: int, file_size_bytes: int) -> Callable[[], None] | None:
    bounds = ((resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_FSIZE, file_size_bytes))
    wanted = [(kind, bound) for kind, bound in bounds if bound]
    if not wanted:
        return None

    def apply() -> None:
        for kind, bound in wanted:
            hard = resource.getrlimit(kind)[1]
            most = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
            resource.setrlimit(kind, (most, most))

    return apply


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the process group, and reap its leader."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


class Child:
    """A program of coresnap's own that runs beside this one, until `end`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid

    def poll(self) -> int | None:
        """Return the exit status if the child has ended (negative: the signal's number), else None."""
        return self._process.poll()

    def wait(self) -> int:
        """Wait for the child's own end; return its exit status."""
        return self._process.wait()

    def end(self) -> int:
        """Ask the child to end; kill its group if it does not. Return its exit status."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_TERM_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                pass
        _kill_group(self._process)
        return self._process.returncode


def spawn(argv: Sequence[str], *, stdin: int = subprocess.DEVNULL) -> Child:
    """Start a program of coresnap's own, with `stdin` as its standard input; its output is this program's."""
    environment = dict(ENVIRONMENT) | {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    process = subprocess.Popen(argv, stdin=stdin, env=environment, start_new_session=True)
    return Child(process)
