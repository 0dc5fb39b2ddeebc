# SPDX-License-Identifier: Apache-2.0
"""A spool of the benchmark's own, made by coresnap's programs from a configuration, and those programs' commands."""

from __future__ import annotations

import grp
import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from tests.bench.programs import Unmeasurable, python, run

REPOSITORY = Path(__file__).resolve().parents[2]
STAGES = ("staging", "pending", "sending", "committed", "failed")


@dataclass(frozen=True)
class Spool:
    """A spool in a directory, with the configuration and archive's settings beside it."""

    directory: Path

    @classmethod
    def make(cls, directory: Path) -> Spool:
        """Make the directory and the spool in it. Raises Unmeasurable where coresnapd cannot."""
        directory.mkdir()
        spool = cls(directory)
        spool.configuration.write_text(
            f"dump.root = {spool.root}\n"
            f"dump.user = {pwd.getpwuid(os.getuid()).pw_name}\n"
            f"dump.group = {grp.getgrgid(os.getgid()).gr_name}\n"
            "dump.quota = 1%\n"
            "limit.exe = 0\n"  # one program crashes again and again
            "limit.unit = 0\n"
            "limit.user = 0\n"
            f"send.coroner = {directory}/none\n"
            f"send.store = file:{directory}/store\n"
        )
        run(spool.daemon("--prepare"))
        return spool

    @property
    def root(self) -> Path:
        """The directory of the stages."""
        return self.directory / "spool"

    @property
    def stages(self) -> list[str]:
        """The directories of the stages."""
        return [str(self.root / stage) for stage in STAGES]

    @property
    def configuration(self) -> Path:
        """The configuration file."""
        return self.directory / "coresnap.conf"

    @property
    def settings(self) -> Path:
        """Archive's settings."""
        return self.directory / "archive.settings"

    def archive(self, *arguments: str) -> list[str]:
        """Return the command of archive as its first line has it, without the kernel."""
        program = str(REPOSITORY / "coresnap/archive.py")
        return python("-IS", program, "--settings", str(self.settings), *arguments)

    def daemon(self, *arguments: str) -> list[str]:
        """Return the command of coresnapd."""
        program = str(REPOSITORY / "coresnap/daemon.py")
        files = ["--settings", str(self.configuration), "--compiled", str(self.settings)]
        return python("-I", program, *files, *arguments)

    def dumps(self, stage: str) -> list[Path]:
        """Return the dumps of a stage."""
        return sorted((self.root / stage).iterdir())

    def only_dump(self, stage: str) -> Path:
        """Return the one dump that there is to be in a stage. Raises Unmeasurable."""
        dumps = self.dumps(stage)
        if len(dumps) != 1:
            raise Unmeasurable(f"{len(dumps)} dumps are in {stage}, 1 expected")
        return dumps[0]
