#!/usr/bin/python3 -I
# SPDX-License-Identifier: Apache-2.0
"""coresnap-snapshot - turn a core into a report

SYNOPSIS
    coresnap-snapshot -o OUT [--kv KEY:VALUE]... [--resource ASSET] --core CORE [EXECUTABLE]

DESCRIPTION
    Reads an ELF core of a 64-bit Linux process and writes a report in Backtrace's JSON format: the signal and the
    address of the fault, every thread with its registers, the modules with their build-ids, and, from the asset, the
    names of the threads and attributes of process and host. It needs neither the executable nor a debugger.

    -o OUT            the file to write; - is standard output
    --kv KEY:VALUE    an attribute of the report; coresnap.object is the report's UUID
    --resource ASSET  the TAR that archive made beside the core
    --core CORE       the core
    EXECUTABLE        the path of the executable, for its name

    A core that is cut gives a report of what is there, which says what is not.

ENVIRONMENT
    BACKTRACE_DEFAULTS  lines key=value: further attributes

EXIT STATUS
    0 the report is written; 65 the core cannot be read, or is of a kind that is not supported; 75 the report cannot be
    written; 2 usage.

EXAMPLE
    coresnap-snapshot -o - --core core.1234 /usr/bin/myserver
"""

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

import argparse
import json

from coresnap.ground import program
from coresnap.ground.errors import BadInput, TryLater
from coresnap.snapshot.asset import read_asset
from coresnap.snapshot.core import Core, open_core
from coresnap.snapshot.report import build
from coresnap.spool.stages import is_uuid, new_uuid

_OBJECT = "coresnap.object"
_DEFAULTS_MAX = 64 << 10
_VALUE_MAX = 4096


def main(arguments: list[str] | None = None) -> int:
    """Run coresnap-snapshot; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="coresnap-snapshot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="the file to write; - is standard output")
    parser.add_argument("--kv", metavar="KEY:VALUE", action="append", default=[], help="an attribute of the report")
    parser.add_argument("--resource", metavar="ASSET", help="the TAR that archive made beside the core")
    parser.add_argument("--core", metavar="CORE", required=True, help="the core")
    parser.add_argument("executable", metavar="EXECUTABLE", nargs="?", default="", help="the path of the executable")
    options = parser.parse_args(arguments)
    return program.run("coresnap-snapshot", lambda: _snapshot(options))


def _snapshot(options: argparse.Namespace) -> int:
    more = _attributes(options.kv)
    uuid = more.get(_OBJECT, "")
    missing: list[str] = []
    asset: dict[str, bytes] = {}
    if options.resource:
        try:
            asset = read_asset(options.resource)
        except (BadInput, OSError) as error:
            missing.append(f"the asset: {error}")
    core = _core(options.core)
    report = build(
        core,
        asset,
        uuid=uuid if is_uuid(uuid) else new_uuid(),
        executable=options.executable,
        more=more,
        missing=missing,
    )
    _write(options.output, json.dumps(report, separators=(",", ":")).encode())
    return 0


def _core(path: str) -> Core:
    try:
        return open_core(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from error
    except BadInput as error:
        raise BadInput(f"{path}: {error}", hint=error.hint) from error


def _attributes(pairs: list[str]) -> dict[str, str]:
    """Return the attributes of BACKTRACE_DEFAULTS and, over them, of --kv."""
    result = {}
    for line in os.environ.get("BACKTRACE_DEFAULTS", "")[:_DEFAULTS_MAX].splitlines():
        key, equals, value = line.partition("=")
        if equals and key.strip():
            result[key.strip()[:256]] = value.strip()[:_VALUE_MAX]
    for pair in pairs:
        key, colon, value = pair.partition(":")
        if not colon or not key:
            raise BadInput(f"--kv {pair}: KEY:VALUE expected")
        result[key[:256]] = value[:_VALUE_MAX]
    return result


def _write(path: str, data: bytes) -> None:
    try:
        if path == "-":
            sys.stdout.buffer.write(data + b"\n")
            sys.stdout.flush()
            return
        with open(path, "wb") as file:
            file.write(data)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise TryLater(f"{path}: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
