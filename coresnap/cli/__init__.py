# SPDX-License-Identifier: Apache-2.0
"""coresnap: the command line. One module for each command, imported when that command runs."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from importlib import import_module
from typing import Any, NoReturn

from coresnap import __version__
from coresnap.cli import terminal
from coresnap.ground import program
from coresnap.ground.text import printable

#: The commands: the module of each, and what it does in a line.
COMMANDS = {
    "list": ("list", "list the dumps"),
    "info": ("info", "tell all that is on record of a dump"),
    "why": ("why", "tell where a core is, or why it was not kept"),
    "limits": ("limits", "tell how many cores of each program, unit and user were kept"),
    "route": ("route", "tell where the report of an executable would go: rule, project, store"),
    "retry": ("retry", "try again what has failed, or what waits for its next attempt"),
    "rm": ("rm", "remove dumps"),
    "purge": ("purge", "remove what is old, or what there is no room for"),
    "pin": ("pin", "keep dumps from being purged"),
    "unpin": ("unpin", "let pinned dumps be purged again"),
    "dump": ("dump", "write a core, asset or snapshot out of the spool"),
    "debug": ("debug", "open a core in the debugger"),
    "put": ("put", "deliver a report to a store by hand"),
    "import": ("import_core", "take cores that lie about into the spool"),
    "symbols": ("symbols", "fetch debug files, so that stacks have names"),
    "status": ("status", "tell how stages and stores stand, and who gets the kernel's cores"),
    "metrics": ("metrics", "print metrics for Prometheus"),
    "config": ("config", "print, check or compile the configuration"),
}

EPILOG = """\
A dump is named by the beginning of its UUID, at least four characters of it, with or without its stage, as
`coresnap list` prints it: 8460, pending/84605573, 84605573-9de...

examples:
  coresnap list                     all dumps, oldest first
  coresnap list -1 --exe vim        the latest of vim
  coresnap why 4711                 where is the core of process 4711?
  coresnap debug 8460               open a core in gdb
  coresnap retry --all-failed       give what has failed another chance

exit status:
  0 done   2 usage   65 bad input   66 no such file   69 refused, or no such dump   75 try again later   78 configuration
"""


def main(arguments: list[str] | None = None) -> int:
    """Run coresnap with these arguments, or the program's own; return its exit status."""
    return program.run("coresnap", lambda: _main(sys.argv[1:] if arguments is None else arguments), terminal.tell)


def _main(arguments: list[str]) -> int:
    gc.disable()  # a command has ended before garbage matters; a thousand records would be looked through for it
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a terminal need not speak UTF-8
    parser = main_parser()
    if not arguments:
        parser.print_help(sys.stderr)
        return 2
    options = parser.parse_args(arguments)
    name, *rest = options.command
    if name not in COMMANDS:
        parser.error(f"{name} is no command; `coresnap --help` lists them")
    parsed = parse(name, rest)
    parsed.settings = parsed.settings or options.settings
    status: int = _module(name).run(parsed)
    sys.stdout.flush()  # here a reader that has gone is no error yet
    return status


def parse(name: str, arguments: list[str]) -> argparse.Namespace:
    """Read the arguments of a command; options may stand among its other arguments. Ends the program on wrong ones."""
    parser = command_parser(name)
    parsed, left_over = parser.parse_known_args(arguments)
    return parser.parse_intermixed_args(arguments) if left_over else parsed  # the second way takes longer


def _module(name: str) -> Any:
    return import_module(f"coresnap.cli.{COMMANDS[name][0]}")


class _Formatter(argparse.HelpFormatter):
    """Fills prose up to the terminal's width; a paragraph that has an indented line, as examples have, stays as it is."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns() - 2)  # left to itself argparse imports shutil for that, in 5 ms

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        import textwrap

        wrapper = textwrap.TextWrapper(width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
        paragraphs = text.strip("\n").split("\n\n")
        return "\n\n".join(one if "\n " in f"\n{one}" else wrapper.fill(one) for one in paragraphs)


def _columns() -> int:
    """Return the width of the terminal, as far as lines are easy to read."""
    text = os.environ.get("COLUMNS", "")
    try:
        columns = int(text) if text.isascii() and text.isdigit() else os.get_terminal_size(1).columns
    except OSError:
        columns = 0
    return min(max(columns or 80, 40), 100)


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints may quote any argument."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def main_parser() -> argparse.ArgumentParser:
    """Return the parser of what stands before the command's own arguments."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {line}" for name, (_module, line) in COMMANDS.items()]
    parser = _Parser(
        prog="coresnap",
        usage="coresnap [--settings FILE] COMMAND [ARGUMENT ...]",
        description="Look after core dumps.\n\ncommands (each has its own --help):\n" + "\n".join(lines),
        epilog=EPILOG,
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"coresnap {__version__}")
    _add_settings(parser)
    parser.add_argument("command", metavar="COMMAND", nargs=argparse.PARSER, help=argparse.SUPPRESS)
    return parser


def command_parser(name: str) -> argparse.ArgumentParser:
    """Return the parser of a command's arguments. The module's docstring is its manual."""
    module = _module(name)
    parser = _Parser(
        prog=f"coresnap {name}",
        description=module.__doc__,
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    _add_settings(parser)
    module.add_arguments(parser)
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--settings", metavar="FILE", help="read this configuration file, and no other")
