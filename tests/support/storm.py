# SPDX-License-Identifier: Apache-2.0
"""Two hundred captures at once on a small file system: storm.py DIRECTORY CORE COUNT SHARE; prints what came of it as JSON.

DIRECTORY is on the small file system. Half of the captures get their core from a file, whose size can be reserved before
the first byte, half through a pipe, whose cannot. The free space is looked at all the time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.site import ARCHIVE, Site, assert_whole


def main() -> int:
    """Raise the storm."""
    directory, core, count, percent = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    site = Site(directory / "site", **{"dump.quota": f"{percent}%", "send.store": f"file:{directory}/store"})
    processes = []
    for number in range(count):
        argv = [*ARCHIVE, "--settings", str(site.compiled)]
        if number % 2:
            feeder = subprocess.Popen(["cat", core], stdout=subprocess.PIPE)
            processes.append(subprocess.Popen(argv, stdin=feeder.stdout, stderr=subprocess.PIPE))
            assert feeder.stdout is not None
            feeder.stdout.close()
        else:
            with core.open("rb") as file:
                processes.append(subprocess.Popen(argv, stdin=file, stderr=subprocess.PIPE))
    disk = os.statvfs(directory)
    least_free = disk.f_bavail
    running = list(processes)
    while running:
        least_free = min(least_free, os.statvfs(directory).f_bavail)
        running = [process for process in running if process.poll() is None]
    assert_whole(site, core.read_bytes())
    reasons = Counter(entry["reason"] for entry in site.ledger())
    result = {
        "kept": site.stages().count("pending"),
        "elsewhere": len(site.stages()) - site.stages().count("pending"),
        "ledger": reasons,
        "statuses": Counter(process.returncode for process in processes),
        "least_free_percent": 100 * least_free / disk.f_blocks,
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
