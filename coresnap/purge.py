#!/usr/bin/python3 -I
# SPDX-License-Identifier: Apache-2.0
"""coresnap purge - remove dumps that have been kept for purge.age

SYNOPSIS
    python3 -m coresnap.purge [--settings FILE] [--dry-run]

DESCRIPTION
    Removes committed and failed dumps older than purge.age, unless purge.disabled is set. What waits for its snapshot
    or its delivery is never removed.

    --dry-run   say what would go, and leave it

EXIT STATUS
    0 done; 69 there is no spool; 78 the settings are wrong.
"""

import argparse
import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from coresnap.ground import program, settings
from coresnap.ground.log import Log
from coresnap.spool.retention import purge, recount
from coresnap.spool.stages import Spool


def main(arguments: list[str] | None = None) -> int:
    """Run purge; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="coresnap-purge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", metavar="FILE", help="read this configuration file, and no other")
    parser.add_argument("--dry-run", action="store_true", help="say what would go, and leave it")
    parser.add_argument("-f", action="store_true", help=argparse.SUPPRESS)  # of $CORESNAPD_OPTS, and nothing to purge
    options = parser.parse_args(arguments)
    log = Log.open()
    return program.run("coresnap-purge", lambda: _purge(options, log), log.error)


def _purge(options: argparse.Namespace, log: Log) -> int:
    loaded = settings.load(options.settings)
    with Spool(loaded.dump_root) as spool:
        if not loaded.purge_disabled:
            for stage, uuid, size_bytes in purge(spool, loaded.purge_age_usec, dry_run=options.dry_run):
                if options.dry_run:
                    print(f"{stage}/{uuid} {size_bytes} bytes would go")
                else:
                    log.info(f"{uuid}: removed from {stage} by age, {size_bytes} bytes", CORESNAP_DUMP=uuid)
        spool.unlink_orphans()
        if loaded.dump_ceiling_bytes:
            recount(spool)
    return 0


if __name__ == "__main__":
    sys.exit(main())
