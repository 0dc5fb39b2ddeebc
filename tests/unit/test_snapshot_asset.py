# SPDX-License-Identifier: Apache-2.0
"""What a report takes from the asset, and what it takes from no asset."""

from __future__ import annotations

import io
import json
import os
import resource
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coresnap.ground.errors import BadInput
from coresnap.snapshot.asset import kept_modules, read_asset, table, thread_names
from tests.fixtures import cores
from tests.unit.test_snapshot import report_of
from tests.unit.test_snapshot_program import run

_ASSET = {
    "proc/status": b"Name:\tprogram\nPid:\t77\nFDSize:\t64\nVmPeak:\t    2000 kB\nVmSize:\t    1500 kB\n"
    b"VmHWM:\t     800 kB\nVmRSS:\t     700 kB\nVmData:\t 100 kB\nVmStk:\t 132 kB\nVmLck:\t 0 kB\nVmPTE:\t 52 kB\n"
    b"VmSwap:\t 4 kB\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t3\n",
    "proc/stat": b"77 (a) S b)) S 1 77 77 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 2 0 100000 0 0\n",
    "proc/exe": b"/usr/bin/program (deleted)",
    "proc/task": b"77\tfutex_wait\tprogram\n78\t0\tworker \\u2028\\x1b[31m\n",
    "host/meminfo": b"MemTotal:       8000000 kB\nMemFree:  1000 kB\nSwapTotal: 5 kB\nHugePages_Total:       0\n",
    "host/uptime": b"5000.25 9000.10\n",
    "host/version": b"Linux version 6.1.0-56-amd64 (builder) (gcc 12) #1 SMP Debian 6.1.1 (2026-01-01)\n",
    "host/hostname": b"box\n",
    "host/stat": b"cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1 2 3\nctxt 999\nbtime 1700000000\n"
    b"processes 55\nprocs_running 2\nprocs_blocked 0\n",
}


@pytest.fixture
def core(tmp_path: Path) -> Path:
    path = tmp_path / "core"
    path.write_bytes(cores.small())
    return path


def _tar(path: Path, members: dict[str, bytes], **kinds: bytes) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, kind in kinds.items():
            member = tarfile.TarInfo(f"proc/{name}")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    return path


def test_attributes(core: Path, tmp_path: Path) -> None:
    report = report_of(core, read_asset(str(_tar(tmp_path / "a.tar", _ASSET)), []))
    attributes = report["attributes"]
    ticks = os.sysconf("SC_CLK_TCK")
    expected: dict[str, Any] = {
        **{"application": "program", "hostname": "box", "process.id": 77, "process.age": 5000 - 100000 // ticks},
        **{"descriptor.count": 64, "vm.vma.peak": 2000 << 10, "vm.vma.size": 1500 << 10, "vm.rss.peak": 800 << 10},
        **{"vm.rss.size": 700 << 10, "vm.data.size": 100 << 10, "vm.stack.size": 132 << 10, "vm.locked.size": 0},
        **{"vm.pte.size": 52 << 10, "vm.swap.size": 4 << 10, "sched.cs.voluntary": 12, "sched.cs.involuntary": 3},
        **{"system.memory.total": 8000000 << 10, "system.memory.free": 1000 << 10, "system.memory.swap.total": 5 << 10},
        **{"uname.sysname": "Linux", "uname.machine": "x86_64", "uname.release": "6.1.0-56-amd64"},
        **{"uname.version": "#1 SMP Debian 6.1.1 (2026-01-01)", "cpu.user": 1, "cpu.kernel": 3, "cpu.softirq": 7},
        **{"cpu.context": 999, "cpu.boottime": 1700000000, "cpu.process.count": 55, "cpu.process.running": 2},
        **{"cpu.process.blocked": 0, "thread.count": 2, "signal": 11, "signal.name": "SIGSEGV", "signal.code": 1},
        **{"fault.address": "0x10", "package.name": "program", "package.version": "1.2-3"},
        **{"error.message": "SIGSEGV: address not mapped (SEGV_MAPERR) at 0x10"},
    }
    assert {name: attributes.get(name) for name in expected} == expected
    assert {tid: thread["name"] for tid, thread in report["threads"].items()} == {
        "78": "worker \\u2028\\x1b[31m",
        "77": "program",
    }
    (module,) = report["modules"]
    assert module["package"] == {"type": "deb", "name": "program", "version": "1.2-3"}
    assert (module["start"], module["size"]) == (str(cores.BASE), str(0x3000))


def test_threads_of_another_pid_namespace_keep_no_wrong_names(core: Path) -> None:
    """The core numbers them 77 and 78; the host knows 77 not at all, and 78 is another one."""
    report = report_of(core, {"proc/task": b"9000\t0\tprogram\n78\t0\twrong\n"})
    assert {tid: thread["name"] for tid, thread in report["threads"].items()} == {"78": "", "77": "program"}


def test_the_core_alone(core: Path) -> None:
    attributes = report_of(core)["attributes"]
    assert attributes["application"] == "program", "of the module with the entry point"
    assert not [name for name in attributes if name.startswith(("vm.", "system.", "cpu.", "sched.", "hostname"))]


@pytest.mark.parametrize("text", [b"\xff\xfe", b"", b"99999999999999999999999 kB", b"-1", b"1e400", b"nan", b"0x10"])
def test_nonsense_is_left_out(core: Path, text: bytes) -> None:
    asset = {name: data.replace(b"1", text) for name, data in _ASSET.items()}
    asset |= {"proc/stat": b"77 (a) " + b" ".join([text] * 30), "host/uptime": text + b" 1"}
    attributes = report_of(core, asset)["attributes"]
    numbers = [value for name, value in attributes.items() if isinstance(value, int) and name != "signal.code"]
    assert all(0 <= number < 1 << 63 for number in numbers)


def test_a_name_cannot_pass_for_another_line(core: Path) -> None:
    """A process names itself; only the kernel ends lines, with the line feed."""
    status = "Name:\ta\x0cVmHWM:\t1 kB\u2028VmHWM:\t1 kB\nVmHWM:\t800 kB\n"
    assert table(status.encode())["VmHWM"] == "800 kB"
    assert thread_names(b"1\t0\ta\x0c2\t0\tb\n") == {}
    assert report_of(core, {"proc/status": status.encode()})["attributes"]["vm.rss.peak"] == 800 << 10


def test_only_plain_files_of_known_names(tmp_path: Path) -> None:
    members = {"proc/status": b"first", "proc/../../etc/passwd": b"x", "/proc/stat": b"x", "proc/maps": b"x"}
    path = _tar(tmp_path / "a.tar", members, stat=tarfile.SYMTYPE, exe=tarfile.LNKTYPE, task=tarfile.FIFOTYPE)
    missing: list[str] = []
    assert read_asset(str(path), missing) == {"proc/status": b"first"}
    assert missing == ["the asset: 3 members that are not plain, as links, sparse and extended ones, are left out"]


def _header(kind: bytes, size_bytes: int, at: int = 0, put: bytes = b"") -> bytes:
    """Return the header of a member proc/stat as GNU tar has it, with `put` at an offset."""
    member = tarfile.TarInfo("proc/stat")
    member.type, member.size = kind, size_bytes
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[at : at + len(put)] = put
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:512]))
    return bytes(header)


def _gnu_sparse_of_64_gb() -> bytes:
    return _header(b"S", 512, 483, struct.pack(">IQ", 0x80000000, 64 << 30)) + bytes(512)


def _gnu_sparse_whose_map_goes_on() -> bytes:
    return _header(b"S", 512, 482, b"\1")


def _pax_sparse_of_64_gb() -> bytes:
    member = tarfile.TarInfo("proc/stat")
    claims = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "proc/stat"}
    member.size, member.pax_headers = 512, claims | {"GNU.sparse.realsize": str(64 << 30)}
    return member.tobuf(tarfile.PAX_FORMAT) + b"99999999\n0\n0\n".ljust(512, b"\0")


def _pax_header_of_digits() -> bytes:
    return _header(b"x", 3 << 20) + b"1" * (3 << 20) + _header(b"0", 0)


def _pax_headers_in_a_chain() -> bytes:
    return _header(b"x", 0) * 10000


def _long_names_in_a_chain() -> bytes:
    return (_header(b"L", 1) + b"a".ljust(512, b"\0")) * 10000


def _sizes_that_go_backwards() -> bytes:
    return _header(b"0", 0, 124, struct.pack(">Qi", 2**64 - 1, -1024))


def _member_of_a_terabyte() -> bytes:
    return _header(b"0", 0, 124, struct.pack(">IQ", 0x80000000, 1 << 40))


def _member_longer_than_the_asset() -> bytes:
    return _header(b"0", (8 << 30) - 1)


def _members_without_end() -> bytes:
    return _header(b"0", 0) * 60000


def _lines_without_end() -> bytes:
    return _header(b"0", 30 << 20) + b"a \n" * (10 << 20)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_gnu_sparse_of_64_gb, "1 members that are not plain"),
        (_gnu_sparse_whose_map_goes_on, "1 members that are not plain"),
        (_pax_sparse_of_64_gb, "2 members that are not plain"),
        (_pax_header_of_digits, "2 members that are not plain"),
        (_pax_headers_in_a_chain, "the first 4096 members; 4095 members that are not plain"),
        (_long_names_in_a_chain, "the first 4096 members; 4095 members that are not plain"),
        (_sizes_that_go_backwards, "no header of a member at 1024"),
        (_member_of_a_terabyte, "no header of a member at 1024"),
        (_member_longer_than_the_asset, "proc/stat: 1024 of 8589934591 bytes; its end"),
        (_members_without_end, "the first 4096 members"),
        (_lines_without_end, "proc/stat: 4194304 of 31457280 bytes"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_an_asset_that_lies(core: Path, tmp_path: Path, make: Callable[[], bytes], says: str) -> None:
    """What is before the lie is read; a line says the rest. Time and memory are those of any asset."""
    status = _tar(tmp_path / "status.tar", {"proc/status": b"FDSize:\t64\n"}).read_bytes()[:1024]
    path = tmp_path / "a.tar"
    path.write_bytes(status + make() + bytes(1024))
    done = run(
        *("-o-", "--resource", path, "--core", core),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (128 << 20, 128 << 20)),
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    report = json.loads(done.stdout)
    assert report["attributes"]["descriptor.count"] == 64
    # Where drgn is installed it has too little room, too, and says so.
    (line,) = [line for line in report["annotations"]["missing"] if line.startswith("the asset: ")]
    assert line.startswith(f"the asset: {says}")


def test_what_is_no_tar(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"hello" * 1000)
    with pytest.raises(BadInput, match="not a TAR"):
        read_asset(str(path), [])
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(BadInput, match="not a regular file"):
        read_asset(str(tmp_path / "fifo"), [])
    path.write_bytes(b"")
    assert read_asset(str(path), []) == read_asset(os.devnull, []) == {}


def test_an_asset_that_is_cut(tmp_path: Path) -> None:
    """What is whole is read, and what is cut is said to be."""
    path = tmp_path / "a.tar"
    whole = _tar(path, _ASSET).read_bytes()
    for length in (*range(512, 1024 * len(_ASSET), 333), *range(1024, 1024 * len(_ASSET), 1024)):
        path.write_bytes(whole[:length])
        missing: list[str] = []
        found = read_asset(str(path), missing)
        assert list(found) == list(_ASSET)[: len(found)]
        assert all(_ASSET[name] == data for name, data in list(found.items())[:-1])
        assert missing[0].startswith("the asset: ")


def test_kept_modules_are_read_over_the_borders_of_pieces(tmp_path: Path) -> None:
    pieces = {
        **{
            "modules/7f0000400000/0": b"head" * 256,
            "modules/7f0000400000/400": b"more",
            "modules/7f0000400000/10000": b"far",
        },
        **{"modules/400000/12": b"other", "modules/400000/zz": b"x", "modules/400000/1/2": b"x", "modules/x/0": b"x"},
        **{"modules/11111111111111111/0": b"x", "modules/400000/20": b"", "modules/../400000/0": b"x"},
    }
    with kept_modules(str(_tar(tmp_path / "a.tar", _ASSET | pieces))) as kept:
        assert set(kept) == {0x7F0000400000, 0x400000}
        read, other = kept[0x7F0000400000], kept[0x400000]
        assert read(4, 0) == b"head"
        assert read(1 << 20, 0x3FC) == b"headmore"
        assert read(100, 0x404) == read(100, 0xFFFF) == read(0, 0) == read(-1, 0) == b""
        assert read(2, 0x10001) == b"ar"
        assert read(1, 1 << 62) == b""
        assert other(10, 0x14) == b"her"
        assert other(10, 0) == b""
    with kept_modules(os.devnull) as kept:
        assert kept == {}


def test_a_kept_piece_within_another_hides_nothing(tmp_path: Path) -> None:
    pieces = {"modules/400000/10": b"0123456789", "modules/400000/12": b"23", "modules/400000/18": b"89ab"}
    with kept_modules(str(_tar(tmp_path / "a.tar", pieces))) as kept:
        read = kept[0x400000]
        assert read(4, 0x14) == b"4567"
        assert read(100, 0x11) == b"123456789ab"


def test_kept_modules_of_an_asset_that_is_cut_or_lies(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    whole = _tar(path, {"modules/1000/0": b"x" * 2000, "modules/2000/0": b"y" * 2000}).read_bytes()
    path.write_bytes(whole[:1500])
    with kept_modules(str(path)) as kept:
        assert kept[0x1000](5000, 0) == b"x" * 988
        assert kept[0x1000](5000, 1500) == b""
        assert 0x2000 not in kept
    path.write_bytes(b"hello" * 1000)
    with pytest.raises(BadInput, match="not a TAR"), kept_modules(str(path)):
        pass
