# SPDX-License-Identifier: Apache-2.0
"""Remove what has been kept for long enough, or what there is no more room for, as the timer does.

What may go, and when, the settings purge.* say. Cores go before snapshots, delivered dumps before given-up ones, the oldest
first, and no more of them than has to. Dumps that wait for their snapshot or their delivery never go, nor do pinned ones.

--dry-run tells what would go and why, and leaves it:

    committed/84605573-9de... core  3.12mB  older than purge.age
    committed/1b2c6f1e-0d1... dump 10.40kB  to make room: purge.min_free

--json prints one object: steps (stage, uuid, what: core or dump, size_bytes, why, and left, why it was left), need_bytes (what
has to be freed), freed_bytes (what all steps free, or have freed) and kept (how many may not go: waiting, pinned, unreadable,
and of those that may, how many are protected as the first or the latest of their bug).

examples:
  coresnap purge --dry-run
  coresnap purge --dry-run --json | jq '.steps[].why' | sort | uniq -c
  coresnap pin 84605573; coresnap purge

Exit status 75: there is less room than there has to be, and nothing more may go.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from coresnap.cli import dumps, terminal
from coresnap.ground import settings
from coresnap.ground.errors import Refused
from coresnap.ground.text import human_bytes, printable
from coresnap.spool import removal, retention
from coresnap.spool.removal import Done

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from coresnap.spool.retention import Plan

_SHORT = 75
_KEPT = {"protected": "first or latest of a bug"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--dry-run", action="store_true", help="say what would go, and leave it")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    loaded = settings.load(args.settings)
    if loaded.purge_disabled:
        raise Refused("purge.disabled is set", hint="`coresnap rm` removes single dumps")
    with dumps.open_spool(loaded.dump_root) as spool:
        plan = retention.plan_for(spool, loaded)
        done: Iterable[Done] = (Done(step, step.size_bytes) for step in plan.steps)
        if not args.dry_run:
            done = removal.carry_out(spool, plan, loaded.dump_owner())
        freed_bytes = _print_json(plan, done) if args.json else _print(plan, done)
        if not args.dry_run:
            spool.unlink_orphans()
    if freed_bytes >= plan.need_bytes:
        return 0
    terminal.note(f"{human_bytes(plan.need_bytes - freed_bytes)} more have to be freed, and nothing more may go")
    return _SHORT


def _print(plan: Plan, done: Iterable[Done]) -> int:
    """Print a line for each step; return the bytes that they free."""
    total_bytes = 0
    for step, freed_bytes, left in done:
        why = f"left: {printable(left)}" if left else step.why
        print(f"{step.stage:9}/{step.uuid[: dumps.SHORT]}... {step.what} {human_bytes(freed_bytes):>9}  {why}")
        total_bytes += freed_bytes
    print(_summary(plan, total_bytes))
    return total_bytes


def _summary(plan: Plan, freed_bytes: int) -> str:
    steps = len(plan.steps)
    said = f"{steps} step{'s' if steps > 1 else ''}, {human_bytes(freed_bytes)}" if steps else "nothing to remove"
    if plan.need_bytes:
        said += f", where {human_bytes(plan.need_bytes)} are needed"
    kept = ", ".join(f"{count} {_KEPT.get(reason, reason)}" for reason, count in plan.kept.items() if count)
    return f"{said}; kept back: {kept}" if kept else said


def _print_json(plan: Plan, done: Iterable[Done]) -> int:
    """Print all of it; return the bytes that the steps free."""
    total_bytes = 0
    print('{\n "steps": [', end="")
    separator = ""
    for step, freed_bytes, left in done:
        document = {
            "stage": step.stage,
            "uuid": step.uuid,
            "what": step.what,
            "size_bytes": freed_bytes,
            "why": step.why,
        }
        print(f"{separator}\n  {json.dumps(document | {'left': left or None})}", end="")
        separator = ","
        total_bytes += freed_bytes
    rest = {"need_bytes": plan.need_bytes, "freed_bytes": total_bytes, "kept": plan.kept}
    print(f"\n ],{json.dumps(rest, indent=1)[1:]}")
    return total_bytes
