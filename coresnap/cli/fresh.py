# SPDX-License-Identifier: Apache-2.0
"""A report made anew of a dump, with the debug files that there are now. The dump stays as it is."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

from coresnap.cli import cores, dumps
from coresnap.ground import program, runner
from coresnap.ground.errors import BadInput, Refused, TryLater

if TYPE_CHECKING:
    from coresnap.ground.settings import Settings
    from coresnap.spool.record import Record
    from coresnap.spool.stages import Dump

_BAD_INPUT = 65


def take(dump: Dump, document: Record, settings: Settings, cache: str | None = None) -> bytes:
    """Have coresnap's own snapshot command make a report, within the limits of the settings. Raises Refused, BadInput, TryLater.

    `cache` is where debug files have been fetched to, if not to where they are by default.
    It is a process of its own, as the stage's: it is the one that touches what crashed.
    """
    fds = [cores.plain_core(dump, document)]
    try:
        argv = [*program.argv_of("take_snapshot"), *settings.report_options(), f"--kv=coresnap.object:{dump.uuid}"]
        if cache is not None:
            argv.append(f"--cache={os.path.abspath(cache)}")
        if document["assets"]["size_bytes"] and dumps.ASSETS in dumps.names_of(dump):
            fds.append(dumps.opens_again(dumps.open_file(dump, dumps.ASSETS)))
            argv.append(f"--resource=/proc/self/fd/{fds[1]}")
        with tempfile.TemporaryFile(dir=dumps.LARGE) as file:
            fds.append(os.dup(file.fileno()))
            argv += [f"--output=/proc/self/fd/{fds[-1]}", f"--core=/proc/self/fd/{fds[0]}", "--"]
            result = runner.run(
                [*argv, document["victim"]["exe"] or ""],
                timeout_usec=settings.snapshot_timeout_usec,
                pass_fds=fds,
                memory_bytes=settings.snapshot_memory_bytes,
                file_size_bytes=settings.snapshot_max_bytes,
            )
            if result.status:
                kind = BadInput if result.status == _BAD_INPUT else Refused
                raise kind(f"{dump.stage}/{dump.uuid}: no new report: {result.ending()}")
            file.seek(0)
            return file.read()
    except OSError as error:
        raise TryLater(f"{dumps.LARGE}: {error.strerror}", hint="the report is made there: free some space") from error
    finally:
        for fd in fds:
            os.close(fd)
