# SPDX-License-Identifier: Apache-2.0
"""The one skeleton of coresnap's programs: how one is found, how it ends on a signal, how an error becomes a line."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from coresnap.ground.errors import CoresnapError

if TYPE_CHECKING:
    import socket

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def argv_of(program: str, *, packages: bool = False) -> list[str]:
    """Return the command that runs coresnap's own program `program`, a module of the package, with this interpreter.

    Without `packages` it sees the standard library alone, and starts in half the time.
    """
    return [sys.executable, "-I" if packages else "-IS", os.path.join(_PACKAGE, f"{program}.py")]


def run(name: str, body: Callable[[], int], tell: Callable[[str], None] | None = None) -> int:
    """Run a program's body; return its exit status. What coresnap knows to go wrong becomes one line."""
    if sys.stdout is None:  # it was closed when the program was started
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # it stays open as long as the program runs
    try:
        status = body()
        sys.stdout.flush()
        return status
    except CoresnapError as error:
        line = f"{name}: {error.line()}"
        status = error.exit_status
    except BrokenPipeError:
        _forget_output()
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except OSError as error:
        line = f"{name}: {error.filename or 'input or output'}: {error.strerror}"
        status = 75
        _forget_output()
    (tell or _to_standard_error)(line)
    return status


#: shutdown(2). Most programs have no socket, and need not load what knows of them.
_SHUT_RDWR = 2


@contextmanager
def hanging_up(connection: "socket.socket") -> Iterator[None]:
    """Let SIGTERM hang up the connection, upon which a worker, and what it runs, ends as if its owner had hung up."""
    signal.signal(signal.SIGTERM, lambda *_: connection.shutdown(_SHUT_RDWR))
    try:
        yield
    finally:
        # The program ends now. The interpreter would make a traceback of a signal whose handler goes just as it arrives.
        signal.signal(signal.SIGTERM, lambda *_: None)


def _to_standard_error(line: str) -> None:
    print(line, file=sys.stderr)


def _forget_output() -> None:
    """Have the interpreter's own last flush succeed: whoever was to read it has gone, or has no room."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


class Signals:
    """The signals that ask a program to stop or to read its settings again, as a descriptor to poll."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.stop = False
        self.reload = False

    def drain(self) -> None:
        """Take what has arrived."""
        for number in os.read(self.fd, 64):
            if number == signal.SIGHUP:
                self.reload = True
            elif number in (signal.SIGTERM, signal.SIGINT):
                self.stop = True


@contextmanager
def signals() -> Iterator[Signals]:
    """Catch SIGTERM, SIGINT and SIGHUP into a descriptor for as long as the context lasts."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    caught = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
    before = {number: signal.signal(number, lambda *_: None) for number in caught}
    former = signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    try:
        yield Signals(read_fd)
    finally:
        signal.set_wakeup_fd(former)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(read_fd)
        os.close(write_fd)
