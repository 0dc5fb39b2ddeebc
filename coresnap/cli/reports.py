# SPDX-License-Identifier: Apache-2.0
"""A report as people are shown it: read from JSON that anybody may have written, threads with equal stacks together.

Backtrace's JSON format; of what is not as expected nothing is shown, and nothing fails.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any

_TEXT_MAX = 4096
_ITEMS_MAX = 65536


@dataclass(frozen=True)
class Frame:
    """A frame; what is not known is empty, or 0. `offset` is that in its library's memory."""

    address: int
    function: str = ""
    library: str = ""
    offset: int = 0
    path: str = ""
    line: int = 0
    guessed: bool = False
    found: str = ""

    @property
    def file(self) -> str:
        """The library's name without its directory."""
        return os.path.basename(self.library)

    @property
    def key(self) -> tuple[str | int, str]:
        """What the frame is told from others by: its function, or its address where that is not known."""
        return self.function or self.address, self.library

    @property
    def place(self) -> str:
        """Path and line in the source."""
        return f"{self.path}:{self.line}" if self.path and self.line else self.path


@dataclass(frozen=True)
class Thread:
    """A thread's id and name."""

    tid: str
    name: str


@dataclass(frozen=True)
class Stack:
    """Frames, innermost first, and the threads that have them; `left_out` frames are not listed behind the `at`th.

    `python` are those of the interpreter, where they are known.
    """

    threads: list[Thread]
    frames: list[Frame]
    fault: bool
    registers: dict[str, int]
    end: str = ""
    left_out: int = 0
    left_out_at: int = 0
    python: list[Frame] = field(default_factory=list)


@dataclass(frozen=True)
class Module:
    """A mapped ELF file."""

    path: str
    start: int
    size: int
    build_id: str
    package: str


@dataclass(frozen=True)
class Report:
    """A report. The stack of the thread that crashed is the first one."""

    message: str = ""
    runtime: str = ""
    classifiers: list[str] = field(default_factory=list)
    fingerprint: str = ""
    made_of: list[str] = field(default_factory=list)
    signal: dict[str, Any] = field(default_factory=dict)
    stacks: list[Stack] = field(default_factory=list)
    modules: list[Module] = field(default_factory=list)
    attributes: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    memory: tuple[int, str] = (0, "")
    missing: list[str] = field(default_factory=list)


def parse(data: bytes) -> Report | None:
    """Read a report; None where the data are no JSON object."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    attributes, annotations = _object(document.get("attributes")), _object(document.get("annotations"))
    modules = [_module(_object(one)) for one in _list(document.get("modules"))]
    regions = _list(document.get("memory"))
    region = _object(regions[0]) if regions else {}
    return Report(
        message=_text(attributes.get("error.message")),
        runtime=_runtime(document),
        classifiers=_texts(document.get("classifiers")),
        fingerprint=_text(document.get("fingerprint")),
        made_of=_texts(annotations.get("fingerprint")),
        signal=_object(annotations.get("siginfo")),
        stacks=_stacks(document, annotations, {module.path: module.start for module in reversed(modules)}),
        modules=modules,
        attributes={str(key): str(value)[:_TEXT_MAX] for key, value in attributes.items()},
        environment={str(key): str(value) for key, value in _object(annotations.get("environment")).items()},
        memory=(_number(region.get("start")), region["data"] if isinstance(region.get("data"), str) else ""),
        missing=[*_texts(annotations.get("missing")), *_unread(document)],
    )


def _runtime(document: dict[str, Any]) -> str:
    """Return the language and its version; a C program has nothing that is worth a line."""
    language, version = _text(document.get("lang")), _text(document.get("langVersion"))
    return " ".join([language, version] if version != "unknown" else [language]).strip() if language != "c" else ""


def _stacks(document: dict[str, Any], annotations: dict[str, Any], starts: dict[str, int]) -> list[Stack]:
    """Return the stacks of all threads, equal ones once: of the same functions, or addresses where these are not known."""
    notes: dict[str, dict[str, Any]] = {}
    for note in map(_object, _list(annotations.get("stacks"))):
        notes.update(dict.fromkeys(_texts(note.get("threads")), note))
    sources = {key: _text(_object(one).get("path")) for key, one in _object(document.get("sourceCode")).items()}
    interpreted = _object(annotations.get("python"))
    main, known = document.get("mainThread"), dict[tuple[Any, ...], Stack]()
    listed = sorted(_object(document.get("threads")).items(), key=lambda item: item[0] != main)
    for tid, thread in ((tid, _object(one)) for tid, one in listed[:_ITEMS_MAX]):
        note = notes.get(tid, {})
        entries = [_object(one) for one in _list(thread.get("stack"))]
        found = _texts(note.get("found"))
        frames = [
            _frame(one, how, sources, starts) for one, how in zip(entries, [*found, *[""] * len(entries)], strict=False)
        ]
        fault = thread.get("fault") is True
        end = ": ".join(filter(None, (_text(note.get("end")), _text(note.get("detail")))))
        left_out = _number(note.get("left_out"))
        names = tuple(frame.key for frame in frames)
        python = [_frame_of_python(_object(one)) for one in _list(interpreted.get(tid))]
        key = (fault, tid == main, names, end, left_out, tuple((frame.function, frame.place) for frame in python))
        if key not in known:
            registers = {
                name: _number(value)
                for name, value in _object(entries[0].get("registers") if entries else None).items()
            }
            known[key] = Stack([], frames, fault, registers, end, left_out, _number(note.get("left_out_at")), python)
        known[key].threads.append(Thread(tid, _text(thread.get("name"))))
    return list(known.values())


def _frame(entry: dict[str, Any], found: str, sources: dict[str, str], starts: dict[str, int]) -> Frame:
    address, library = _number(entry.get("address")), _text(entry.get("library"))
    start = starts.get(library, 0)
    return Frame(
        address=address,
        function=_text(entry.get("funcName")),
        library=library,
        offset=address - start if 0 < start <= address else 0,
        path=sources.get(str(entry.get("sourceCode", "")), ""),
        line=_number(entry.get("line")),
        guessed=entry.get("guessed_frame") is True,
        found=found,
    )


def _frame_of_python(entry: dict[str, Any]) -> Frame:
    return Frame(0, _text(entry.get("funcName")), path=_text(entry.get("path")), line=_number(entry.get("line")))


def _module(entry: dict[str, Any]) -> Module:
    package = _object(entry.get("package"))
    named = " ".join(filter(None, (_text(package.get("name")), _text(package.get("version")))))
    numbers = _number(entry.get("start")), _number(entry.get("size"))
    return Module(_text(entry.get("path")), *numbers, _text(entry.get("build_id")), named)


def _unread(document: dict[str, Any]) -> list[str]:
    """Return of which modules names or unwind tables were wanted that could not be read, and why."""
    told = ((_text(one.get("path")), _text(one.get("missing"))) for one in map(_object, _list(document.get("modules"))))
    return [f"names of {path}: {why}" for path, why in told if why]


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value[:_ITEMS_MAX] if isinstance(value, list) else []


def _text(value: Any) -> str:
    return value[:_TEXT_MAX] if isinstance(value, str) else ""


def _texts(value: Any) -> list[str]:
    return [_text(one) for one in _list(value) if isinstance(one, str)]


def _number(value: Any) -> int:
    """Return a number, which may stand in a text, as 64-bit ones do; 0 where it is none."""
    if isinstance(value, int):
        return value if 0 <= value < 1 << 64 else 0
    text = value if isinstance(value, str) else ""
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else 0
    return number if number < 1 << 64 else 0
