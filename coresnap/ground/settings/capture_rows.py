# SPDX-License-Identifier: Apache-2.0
"""The rows of the table of settings: the spool, and the taking of cores."""

from __future__ import annotations

from dataclasses import dataclass

from coresnap.ground.settings import kinds
from coresnap.ground.settings.rates import Rate
from coresnap.ground.settings.row import DAY, SECOND, G, row

_RATE = Rate(1_000_000, kinds.Duration(SECOND, 365 * DAY))
_WHOSE = kinds.Words(
    r"uid:[0-9]{1,10}|(?!uid:)(?:unit:)?[^\x00-\x20\x7f]{1,128}",
    "patterns of executables, `unit:` and a pattern of units, `uid:` and a number",
    max_items=32,
)


_SECRETS = kinds.Words(r"[A-Za-z0-9_.*-]{1,64}", "patterns, * for any text", max_items=64)


# A row is its line and its text; the formatter would make it ten lines.
# fmt: off
@dataclass(frozen=True)
class CaptureValues:
    """The values of these rows."""

    dump_root: str = row(
        "dump.root", kinds.PATH, "/var/lib/coresnap", "dump", """
        The spool: the directory that holds the dumps, one directory a stage. All of it has to lie on one file system,
        since a dump moves from stage to stage by rename(2).
        """,
        archive="root",
    )
    dump_mode: int = row(
        "dump.mode", kinds.Mode(0o600, 0o777), "0600", "dump", """
        Mode of the files in a dump. A core holds whatever the process had in memory, passwords among it: think before
        you let others read it. The owner can always read and write.
        """,
        archive="mode",
    )
    dump_user: str = row(
        "dump.user", kinds.USER, "coresnap", "dump", """
        User who owns the dumps. A user who is named here has to exist; where the user of the default does not, a dump
        belongs to whoever writes it.
        """,
        archive="uid",
    )
    dump_group: str = row(
        "dump.group", kinds.GROUP, "coresnap", "dump", """
        Group of the dumps. What holds for dump.user holds for it.
        """,
        archive="gid",
    )
    dump_quota_percent: int = row(
        "dump.quota", kinds.Share(0, 100), "10%", "dump", """
        Share of the file system of dump.root that has to stay free. A core that would leave less is not kept: `coresnap
        why` tells of it. Captures under way count with what they are going to write.
        """,
        archive="quota_percent",
    )
    dump_ceiling_bytes: int = row(
        "dump.ceiling", kinds.Bytes(0, 1 << 60), "0", "dump", """
        Most bytes that the dumps together may take on the disk; 0 is no such limit. A core that would take more is not
        kept.
        """,
        archive="ceiling_bytes",
    )

    archive_environ: tuple[str, ...] = row(
        "archive.environ", kinds.Words(r"[A-Za-z_][A-Za-z0-9_]*[*]?|[*]", "names of variables, * for the rest of one"),
        "PATH LANG LANGUAGE LC_* TERM SHELL HOME USER LOGNAME PWD TZ TMPDIR LD_LIBRARY_PATH LD_PRELOAD GOTRACEBACK"
        " INVOCATION_ID XDG_SESSION_ID XDG_SESSION_TYPE", "archive", """
        Environment variables of the crashed process that are kept in the asset; an asterisk at the end stands for any
        rest. Environments hold secrets, so what is not listed is left out. Empty keeps none, * keeps all.
        """,
        archive="environ",
    )
    archive_evidence_budget_usec: int = row(
        "archive.evidence_budget", kinds.Duration(10_000, 60 * SECOND), "1s", "archive", """
        Longest time to read from /proc while the crashed process is held. What has not been read by then is missing in
        the asset; the core is taken all the same.
        """,
        archive="evidence_budget_usec",
    )
    archive_modules_max_bytes: int = row(
        "archive.modules_max_bytes", kinds.Bytes(0, G), "32M", "archive", """
        Most bytes that are kept, in the asset, of mapped executables and libraries that the snapshot will not reach under
        their paths: deleted or replaced ones, those of containers and of services with a /tmp of their own, those that
        dump.user may not read. It is their unwind tables and symbols, without which stacks have one frame; they are read
        once the process has been let go. 0 keeps none.
        """,
        archive="modules_max_bytes",
    )

    archive_rlimit_core: str = row(
        "archive.rlimit_core", kinds.Choice(("ignore", "honour")), "ignore", "archive", """
        Whether a process whose soft RLIMIT_CORE is 0, which is what most services have, is captured all the same: ignore
        captures it, honour leaves its core and puts that on record. A limit above 0 never cuts a core. A limit of 1 is like
        one of 0, but where cores come through a pipe the kernel itself passes over such a process, unasked.
        """,
        archive="rlimit_core",
    )
    archive_jobs: int = row(
        "archive.jobs", kinds.Number(1, 1024), "16", "archive", """
        Most captures at once by the capture service, which reads this when it is started. Further crashes wait, held,
        until one of them has ended.
        """,
        archive="jobs",
    )
    archive_include: tuple[str, ...] = row(
        "archive.include", _WHOSE, "", "archive", """
        Crashes that are captured; empty: all. A word with a slash is a pattern of an executable's path, another one of its
        name without the directory; `unit:PATTERN` is for a systemd unit, `uid:NUMBER` for a user. In a pattern an asterisk
        stands for any text, slashes and blanks too, and nothing else has a meaning. A process of which nothing is known is
        captured.
        """,
        archive="include",
    )
    archive_exclude: tuple[str, ...] = row(
        "archive.exclude", _WHOSE, "", "archive", """
        Crashes that are not captured, also where archive.include has them; words as there. They are put on record, with the
        pattern: `coresnap why`.
        """,
        archive="exclude",
    )
    archive_core_max_bytes: int = row(
        "archive.core_max_bytes", kinds.Bytes(0, 1 << 60), "0", "archive", """
        Most bytes that a process may have in memory and swapped out, which is about what its core takes on the disk, for
        that to be taken; 0 is no such limit. The core of a larger one is refused before its first byte, never cut.
        """,
        archive="core_max_bytes",
    )

    limit_exe: tuple[int, int] = row(
        "limit.exe", _RATE, "5/1h", "limit", """
        Most cores that are kept of one executable within a time, such as 5/1h; 0 is no limit. The time begins with the
        first that is kept: a crash after a quiet time always is. It is counted for each user by himself, and
        for each service, so that programs of one interpreter do not take each other's share. A crash loop's first cores are what
        somebody will look at; the rest would fill the disk, and hold the restart up. They are counted: `coresnap why`,
        `coresnap limits`.
        """,
        archive="limit_exe",
    )
    limit_unit: tuple[int, int] = row(
        "limit.unit", _RATE, "10/1h", "limit", """
        Most cores that are kept of one systemd unit within a time; 0 is no limit. In a user's manager it is the unit there; a
        login's session is none.
        """,
        archive="limit_unit",
    )
    limit_user: tuple[int, int] = row(
        "limit.user", _RATE, "50/1h", "limit", """
        Most cores that are kept of one user within a time, root too; 0 is no limit. It is what holds where somebody crashes
        under ever new names.
        """,
        archive="limit_user",
    )

    redact_names: tuple[str, ...] = row(
        "redact.names", _SECRETS,
        "*PASS* *_PWD *SECRET* *TOKEN* *CREDENTIAL* *APIKEY* *API_KEY* *ACCESS_KEY* *PRIVATE_KEY* *ENCRYPTION_KEY*"
        " *AUTHORIZATION* *COOKIE* *_DSN", "redact", """
        Names whose values are left out, `***` in their place, wherever a command line, an environment or an error's message
        goes: dump.json, the asset, the journal, reports. They are those of variables, of options (--token=S, --token S), of
        members (`"token": "S"`) and of headers; case, dashes, dots and underscores make no difference, an asterisk stands for
        any text. Passwords in URLs are always left out. The core has all of it: see encrypt.recipients.
        """,
        archive="redact_names",
    )
    redact_values: tuple[str, ...] = row(
        "redact.values", _SECRETS,
        "AKIA* ASIA* ghp_* gho_* ghu_* ghs_* ghr_* github_pat_* glpat-* xoxb-* xoxp-* xoxa-* sk_live_* sk-* AIza* npm_* pypi-*"
        " hvs.* eyJ*.eyJ*.*", "redact", """
        Shapes of values that are left out whatever their name, from 16 characters on: keys that have a mark of their own. An
        asterisk stands for any text.
        """,
        archive="redact_values",
    )
