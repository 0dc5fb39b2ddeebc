# SPDX-License-Identifier: Apache-2.0
"""Cores that lie: a report or a refusal, in bounded time and memory, and never a traceback."""

from __future__ import annotations

import json
import os
import random
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coresnap.ground import elf
from coresnap.ground.errors import BadInput
from coresnap.snapshot import modules, report
from coresnap.snapshot.core import open_core
from tests.corpus.material import core_spots
from tests.fixtures import cores
from tests.fixtures.cores import Load
from tests.unit.test_snapshot import VALIDATOR
from tests.unit.test_snapshot_program import run

_SEED = 20240517
_MUTATIONS = 1500
_MEMORY_BYTES = 256 << 20
_UUID = "11111111-2222-4333-8444-555555555555"
_INTERESTING = (0, 1, 2, 4, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**63, 2**64 - 1)


def _report(data: bytes) -> dict[str, Any] | None:
    """Return the report, held against its schema; None where the core is refused."""
    fd = os.memfd_create("core")
    try:
        os.pwrite(fd, data, 0)
        built = report.build(open_core(fd), {}, uuid=_UUID, executable="", more={"coresnap.object": _UUID}, missing=[])
    except BadInput:
        return None
    finally:
        os.close(fd)
    parsed: dict[str, Any] = json.loads(built)
    VALIDATOR.validate(parsed)
    return parsed


def _mutate(data: bytearray, chance: random.Random, spots: list[range]) -> None:
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        at = chance.choice(chance.choice(spots))
        kind = chance.randrange(4)
        if kind == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at] = chance.randrange(256)
        else:
            at -= at % (8 if kind == 2 else 4)
            layout = "<Q" if kind == 2 else "<I"
            value = chance.choice(_INTERESTING) & (2**64 - 1 if kind == 2 else 2**32 - 1)
            if at + struct.calcsize(layout) <= len(data):
                struct.pack_into(layout, data, at, value)


@pytest.mark.parametrize("which", ["real", "small"])
def test_mutated_cores(real_core: Path, which: str) -> None:
    whole = real_core.read_bytes() if which == "real" else cores.small()
    spots = core_spots(whole)
    chance = random.Random(_SEED)
    outcomes = {True: 0, False: 0}
    for _ in range(_MUTATIONS):
        data = bytearray(whole)
        _mutate(data, chance, spots)
        if chance.random() < 0.2:
            del data[chance.randrange(len(data)) :]
        outcomes[_report(bytes(data)) is not None] += 1
    assert min(outcomes.values()) > _MUTATIONS // 20, outcomes


def test_cut_at_every_structure(real_core: Path) -> None:
    whole = real_core.read_bytes()
    threads = []
    for spot in core_spots(whole):
        for cut in (spot.start, spot.start + 1, (spot.start + spot.stop) // 2, spot.stop - 1):
            found = _report(whole[:cut])
            threads.append((cut, len(found["threads"]) if found else 0))
    counts = [count for _cut, count in sorted(threads)]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 3)
    assert len(counts) > 50


def _many_threads() -> bytes:
    path = b"/" + b"\x01" * 1000
    notes = [cores.prstatus(0, [0] * 16 + [cores.BASE + 16]), cores.files((cores.BASE, cores.BASE + 4096, 0, path))]
    notes += [cores.prstatus(tid, [2**64 - 1] * 16 + [cores.BASE + 16, *[2**64 - 1] * 10]) for tid in range(1, 70000)]
    return cores.core(b"".join(notes), [Load(cores.BASE, cores.image(b"b" * 20))])


def _many_segments() -> bytes:
    count = elf.SEGMENTS_MAX - 1
    notes = cores.prstatus(1, [0] * 16 + [count * 16])
    phdr = struct.pack("<IIQQQQQQ", cores.PT_LOAD, 7, 64, 0, 0, 1, 1, 1)
    table = bytearray(phdr * count)
    for index in range(count):
        struct.pack_into("<Q", table, index * 56 + 16, (count - index) * 16)  # in the opposite order
    notes_at = 64 + 56 * (count + 1)
    first = struct.pack("<IIQQQQQQ", cores.PT_NOTE, 0, notes_at, 0, 0, len(notes), 0, 1)
    struct.pack_into("<Q", table, 8, notes_at + len(notes))
    head = bytearray(cores.core(b"")[:64])
    struct.pack_into("<H", head, 56, 0xFFFF)
    return bytes(head + first + table + notes + b"x")


def _many_modules() -> bytes:
    """Every one has the same page for its head, with as many headers and as large a package as are read."""
    count = 60000
    page = cores.image(b"b" * 20, b'{"name":"' + b"n" * 500 + b'"}', headers=40)
    entries = [(0x10000 + 4096 * n, 0x10000 + 4096 * (n + 1), 0, b"/lib/%d" % n) for n in range(count)]
    whole = bytearray(cores.core(cores.prstatus(1) + cores.files(*entries), [Load(0, b"")] * count))
    at = len(whole)
    for n in range(count):
        struct.pack_into("<IIQQQQ", whole, 64 + 56 * (n + 1), cores.PT_LOAD, 5, at, 0x10000 + 4096 * n, 0, 4096)
    return bytes(whole) + page


def _notes_of_nothing() -> bytes:
    """A hole of 4 GB as notes; it is made where it is written."""
    data = bytearray(cores.core(cores.prstatus(1)))
    struct.pack_into("<Q", data, 64 + 32, 4 << 30)
    return bytes(data)


def _deep_package() -> bytes:
    return cores.core(
        cores.prstatus(1) + cores.files((cores.BASE, cores.BASE + 4096, 0, b"/a")),
        [Load(cores.BASE, cores.image(b"b" * 20, b"[" * 3000))],
    )


def _names_of_nothing() -> bytes:
    """A list of files that claims as many as it can, and has nothing but the ends of names."""
    data = struct.pack("<QQ", 100000, 4096) + struct.pack("<QQQ", 1, 2, 0) * 100000
    return cores.core(cores.prstatus(1) + cores.note(cores.NT_FILE, data.ljust(elf.NOTE_MAX_BYTES - 64, b"\0")))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_many_threads, r"threads: \d+ of 65536, the report would be too large"),
        (_many_segments, ""),
        (_many_modules, r"modules: the first \d+"),
        (_notes_of_nothing, ""),
        (_deep_package, ""),
        (_names_of_nothing, ""),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_sizes_beyond_reason(tmp_path: Path, make: Callable[[], bytes], says: str) -> None:
    path, out = tmp_path / "core", tmp_path / "out"
    path.write_bytes(make())
    if make is _notes_of_nothing:
        os.truncate(path, 5 << 30)
    done = run(
        *("-o", out, "--core", path),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES)),
        timeout=10,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert out.stat().st_size <= 32 << 20
    document = json.loads(out.read_bytes())
    missing = document["annotations"].get("missing", [])
    if says:
        assert any(says.partition("\\d")[0] in text for text in missing), missing
    if make is not _many_threads and make is not _many_modules:
        VALIDATOR.validate(document)
    out.unlink()
    path.unlink()


def test_text_that_is_no_unicode() -> None:
    notes = cores.prstatus(1) + cores.prpsinfo(1, b"\xff\xfe\x1b", b"a\nb")
    notes += cores.files((cores.BASE, cores.BASE + 4096, 0, b"/\xc0\xaf\n"))
    page = cores.image(b"b" * 20, b'{"name": "\\ud800", "version": "\\u0000", "x": {"y": 1}}')
    found = _report(cores.core(notes, [Load(cores.BASE, page)]))
    assert found is not None
    assert found["annotations"]["command"] == "\ufffd\ufffd\x1b"
    assert found["modules"][0]["path"] == "/\ufffd\ufffd\n"
    assert found["modules"][0]["package"] == {"name": "?", "version": "\0"}


def test_threads_of_one_number() -> None:
    found = _report(cores.core(cores.prstatus(5, [7]) + cores.prstatus(6) + cores.prstatus(5, [8])))
    assert found is not None
    assert {tid: thread["fault"] for tid, thread in found["threads"].items()} == {"5": True, "6": False}
    assert found["threads"]["5"]["stack"][0]["registers"]["r15"] == "7"


def test_one_file_mapped_twice_is_two_modules() -> None:
    """The second run is no part of the first: what lies between is not its either."""
    low, high = cores.BASE, cores.BASE + 0x1000000
    page = cores.image(b"b" * 20)
    entries = [(base + 0x1000 * n, base + 0x1000 * (n + 1), n, b"/lib/a") for base in (low, high) for n in range(3)]
    small = cores.image(b"c" * 20, size_bytes=0x2000)  # its second segment lies in the same page of the file
    other = cores.BASE + 0x2000000
    entries += [(other, other + 0x1000, 0, b"/lib/b"), (other + 0x1000, other + 0x2000, 0, b"/lib/b")]
    loads = [Load(low, page), Load(high, page), Load(other, small), Load(other + 0x1000, small)]
    notes = cores.prstatus(1, [0] * 16 + [low + 0x800000]) + cores.files(*entries)
    found = _report(cores.core(notes, loads))
    assert found is not None
    extents = [(int(m["start"]), int(m["size"]), m["path"]) for m in found["modules"]]
    assert extents == [(low, 0x3000, "/lib/a"), (high, 0x3000, "/lib/a"), (other, 0x2000, "/lib/b")]
    assert "library" not in found["threads"]["1"]["stack"][0]


def test_a_module_at_its_own_address() -> None:
    """A fixed executable's addresses are those of its file."""
    page = cores.image(b"b" * 20, vaddr=cores.BASE, size_bytes=0x5000)
    found = _report(
        cores.core(cores.prstatus(1) + cores.files((cores.BASE, cores.BASE + 4096, 0, b"/a")), [Load(cores.BASE, page)])
    )
    assert found is not None
    (module,) = found["modules"]
    assert (module["build_id"], module["size"]) == ((b"b" * 20).hex(), str(0x5000))


def test_memory_over_the_borders_of_segments() -> None:
    loads = [Load(0x3000, b"cc"), Load(0x1000, b"a" * 0x1000), Load(0x2000, b"bbbb", 4, 0x1000)]
    fd = os.memfd_create("core")
    os.pwrite(fd, cores.core(cores.prstatus(1), loads), 0)
    memory = open_core(fd).memory
    assert memory.read(0x1FFE, 4) == b"aabb"
    assert memory.read(0x2003, 100) == b"b", "what the core left out is not there"
    assert memory.read(0x2004, 1) == memory.read(0xFFF, 1) == memory.read(2**64 - 1, 8) == b""
    assert memory.read(0x3001, 1 << 62) == b"c"
    os.close(fd)


def test_the_modules_budget_is_above_any_process() -> None:
    """Five thousand libraries, each with 14 program headers and 200 bytes of notes."""
    assert modules._BUDGET_BYTES > 5000 * (14 * 56 + 200)
