# SPDX-License-Identifier: Apache-2.0
"""Crash a process whose names are as hostile as names can be; print what they are, as JSON, once it has crashed.

Runs as root in a guest; the process is user 1234's.
"""

import json
import os
import shutil
import signal
import sys

_INJECTED = b"\nFORGED=1\nMESSAGE=forged\nCOREDUMP_UNIT=forged.service\n"
_ESCAPES = b"\x1b[31m\x1b]0;forged\x07\x9b2J\r\t"
_CWD = b"/var/tmp/cwd %P!%s" + _INJECTED + _ESCAPES + b"\xff\xf0 \xe2\x80\xae"
_EXE = _CWD + b"/ forged!usr!bin!su %E %%" + _INJECTED + _ESCAPES + b"\xff\xe2\x80\xa8"
#: It looks like what core_pattern gives archive: another process's numbers.
_COMM = b"1 1 0 0\n\x1b[2J \xff"
_DIE = """
import ctypes, os, signal
ctypes.CDLL(None).prctl(15, bytes.fromhex(os.environ["COMM"]), 0, 0, 0)
os.kill(os.getpid(), signal.SIGSEGV)
"""
_ARGUMENTS = [b"/usr/bin/forged" + _INJECTED, b"-c", _DIE.encode(), _ESCAPES, b"\xff\xfe", b"x" * 100_000]


def main() -> int:
    """Do it."""
    os.makedirs(_CWD, 0o755, exist_ok=True)
    shutil.copy(os.fsencode(os.path.realpath(sys.executable)), _EXE)
    os.chmod(_EXE, 0o755)
    pid = os.fork()
    if not pid:
        os.chdir(_CWD)
        os.setgroups([])
        os.setgid(1234)
        os.setuid(1234)
        os.execve(_EXE, _ARGUMENTS, {b"PYTHONHOME": b"/usr", b"COMM": _COMM.hex().encode()})
    status = os.waitpid(pid, 0)[1]
    names = {"exe": _EXE, "cwd": _CWD, "comm": _COMM[:15], "cmdline": b" ".join(_ARGUMENTS)}
    told = {name: text.decode("utf-8", "replace") for name, text in names.items()}
    print(json.dumps({"pid": pid, **told}))
    return 0 if os.WTERMSIG(status) == signal.SIGSEGV and os.WCOREDUMP(status) else 1


if __name__ == "__main__":
    sys.exit(main())
