# SPDX-License-Identifier: Apache-2.0
"""Tell where the report of a crash of an executable would go: the rule of format.N, the project, the store, the token.

The name counts without its directory, as format.N has it. Whether the store has a token for the project is told, never
the token; where the file with the tokens may not be read, that is told.

--json prints an array with an object for each executable: exe, project, rule (number, project, regex, origin), named
(whether the rule's own name is the project's), store, command (send.command, or null), token (true, false, or null where
it cannot be known or none is needed) and problem.

Exit status 75: a report would wait, for a token or a store that can be used.

examples:
  coresnap route nginx
  coresnap route /usr/sbin/nginx /opt/web/web-db --json
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from coresnap.cli import terminal
from coresnap.ground import settings
from coresnap.ground.errors import CoresnapError
from coresnap.ground.settings.load import BUILT_IN
from coresnap.ground.text import printable

if TYPE_CHECKING:
    import argparse

    from coresnap.ground.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("exe", nargs="+", metavar="EXE", help="the name of an executable, or its path")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    loaded = settings.load(args.settings)
    routes = [_route(loaded, exe) for exe in args.exe]
    if args.json:
        terminal.print_json(routes)
    else:
        for number, route in enumerate(routes):
            if number:
                print()
            terminal.fields(_rows(route))
    return 75 if any(route["problem"] for route in routes) else 0


def _route(loaded: Settings, exe: str) -> dict[str, Any]:
    project, rule = loaded.format_for(os.path.basename(exe))
    store = loaded.store_address()
    token, problem = None, ""
    if not loaded.send_command and store.startswith("coroner:"):
        token, problem = _token(store.removeprefix("coroner:"), project)
    return {
        "exe": exe,
        "project": project,
        "rule": {
            "number": rule.number,
            "project": rule.project,
            "regex": rule.regex,
            "origin": rule.origin or BUILT_IN,
        },
        "named": rule.project_for(os.path.basename(exe)) == project,
        "store": store,
        "command": list(loaded.send_command) or None,
        "token": token,
        "problem": problem,
    }


def _token(path: str, project: str) -> tuple[bool | None, str]:
    """Say whether the coroner.cf has a token for the project, and why a report would wait."""
    from coresnap.store import coroner

    if not os.access(path, os.R_OK):
        return None, ""
    try:
        known = project in coroner.read(path).tokens
    except CoresnapError as error:
        return None, error.line()
    return known, "" if known else f"{path} has no token for {project}: reports would wait until it has"


def _rows(route: dict[str, Any]) -> list[tuple[str, str]]:
    rule = route["rule"]
    text = rule["project"] if rule["regex"] is None else f"{rule['project']} %e {rule['regex']}"
    by = f"format.{rule['number']} = {text} ({rule['origin']})"
    if not route["named"]:
        by += ": its groups make no name of a project here, so it is the one for all others"
    command = " ".join(route["command"] or [])
    return [
        ("executable", printable(os.path.basename(route["exe"]))),
        ("project", printable(route["project"])),
        ("by", printable(by)),
        ("store", printable(f"send.command: {command}" if command else route["store"])),
        ("token", printable(_of_token(route))),
        ("problem", terminal.paint(printable(route["problem"]), terminal.RED) if route["problem"] else ""),
    ]


def _of_token(route: dict[str, Any]) -> str:
    if route["token"]:
        return f"there is one for {route['project']}"
    unknown = route["token"] is None and not route["problem"] and route["store"].startswith("coroner:")
    return "not for this user to know: ask as root" if unknown and not route["command"] else ""
