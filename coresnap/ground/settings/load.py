# SPDX-License-Identifier: Apache-2.0
"""Find the configuration, read it and its drop-ins, and lay their directives over the built-in settings.

The first coresnap.conf on the way counts whole; the files of FILE.d beside it follow in lexical order, each over what
came before.
"""

from __future__ import annotations

import difflib
import grp
import os
import pwd
import re
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from coresnap.ground.errors import BadSettings
from coresnap.ground.settings import reader
from coresnap.ground.settings.rules import MAX_RULES, PROJECT, Rule, in_order, parse_rule
from coresnap.ground.settings.table import ATTRIBUTES, TABLE, Values
from coresnap.ground.text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from coresnap.ground.settings.reader import Directive, Problem

SEARCH = ("/etc/coresnap", "/usr/local/etc/coresnap", "/opt/backtrace/etc/coresnap")
FILE_NAME = "coresnap.conf"
BUILT_IN = "built-in"
_MAX_DROP_INS = 256
_FORMATS = "formats"
_FORMAT = re.compile(r"format\.([0-9]{1,6})")


@dataclass(frozen=True)
class Settings(Values):
    """The settings in force."""

    #: Where each setting was set, by attribute: FILE:LINE, absent for the built-in default. A rule has its own.
    origins: Mapping[str, str] = field(default_factory=dict)
    #: The files that were read.
    files: tuple[str, ...] = ()
    #: What is worth a line in the log, and no error.
    warnings: tuple[str, ...] = ()

    def format_for(self, exe: str) -> tuple[str, Rule]:
        """Return the project for a crash of `exe`, the executable's name without its directory, and the rule that takes it.

        Where what the rule's groups give is no name for a project, it is that of the rule for all others.
        """
        rule = next(rule for rule in self.formats if rule.matches(exe))
        project = rule.project_for(exe)
        return project if re.fullmatch(PROJECT, project) else self.formats[-1].project, rule

    def store_address(self) -> str:
        """Return the address of the store: the object store of send.coroner where that file exists, else send.store."""
        return f"coroner:{self.send_coroner}" if os.path.lexists(self.send_coroner) else self.send_store

    def dump_owner(self) -> tuple[int, int, int]:
        """Return mode, uid and gid of a dump's files; -1 is the caller's own, where coresnap's user does not exist."""
        uid, gid = _uid(self.dump_user), _gid(self.dump_group)
        return self.dump_mode, -1 if uid is None else uid, -1 if gid is None else gid

    def report_options(self) -> list[str]:
        """Return what coresnap's own snapshot command is told of its reports."""
        return [
            f"--stack-bytes={self.snapshot_stack_bytes}",
            f"--environ={' '.join(self.snapshot_environ)}",
            f"--redact-names={' '.join(self.redact_names)}",
            f"--redact-values={' '.join(self.redact_values)}",
            *(["--confidential"] if self.snapshot_confidential else []),
        ]

    def document(self) -> dict[str, Any]:
        """Return the values by name as JSON has them; the rules of format.N are one list, `format`."""
        return {
            "format" if name == _FORMATS else setting.name: setting.kind.json(getattr(self, name))
            for name, setting in TABLE.items()
        }


def load(path: str | os.PathLike[str] | None = None, search: Sequence[str] = SEARCH) -> Settings:
    """Return the settings of the file at `path`, or else of the first one found. Raises BadSettings."""
    settings, problems = examine(path, search)
    if problems:
        more = f"; {len(problems) - 1} more: `coresnap config --check FILE` lists them" if len(problems) > 1 else ""
        raise BadSettings(str(problems[0]), hint=problems[0].hint + more if problems[0].hint else more[2:])
    return settings


def examine(
    path: str | os.PathLike[str] | None = None, search: Sequence[str] = SEARCH
) -> tuple[Settings, list[BadSettings]]:
    """Return the settings as load() does, without those that are wrong, and everything that is wrong."""
    merge = _Merge()
    for file in _with_drop_ins(os.fspath(path)) if path is not None else _find(search):
        merge.file(file)
    return merge.settings(), merge.problems


def _find(search: Sequence[str]) -> list[str]:
    """Return the first file found and its drop-ins; with no file anywhere, the first drop-ins found."""
    candidates = [os.path.join(directory, FILE_NAME) for directory in search]
    for file in candidates:
        if _exists(file):
            return _with_drop_ins(file)
    return next((found for file in candidates if (found := _drop_ins(file))), [])


def _exists(file: str) -> bool:
    """Say whether there is such a file; what cannot be looked at is no reason to take another."""
    try:
        os.lstat(file)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise BadSettings(f"{file}: cannot be read: {error.strerror}") from None
    return True


def _with_drop_ins(file: str) -> list[str]:
    return [file, *_drop_ins(file)]


def _drop_ins(file: str) -> list[str]:
    directory = f"{file}.d"
    try:
        names = [name for name in os.listdir(directory) if name.endswith(".conf") and not name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise BadSettings(f"{printable(directory)}: cannot be read: {why}") from None
    if len(names) > _MAX_DROP_INS:
        raise BadSettings(f"{printable(directory)}: more than {_MAX_DROP_INS} drop-ins")
    return [os.path.join(directory, name) for name in sorted(names)]


class _Merge:
    """Settings in the making."""

    def __init__(self) -> None:
        self.problems: list[BadSettings] = []
        self._found: list[Problem] = []
        self._values: dict[str, Any] = {}
        self._origins: dict[str, str] = {}
        self._rules: list[Rule] = []
        self._files: list[str] = []

    def file(self, path: str) -> None:
        """Lay the directives of one file over what is there."""
        self._files.append(path)
        try:
            directives, self._found = reader.read(path)
        except BadSettings as error:
            self.problems.append(error)
            return
        seen: dict[str, Directive] = {}
        for directive in directives:
            if len(self._found) >= reader.MAX_PROBLEMS:
                break
            try:
                self._take(directive, seen)
            except ValueError as error:
                self._problem(directive, str(error))
        self.problems += [problem for _line, problem in sorted(self._found, key=itemgetter(0))]

    def _problem(self, directive: Directive, why: str, hint: str = "") -> None:
        name = _name(directive.name)
        hint = hint or (f"allowed: {TABLE[ATTRIBUTES[name]].kind.allowed()}" if name in ATTRIBUTES else "")
        value = re.sub(r"(https?)://\S*", r"\1://…", directive.value)  # an address may have a token in it, by mistake
        what = printable(f"{directive.name} = {value}", 120)
        problem = BadSettings(f"{printable(directive.origin)}: `{what}`: {why}", hint=hint)
        self._found.append((directive.line, problem))

    def _take(self, directive: Directive, seen: dict[str, Directive]) -> None:
        """Take one directive; `seen` are those of its file, by what must not be repeated. Raises ValueError."""
        numbered = _FORMAT.fullmatch(directive.name)
        if numbered:
            rule = parse_rule(directive.value, int(numbered[1]), directive.origin)
            if rule.pattern is None:
                self._once("format", directive, seen)
            if len(self._rules) == MAX_RULES:
                raise ValueError(f"more than {MAX_RULES} rules")
            self._rules.append(rule)
            return
        name = ATTRIBUTES.get(directive.name)
        if name is None:
            self._problem(directive, "no such setting", _suggestion(directive.name))
            return
        self._once(name, directive, seen)
        self._values[name] = TABLE[name].kind.parse(directive.value)
        self._origins[name] = directive.origin

    @staticmethod
    def _once(key: str, directive: Directive, seen: dict[str, Directive]) -> None:
        first = seen.setdefault(key, directive)
        if first is not directive:
            what = "a second rule without %e" if key == "format" else "set twice"
            raise ValueError(f"{what}, first on line {first.line}")

    def settings(self) -> Settings:
        """Return what has come together; see that its user and group exist."""
        rules = in_order(self._rules, Values.formats[-1])
        settings = Settings(**self._values, formats=rules, origins=self._origins, files=tuple(self._files))
        _mode, uid, gid = settings.dump_owner()
        missing = [("dump_user", "user")] * (uid < 0) + [("dump_group", "group")] * (gid < 0)
        warnings = [self._absent(settings, *pair) for pair in missing]
        if settings.encrypt_recipients:
            warnings.append(_unencryptable(settings))
        warnings.append(_cramped(settings))
        return replace(settings, warnings=tuple(filter(None, warnings)))

    def _absent(self, settings: Settings, name: str, what: str) -> str:
        """Note that a user or group is not there: a problem if it was asked for, else a warning, which is returned."""
        row, value = TABLE[name], getattr(settings, name)
        if name not in self._origins:
            return f"{row.name}: there is no {what} {value}; dumps belong to whoever writes them"
        text = f"{printable(self._origins[name])}: `{row.name} = {value}`: there is no such {what} on this machine"
        self.problems.append(BadSettings(text, hint=f"allowed: {row.kind.allowed()}"))
        return ""


def _cramped(settings: Settings) -> str:
    """Say where no core is kept any more before purge makes room; nothing where it comes first, or is not to make any."""
    quota, free = settings.dump_quota_percent, settings.purge_min_free_percent
    late = ""
    if 0 < free <= quota:
        late = f"purge.min_free ({free}%) is not more than dump.quota ({quota}%)"
    elif 0 < settings.dump_ceiling_bytes <= settings.purge_max_bytes:
        late = "purge.max_bytes is not less than dump.ceiling"
    return f"{late}: cores are refused before old ones make room" if late and not settings.purge_disabled else ""


def _unencryptable(settings: Settings) -> str:
    """Say why nothing could be encrypted as things are, which somebody may mend before a core comes; nothing where it could."""
    from coresnap.ground import recipients, runner  # few settings need them, and they take long to import

    try:
        recipients.read(settings.encrypt_recipients)
    except BadSettings as error:
        return f"{error.line()}: dumps will wait in pending"
    if not any(os.access(f"{directory}/age", os.X_OK) for directory in runner.ENVIRONMENT["PATH"].split(":")):
        return "encrypt.recipients: age is not installed: dumps will wait, and then fail"
    return ""


def _name(name: str) -> str:
    """Return the name under which the table has a directive."""
    return TABLE[_FORMATS].name if _FORMAT.fullmatch(name) else name


def _suggestion(name: str) -> str:
    close = difflib.get_close_matches(name.lower(), ATTRIBUTES, 1)
    return f"did you mean {close[0]}?" if close else "`coresnap config --sample` lists the settings"


def _uid(text: str) -> int | None:
    """Return the number of a user; None where there is no such user."""
    try:
        return int(text) if text.isdigit() else pwd.getpwnam(text).pw_uid
    except KeyError:
        return None


def _gid(text: str) -> int | None:
    try:
        return int(text) if text.isdigit() else grp.getgrnam(text).gr_gid
    except KeyError:
        return None
