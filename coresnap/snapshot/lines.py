# SPDX-License-Identifier: Apache-2.0
"""Lines of sources and inlined calls by drgn, and Python's frames by pystack, where these packages are installed.

Both run in a child each, with limits: neither their time nor their crash costs the report. What they say is bounded and typed
here, for it is made of what stands in a core and in debug files. Where they are not installed nothing is started.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Iterator
from typing import Any

from coresnap.ground import program
from coresnap.ground.errors import Refused
from coresnap.snapshot.frames import TEXT_MAX, Place
from coresnap.snapshot.images import DEBUG_DIRECTORIES

DRGN, PYSTACK = "drgn", "pystack"
_TIMEOUT_USEC = 30_000_000
_MEMORY_BYTES = 1 << 30
_ANSWER_MAX_BYTES = 16 << 20
_ADDRESSES_MAX = 20_000
_THREADS_MAX = 4096
_FRAMES_MAX = 1000
_LINE_MAX = 1 << 31


class Located:
    """Places by address of the process, innermost first; Python's frames by thread id; why there are not more."""

    def __init__(self) -> None:
        self.places: dict[int, tuple[Place, ...]] = {}
        self.python: dict[int, tuple[Place, ...]] = {}
        self.missing: list[str] = []


def is_installed(package: str) -> bool:
    """Say whether an interpreter with packages would find this one; ours sees the standard library alone."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    prefixes = (os.path.dirname(os.path.dirname(sys.executable)), sys.prefix)
    places = [f"{prefix}/lib/{version}/site-packages" for prefix in prefixes]
    places += [f"/usr/local/lib/{version}/dist-packages", "/usr/lib/python3/dist-packages"]
    return any(os.path.exists(f"{place}/{package}/__init__.py") for place in places)


def locate(
    core_fd: int,
    addresses: Collection[int],
    *,
    python: str = "",
    debug_directories: Collection[str] = DEBUG_DIRECTORIES,
) -> Located:
    """Look for the places of these addresses (Frame.lookup), and for Python's frames where `python` is its executable."""
    result = Located()
    if addresses and is_installed(DRGN):
        few = sorted(addresses)[:_ADDRESSES_MAX]
        request = {"by": DRGN, "addresses": few, "debug_directories": [*debug_directories]}
        result.places = {
            address: _outermost(places) for address, places in _rows(_ask(request, core_fd, result), _ADDRESSES_MAX)
        }
    if python and is_installed(PYSTACK):
        answer = _ask({"by": PYSTACK, "executable": python}, core_fd, result)
        result.python = {tid: tuple(places) for tid, places in _rows(answer, _THREADS_MAX)}
    return result


def _outermost(places: list[Place]) -> tuple[Place, ...]:
    """Leave the name of the function itself to the symbol table, which has it whole."""
    return (*places[:-1], places[-1]._replace(function=""))


def _ask(request: dict[str, Any], core_fd: int, result: Located) -> Any:
    """Have a child look; return its answer, None where there is none."""
    from coresnap.ground import runner

    request_fd, answer_fd = (os.memfd_create(f"coresnap {name}", os.MFD_CLOEXEC) for name in ("request", "answer"))
    try:
        os.write(request_fd, json.dumps(request | {"core_fd": core_fd}).encode())
        os.lseek(request_fd, 0, os.SEEK_SET)
        ended = runner.run(
            program.argv_of("locate", packages=True),
            timeout_usec=_TIMEOUT_USEC,
            stdin=request_fd,
            output=answer_fd,
            pass_fds=(core_fd,),
            memory_bytes=_MEMORY_BYTES,
            file_size_bytes=_ANSWER_MAX_BYTES,
        )
        if ended.status or ended.timed_out:
            result.missing.append(f"{request['by']}: {ended.ending()}"[:TEXT_MAX])
            return None
        return json.loads(os.pread(answer_fd, _ANSWER_MAX_BYTES, 0))
    except (Refused, OSError, ValueError, RecursionError) as error:
        result.missing.append(f"{request['by']}: {error}"[:TEXT_MAX])
        return None
    finally:
        os.close(request_fd)
        os.close(answer_fd)


def _rows(answer: Any, most: int) -> Iterator[tuple[int, list[Place]]]:
    """Yield number and places of an answer's members, as far as they are what they must be."""
    for key, rows in list(answer.items())[:most] if isinstance(answer, dict) else ():
        if not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 20 and isinstance(rows, list)):
            continue
        places = [place for row in rows[:_FRAMES_MAX] if (place := _place(row)) is not None]
        if places:
            yield int(key), places


def _place(row: Any) -> Place | None:
    if not isinstance(row, list) or len(row) != 4:
        return None
    function, path, line, column = row
    if not isinstance(function, str) or not isinstance(path, str) or type(line) is not int or type(column) is not int:
        return None
    if not (0 <= line < _LINE_MAX and 0 <= column < _LINE_MAX):
        return None
    return Place(function[:TEXT_MAX], path[:TEXT_MAX], line, column)
