# SPDX-License-Identifier: Apache-2.0
"""Print the settings in force and which file said so; check a configuration file; write archive's settings.

What is printed has the form of a configuration file: a comment above the settings says where they come from.

--json prints one object: files, settings (by name: value, origin; the rules of format.N are a list), warnings.

examples:
  coresnap config
  coresnap config --check /etc/coresnap/coresnap.conf
  coresnap config --sample > /etc/coresnap/coresnap.conf
  coresnap config --compile              what coresnapd does when it starts
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from coresnap.cli import terminal
from coresnap.ground import flat, settings
from coresnap.ground.errors import BadSettings, CoresnapError, Refused
from coresnap.ground.settings.load import BUILT_IN
from coresnap.ground.settings.table import TABLE
from coresnap.ground.text import printable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from coresnap.ground.settings import Settings

_FORMATS = "formats"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--json", action="store_true", help="print JSON")
    what.add_argument("--check", metavar="FILE", help="tell what is wrong with FILE, its drop-ins and coroner.cf")
    what.add_argument("--compile", action="store_true", help="write the settings that archive reads")
    what.add_argument("--sample", action="store_true", help="print a configuration file with every setting explained")
    parser.add_argument("--output", metavar="PATH", default=flat.PATH, help="with --compile: write there (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.sample:
        from coresnap.ground.settings.render import sample

        print(sample(), end="")
        return 0
    if args.check is not None:
        return _check(args.check)
    loaded = settings.load(args.settings)
    for problem in _against_schema(loaded):
        raise problem
    if args.compile:
        _warn(loaded)
        _compile(loaded, args.output)
    elif args.json:
        terminal.print_json(_document(loaded))
    else:
        _warn(loaded)
        print("\n".join(_lines(loaded)))
    return 0


def _compile(loaded: Settings, path: str) -> None:
    try:
        settings.write_compiled(loaded, path)
    except OSError as error:
        hint = "run it as root, or name another file by --output"
        raise Refused(f"{path}: {error.strerror}", hint=hint) from error


def _against_schema(loaded: Settings) -> list[BadSettings]:
    from coresnap.ground.settings.schema import validate

    return validate(loaded)


def _check(path: str) -> int:
    """Print what is wrong with the file, in the order of its lines."""
    problems: Sequence[CoresnapError]
    try:
        loaded, problems = settings.examine(path)
    except BadSettings as error:
        loaded, problems = None, [error]
    if loaded and not problems:
        _warn(loaded)
        problems = _against_schema(loaded) + _of_coroner(loaded)
    for problem in problems:
        terminal.tell(problem.line())
    if problems:
        return BadSettings.exit_status
    print(f"{printable(path)}: ok")
    return 0


def _of_coroner(loaded: Settings) -> list[CoresnapError]:
    """Return what is wrong with the coroner.cf, where there is one that this user may read; what is risky is a note."""
    scheme, _colon, path = loaded.store_address().partition(":")
    if loaded.send_command or scheme != "coroner" or not os.access(path, os.R_OK):
        return []
    from coresnap.store import address, coroner

    try:
        read = coroner.read(path)  # and no file that it names: in the service these may be credentials
        address.parse(read.write, read.universe, where=f"{path}: write")
    except CoresnapError as error:
        return [error]
    for warning in read.warnings:
        terminal.note(warning)
    return []


def _warn(loaded: Settings) -> None:
    for warning in loaded.warnings:
        terminal.note(warning)


def _document(loaded: Settings) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for (key, value), name in zip(loaded.document().items(), TABLE, strict=True):
        if name == _FORMATS:
            pairs = zip(value, loaded.formats, strict=True)
            values[key] = [{**shown, "origin": rule.origin or BUILT_IN} for shown, rule in pairs]
        else:
            values[key] = {"value": value, "origin": loaded.origins.get(name, BUILT_IN)}
    return {"version": 1, "files": list(loaded.files), "settings": values, "warnings": list(loaded.warnings)}


def _lines(loaded: Settings) -> Iterator[str]:
    """Yield the settings as lines of a configuration file, with a comment wherever the origin changes."""
    last = ""
    for origin, directive in _directives(loaded):
        if origin != last:
            yield f"# {printable(origin)}"
            last = origin
        yield printable(directive, len(directive))


def _directives(loaded: Settings) -> Iterator[tuple[str, str]]:
    for name, setting in TABLE.items():
        if name == _FORMATS:
            for rule in loaded.formats:
                yield rule.origin or BUILT_IN, f"format.{rule.number} = {rule.text()}"
        else:
            text = setting.kind.show(getattr(loaded, name))
            yield loaded.origins.get(name, BUILT_IN), f"{setting.name} = {text}".rstrip()
