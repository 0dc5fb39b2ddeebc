# SPDX-License-Identifier: Apache-2.0
"""Run inside gdb by hold.py: run the program to its death, write its core, and hold it until standard input ends."""

from __future__ import annotations

import os
import signal

import gdb  # type: ignore[import-untyped]  # gdb's own interpreter has it

#: The signals whose default action is to dump core: signal(7).
_DUMPING = frozenset(
    {
        *(signal.SIGQUIT, signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV),
        *(signal.SIGSYS, signal.SIGXCPU, signal.SIGXFSZ),
    }
)


def dies_of(number: int) -> bool:
    """Say whether the signal at which the selected thread stands dumps core: it does unless it is caught or ignored."""
    pid, tid, _ = gdb.selected_thread().ptid
    with open(f"/proc/{pid}/task/{tid}/status", encoding="utf-8", errors="surrogateescape") as file:
        status = dict(line.split(":", 1) for line in file)
    handled = int(status["SigCgt"], 16) | int(status["SigIgn"], 16)
    return number in _DUMPING and not handled >> (number - 1) & 1


def main() -> None:
    """Run, tell, hold."""
    gdb.execute("run")
    while gdb.selected_thread() is not None:
        number = int(gdb.parse_and_eval("$_siginfo.si_signo"))
        if dies_of(number):
            gdb.execute(f"generate-core-file {os.environ['CORESNAP_CORE']}")
            pid, tid, _ = gdb.selected_thread().ptid
            print("HELD", pid, tid, number, flush=True)
            while os.read(0, 4096):
                pass
            return
        gdb.execute("continue")


main()
