# SPDX-License-Identifier: Apache-2.0
"""Where functions begin, by the symbols of their files, and whether a call of one may have led into another.

It tells a call that is under way from one that is over, and has left its return address on the stack. Where neither symbols nor
code tell, it may have.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections.abc import Callable

from coresnap.ground.elf_file import SHT_DYNSYM, SHT_SYMTAB, ElfFile
from coresnap.ground.errors import BadInput
from coresnap.snapshot.images import Images
from coresnap.snapshot.modules import Modules
from coresnap.snapshot.symbols import ENTRY, STT_FUNC

#: How much is read of all symbol tables: 700,000 symbols.
_TABLES_MAX_BYTES = 16 << 20
#: How large a function may be whose code is looked through, and all of them, which takes 2 s at worst; where one may lead to.
_BODY_MAX_BYTES = 16 << 10
_BODIES_MAX_BYTES = 512 << 10
_LEADS_MAX = 64
#: How many jumps may follow one another, and how many functions they may lead to.
_JUMPS_MAX = 3
_REACHED_MAX = 64
#: Jumps by a displacement of 4 bytes or of 1, always or on a condition, wherever an instruction may begin.
_DIRECT = re.compile(rb"(?=(?:\xe9|\x0f[\x80-\x8f])(.{4})|[\xeb\x70-\x7f](.))", re.DOTALL)
#: Jumps to where a register or memory tells; not the end of a displacement that leads back, by less than 4 MB, nor a jump into a
#: switch, whose table has distances.
_INDIRECT = re.compile(
    rb"(?<![\xe8\xe9]..[\xc0-\xff])(?<!\x0f[\x80-\x8f]..[\xc0-\xff])(?<![\x48-\x4f]\x01.)(?<![\x48-\x4f]\x01.\x3e)"
    rb"\xff[\x20-\x27\x60-\x67\xa0-\xa7\xe0-\xe7]",
    re.DOTALL,
)


class Functions:
    """The functions of all modules, at their addresses in the process. A module's symbols are read when one of it is asked for."""

    def __init__(self, modules: Modules, images: Images, read: Callable[[int, int], bytes]) -> None:
        self._modules = modules
        self._images = images
        self._read = read
        self._left_bytes = _TABLES_MAX_BYTES
        self._left_code_bytes = _BODIES_MAX_BYTES
        self._starts: dict[int, array[int]] = {}
        self._jumps: dict[int, list[int] | None] = {}

    def leads(self, target: int, address: int) -> bool | None:
        """Say whether the function that has `target` may lead to `address`: by having it, or by jumps, as tail calls are.

        None: that cannot be told.
        """
        reached, new = {target}, [target]
        is_known = True
        for _jump in range(_JUMPS_MAX + 1):
            found: set[int] = set()
            for start in new:
                end = self._end(start)
                if end is not None and start <= address <= end:  # behind a call that never returns the next one begins
                    return True
                leads = self._jumps_of(start, end) if end is not None else None
                is_known = is_known and leads is not None
                found.update(leads or ())
            new = list(found - reached)
            reached |= found
            if len(reached) > _REACHED_MAX:
                return None
        return False if is_known and not new else None

    def _end(self, start: int) -> int | None:
        """Return where the next function begins that a symbol tells of."""
        module = self._modules.find(start)
        if module is None:
            return None
        starts = self._starts.get(module.start)
        if starts is None:
            image = self._images.image(module)
            files = [*([image.file] if image.file else []), *image.debug]
            found = {at + image.bias for file in files for at in self._starts_in(file)}
            starts = self._starts[module.start] = array("Q", sorted(at for at in found if 0 <= at < module.end))
        index = bisect_right(starts, start)
        return starts[index] if index < len(starts) else None

    def _starts_in(self, file: ElfFile) -> list[int]:
        """Return where functions that have a size begin in a file."""
        result: list[int] = []
        for section in file.sections():
            if section.type not in (SHT_DYNSYM, SHT_SYMTAB) or section.size_bytes > self._left_bytes:
                continue
            self._left_bytes -= section.size_bytes
            try:
                data = file.contents(section, section.size_bytes)
            except BadInput:
                continue
            entries = ENTRY.iter_unpack(data[: len(data) - len(data) % ENTRY.size])
            result += [start for word, start, size in entries if size and word >> 32 & 15 == STT_FUNC and word >> 48]
        return result

    def _jumps_of(self, start: int, end: int) -> list[int] | None:
        """Return where jumps lead out of what is from `start` to `end`; None where that is not known."""
        if start not in self._jumps:
            size_bytes = end - start
            body = self._read(start, size_bytes) if size_bytes <= min(_BODY_MAX_BYTES, self._left_code_bytes) else b""
            self._left_code_bytes -= len(body)
            leads: set[int] | None = None
            if len(body) == size_bytes and not _INDIRECT.search(body):
                leads = {start + _to(jump) for jump in _DIRECT.finditer(body)}
                module = self._modules.find(start)
                leads = {to for to in leads if not start <= to < end and self._modules.find(to) is module}
            self._jumps[start] = None if leads is None or len(leads) > _LEADS_MAX else list(leads)
        return self._jumps[start]


def _to(jump: re.Match[bytes]) -> int:
    """Return where a jump leads, in bytes from where the code begins that it was found in."""
    group = jump.lastindex or 0
    return jump.end(group) + int.from_bytes(jump[group], "little", signed=True)
