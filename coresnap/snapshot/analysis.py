# SPDX-License-Identifier: Apache-2.0
"""What the report tells of a core beyond what stands in it: stacks, names, the error's message, what kind of crash it was."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from coresnap.snapshot import message, modules, runtimes, signals
from coresnap.snapshot.classify import Crash, classify
from coresnap.snapshot.contents import Contents
from coresnap.snapshot.core import Core
from coresnap.snapshot.demangle import demangle_type
from coresnap.snapshot.earlier import earlier
from coresnap.snapshot.fingerprint import Fingerprint, fingerprint
from coresnap.snapshot.frames import Frames, Naming, Place, Places
from coresnap.snapshot.images import Images
from coresnap.snapshot.lines import Located, locate
from coresnap.snapshot.modules import AT_ENTRY, Modules
from coresnap.snapshot.names import Names
from coresnap.snapshot.notes import Signal, Thread
from coresnap.snapshot.runtimes import Runtime
from coresnap.snapshot.stacks import Stack
from coresnap.snapshot.unwind.unwinder import Unwinder


class Analysis(NamedTuple):
    """What was found. `stacks` are by thread id, those of all threads; `python` Python's frames of those that have some.

    `earlier` is the signal from whose handler the one was sent that killed.
    `unread` says, by the modules' start, why of one in question no more is known than the core has.
    """

    listed: Modules
    frames: Frames
    stacks: dict[int, Stack]
    message: str
    earlier: Signal | None
    classifiers: list[str]
    fingerprint: Fingerprint
    runtime: Runtime
    python: dict[int, tuple[Place, ...]]
    missing: list[str]
    unread: dict[int, str]


def analyse(
    core: Core,
    images: Images,
    *,
    stack: Callable[[Thread], Stack] | None = None,
    names: Naming | None = None,
    places: Places | None = None,
) -> Analysis:
    """Return all that can be found. What cannot is left out, and `missing` says what that is."""
    listed = modules.list_modules(core)
    own_names = Names(images)
    unwinder = Unwinder(core, listed, images)
    crashed, *others = core.notes.threads
    found = {crashed.tid: (stack or unwinder.stack)(crashed)}
    found |= {thread.tid: (stack or unwinder.bare_stack)(thread) for thread in others}
    addresses = {frame.lookup for one in found.values() for frame in one.frames}
    runtime = runtimes.identify(core, listed, images)
    located = Located() if places else _locate(core, images, listed, runtime, addresses)
    frames = Frames(listed, names or own_names, places or (lambda _module, address: located.places.get(address, ())))
    frames.find(addresses)
    named = [frames.named(frame) for frame in found[crashed.tid].frames]
    contents = Contents(core, listed, images)
    said = message.find(core, contents, listed, named, demangle_type)
    signal, registers = core.notes.signal, crashed.registers()
    crash = Crash(core, contents, signal, registers, named, said.text, said.exception, said.of_python)
    classifiers = classify(crash)
    before = earlier(core, named)
    if before:
        first = Crash(core, contents, before.signal, before.frames[0].frame.registers, before.frames)
        classifiers += [kind for kind in classify(first)[1:] if kind not in classifiers]
    cause = before.signal if before else signal
    main = listed.find(core.notes.auxv.get(AT_ENTRY, 0))
    mark = fingerprint(
        signals.name(cause.number) if cause else "",
        named,
        python=located.python.get(crashed.tid, ()),
        program=os.path.basename(main.path.removesuffix(" (deleted)")) if main else "",
        exception=said.exception,
        raised=crash.raised,
        overflow="stack-overflow" in classifiers,
    )
    missing = [*listed.missing, *unwinder.missing, *own_names.missing, *located.missing]
    return Analysis(
        listed,
        frames,
        found,
        said.text,
        before.signal if before else None,
        classifiers,
        mark,
        runtime,
        located.python,
        missing,
        images.missing(),
    )


def _locate(core: Core, images: Images, listed: Modules, runtime: Runtime, addresses: set[int]) -> Located:
    """Look for lines of sources, and for Python's frames, where there is an interpreter that is the one in the core."""
    main = listed.find(core.notes.auxv.get(AT_ENTRY, 0))
    is_python = main is not None and runtime.lang == "python" and images.image(main).file is not None
    python = main.path if main and is_python else ""
    return locate(core.memory.fd, addresses, python=python, debug_directories=images.debug_directories)
