# SPDX-License-Identifier: Apache-2.0
"""What language's runtime a process was, by the files that it had mapped: frames are native ones, whatever ran above them.

Go: its note in the executable, and .go.buildinfo (debug/buildinfo of Go's standard library); Rust: what rustc leaves in .comment;
C++: the library that the executable asks for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from coresnap.ground import elf
from coresnap.ground.elf_file import ElfFile
from coresnap.ground.errors import BadInput
from coresnap.snapshot.core import Core
from coresnap.snapshot.images import Images
from coresnap.snapshot.modules import AT_ENTRY, Module, Modules

_COMMENT_MAX_BYTES = 64 << 10
_NAMES_MAX_BYTES = 32 << 20
_PIECE_BYTES = 1 << 18
_NOTES_MAX_BYTES = 64 << 10
_GO_MAGIC = b"\xff Go buildinf:"
_GO_INLINE, _GO_VERSION_AT = 2, 32
_RUST = re.compile(rb"rustc version (\d[\w.+-]{0,40})")
_DIGITS = r"(\d{1,3}(?:\.\d{1,3}){0,2})"
#: The files that CPython is in, by their names.
PYTHON = re.compile(rf"(?:lib)?python{_DIGITS}[dmtu]{{0,2}}(?:\.so[.\d]*)?")


class Runtime(NamedTuple):
    """A runtime, its version where it is known, and the language; `name` is empty where there is none to speak of."""

    name: str
    version: str
    lang: str


#: By the names of files, of the executable first: what the runtime is called, and its language.
_FILES = (
    (PYTHON, "CPython", "python"),
    (re.compile(r"libjvm\.so"), "JVM", "java"),
    (re.compile(r"node(?:js)?|libnode\.so[.\d]*"), "Node.js", "nodejs"),
    (re.compile(r"libcoreclr\.so"), ".NET", "csharp"),
    (re.compile(rf"lib(?:ruby)[\w.-]*?\.so(?:\.{_DIGITS})?|ruby{_DIGITS}?"), "Ruby", "ruby"),
    (re.compile(rf"libperl\.so\.{_DIGITS}|perl{_DIGITS}?"), "Perl", "perl"),
    (re.compile(rf"(?:lib)?php(?:-fpm|-cgi)?{_DIGITS}?(?:\.so)?"), "PHP", "php"),
    (re.compile(r"beam(?:\.smp)?"), "BEAM", "erlang"),
)
_JAVA = re.compile(r"/(?:java|jdk|jre|openjdk)-?v?(\d{1,2}(?:[._]\d{1,3}){0,3})")
#: Texts among the names of an executable's dynamic symbols.
_NODE_EXPORTS = b"_ZN4node5Start"
_CXX_NEEDS = (b"libstdc++.so", b"libc++.so")


def identify(core: Core, listed: Modules, images: Images) -> Runtime:
    """Return the runtime of a process. A file that is not what it is called is believed."""
    main = listed.find(core.notes.auxv.get(AT_ENTRY, 0))
    file = _file(core, main, images) if main else None
    go = _go(file) if file else None
    if go is not None:
        return Runtime("Go", go, "go")
    by_path = [main, *listed.listed] if main else listed.listed
    for module in by_path:
        for pattern, name, lang in _FILES:
            found = pattern.fullmatch(os.path.basename(module.path.removesuffix(" (deleted)")))
            if found:
                version = next((group for group in found.groups() if group), "")
                return Runtime(name, version or (_java(module) if lang == "java" else ""), lang)
    texts = _texts(file, (_NODE_EXPORTS, *_CXX_NEEDS)) if file else set()
    if _NODE_EXPORTS in texts:
        return Runtime("Node.js", "", "nodejs")
    rust = _rust(file) if file else None
    if rust is not None:
        return Runtime("", rust, "rust")
    return Runtime("", "", "c++" if texts else "c")


def hint(runtime: Runtime, variables: dict[str, str]) -> str:
    """Return what would have the next crash tell more; nothing where nothing is known. `variables` are of its environment."""
    if runtime.name == "Go" and variables and variables.get("GOTRACEBACK") not in ("crash", "wer"):
        return "without GOTRACEBACK=crash in its environment a Go program leaves no core when it panics"
    return ""


def _file(core: Core, main: Module, images: Images) -> ElfFile | None:
    """Return the executable: its file, else as much of it as the core has."""
    image = images.image(main)
    if image.file:
        return image.file
    try:
        return ElfFile(lambda count, at: core.memory.read(main.start + at, count), main.path)
    except BadInput:
        return None


def _go(file: ElfFile) -> str | None:
    """Return the version of Go that made a program, empty where it does not say; None where another language did."""
    info = file.section(".go.buildinfo")
    if info:
        data = file.read(info.offset, min(info.size_bytes, 4096))
        if data.startswith(_GO_MAGIC) and len(data) > _GO_VERSION_AT and data[15] & _GO_INLINE:
            length = data[_GO_VERSION_AT]  # a varint; a version is shorter than 128
            version = data[_GO_VERSION_AT + 1 : _GO_VERSION_AT + 1 + length].decode("ascii", "replace")
            return version.removeprefix("go")[:64] if length < 128 and version.isprintable() else ""
        return ""
    return "" if any(name == "Go" for name in _notes(file)) else None


def _notes(file: ElfFile) -> Iterator[str]:
    for segment in file.segments:
        if segment.type == elf.PT_NOTE:
            data = file.read(segment.offset, min(segment.filesz, _NOTES_MAX_BYTES))
            yield from (name for name, _kind, _at, _size in elf.iter_notes(data))


def _rust(file: ElfFile) -> str | None:
    comment = file.section(".comment")
    if comment is None:
        return None
    found = _RUST.search(file.read(comment.offset, min(comment.size_bytes, _COMMENT_MAX_BYTES)))
    return found[1].decode() if found else None


def _java(module: Module) -> str:
    """Return the version that the path of a JVM tells."""
    found = _JAVA.findall(module.path)
    return found[-1].replace("_", ".") if found else ""


def _texts(file: ElfFile, texts: tuple[bytes, ...]) -> set[bytes]:
    """Return which of these stand among the names of the dynamic symbols, where needed libraries are named as well."""
    section = file.section(".dynstr")
    found: set[bytes] = set()
    if section is None:
        return found
    end = section.offset + min(section.size_bytes, _NAMES_MAX_BYTES)
    for at in range(section.offset, end, _PIECE_BYTES):
        data = file.read(at, min(_PIECE_BYTES + 64, end - at))
        found |= {text for text in texts if text in data}
        if len(data) < _PIECE_BYTES or len(found) == len(texts):
            break
    return found
