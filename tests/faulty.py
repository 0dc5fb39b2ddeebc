# SPDX-License-Identifier: Apache-2.0
"""Run one of coresnap's programs with a fault at one of its durable steps.

    faulty.py [--only PROGRAM] ACTION:NUMBER TRACE PROGRAM [ARGUMENT ...]

ACTION is trace (do nothing), kill (SIGKILL before the step), short (a write takes one byte), or the name of an errno.
The steps are counted from 0, in PROGRAM itself or, with --only, in its child PROGRAM instead. Each step is noted in the
file TRACE before it is taken.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from coresnap.ground import durable, program


class Fault:
    """What happens at step `number`: once."""

    def __init__(self, action: str, number: int, trace: str) -> None:
        self.action = action
        self.number = number
        self.trace_fd = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.step = -1

    def __call__(self, operation: str, name: str) -> int | None:
        self.step += 1
        os.write(self.trace_fd, f"{operation} {name}\n".encode())
        if self.step != self.number or self.action == "trace":
            return None
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.action == "short":
            return 1 if operation == "write" else None
        code = getattr(errno, self.action)
        raise OSError(code, os.strerror(code), name)


def main(arguments: list[str]) -> int:
    """Run the program; return its exit status."""
    only = ""
    if arguments[0] == "--only":
        only, arguments = arguments[1], arguments[2:]
    plan, trace, name, *rest = arguments
    action, _colon, number = plan.partition(":")
    if only:
        plain = program.argv_of
        me = [sys.executable, os.path.abspath(__file__), plan, trace]

        def argv_of(program: str, *, packages: bool = False) -> list[str]:
            return [*me, only] if program == only else plain(program, packages=packages)

        program.argv_of = argv_of
    module = importlib.import_module(f"coresnap.{name}")
    if not only:
        durable.fault = Fault(action, int(number), trace)
    sys.argv = [name, *rest]
    return module.main(*([rest] if rest or name == "archive" else []))  # type: ignore[no-any-return]  # every program's main


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
