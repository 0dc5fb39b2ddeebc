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
    BACKTRACE_DEFAULTS  lines key=value: further attributes; --kv overrides them

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
import errno
import stat

from coresnap.ground import program
from coresnap.ground.errors import BadInput, TryLater
from coresnap.ground.text import printable
from coresnap.snapshot.asset import read_asset
from coresnap.snapshot.core import Core, open_core
from coresnap.snapshot.report import build, encode
from coresnap.spool.stages import is_uuid, new_uuid

_OBJECT = "coresnap.object"
_DEFAULTS_MAX = 64 << 10
_KEY_MAX = 256
_VALUE_MAX = 4096


def main(arguments: list[str] | None = None) -> int:
    """Run coresnap-snapshot; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="coresnap-snapshot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="the file to write; - is standard output")
    parser.add_argument("--kv", metavar="KEY:VALUE", action="append", default=[], type=_pair, help="an attribute")
    parser.add_argument("--resource", metavar="ASSET", help="the TAR that archive made beside the core")
    parser.add_argument("--core", metavar="CORE", required=True, help="the core")
    parser.add_argument("executable", metavar="EXECUTABLE", nargs="?", default="", help="the path of the executable")
    options = parser.parse_args(arguments)
    return program.run("coresnap-snapshot", lambda: _snapshot(options))


def _pair(text: str) -> tuple[str, str]:
    """Read KEY:VALUE, one argument."""
    key, colon, value = text.partition(":")
    if not colon or not _is_key(key):
        raise argparse.ArgumentTypeError(f"{printable(text, 100)}: KEY:VALUE expected")
    if key == _OBJECT and not is_uuid(value):
        raise argparse.ArgumentTypeError(f"{printable(text, 100)}: a UUID in lower case expected")
    return key, value[:_VALUE_MAX]


def _is_key(key: str) -> bool:
    return 0 < len(key) <= _KEY_MAX and key.isprintable() and " " not in key


def _snapshot(options: argparse.Namespace) -> int:
    missing: list[str] = []
    core = _core(options.core)
    asset = _asset(options.resource, missing) if options.resource else {}
    more = {_OBJECT: new_uuid()} | _defaults(missing) | dict(options.kv)
    report = build(core, asset, uuid=more[_OBJECT], executable=options.executable, more=more, missing=missing)
    _write(options.output, encode(report))
    return 0


def _core(path: str) -> Core:
    name = printable(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO does not hold us
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise BadInput("not a regular file", hint="write the core to a file; only `archive` reads a stream")
        return open_core(fd)
    except OSError as error:
        raise BadInput(f"{name}: {error.strerror}") from error
    except BadInput as error:
        raise BadInput(f"{name}: {error}", hint=error.hint) from error


def _asset(path: str, missing: list[str]) -> dict[str, bytes]:
    """Read the asset. Without it there is a report all the same."""
    try:
        return read_asset(path)
    except BadInput as error:
        missing.append(f"the asset: {error}")
    except OSError as error:
        missing.append(f"the asset: {error.strerror}")
    return {}


def _defaults(missing: list[str]) -> dict[str, str]:
    """Return the attributes of BACKTRACE_DEFAULTS."""
    result = {}
    for number, line in enumerate(os.environ.get("BACKTRACE_DEFAULTS", "")[:_DEFAULTS_MAX].split("\n"), 1):
        key, equals, value = line.partition("=")
        key = key.strip()
        if equals and _is_key(key):
            result[key] = value.strip()[:_VALUE_MAX]
        elif line.strip():
            missing.append(f"BACKTRACE_DEFAULTS: line {number} is no key=value")
    result.pop(_OBJECT, None)
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
        hint = "snapshot.max_bytes allows no more" if error.errno == errno.EFBIG else ""
        raise TryLater(f"{printable(path)}: {error.strerror}", hint=hint) from error


if __name__ == "__main__":
    sys.exit(main())
