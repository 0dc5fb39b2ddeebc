#!/usr/bin/python3 -I
# SPDX-License-Identifier: Apache-2.0
"""coresnap purge - remove cores and dumps that have been kept for long enough, or that there is no more room for

SYNOPSIS
    python3 -m coresnap.purge [--settings FILE] [--dry-run]

DESCRIPTION
    Removes what the settings purge.* say, unless purge.disabled is set: by age, and for room, no more than that takes. A core
    goes before the rest of its dump. What waits for its snapshot or its delivery is never removed, nor is what is pinned.
    `coresnap purge --dry-run` tells what would go and why, and so does this:

    --dry-run   say what would go, and leave it

    It also unlinks names in by-uuid whose dump has gone, and counts anew the bytes that dump.ceiling goes by.

EXIT STATUS
    0 done; 69 there is no spool; 78 the settings are wrong.

SECURITY
    It reads records, of dumps that it removes under their locks, and no other file of a dump. It believes the index nothing.

BUGS
    Ages are counted by the clock: one that is years ahead has all dumps removed that may be.
"""

import argparse
import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from coresnap.ground import program, settings
from coresnap.ground.log import Log
from coresnap.spool.removal import carry_out, recount
from coresnap.spool.retention import Plan, plan_for
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
            planned = plan_for(spool, loaded, each=True)
            if options.dry_run:
                _show(planned)
                return 0
            for step, freed_bytes, left in carry_out(spool, planned, loaded.dump_owner()):
                what = f"{step.uuid}: {step.what} of {step.stage}"
                if left:
                    log.info(f"{what} is left: {left}", CORESNAP_DUMP=step.uuid)
                else:
                    log.info(f"{what} removed, {freed_bytes} bytes: {step.why}", CORESNAP_DUMP=step.uuid)
        if not options.dry_run:
            spool.unlink_orphans()
            if loaded.dump_ceiling_bytes:
                recount(spool)
    return 0


def _show(planned: Plan) -> None:
    for step in planned.steps:
        print(f"{step.stage}/{step.uuid} {step.what} {step.size_bytes} bytes would go: {step.why}")


if __name__ == "__main__":
    sys.exit(main())
