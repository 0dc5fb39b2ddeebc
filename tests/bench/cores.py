# SPDX-License-Identifier: Apache-2.0
"""The cores that are measured with: a large synthetic one, and a small one of a real crash."""

from __future__ import annotations

import struct
from pathlib import Path

_BLOCK_BYTES = 1 << 20
_PAGE_BYTES = 4096


def nonzero_page_bytes(core: Path) -> int:
    """Return the size of the pages of a file that are not all zeros."""
    zero_block, zero_page = bytes(_BLOCK_BYTES), bytes(_PAGE_BYTES)
    found_bytes = 0
    with core.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            if block != zero_block:
                pages = range(0, len(block), _PAGE_BYTES)
                found_bytes += sum(_PAGE_BYTES for at in pages if not zero_page.startswith(block[at : at + _PAGE_BYTES]))
    return found_bytes
import sys; sys.path.insert(0,"/tmp"); import mk
def large(p): mk.write(p, 1200<<20)
def small(p): mk.write(p, 2<<20)
def executable(): return "/bin/true"
