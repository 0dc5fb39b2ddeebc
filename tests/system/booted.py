# SPDX-License-Identifier: Apache-2.0
"""A system that has been booted for a test, by whatever means, and takes commands."""

from __future__ import annotations

import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from coresnap.ground.settings.load import FILE_NAME, SEARCH

_REPOSITORY = Path(__file__).parents[2]
#: Puts the files of a directory in place as a package manager does: each one is written beside the former, and renamed.
_REPLACE = """
import os, shutil, sys
new = sys.argv[1]
for directory, _directories, names in os.walk(new):
    there = os.path.join("/", os.path.relpath(directory, new))
    os.makedirs(there, exist_ok=True)
    for name in names:
        path = os.path.join(there, name)
        shutil.copy2(os.path.join(directory, name), path + ".new", follow_symlinks=False)
        os.rename(path + ".new", path)
"""


class GuestError(Exception):
    """The guest did not come up, or a command in it failed that must not."""


@dataclass(frozen=True)
class Done:
    """A command that has ended in the guest."""

    argv: list[str]
    status: int
    stdout: str
    stderr: str


class Booted(ABC):
    """A running guest. Use it as a context manager; all of it goes with it."""

    console: Path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @abstractmethod
    def run(self, *argv: str, stdin: bytes = b"", seconds: float = 120, check: bool = True) -> Done:
        """Run a command in the guest. Raises GuestError where it fails (with `check`), or takes too long."""

    @abstractmethod
    def reboot(self) -> None:
        """Shut the guest down as an administrator does, and start it again."""

    @abstractmethod
    def close(self) -> None:
        """End the guest and remove what it has written."""

    def sh(self, script: str, *, seconds: float = 120, check: bool = True) -> Done:
        """Run a shell script in the guest."""
        return self.run("sh", "-euc", script, seconds=seconds, check=check)

    def put(self, tree: Path, target: str = "/") -> None:
        """Copy what is in a directory of the host's into one of the guest's."""
        tar = subprocess.run(
            ["tar", "-C", tree, "--owner=0", "--group=0", "-cf", "-", "."], capture_output=True, check=True
        )
        self.run("tar", "-C", target, "--no-overwrite-dir", "-xf", "-", stdin=tar.stdout)

    def install(self) -> None:
        """Install coresnap, as it is in this tree, as `make install` does in the guest itself.

        Tests crash one program again and again: no limit counts those, unless a test says so.
        """
        with _installed() as tree:
            self.put(tree)
        for directory in SEARCH[:2]:
            drop_ins = f"{directory}/{FILE_NAME}.d"
            lines = "".join(rf"limit.{kind} = 0\n" for kind in ("exe", "unit", "user"))
            self.sh(f"mkdir -p {drop_ins}; printf '{lines}' > {drop_ins}/10-tests.conf")
        self._after_install()

    def upgrade(self, change: Callable[[Path], None]) -> None:
        """Replace the files by those of this tree, after `change` in what is installed, as an upgrade of a package does."""
        with _installed() as tree:
            change(tree)
            self.sh("rm -rf /root/new; mkdir /root/new")
            self.put(tree, "/root/new")
        self.run("python3", "-c", _REPLACE, "/root/new")
        self._after_install()

    def _after_install(self) -> None:
        after = (_REPOSITORY / "tools" / "after-install").read_bytes()
        self.run("sh", "-s", "/usr/local", stdin=after)

    def failed(self, done: Done) -> GuestError:
        """Return the error that tells of a command that failed."""
        argv = " ".join(done.argv)
        return GuestError(f"{argv}: status {done.status}\n{done.stdout}{done.stderr}\n{self.console_tail()}")

    def console_tail(self) -> str:
        """Return the last lines of the console."""
        text = self.console.read_text(errors="replace") if self.console.exists() else ""
        return "console:\n" + "\n".join(text.splitlines()[-40:])


@contextmanager
def _installed() -> Iterator[Path]:
    """Yield a directory in which coresnap is installed."""
    with tempfile.TemporaryDirectory() as directory:
        argv = ["make", "-s", "install", f"DESTDIR={directory}", "PREFIX=/usr/local"]
        subprocess.run(argv, cwd=_REPOSITORY, check=True)
        yield Path(directory)
