# SPDX-License-Identifier: Apache-2.0
"""Fill the disk in the middle of a capture: full_disk.py DIRECTORY CORE; prints what came of it as JSON."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.site import ARCHIVE, Site, assert_whole

_FIRST_BYTES = 4 << 20


def _fill(directory: Path) -> None:
    """Take all the space that is left."""
    fd = os.open(directory / "filler", os.O_CREAT | os.O_WRONLY)
    try:
        while os.write(fd, bytes(1 << 16)):
            pass
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    os.close(fd)


def main() -> int:
    """Capture half of the core, fill the disk, capture the rest."""
    directory, core = Path(sys.argv[1]), Path(sys.argv[2]).read_bytes()
    site = Site(directory / "site")
    argv = [*ARCHIVE, "--settings", str(site.compiled)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as archive:
        assert archive.stdin is not None
        # The pipe takes 1 MiB at the most, so when all but that has been taken, some of it has been written.
        archive.stdin.write(core[:_FIRST_BYTES])
        archive.stdin.flush()
        _fill(directory)
        try:
            archive.stdin.write(core[_FIRST_BYTES:])
            archive.stdin.close()
        except BrokenPipeError:
            pass
        status = archive.wait()
    assert_whole(site, core)
    truncated = [json.loads((path / "dump.json").read_text())["core"]["truncated"] for _stage, path in site.dumps()]
    print(json.dumps({"status": status, "stages": site.stages(), "truncated": truncated[0] if truncated else None}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
