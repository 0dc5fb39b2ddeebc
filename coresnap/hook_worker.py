#!/usr/bin/python3 -I
# SPDX-License-Identifier: Apache-2.0
"""coresnap hook-worker - run one hook

DESCRIPTION
    Started for one event, with a connection to coresnap-hook on standard input. Over it come a command's words, an
    environment and a time limit; the command is run, and how it ended is answered. Its output is this program's. Where
    the connection is hung up the command is killed.

SECURITY
    A hook is run as the user coresnap-hook, which owns no dump, no store and no configuration. Under systemd the unit sees to
    that; else, and started as root, this program becomes that user, or nobody, before it runs anything.
"""

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

import pwd
import socket
from typing import Any

from coresnap.ground import program, runner, wire
from coresnap.ground.errors import BadInput, CoresnapError, Refused

_USERS = ("coresnap-hook", "nobody")
_WORDS_MOST = 1000
_VARIABLES_MOST = 100
_TEXT_MAX = 16 << 10
_FIELDS = {"version", "argv", "environment", "timeout_usec"}


def _check(request: dict[str, Any]) -> None:
    """Raise BadInput naming the key of the request that is not as it must be."""
    if request.keys() != _FIELDS or request["version"] != 1:
        raise BadInput(f"request: an object of {', '.join(sorted(_FIELDS))} expected")
    argv, environment, timeout_usec = request["argv"], request["environment"], request["timeout_usec"]
    if not isinstance(argv, list) or not 0 < len(argv) <= _WORDS_MOST or not all(map(_is_text, argv)):
        raise BadInput("request: argv: a list of words expected")
    if not isinstance(environment, dict) or len(environment) > _VARIABLES_MOST:
        raise BadInput("request: environment: an object of texts expected")
    if not all(name.startswith("CORESNAP_") and _is_text(value) for name, value in environment.items()):
        raise BadInput("request: environment: variables CORESNAP_* expected, of text")
    if type(timeout_usec) is not int or timeout_usec <= 0:
        raise BadInput("request: timeout_usec: a positive number expected")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _TEXT_MAX and "\0" not in value


def _become() -> None:
    """Give up root, where that is who we are. Raises Refused where there is nobody else to be."""
    if os.geteuid() != 0:
        return
    for name in _USERS:
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        os.setgroups([])
        os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
        os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
        return
    raise Refused(f"no hook is run as root, and there is no user {_USERS[0]}", hint="make it: a system user")


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        _check(request)
        _become()
        result = runner.run(
            request["argv"],
            timeout_usec=request["timeout_usec"],
            env={**runner.ENVIRONMENT, **request["environment"]},
            output="inherit",
            abandon_fd=0,
        )
    except CoresnapError as error:
        return {"status": 1, "ending": error.line()}
    return {"status": 1 if result.timed_out else result.status, "ending": result.ending()}


def main() -> int:
    """Run the worker; return its exit status."""
    return program.run("coresnap hook-worker", _serve)


def _serve() -> int:
    with socket.socket(fileno=os.dup(0)) as connection, program.hanging_up(connection):
        received = wire.receive(connection, max_fds=0)
        if received is not None:
            wire.send(connection, {"version": 1, **_answer(received[0])})
    return 0


if __name__ == "__main__":
    sys.exit(main())
