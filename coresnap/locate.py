#!/usr/bin/python3 -I
# SPDX-License-Identifier: Apache-2.0
"""coresnap locate - where in their sources frames are, by drgn, or Python's frames, by pystack

DESCRIPTION
    Started by coresnap-snapshot where one of these packages is installed, once for each, with the core's open descriptor,
    a JSON request on standard input and a file for the answer on standard output. It is a program of its own because it
    loads foreign code, which reads a core and debug files that may be hostile: what becomes of it is no concern of the
    report's.

EXIT STATUS
    0 the answer is written; 1 it failed: the last line of standard error says why.
"""

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

import json
from collections.abc import Iterator
from typing import Any

_PLACES_MAX = 64
_FRAMES_MAX = 1000


def main() -> int:
    """Answer the request on standard input; return the exit status."""
    request = json.load(sys.stdin)
    answer = {"drgn": _drgn, "pystack": _pystack}[request["by"]](request)
    json.dump(answer, sys.stdout)
    return 0


def _drgn(request: dict[str, Any]) -> dict[str, list[list[Any]]]:
    """Return, by address, (function, path, line, column) of each inlined call and of the function itself, innermost first."""
    import drgn

    program = drgn.Program()
    program.set_core_dump(request["core_fd"])
    program.set_enabled_debug_info_finders(["standard"])  # debuginfod's is not asked
    program.debug_info_options.directories = tuple(request["debug_directories"])
    addresses = request["addresses"]
    wanted = [module for module, _is_new in program.loaded_modules() if any(_has(module, one) for one in addresses)]
    try:
        program.load_module_debug_info(*wanted)
    except drgn.MissingDebugInfoError:
        pass  # of some, as of the vDSO
    return {str(address): found for address in addresses if (found := list(_locations(program, address)))}


def _has(module: Any, address: int) -> bool:
    """Say whether a module has an address; older versions of drgn know one range of it."""
    ranges = module.address_ranges if hasattr(module, "address_ranges") else [module.address_range]
    return any(start <= address < end for start, end in filter(None, ranges or ()))


def _locations(program: Any, address: int) -> Iterator[list[Any]]:
    try:
        found = program.source_location(address)
    except LookupError:
        return
    for index in range(min(len(found), _PLACES_MAX)):
        place = found[index]
        name = place.name() if callable(place.name) else place.name
        yield [name or "", place.filename or "", place.line, place.column]


def _pystack(request: dict[str, Any]) -> dict[str, list[list[Any]]]:
    """Return, by thread id, (function, path, line, column) of each frame of Python, innermost first."""
    from pystack.engine import NativeReportingMode, get_process_threads_for_core

    core = f"/proc/self/fd/{request['core_fd']}"
    found = get_process_threads_for_core(core, request["executable"], native_mode=NativeReportingMode.PYTHON)
    return {str(thread.tid): _frames(thread) for thread in found}


def _frames(thread: Any) -> list[list[Any]]:
    frames = [(frame.code, frame.code.location) for frame in list(thread.frames)[-_FRAMES_MAX:]]
    return [[code.scope, code.filename, place.lineno, max(0, place.column)] for code, place in reversed(frames)]


if __name__ == "__main__":
    sys.exit(main())
