# SPDX-License-Identifier: Apache-2.0
"""The rows of the table of settings: snapshots, and what names the functions in them."""

from __future__ import annotations

from dataclasses import dataclass

from coresnap.ground.settings import kinds
from coresnap.ground.settings.capture_rows import CaptureValues
from coresnap.ground.settings.row import DAY, SECOND, G, K, M, T, row


# A row is its line and its text; the formatter would make it ten lines.
# fmt: off
@dataclass(frozen=True)
class SnapshotValues(CaptureValues):
    """The values of these rows."""

    snapshot_command: tuple[str, ...] = row(
        "snapshot.command", kinds.Argv("SBacepus"),
        "coresnap-snapshot -o%S --kv=coresnap.object:%B --resource=%a --core %c %e", "snapshot", """
        Command that makes a snapshot of a core. Backtrace's ptrace can stand here with the options that it always had.
        Exit status 65 says that this core can never give a snapshot; after any other failure the command is tried
        again.
        """,
    )
    snapshot_jobs: int = row(
        "snapshot.jobs", kinds.Number(1, 64), "2", "snapshot", """
        Most snapshots that are made at once.
        """,
    )
    snapshot_attempts: int = row(
        "snapshot.attempts", kinds.Number(1, 1000), "3", "snapshot", """
        Attempts at a snapshot before the dump moves to failed.
        """,
    )
    snapshot_timeout_usec: int = row(
        "snapshot.timeout", kinds.Duration(SECOND, 7 * DAY), "5min", "snapshot", """
        Longest time that snapshot.command may take; then it is killed, with all that it started.
        """,
    )
    snapshot_memory_bytes: int = row(
        "snapshot.memory", kinds.Bytes(64 * M, 64 * T), "1G", "snapshot", """
        Most memory that snapshot.command may take.
        """,
    )
    snapshot_max_bytes: int = row(
        "snapshot.max_bytes", kinds.Bytes(4 * K, 64 * G), "64M", "snapshot", """
        Largest snapshot that is taken from snapshot.command.
        """,
    )
    snapshot_stack_bytes: int = row(
        "snapshot.stack_bytes", kinds.Bytes(0, M), "1K", "snapshot", """
        Memory around each thread's stack pointer that a report of coresnap's own has; 0 is none. All of it is 8 MiB at
        most. It may hold secrets, as a core does.
        """,
    )
    snapshot_environ: tuple[str, ...] = row(
        "snapshot.environ", kinds.Words(r"[A-Za-z_][A-Za-z0-9_]*[*]?|[*]", "names of variables, * for the rest of one"),
        "PATH LANG LANGUAGE LC_* TERM SHELL TZ TMPDIR LD_LIBRARY_PATH LD_PRELOAD GOTRACEBACK INVOCATION_ID",
        "snapshot", """
        Environment variables of the crashed process, of those that archive.environ keeps, that a report of coresnap's
        own has. An asterisk at the end stands for any rest; empty has none.
        """,
    )
    snapshot_confidential: bool = row(
        "snapshot.confidential", kinds.Flag(), "false", "snapshot", """
        Whether a report of coresnap's own has nothing of what the process had in its memory and registers: no memory around
        stack pointers, no registers, no error's message in its own words, no arguments and no environment, whatever
        snapshot.stack_bytes and snapshot.environ say. Stacks, names of functions, threads and files, the signal and the
        fault's address stay.
        """,
    )
    core_compress: str = row(
        "core.compress", kinds.Choice(("zstd", "none")), "zstd", "snapshot", """
        How cores are kept once their snapshot is made: zstd compresses them, where that makes them smaller, the disk has
        room for both within dump.quota, and it takes no longer than snapshot.timeout; none keeps them as they came,
        sparse. `coresnap dump`, `coresnap debug` and coredumpctl(1) read both.
        """,
    )
    encrypt_recipients: tuple[str, ...] = row(
        "encrypt.recipients",
        kinds.Words(r"age1[0-9a-z]{10,200}|/[^\x00-\x20\x7f]{1,255}", "public keys of age, or paths of files", max_items=32),
        "", "snapshot", """
        Public keys to which core and asset are encrypted, once their snapshot is made, so that whoever has this machine cannot
        read them: keys of age(1), `age1...`, and absolute paths of files with such keys, or with ssh's (ssh-ed25519, ssh-rsa),
        one a line. Empty: nothing is encrypted. The private key belongs elsewhere. Where age fails, or is not installed, the dump
        waits, and moves to failed after snapshot.attempts; it never goes on unencrypted. A core with holes grows by them where it
        is not compressed before: leave core.compress at zstd. docs/confidentiality.md says what is
        readable all the same.
        """,
    )
    defaults_command: tuple[str, ...] = row(
        "defaults.command", kinds.Argv(None, may_be_empty=True), "", "snapshot", """
        Command that is run before snapshot.command, with the executable's name as its last argument. What it prints,
        KEY=VALUE lines, becomes the environment variable BACKTRACE_DEFAULTS of snapshot.command. Percent signs have no
        meaning here.
        """,
    )
    defaults_timeout_usec: int = row(
        "defaults.timeout", kinds.Duration(SECOND, DAY), "30s", "snapshot", """
        Longest time that defaults.command may take.
        """,
    )
    command_output: str = row(
        "command.output", kinds.Choice(("log", "inherit", "discard")), "log", "snapshot", """
        Where the output of commands goes: to the log, to coresnap's own output, or nowhere.
        """,
    )

    symbols_urls: tuple[str, ...] = row(
        "symbols.urls", kinds.Words(r"https?://[!-~]+", "URLs of debuginfod servers"), "", "symbols", """
        Servers of debug files, debuginfod(8), that `coresnap symbols fetch` asks, and coresnap-symbols.service, where its
        timer is enabled. They learn the build-ids of programs that crashed here, and nothing else. Empty: those of the
        environment variable DEBUGINFOD_URLS, which a person may have, and a service does not.
        """,
    )
    symbols_max_bytes: int = row(
        "symbols.max_bytes", kinds.Bytes(M, 64 * T), "4G", "symbols", """
        Most bytes that fetched debug files may take in /var/cache/coresnap/debug; those that were fetched first make
        room.
        """,
    )
