# SPDX-License-Identifier: Apache-2.0
"""Where the bytes of a module are: in the core, in the file that was mapped, in what archive kept of it, in debug files.

A file counts only if its build-id is that of the module in the core: the file under the same path may be of another build, or
of another mount namespace. Go's linker has a build-id of its own. Of a module without any there is what archive kept of it alone.
"""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Mapping, Sequence
from functools import partial

from coresnap.ground.elf_file import ElfFile, Pread
from coresnap.ground.errors import BadInput
from coresnap.snapshot.core import Core, pread
from coresnap.snapshot.modules import VDSO, Module

#: Debug files of the distribution; those that `coresnap symbols fetch` has fetched.
DISTRIBUTED, FETCHED = "/usr/lib/debug", "/var/cache/coresnap/debug"
DEBUG_DIRECTORIES = (DISTRIBUTED, FETCHED)
_FILES_OPEN_MAX = 512
_PAGE_BYTES = 4096
_DEBUGLINK_MAX_BYTES = 1 << 30


class Image:
    """A module, and the ELF files that tell of it: `file` as it was mapped, `debug` those that have more symbols.

    An address of the process is `bias` above the one in the files.
    """

    def __init__(self, module: Module, bias: int) -> None:
        self.module = module
        self.bias = bias
        self.file: ElfFile | None = None
        self.debug: list[ElfFile] = []
        self.missing = ""


class Images:
    """The modules' images; each is looked for when it is asked for first."""

    def __init__(
        self,
        core: Core,
        kept: Mapping[int, Pread],
        debug_directories: Sequence[str] = DEBUG_DIRECTORIES,
        root: str = "",
    ) -> None:
        """`kept` is, by the modules' start, what archive kept of files that could not be reached later."""
        self._core = core
        self._kept = kept
        self.debug_directories = debug_directories
        self._root = root
        self._images: dict[int, Image] = {}
        self._fds: list[int] = []

    def close(self) -> None:
        """Close the files."""
        while self._fds:
            os.close(self._fds.pop())
        self._images.clear()

    def image(self, module: Module) -> Image:
        """Return the image of a module; what of it could not be had is said in `missing`."""
        image = self._images.get(module.start)
        if image is None:
            image = self._images[module.start] = self._find(module)
        return image

    def missing(self) -> dict[int, str]:
        """Return, by their start, of which modules more was asked for than the core has and no file does, and why."""
        return {start: image.missing for start, image in self._images.items() if image.missing}

    def _find(self, module: Module) -> Image:
        image = Image(module, module.bias)
        if module.path == VDSO:
            image.file = self._in_memory(module)
            return image
        path = self._root + module.path.removesuffix(" (deleted)")
        image.file = self._open_matching(module, path, image)
        kept = self._kept.get(module.start)
        if image.file is None and kept is not None:
            image.file = self._kept_file(module, kept)
            image.missing = "" if image.file else image.missing
        image.debug = self._debug_files(module, image.file)
        return image

    def _in_memory(self, module: Module) -> ElfFile | None:
        """The vDSO is no file: the core has all of it, and its offsets are its addresses."""
        memory, start = self._core.memory, module.start
        size_bytes = module.end - start + _PAGE_BYTES - 1 & ~(
            _PAGE_BYTES - 1
        )  # its section headers are behind its segment
        try:
            return ElfFile(lambda count, at: memory.read(start + at, min(count, size_bytes - at)), module.path)
        except BadInput:
            return None

    def _kept_file(self, module: Module, kept: Pread) -> ElfFile | None:
        """It was read through the process's own mapping: it may count where the core has no build-id to hold it against."""
        file = self._matching(module, kept, module.path)
        if file is None and not (module.build_id or module.go_build_id):
            try:
                file = ElfFile(kept, module.path)
            except BadInput:
                return None
        return file

    def _matching(self, module: Module, read: Pread, name: str) -> ElfFile | None:
        try:
            file = ElfFile(read, name)
        except BadInput:
            return None
        if module.build_id:
            return file if file.build_id() == module.build_id else None
        return file if module.go_build_id and file.go_build_id() == module.go_build_id else None

    def _open_matching(self, module: Module, path: str, image: Image) -> ElfFile | None:
        fd = self._open(path)
        if fd is None:
            image.missing = "its file is not there"
            return None
        file = self._matching(module, partial(pread, fd), module.path)
        if file is None:
            image.missing = "its file is of another build" if module.build_id else "the core has no build-id of it"
        return file

    def _open(self, path: str) -> int | None:
        if len(self._fds) >= _FILES_OPEN_MAX or not path.startswith("/") or "\0" in path:
            return None
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError:
            return None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            return None
        self._fds.append(fd)
        return fd

    def _debug_files(self, module: Module, file: ElfFile | None) -> list[ElfFile]:
        """By build-id, else by .gnu_debuglink, whose CRC-32 has to be right. GDB's manual, "Separate Debug Files"."""
        result = []
        if module.build_id:
            tail = f".build-id/{module.build_id[:2]}/{module.build_id[2:]}.debug"
            for directory in self.debug_directories:
                fd = self._open(f"{self._root}{directory}/{tail}")
                found = self._matching(module, partial(pread, fd), module.path) if fd is not None else None
                if found:
                    result.append(found)
                    break
        link = file.debuglink() if file and not result else None
        if link:
            found = self._by_debuglink(module, *link)
            result += [found] if found else []
        return result

    def _by_debuglink(self, module: Module, name: str, crc: int) -> ElfFile | None:
        directory = os.path.dirname(module.path)
        own = (f"{directory}/{name}", f"{directory}/.debug/{name}")
        for path in (*own, *(f"{root}{directory}/{name}" for root in self.debug_directories)):
            fd = self._open(self._root + path)
            if fd is not None and path != module.path and _crc(fd) == crc:
                try:
                    return ElfFile(partial(pread, fd), module.path)
                except BadInput:
                    continue
        return None


def _crc(fd: int) -> int | None:
    """Return the CRC-32 of a file; None of one that is too large to be read for that."""
    if os.fstat(fd).st_size > _DEBUGLINK_MAX_BYTES:
        return None
    crc = at = 0
    while data := os.pread(fd, 1 << 20, at):
        crc, at = zlib.crc32(data, crc), at + len(data)
    return crc
