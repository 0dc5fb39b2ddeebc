# SPDX-License-Identifier: Apache-2.0
"""The rules of format.N: which project a crash belongs to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

PROJECT = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
#: A project's name in a rule: \1 to \9 stand for what the groups of its regular expression have found.
NAMED = r"(?:[A-Za-z0-9]|\\[1-9])(?:[A-Za-z0-9._-]|\\[1-9]){0,63}"
_GROUP = re.compile(r"\\([1-9])")
PATTERN_MAX = 1024
MAX_RULES = 256


@dataclass(frozen=True)
class Rule:
    r"""Executables whose name matches the pattern belong to the project; without a pattern, all of them do.

    The project's name may have groups of the pattern in it, as \1.
    """

    project: str
    pattern: re.Pattern[str] | None = None
    number: int = 1
    origin: str = ""

    @property
    def regex(self) -> str | None:
        """The pattern as text."""
        return self.pattern.pattern if self.pattern else None

    def matches(self, exe: str) -> bool:
        """Say whether the rule takes this executable: its pattern is searched for anywhere in the name."""
        return self.pattern is None or self.pattern.search(exe) is not None

    def project_for(self, exe: str) -> str:
        """Return the project of an executable that the rule takes; what its groups give may be no name for one."""
        found = self.pattern.search(exe) if self.pattern else None
        return _GROUP.sub(lambda group: (found and found[int(group[1])]) or "", self.project)

    def text(self) -> str:
        """Return the rule as a directive's value."""
        return self.project if self.pattern is None else f"{self.project} %e {self.regex}"


def parse_rule(text: str, number: int = 1, origin: str = "") -> Rule:
    """Return the rule that `PROJECT` or `PROJECT %e REGEX` is. Raises ValueError."""
    project, _space, rest = text.partition(" ")
    if not re.fullmatch(NAMED, project):
        raise ValueError("not the name of a project: letters, digits, `.`, `_` and `-`, at most 64")
    groups = max(map(int, _GROUP.findall(project)), default=0)
    if not rest:
        if groups:
            raise ValueError(f"\\{groups} stands for a group of a regular expression, and there is none")
        return Rule(project, None, number, origin)
    what, _space, regex = rest.strip().partition(" ")
    regex = regex.strip()
    if what != "%e" or not regex:
        raise ValueError("after the project %e and a regular expression are expected")
    if len(regex) > PATTERN_MAX:
        raise ValueError(f"a regular expression of more than {PATTERN_MAX} characters")
    try:
        pattern = re.compile(regex)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"not a regular expression: {error}") from None
    if groups > pattern.groups:
        raise ValueError(f"\\{groups} stands for a group, and the regular expression has {pattern.groups}")
    return Rule(project, pattern, number, origin)


def in_order(rules: Iterable[Rule], default: Rule) -> tuple[Rule, ...]:
    """Return the rules in the order in which they are tried.

    Those with a regular expression by number, then as they appear; then the last one without, or else `default`.
    """
    chosen, others = default, []
    for rule in rules:
        if rule.pattern is None:
            chosen = rule
        else:
            others.append(rule)
    return (*sorted(others, key=lambda rule: rule.number), chosen)
