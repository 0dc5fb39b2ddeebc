# SPDX-License-Identifier: Apache-2.0
"""The rows of the table of settings: projects, delivery, retention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coresnap.ground.settings import kinds
from coresnap.ground.settings.row import DAY, SECOND, M, row
from coresnap.ground.settings.snapshot_rows import SnapshotValues

if TYPE_CHECKING:
    from coresnap.ground.settings.rules import Rule


# A row is its line and its text; the formatter would make it ten lines.
# fmt: off
@dataclass(frozen=True)
class DeliveryValues(SnapshotValues):
    """The values of these rows."""

    formats: tuple[Rule, ...] = row(
        "format.1", kinds.Rules(), "blackhole", "format", """
        Project, and name of the token, for a crash. `format.N = PROJECT %e REGEX` is for executables in whose name,
        without its directory, the regular expression is found; it may be repeated, with the same number or others. The
        first match counts: the lower number first, then the one that stands first. `\\1` in PROJECT stands for what the
        first group of the regular expression has found, up to `\\9`: `format.2 = \\1 %e ^(web|db)-`; where that makes no
        name of a project, the crash belongs to that of all others. `format.N = PROJECT` is for all other crashes,
        whatever its number. `coresnap route EXE` tells which rule takes an executable.
        """,
    )

    purge_age_usec: int = row(
        "purge.age", kinds.Duration(SECOND, 36500 * DAY), "30d", "daemon", """
        Age at which the core of a delivered or given-up dump is removed; a dump without a snapshot goes whole. What still
        waits for its snapshot or its delivery is not removed, nor is what `coresnap pin` has pinned.
        """,
    )
    purge_snapshot_age_usec: int = row(
        "purge.snapshot_age", kinds.Duration(SECOND, 36500 * DAY), "90d", "daemon", """
        Age at which the rest of such a dump is removed: snapshot, asset and record. Less than purge.age is as much as
        that.
        """,
    )
    purge_protected_age_usec: int = row(
        "purge.protected_age", kinds.Duration(0, 36500 * DAY), "365d", "daemon", """
        Age at which the first and the latest dump of each bug are removed, in place of purge.age and
        purge.snapshot_age. 0 never removes them by age. A bug is a fingerprint, or where there is none an executable and
        a signal.
        """,
    )
    purge_max_bytes: int = row(
        "purge.max_bytes", kinds.Bytes(0, 1 << 60), "0", "daemon", """
        Bytes on the disk down to which delivered and given-up dumps make room, cores before snapshots, delivered before
        given-up ones, the oldest first. 0 is nine tenths of dump.ceiling, and no limit where that has none.
        """,
    )
    purge_min_free_percent: int = row(
        "purge.min_free", kinds.Share(0, 99), "12%", "daemon", """
        Share of the file system of dump.root up to which delivered and given-up dumps make room in the same way. It has
        to be more than dump.quota, at which no core is kept any more; 0% leaves room to others.
        """,
    )
    purge_disabled: bool = row(
        "purge.disabled", kinds.Flag(), "false", "daemon", """
        Remove nothing, neither by age nor for room.
        """,
    )

    metrics_textfile: str = row(
        "metrics.textfile", kinds.PATH_OR_NONE, "", "daemon", """
        File that coresnap-metrics.timer keeps `coresnap metrics` in, for node_exporter's textfile collector, such as
        /var/lib/prometheus/node-exporter/coresnap.prom. Empty is none. dump.user has to be able to write in its directory.
        """,
    )

    send_command: tuple[str, ...] = row(
        "send.command", kinds.Argv("SBaPt", may_be_empty=True), "", "send", """
        Command that delivers a snapshot in place of coresnap itself, such as `/opt/backtrace/bin/coroner -c
        /usr/local/etc/coroner.cf put %P %t %S`. Its exit status 0 says that the store has the snapshot.
        """,
    )
    send_coroner: str = row(
        "send.coroner", kinds.PATH, "/usr/local/etc/coroner.cf", "send", """
        Coroner's configuration file: the address of an object store and a token for each project. Where this file exists
        that store takes the place of send.store. Under systemd root alone need be able to read it, elsewhere the user
        that coresnap runs as.
        """,
    )
    send_store: str = row(
        "send.store", kinds.STORE, "file:/var/lib/coresnap-store", "send", """
        Store that snapshots are delivered to where send.coroner names no file that exists: `file:` and a directory, or
        the address of an object store, whose tokens stand in a coroner.cf that the worker has as a credential.
        """,
    )
    send_jobs: int = row(
        "send.jobs", kinds.Number(1, 64), "1", "send", """
        Most snapshots that are delivered at once, each over a connection of its own; another one is made where ten or more
        wait for each. More help with a store that is far away. One takes some 30 MB.
        """,
    )
    send_whole_per_day: int = row(
        "send.whole_per_day", kinds.Number(0, 1_000_000), "10", "send", """
        Reports of one bug, by its fingerprint, that are sent whole on one day (UTC), with what goes with them; the rest of
        that day are small: the thread that crashed, the attributes, and which one it is. 0 sends all of them whole. A
        snapshot that is no report in JSON goes as it is, without what goes with it.
        """,
    )
    send_core: bool = row(
        "send.core", kinds.Flag(), "false", "send", """
        Send the core too, as it is kept, with each report that is sent whole; not with send.command. It has all that the
        process had in memory.
        """,
    )
    send_jitter_usec: int = row(
        "send.jitter", kinds.Duration(0, 3_600_000_000), "30s", "send", """
        Time by which a snapshot waits before it is sent to an object store for the first time, each another part of it by
        chance: many machines that crash at once do not come to their store at once. `file:` and send.command wait for
        nothing.
        """,
    )
    send_attempts: int = row(
        "send.attempts", kinds.Number(0, 1_000_000), "0", "send", """
        Attempts to deliver a snapshot before its dump moves to failed; 0 never gives up. While the store as a whole cannot
        be reached, or takes nothing, no attempt counts.
        """,
    )
    send_retry_usec: int = row(
        "send.retry", kinds.Duration(1000, DAY), "1min", "send", """
        Shortest time between two probes of a store that cannot be reached, with one dump each, however many wait; up to a
        quarter more by chance. A dump that a store fails on while it takes others waits for so long first, then each
        time twice as long, less up to half by chance.
        """,
    )
    send_retry_max_usec: int = row(
        "send.retry_max", kinds.Duration(1000, 7 * DAY), "1h", "send", """
        Longest time that one dump waits for its next attempt, and that a store can ask for with Retry-After. A store, or
        a project, that takes nothing until somebody has mended it is probed after a quarter of it at the latest.
        """,
    )
    send_timeout_usec: int = row(
        "send.timeout", kinds.Duration(SECOND, 7 * DAY), "5min", "send", """
        Longest time that one delivery may take.
        """,
    )
    store_max_bytes: int = row(
        "store.max_bytes", kinds.Bytes(M, 1 << 60), "1G", "store", """
        Most bytes that the `file:` store may hold; the oldest snapshots make room.
        """,
    )
    store_max_age_usec: int = row(
        "store.max_age", kinds.Duration(SECOND, 36500 * DAY), "90d", "store", """
        Age at which snapshots are removed from the `file:` store.
        """,
    )
