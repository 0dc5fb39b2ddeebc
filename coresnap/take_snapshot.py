#!/usr/bin/python3 -I
# SPDX-License-Identifier: Apache-2.0
"""coresnap-snapshot - turn a core into a report

SYNOPSIS
    coresnap-snapshot -o OUT [--kv KEY:VALUE]... [--resource ASSET] [--stack-bytes BYTES] [--environ NAMES]
                      [--redact-names PATTERNS] [--redact-values PATTERNS] [--confidential] [--cache DIR]
                      --core CORE [EXECUTABLE]

DESCRIPTION
    Reads an ELF core of a 64-bit Linux process and writes a report in Backtrace's JSON format: the signal and the
    address of the fault, every thread with its registers, the modules with their build-ids, and, from the asset, the
    names of the threads and attributes of process and host. It needs neither the executable nor a debugger.

    -o OUT            the file to write; - is standard output
    --kv KEY:VALUE    an attribute of the report; coresnap.object is the report's UUID
    --resource ASSET  the TAR that archive made beside the core
    --stack-bytes BYTES  memory around each thread's stack pointer that the report has (1024); 0 is none
    --environ NAMES   variables of the environment in the asset that the report has, * at the end for any rest (none)
    --redact-names PATTERNS, --redact-values PATTERNS  as redact.names and redact.values, coresnap.conf(5) (none)
    --confidential    nothing of what the process had in its memory and registers, as snapshot.confidential says
    --cache DIR       where `coresnap symbols fetch` has put debug files (/var/cache/coresnap/debug)
    --core CORE       the core
    EXECUTABLE        the path of the executable, for its name

    Functions are named by the symbol tables of the executable and its libraries, as far as the files are of the build that
    crashed, and of debug files in /usr/lib/debug and in DIR.

    Where drgn is installed for Python frames have lines of their sources, and inlined calls; where pystack is, a process of
    CPython has Python's frames as well. Both are looked for where `python3 -I` finds packages.

    A core that is cut gives a report of what is there, which says what is not. So does a limit to the size of files
    (RLIMIT_FSIZE), as the stage processor sets it from snapshot.max_bytes: the report has what there is room for.

ENVIRONMENT
    BACKTRACE_DEFAULTS  lines key=value: further attributes; --kv overrides them

    As any snapshot.command it is run with PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin,
    LANG=C.UTF-8 and, where defaults.command is set, BACKTRACE_DEFAULTS: nothing else is in its environment.

EXIT STATUS
    0 the report is written; 65 the core is damaged, or of a kind that is not supported; 66 it is not there, or may not be
    read; 75 it cannot be read for now, or the report cannot be written; 2 usage.

EXAMPLE
    coresnap-snapshot -o - --core core.1234 /usr/bin/myserver
"""

import gc
import os
import resource
import sys

if __name__ == "__main__":
    gc.disable()  # what is made here lives until the end: to look through it again and again is a tenth of all time
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
    # Where files may not be as large as a .pyc, Python would leave a part of one, and fail on it ever after.
    sys.dont_write_bytecode |= resource.getrlimit(resource.RLIMIT_FSIZE)[0] in range(1 << 20)

import argparse
import errno
import stat
from contextlib import ExitStack

from coresnap.ground import program
from coresnap.ground.elf_file import Pread
from coresnap.ground.errors import BadInput, TryLater, unreadable
from coresnap.ground.redact import Redaction
from coresnap.ground.text import printable
from coresnap.snapshot.asset import kept_modules, read_asset
from coresnap.snapshot.core import open_core
from coresnap.snapshot.images import DISTRIBUTED, FETCHED
from coresnap.snapshot.report import REPORT_MAX_BYTES, Options, build
from coresnap.spool.stages import is_uuid, new_uuid

_OBJECT = "coresnap.object"
_DEFAULTS_MAX = 64 << 10
_KEY_MAX = 256
_VALUE_MAX = 4096
_FILES = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
_FILES |= {stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def main(arguments: list[str] | None = None) -> int:
    """Run coresnap-snapshot; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="coresnap-snapshot",
        description=__doc__,
        # A width that is given need not be asked for, with the modules that takes.
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=120),
        allow_abbrev=False,
    )
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="the file to write; - is standard output")
    parser.add_argument("--kv", metavar="KEY:VALUE", action="append", default=[], type=_pair, help="an attribute")
    parser.add_argument("--resource", metavar="ASSET", help="the TAR that archive made beside the core")
    parser.add_argument("--stack-bytes", metavar="BYTES", type=_stack_bytes, default=1024, help="memory of each stack")
    parser.add_argument("--environ", metavar="NAMES", type=str.split, default=[], help="variables that are allowed")
    for what in ("names", "values"):
        parser.add_argument(f"--redact-{what}", metavar="PATTERNS", type=str.split, default=[], help=f"redact.{what}")
    parser.add_argument("--confidential", action="store_true", help="nothing of memory and registers")
    parser.add_argument("--cache", metavar="DIR", default=FETCHED, type=os.path.abspath, help="debug files fetched")
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


def _stack_bytes(text: str) -> int:
    """Read a number of bytes, up to a MiB."""
    if text.isascii() and text.isdigit() and len(text) < 8 and int(text) <= 1 << 20:
        return int(text)
    raise argparse.ArgumentTypeError(f"{printable(text, 100)}: bytes expected, up to {1 << 20}")


def _is_key(key: str) -> bool:
    return 0 < len(key) <= _KEY_MAX and key.isprintable() and " " not in key


def _snapshot(options: argparse.Namespace) -> int:
    _write(options.output, _report(options))
    return 0


def _report(options: argparse.Namespace) -> bytes:
    missing: list[str] = []
    name = printable(options.core)
    try:
        with open(_open(options.core), "rb", buffering=0) as file, ExitStack() as stack:
            core = open_core(file.fileno())
            asset = _asset(options.resource, missing) if options.resource else {}
            more = {_OBJECT: new_uuid()} | _defaults(missing) | dict(options.kv)
            return build(
                core,
                asset,
                uuid=more[_OBJECT],
                executable=options.executable,
                more=more,
                missing=missing,
                options=Options(
                    options.stack_bytes,
                    tuple(options.environ),
                    _kept(options.resource, stack) if options.resource else {},
                    max_bytes=_max_bytes(),
                    redaction=Redaction(options.redact_names, options.redact_values),
                    confidential=options.confidential,
                    debug_directories=(DISTRIBUTED, options.cache),
                ),
            )
    except BadInput as error:
        raise BadInput(f"{name}: {error}", hint=error.hint) from error
    except OSError as error:
        raise unreadable(name, error) from error


def _open(path: str) -> int:
    mode = os.stat(path).st_mode
    if stat.S_ISREG(mode):
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # nothing that it has become holds us
        mode = os.fstat(fd).st_mode
        if stat.S_ISREG(mode):
            return fd
        os.close(fd)
    what = _FILES.get(stat.S_IFMT(mode), "something else")
    raise BadInput(f"{what}, not a regular file", hint="write the core to a file; only `archive` reads a stream")


def _max_bytes() -> int:
    """Return how large the report may be, with the line feed behind it on standard output."""
    limit_bytes = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return REPORT_MAX_BYTES if limit_bytes == resource.RLIM_INFINITY else min(REPORT_MAX_BYTES, limit_bytes - 1)


def _asset(path: str, missing: list[str]) -> dict[str, bytes]:
    """Read the asset. Without it there is a report all the same."""
    try:
        return read_asset(path, missing)
    except BadInput as error:
        missing.append(f"the asset: {error}")
    except OSError as error:
        missing.append(f"the asset: {error.strerror}")
    return {}


def _kept(path: str, stack: ExitStack) -> dict[int, Pread]:
    """Open what the asset has of mapped files, as long as `stack` lasts. What of it could not be read has been said."""
    try:
        return stack.enter_context(kept_modules(path))
    except (BadInput, OSError):
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
