# SPDX-License-Identifier: Apache-2.0
"""The table of settings. Parser, schema, compiled settings, sample, manual page and `coresnap config` derive from it.

A row is a field of Values: its attribute is the setting's name with `_` for `.`, and the unit of the value at its end.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from coresnap.ground.settings import kinds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coresnap.ground.settings.kinds import Kind
    from coresnap.ground.settings.rules import Rule

_K, _M, _G, _T = 1 << 10, 1 << 20, 1 << 30, 1 << 40
_S, _H, _D = 1_000_000, 3_600_000_000, 86_400_000_000


@dataclass(frozen=True)
class Setting:
    """One row. The first sentence of `doc` is its summary; `archive` is its name in the compiled settings, if any."""

    name: str
    kind: Kind
    default: str
    section: str
    doc: str
    archive: str = ""


def _row(name: str, kind: Kind, default: str, section: str, doc: str, *, archive: str = "") -> Any:
    setting = Setting(name, kind, " ".join(default.split()), section, " ".join(doc.split()), archive)
    return field(default=kind.parse(default), metadata={"setting": setting})


# A row is its line and its text; the formatter would make it ten lines.
# fmt: off
@dataclass(frozen=True)
class Values:
    """The settings' values."""

    dump_root: str = _row(
        "dump.root", kinds.PATH, "/var/lib/coresnap", "dump", """
        The spool: the directory that holds the dumps, one directory a stage. All of it has to lie on one file system,
        since a dump moves from stage to stage by rename(2).
        """,
        archive="root",
    )
    dump_mode: int = _row(
        "dump.mode", kinds.Mode(0o600, 0o777), "0600", "dump", """
        Mode of the files in a dump. A core holds whatever the process had in memory, passwords among it: think before
        you let others read it. The owner can always read and write.
        """,
        archive="mode",
    )
    dump_user: str = _row(
        "dump.user", kinds.USER, "coresnap", "dump", """
        User who owns the dumps. A user who is named here has to exist; where the user of the default does not, a dump
        belongs to whoever writes it.
        """,
        archive="uid",
    )
    dump_group: str = _row(
        "dump.group", kinds.GROUP, "coresnap", "dump", """
        Group of the dumps. What holds for dump.user holds for it.
        """,
        archive="gid",
    )
    dump_quota_percent: int = _row(
        "dump.quota", kinds.Share(0, 100), "10%", "dump", """
        Share of the file system of dump.root that has to stay free. A core that would leave less is not kept: `coresnap
        why` tells of it. Captures under way count with what they are going to write.
        """,
        archive="quota_percent",
    )
    dump_ceiling_bytes: int = _row(
        "dump.ceiling", kinds.Bytes(0, 1 << 60), "0", "dump", """
        Most bytes that the dumps together may take on the disk; 0 is no such limit. A core that would take more is not
        kept.
        """,
        archive="ceiling_bytes",
    )

    archive_environ: tuple[str, ...] = _row(
        "archive.environ", kinds.Words(r"[A-Za-z_][A-Za-z0-9_]*[*]?|[*]", "names of variables, * for the rest of one"),
        "PATH LANG LANGUAGE LC_* TERM SHELL HOME USER LOGNAME PWD TZ TMPDIR LD_LIBRARY_PATH LD_PRELOAD GOTRACEBACK"
        " INVOCATION_ID XDG_SESSION_ID XDG_SESSION_TYPE", "archive", """
        Environment variables of the crashed process that are kept in the asset; an asterisk at the end stands for any
        rest. Environments hold secrets, so what is not listed is left out. Empty keeps none, * keeps all.
        """,
        archive="environ",
    )
    archive_evidence_budget_usec: int = _row(
        "archive.evidence_budget", kinds.Duration(10_000, 60 * _S), "1s", "archive", """
        Longest time to read from /proc while the crashed process is held. What has not been read by then is missing in
        the asset; the core is taken all the same.
        """,
        archive="evidence_budget_usec",
    )
    archive_modules_max_bytes: int = _row(
        "archive.modules_max_bytes", kinds.Bytes(0, _G), "32M", "archive", """
        Most bytes that are kept, in the asset, of mapped executables and libraries that the snapshot will not reach under
        their paths: deleted or replaced ones, those of containers and of services with a /tmp of their own, those that
        dump.user may not read. It is their unwind tables and symbols, without which stacks have one frame; they are read
        once the process has been let go. 0 keeps none.
        """,
        archive="modules_max_bytes",
    )

    archive_rlimit_core: str = _row(
        "archive.rlimit_core", kinds.Choice(("ignore", "honour")), "ignore", "archive", """
        Whether a process whose soft RLIMIT_CORE is 0, which is what most services have, is captured all the same: ignore
        captures it, honour leaves its core and puts that on record. A limit above 0 never cuts a core. A limit of 1 is like
        one of 0, but where cores come through a pipe the kernel itself passes over such a process, unasked.
        """,
        archive="rlimit_core",
    )
    archive_jobs: int = _row(
        "archive.jobs", kinds.Number(1, 1024), "16", "archive", """
        Most captures at once by the capture service, which reads this when it is started. Further crashes wait, held,
        until one of them has ended.
        """,
        archive="jobs",
    )

    snapshot_command: tuple[str, ...] = _row(
        "snapshot.command", kinds.Argv("SBacepus"),
        "coresnap-snapshot -o%S --kv=coresnap.object:%B --resource=%a --core %c %e", "snapshot", """
        Command that makes a snapshot of a core. Backtrace's ptrace can stand here with the options that it always had.
        Exit status 65 says that this core can never give a snapshot; after any other failure the command is tried
        again.
        """,
    )
    snapshot_jobs: int = _row(
        "snapshot.jobs", kinds.Number(1, 64), "2", "snapshot", """
        Most snapshots that are made at once.
        """,
    )
    snapshot_attempts: int = _row(
        "snapshot.attempts", kinds.Number(1, 1000), "3", "snapshot", """
        Attempts at a snapshot before the dump moves to failed.
        """,
    )
    snapshot_timeout_usec: int = _row(
        "snapshot.timeout", kinds.Duration(_S, 7 * _D), "5min", "snapshot", """
        Longest time that snapshot.command may take; then it is killed, with all that it started.
        """,
    )
    snapshot_memory_bytes: int = _row(
        "snapshot.memory", kinds.Bytes(64 * _M, 64 * _T), "1G", "snapshot", """
        Most memory that snapshot.command may take.
        """,
    )
    snapshot_max_bytes: int = _row(
        "snapshot.max_bytes", kinds.Bytes(4 * _K, 64 * _G), "64M", "snapshot", """
        Largest snapshot that is taken from snapshot.command.
        """,
    )
    snapshot_stack_bytes: int = _row(
        "snapshot.stack_bytes", kinds.Bytes(0, _M), "1K", "snapshot", """
        Memory around each thread's stack pointer that a report of coresnap's own has; 0 is none. All of it is 8 MiB at
        most. It may hold secrets, as a core does.
        """,
    )
    snapshot_environ: tuple[str, ...] = _row(
        "snapshot.environ", kinds.Words(r"[A-Za-z_][A-Za-z0-9_]*[*]?|[*]", "names of variables, * for the rest of one"),
        "PATH LANG LANGUAGE LC_* TERM SHELL TZ TMPDIR LD_LIBRARY_PATH LD_PRELOAD GOTRACEBACK INVOCATION_ID",
        "snapshot", """
        Environment variables of the crashed process, of those that archive.environ keeps, that a report of coresnap's
        own has. An asterisk at the end stands for any rest; empty has none.
        """,
    )
    core_compress: str = _row(
        "core.compress", kinds.Choice(("zstd", "none")), "zstd", "snapshot", """
        How cores are kept once their snapshot is made: zstd compresses them, where that makes them smaller, the disk has
        room for both within dump.quota, and it takes no longer than snapshot.timeout; none keeps them as they came,
        sparse. `coresnap dump`, `coresnap debug` and coredumpctl(1) read both.
        """,
    )
    defaults_command: tuple[str, ...] = _row(
        "defaults.command", kinds.Argv(None, may_be_empty=True), "", "snapshot", """
        Command that is run before snapshot.command, with the executable's name as its last argument. What it prints,
        KEY=VALUE lines, becomes the environment variable BACKTRACE_DEFAULTS of snapshot.command. Percent signs have no
        meaning here.
        """,
    )
    defaults_timeout_usec: int = _row(
        "defaults.timeout", kinds.Duration(_S, _D), "30s", "snapshot", """
        Longest time that defaults.command may take.
        """,
    )
    command_output: str = _row(
        "command.output", kinds.Choice(("log", "inherit", "discard")), "log", "snapshot", """
        Where the output of commands goes: to the log, to coresnap's own output, or nowhere.
        """,
    )

    symbols_urls: tuple[str, ...] = _row(
        "symbols.urls", kinds.Words(r"https?://[!-~]+", "URLs of debuginfod servers"), "", "symbols", """
        Servers of debug files, debuginfod(8), that `coresnap symbols fetch` asks, and coresnap-symbols.service, where its
        timer is enabled. They learn the build-ids of programs that crashed here, and nothing else. Empty: those of the
        environment variable DEBUGINFOD_URLS, which a person may have, and a service does not.
        """,
    )
    symbols_max_bytes: int = _row(
        "symbols.max_bytes", kinds.Bytes(_M, 64 * _T), "4G", "symbols", """
        Most bytes that fetched debug files may take in /var/cache/coresnap/debug; those that were fetched first make
        room.
        """,
    )

    formats: tuple[Rule, ...] = _row(
        "format.1", kinds.Rules(), "blackhole", "format", """
        Project, and name of the token, for a crash. `format.N = PROJECT %e REGEX` is for executables in whose name,
        without its directory, the regular expression is found; it may be repeated, with the same number or others. The
        first match counts: the lower number first, then the one that stands first. `format.N = PROJECT` is for all
        other crashes, whatever its number.
        """,
    )

    purge_age_usec: int = _row(
        "purge.age", kinds.Duration(_S, 36500 * _D), "30d", "daemon", """
        Age at which delivered and failed dumps are removed. What still waits for its snapshot or its delivery is not.
        """,
    )
    purge_disabled: bool = _row(
        "purge.disabled", kinds.Flag(), "false", "daemon", """
        Remove nothing by age.
        """,
    )

    send_command: tuple[str, ...] = _row(
        "send.command", kinds.Argv("SBaPt", may_be_empty=True), "", "send", """
        Command that delivers a snapshot in place of coresnap itself, such as `/opt/backtrace/bin/coroner -c
        /usr/local/etc/coroner.cf put %P %t %S`. Its exit status 0 says that the store has the snapshot.
        """,
    )
    send_coroner: str = _row(
        "send.coroner", kinds.PATH, "/usr/local/etc/coroner.cf", "send", """
        Coroner's configuration file: the address of an object store and its tokens. Where this file exists that store
        takes the place of send.store. This version does not speak to it by itself: send.command can have coroner do
        it, and as long as neither is arranged the dumps wait in sending.
        """,
    )
    send_store: str = _row(
        "send.store", kinds.STORE, "file:/var/lib/coresnap-store", "send", """
        Store that snapshots are delivered to where send.coroner names no file that exists: `file:` and a directory.
        """,
    )
    send_attempts: int = _row(
        "send.attempts", kinds.Number(0, 1_000_000), "0", "send", """
        Attempts to deliver a snapshot before its dump moves to failed; 0 never gives up.
        """,
    )
    send_timeout_usec: int = _row(
        "send.timeout", kinds.Duration(_S, 7 * _D), "5min", "send", """
        Longest time that one delivery may take.
        """,
    )
    store_max_bytes: int = _row(
        "store.max_bytes", kinds.Bytes(_M, 1 << 60), "1G", "store", """
        Most bytes that the `file:` store may hold; the oldest snapshots make room.
        """,
    )
    store_max_age_usec: int = _row(
        "store.max_age", kinds.Duration(_S, 36500 * _D), "90d", "store", """
        Age at which snapshots are removed from the `file:` store.
        """,
    )


# fmt: on


#: The rows by attribute, in order.
TABLE: Mapping[str, Setting] = MappingProxyType({row.name: row.metadata["setting"] for row in fields(Values)})
#: The attributes by the setting's name.
ATTRIBUTES: Mapping[str, str] = MappingProxyType({setting.name: name for name, setting in TABLE.items()})
