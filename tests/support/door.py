# SPDX-License-Identifier: Apache-2.0
"""A socket at which a program is started for each connection, as a service manager does with Accept=; and people who come there."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
#: Becomes the command line of another user, asking at the path: everything is imported before, where that may be read.
_AS_USER = """
import importlib, os, sys
uid, path, *arguments = sys.argv[1:]
sys.path.insert(0, os.getcwd())
import coresnap.cli, coresnap.spool.asked
for module, _line in coresnap.cli.COMMANDS.values():
    importlib.import_module(f"coresnap.cli.{module}")
coresnap.spool.asked.PATH = path
os.setgroups([]); os.setresgid(int(uid), int(uid), int(uid)); os.setresuid(int(uid), int(uid), int(uid))
sys.exit(coresnap.cli.main(arguments))
"""


@contextmanager
def door(path: Path, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[list[str]]:
    """Serve at the path for as long as the context lasts; what the programs said is in the list then."""
    said: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen(64)
        started: list[subprocess.Popen[str]] = []

        def accept() -> None:
            while True:
                try:
                    connection, _address = listener.accept()
                except OSError:
                    return
                with connection:
                    started.append(
                        subprocess.Popen(
                            argv,
                            cwd=REPOSITORY,
                            stdin=connection.fileno(),
                            stderr=subprocess.PIPE,
                            text=True,
                            env=dict(os.environ) | dict(environment or {}),
                        )
                    )

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield said
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            said.extend(process.communicate(timeout=60)[1] for process in started)


def coresnap_as(uid: int, path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run coresnap as this user, which asks at the path."""
    argv = [sys.executable, "-c", _AS_USER, str(uid), str(path), *arguments]
    return subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120)


def ask_as(uid: int, path: Path, body: str) -> subprocess.CompletedProcess[str]:
    """Run this Python as the user, with a `connection` to the path."""
    start = (
        "import os, socket, sys, json\nfrom coresnap.ground import wire\n"
        "uid, path = int(sys.argv[1]), sys.argv[2]\n"
        "os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)\n"
        "def new():\n"
        "    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); made.settimeout(60); made.connect(path); return made\n"
        "connection = new()\n"
    )
    argv = [sys.executable, "-c", start + body, str(uid), str(path)]
    return subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120)
