# SPDX-License-Identifier: Apache-2.0
"""Settings: where they are found, how files merge, what is in them, and that a wrong line is named."""

from __future__ import annotations

import grp
import os
import pwd
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coresnap.ground import settings
from coresnap.ground.errors import BadSettings
from coresnap.ground.settings.schema import schema, validate
from coresnap.ground.settings.table import TABLE, Values

BACKTRACE = Path(__file__).parents[1] / "fixtures" / "backtrace.conf"


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def conf(tmp_path: Path, text: str | bytes) -> Path:
    return write(tmp_path / "coresnap.conf", text)


def refusal(path: Path) -> BadSettings:
    with pytest.raises(BadSettings) as caught:
        settings.load(path)
    assert caught.value.exit_status == 78
    assert "\n" not in caught.value.line()
    return caught.value


def problems(path: Path) -> list[str]:
    return [problem.line().replace(str(path), "FILE") for problem in settings.examine(path)[1]]


# The table


@pytest.mark.parametrize("attribute", TABLE)
def test_a_row_is_consistent(attribute: str) -> None:
    setting = TABLE[attribute]
    default = getattr(Values(), attribute)
    kind = setting.kind
    assert kind.parse(setting.default) == default
    if attribute != "formats":
        unit = "" if setting.name.endswith(kind.unit) else kind.unit
        assert attribute == setting.name.replace(".", "_") + unit
        assert kind.parse(kind.show(default)) == default, "what is printed can be read"
    assert setting.doc.endswith(".")
    assert kind.allowed()


def test_the_defaults_are_what_the_schema_allows() -> None:
    assert validate(settings.Settings()) == []
    assert set(settings.Settings().document()) == set(schema()["properties"])


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"snapshot_jobs": 65}, "snapshot.jobs"),
        ({"snapshot_jobs": "2"}, "snapshot.jobs"),
        ({"dump_quota_percent": 101}, "dump.quota"),
        ({"dump_root": "relative"}, "dump.root"),
        ({"command_output": "else"}, "command.output"),
        ({"snapshot_command": ()}, "snapshot.command"),
        ({"archive_environ": ("A=B",)}, "archive.environ/0"),
        ({"formats": (settings.Rule("../up"),)}, "format/0/project"),
        ({"formats": ()}, "format"),
    ],
)
def test_the_schema_refuses(change: dict[str, Any], key: str) -> None:
    [problem] = validate(replace(settings.Settings(), **change))
    assert str(problem).startswith(f"{key}: ")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("snapshot.jobs", text) for text in ("0", "1", "64", "65")),
        *(("dump.quota", text) for text in ("0%", "100%", "101%")),
        *(("dump.mode", text) for text in ("0577", "0600", "0777", "1600")),
        *(("snapshot.timeout", text) for text in ("999ms", "1s", "7d", "8d")),
        *(("store.max_bytes", text) for text in ("1023K", "1M", "1048576T", "1048577T")),
        *(
            ("send.store", text)
            for text in (
                "file:/x",
                "file:x",
                "file:/",
                "https://a.example",
                "http://[::1]:6098/post",
                "https://a/b/c/json",
            )
        ),
    ],
)
def test_parser_and_schema_draw_the_same_line(name: str, text: str) -> None:
    attribute, setting = next((key, row) for key, row in TABLE.items() if row.name == name)
    read: Any = getattr(setting.kind, "read", str)(text)
    allowed = validate(replace(settings.Settings(), **{attribute: read})) == []
    if allowed:
        assert setting.kind.parse(text) == read
    else:
        with pytest.raises(ValueError, match=r"."):
            setting.kind.parse(text)


@pytest.mark.parametrize(
    ("attribute", "text", "value"),
    [
        ("dump_mode", "0640", 0o640),
        ("dump_mode", "640", 0o640),
        ("dump_quota_percent", "15", 15),
        ("dump_quota_percent", "15 %", 15),
        ("dump_ceiling_bytes", "12345", 12345),
        ("dump_ceiling_bytes", "4k", 4096),
        ("dump_ceiling_bytes", "20 G", 20 << 30),
        ("purge_age_usec", "30d", 30 * 86400 * 10**6),
        ("purge_age_usec", "2 w", 14 * 86400 * 10**6),
        ("purge_age_usec", "3600", 3600 * 10**6),
        ("snapshot_timeout_usec", "5min", 300 * 10**6),
        ("archive_evidence_budget_usec", "250ms", 250_000),
        ("purge_disabled", "Yes", True),
        ("purge_disabled", "0", False),
        ("archive_environ", "PATH  LC_*", ("PATH", "LC_*")),
        ("archive_environ", "", ()),
        ("defaults_command", "sh -c 'a b' %x", ("sh", "-c", "a b", "%x")),
        ("snapshot_command", "t -o%S 100%% %a/boot/kernel/kernel", ("t", "-o%S", "100%%", "%a/boot/kernel/kernel")),
        ("send_command", "", ()),
    ],
)
def test_values(attribute: str, text: str, value: object) -> None:
    kind = TABLE[attribute].kind
    assert kind.parse(text) == value
    assert kind.parse(kind.show(value)) == value


# Where they are found


def test_without_any_file_the_built_in_defaults_hold(tmp_path: Path) -> None:
    loaded = settings.load(search=[str(tmp_path)])
    assert replace(loaded, warnings=()) == settings.Settings()
    assert loaded.files == ()


def test_the_first_file_found_counts_whole(tmp_path: Path) -> None:
    search = [str(tmp_path / name) for name in ("a", "b", "c")]
    write(tmp_path / "b" / "coresnap.conf", "dump.quota = 20%\n")
    write(tmp_path / "c" / "coresnap.conf", "dump.quota = 30%\nsnapshot.jobs = 7\n")
    write(tmp_path / "c" / "coresnap.conf.d" / "x.conf", "snapshot.attempts = 7\n")
    loaded = settings.load(search=search)
    assert (loaded.dump_quota_percent, loaded.snapshot_jobs, loaded.snapshot_attempts) == (20, 2, 3)


def test_drop_ins_merge_on_top_in_lexical_order(tmp_path: Path) -> None:
    main = conf(tmp_path, "dump.quota = 20%\nsnapshot.jobs = 3\nformat.1 = first %e a\nformat.1 = main\n")
    drop_ins = tmp_path / "coresnap.conf.d"
    write(drop_ins / "20-b.conf", "dump.quota = 40%\nformat.1 = second %e a\nformat.9 = dropped\n")
    write(drop_ins / "10-a.conf", "dump.quota = 30%\nsnapshot.attempts = 9\nformat.0 = zeroth %e a\n")
    write(drop_ins / "30-c.conf.bak", "dump.quota = 99%\n")
    write(drop_ins / ".hidden.conf", "dump.quota = 98%\n")
    for loaded in (settings.load(main), settings.load(search=[str(tmp_path)])):
        assert (loaded.dump_quota_percent, loaded.snapshot_jobs, loaded.snapshot_attempts) == (40, 3, 9)
        assert loaded.origins["dump_quota_percent"] == f"{drop_ins}/20-b.conf:1"
        assert [rule.project for rule in loaded.formats] == ["zeroth", "first", "second", "dropped"]
        assert loaded.files == (str(main), f"{drop_ins}/10-a.conf", f"{drop_ins}/20-b.conf")


def test_drop_ins_alone_lie_over_the_built_in_defaults(tmp_path: Path) -> None:
    write(tmp_path / "b" / "coresnap.conf.d" / "x.conf", "snapshot.jobs = 5\n")
    assert settings.load(search=[str(tmp_path / "a"), str(tmp_path / "b")]).snapshot_jobs == 5


def test_a_named_file_has_to_exist(tmp_path: Path) -> None:
    assert str(refusal(tmp_path / "none.conf")) == f"{tmp_path}/none.conf: cannot be read: No such file or directory"


def test_a_file_that_cannot_be_looked_at_hides_the_next_ones(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("a")
    write(tmp_path / "b" / "coresnap.conf", "snapshot.jobs = 5\n")
    with pytest.raises(BadSettings, match="symbolic links"):
        settings.load(search=[str(tmp_path / "a"), str(tmp_path / "b")])


# Backtrace's


def test_a_file_in_the_manner_of_backtrace() -> None:
    loaded = settings.load(BACKTRACE)
    assert loaded.dump_root == "/var/coresnap/archive"
    assert loaded.dump_owner() == (0o600, 0, 0)
    assert loaded.snapshot_command == (
        *("/opt/backtrace/bin/ptrace", "--faulted", "-o%S", "--load=libc-", "--kv=coresnap.object:%B"),
        *("--resource=%a", "--core", "%c", "%e"),
    )
    assert loaded.defaults_command == ("/usr/local/bin/attributes", "--brief")
    assert loaded.command_output == "inherit"
    assert loaded.purge_disabled
    assert loaded.purge_age_usec == 30 * 86400 * 10**6
    assert [loaded.format_for(exe)[0] for exe in ("vim.basic", "postgres", "neovim")] == [
        "editors",
        "databases",
        "blackhole",
    ]
    assert loaded.format_for("vim")[1].origin == f"{BACKTRACE}:18"


def test_its_line_for_freebsd_kernels(tmp_path: Path) -> None:
    [line] = [line[2:] for line in BACKTRACE.read_text().splitlines() if line.startswith("; snapshot.command")]
    assert settings.load(conf(tmp_path, line)).snapshot_command[-1] == "%a/boot/kernel/kernel"


# Syntax


def test_sections_comments_and_space(tmp_path: Path) -> None:
    text = (
        b"\xef\xbb\xbfsnapshot.jobs=3\r\n\n  # \xff is not read\n;dump.quota = 1%\n[any]\n\tsend.store =\tfile:/a=b \n"
    )
    loaded = settings.load(conf(tmp_path, text))
    assert (loaded.snapshot_jobs, loaded.send_store) == (3, "file:/a=b")
    assert loaded.origins["send_store"].endswith(":6")


def test_case_counts_and_the_closest_name_is_told(tmp_path: Path) -> None:
    path = conf(tmp_path, "\n\nDump.Root = /x\nsnapshot.job = 2\nxyzzy = 1\n")
    assert problems(path) == [
        "FILE:3: `Dump.Root = /x`: no such setting: did you mean dump.root?",
        "FILE:4: `snapshot.job = 2`: no such setting: did you mean snapshot.jobs?",
        "FILE:5: `xyzzy = 1`: no such setting: `coresnap config --sample` lists the settings",
    ]


def test_a_repeated_name_is_refused_with_both_lines(tmp_path: Path) -> None:
    path = conf(tmp_path, "dump.quota = 10%\n[x]\ndump.quota = 20%\nformat.1 = a\nformat.2 = b\n")
    first, second = problems(path)
    assert first.startswith("FILE:3: `dump.quota = 20%`: set twice, first on line 1: allowed: a share")
    assert second.startswith("FILE:5: `format.2 = b`: a second rule without %e, first on line 4")


def test_the_first_problem_is_raised_and_the_others_counted(tmp_path: Path) -> None:
    path = conf(tmp_path, "dump.quota = 1000%\nsnapshot.jobs = 0\ndump.mode = 0999\n")
    assert refusal(path).line() == (
        f"{path}:1: `dump.quota = 1000%`: out of range: allowed: a share from 0% to 100%;"
        " 2 more: `coresnap config --check FILE` lists them"
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("snapshot.jobs = 65", "out of range: allowed: a whole number from 1 to 64"),
        ("snapshot.jobs = two", "not a whole number: allowed: a whole number from 1 to 64"),
        ("snapshot.jobs = -1", "not a whole number"),
        ("snapshot.jobs = \u0663", "not a whole number"),
        ("snapshot.jobs = " + "9" * 5000, "not a whole number"),
        ("snapshot.jobs =", "not a whole number"),
        ("dump.ceiling = 999999999999999999T", "out of range"),
        ("dump.ceiling = 10X", "not a size: unknown unit `X`"),
        ("purge.age = 5 fortnights", "not a time: unknown unit `fortnights`"),
        ("purge.age = 0", "out of range"),
        ("dump.mode = 0800", "not an octal mode"),
        ("dump.mode = 0400", "out of range: allowed: an octal mode from 0600 to 0777"),
        ("dump.root = var/coresnap", "not an absolute path"),
        ("dump.root = /" + "x" * 2000, "longer than 1024 characters"),
        ("purge.disabled = maybe", "neither true nor false"),
        ("command.output = file", "not one of the choices: allowed: log, inherit or discard"),
        ("snapshot.command =", "no command"),
        ("snapshot.command = '' x", "the first word, the program, is empty"),
        ("snapshot.command = a 'b", "No closing quotation"),
        ("snapshot.command = a %z", "`%z`: %z is not known here"),
        ("snapshot.command = a 5%", "`5%` ends in a lone %"),
        ("snapshot.command = a %P", "%P is not known here"),
        ("send.command = a %c", "%c is not known here"),
        ("archive.environ = PATH A=B", "`A=B` is not allowed"),
        ("archive.environ = " + "A " * 257, "more than 256 words"),
        (
            "send.store = https://example.org/universe/5ec4e7/json",
            "`send.store = https://…`: not `file:` and the absolute",
        ),
        ("format.1 = ../up", "not the name of a project"),
        ("format.1 =", "not the name of a project"),
        ("format.1 = p ^vim", "after the project %e and a regular expression are expected"),
        ("format.1 = p %e", "after the project %e and a regular expression are expected"),
        ("format.1 = p %e (", "not a regular expression: missing ), unterminated subpattern"),
        ("format.1 = p %e a{99999999999}", "not a regular expression: the repetition number is too large"),
        ("format.1 = p %e " + "x" * 1025, "a regular expression of more than 1024 characters"),
        ("format.x = p", "no such setting"),
        ("dump.user = no/body", "not the name or number of a user"),
        ("= 1", "no such setting"),
        ("dump.root", "`dump.root` is no directive: NAME = VALUE is expected"),
        ("[daemon", "`[daemon` is a section header without its ]"),
        ("dump.root = /a\0b", "character 15 of the line is U+0000, which does not print"),
        ("dump.root = /a\x1b[2Jb", "character 15 of the line is U+001B, which does not print"),
        ("dump.root\u00a0= /a", "character 10 of the line is U+00A0, which does not print"),
        ("x" * 129 + " = 1", "a name of more than 128 characters"),
        ("dump.root = /" + "x" * 8192, "a line of more than 8192 bytes"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = conf(tmp_path, f"# a comment\n\n{line}\ndump.quota = 11%\n")
    [problem] = problems(path)
    assert problem.startswith("FILE:3: ")
    assert said in problem
    assert len(problem) < 500
    assert problem.isprintable()
    assert settings.examine(path)[0].dump_quota_percent == 11, "the rest is still read"


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    assert problems(conf(tmp_path, b"snapshot.jobs = 3\ndump.root = /\xff\n")) == [
        "FILE:2: byte 14 of the line is not UTF-8"
    ]


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/null")):
        assert str(refusal(path)) == f"{path}: not a regular file"


def test_a_huge_file(tmp_path: Path) -> None:
    assert str(refusal(conf(tmp_path, b"#" * (1 << 20) + b"\n"))).endswith("of more than 1048576 bytes")
    assert problems(conf(tmp_path, b"\n" * ((1 << 20) - 18) + b"snapshot.jobs = 0\n")) == [
        f"FILE:{(1 << 20) - 17}: `snapshot.jobs = 0`: out of range: allowed: a whole number from 1 to 64"
    ]


@pytest.mark.parametrize(
    "line",
    ["a=\n", "snapshot.jobz = 1\n", "x\n", "snapshot.jobs = 1" + " " * 8000 + "1\n"],
    ids=["short", "close", "no value", "space"],
)
def test_a_file_of_nothing_but_wrong_lines_takes_no_time(tmp_path: Path, line: str) -> None:
    path = conf(tmp_path, line * ((1 << 20) // len(line)))
    before_nsec = time.process_time_ns()
    assert len(problems(path)) == 100
    assert time.process_time_ns() - before_nsec < 10 * 10**9


def test_too_many_rules(tmp_path: Path) -> None:
    loaded = settings.load(conf(tmp_path, "format.1 = p %e x\n" * 256))
    assert validate(loaded) == []
    assert len(loaded.formats) == 257, "the built-in one is behind them"
    [problem] = problems(conf(tmp_path, "format.1 = p %e x\n" * 257))
    assert problem.startswith("FILE:257: `format.1 = p %e x`: more than 256 rules")


# Rules


def test_rules_go_by_number_then_as_they_appear_and_the_bare_one_is_last(tmp_path: Path) -> None:
    path = conf(
        tmp_path,
        "format.1 = rest\nformat.2 = late %e ^x\nformat.1 = early %e ^xa b\nformat.1 = next %e ^xa\n"
        "format.10 = ten %e ^\n",
    )
    loaded = settings.load(path)
    assert [rule.project for rule in loaded.formats] == ["early", "next", "late", "ten", "rest"]
    assert [loaded.format_for(exe)[0] for exe in ("xa b", "xab", "xb", "y")] == ["early", "next", "late", "ten"]
    assert [rule.text() for rule in loaded.formats][:2] == ["early %e ^xa b", "next %e ^xa"]


def test_without_a_bare_rule_the_default_project_remains(tmp_path: Path) -> None:
    loaded = settings.load(conf(tmp_path, "format.3 = web %e nginx\n"))
    assert [loaded.format_for(exe)[0] for exe in ("nginx", "vim", "")] == ["web", "blackhole", "blackhole"]


# Users


def test_a_user_who_is_asked_for_has_to_exist(tmp_path: Path) -> None:
    name = "no-such-account"
    user, group = problems(conf(tmp_path, f"dump.user = {name}\ndump.group = {name}\n"))
    assert user.startswith(f"FILE:1: `dump.user = {name}`: there is no such user on this machine: allowed: ")
    assert group.startswith(f"FILE:2: `dump.group = {name}`: there is no such group on this machine")


def test_users_by_number_need_no_name(tmp_path: Path) -> None:
    loaded = settings.load(conf(tmp_path, "dump.user = 3999999999\ndump.group = 54322\n"))
    assert loaded.dump_owner() == (0o600, 3999999999, 54322)
    assert loaded.warnings == ()


def test_without_the_user_of_the_default_files_stay_their_writers(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr(pwd, "getpwnam", unknown)
    monkeypatch.setattr(grp, "getgrnam", unknown)
    loaded = settings.load(search=[])
    assert loaded.dump_owner() == (0o600, -1, -1)
    assert [warning.partition(":")[0] for warning in loaded.warnings] == ["dump.user", "dump.group"]


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        ("", ""),
        ("dump.quota = 12%", "purge.min_free (12%) is not more than dump.quota (12%)"),
        ("dump.quota = 20%\npurge.min_free = 25%", ""),
        ("dump.quota = 20%\npurge.min_free = 0%", ""),
        ("dump.quota = 20%\npurge.disabled = yes", ""),
        ("dump.ceiling = 10G", ""),
        ("dump.ceiling = 10G\npurge.max_bytes = 9G", ""),
        ("dump.ceiling = 10G\npurge.max_bytes = 10G", "purge.max_bytes is not less than dump.ceiling"),
    ],
)
def test_where_cores_would_be_refused_before_old_ones_make_room_that_is_said(
    tmp_path: Path, text: str, warned: str
) -> None:
    loaded = settings.load(conf(tmp_path, text))
    warnings = [line for line in loaded.warnings if line.startswith("purge.")]
    assert warnings == ([f"{warned}: cores are refused before old ones make room"] if warned else [])
