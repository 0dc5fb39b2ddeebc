# SPDX-License-Identifier: Apache-2.0
"""coresnap-snapshot as people and the processor run it: what it writes, says and exits with."""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from coresnap import take_snapshot
from coresnap.ground import elf
from tests.fixtures import cores
from tests.unit.test_snapshot import VALIDATOR

_PROGRAM = str(Path(__file__).parents[2] / "coresnap" / "take_snapshot.py")
_UUID = "11111111-2222-4333-8444-555555555555"


def run(*arguments: str | bytes | Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
    argv = [sys.executable, "-IS", _PROGRAM, *arguments]
    return subprocess.run(argv, **{"timeout": 30, **options}, capture_output=True, check=False)


def _report(done: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    assert (done.returncode, done.stderr) == (0, b"")
    report: dict[str, Any] = json.loads(done.stdout)
    VALIDATOR.validate(report)
    return report


@pytest.fixture
def core(tmp_path: Path) -> Path:
    path = tmp_path / "core"
    path.write_bytes(cores.small())
    return path


def test_the_default_command(core: Path, tmp_path: Path) -> None:
    """As settings have it, on descriptors as the processor's worker passes them."""
    out = tmp_path / "out"
    with core.open("rb") as source, out.open("wb") as target:
        fds = (source.fileno(), target.fileno())
        done = run(
            *(f"-o/proc/self/fd/{fds[1]}", f"--kv=coresnap.object:{_UUID}", f"--resource={os.devnull}"),
            *("--core", f"/proc/self/fd/{fds[0]}", "/usr/bin/server"),
            pass_fds=fds,
            env={"BACKTRACE_DEFAULTS": "team=core\nurl=http://x/?a=b\n\nhostname = here\ncoresnap.object=forged\nno\n"},
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    report = json.loads(out.read_bytes())
    VALIDATOR.validate(report)
    attributes = report["attributes"]
    assert report["uuid"] == attributes["coresnap.object"] == _UUID
    assert {key: attributes[key] for key in ("team", "url", "hostname", "application")} == {
        **{"team": "core", "url": "http://x/?a=b", "hostname": "here", "application": "server"},
    }
    assert report["annotations"]["missing"] == ["BACKTRACE_DEFAULTS: line 6 is no key=value"]


def test_by_hand(core: Path) -> None:
    first, second = (_report(run("-o", "-", "--kv", "a:b:c", "--core", core)) for _ in range(2))
    assert first["uuid"] != second["uuid"]
    assert first["attributes"]["a"] == "b:c"
    assert first["timestamp"] == int(core.stat().st_mtime)


def test_a_name_that_is_no_text(core: Path) -> None:
    report = _report(run("-o-", "--core", core, b"/usr/bin/\xff\n\x1b[31m"))
    assert report["attributes"]["application"] == "?\n\x1b[31m"


def test_an_asset_that_cannot_be_read_is_said(core: Path, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"hello" * 1000)
    for path, says in ((tmp_path / "a.tar", "not a TAR"), (tmp_path / "none", "No such file"), (tmp_path, "directory")):
        (missing,) = _report(run("-o-", "--core", core, "--resource", path))["annotations"]["missing"]
        assert missing.startswith("the asset: ")
        assert says in missing


def _patched(at: int, value: bytes) -> bytes:
    data = bytearray(cores.core(cores.prstatus(1)))
    data[at : at + len(value)] = value
    return bytes(data)


_VMCOREINFO = cores.note(0, b"OSRELEASE=6.1.0\n", name=b"VMCOREINFO")


@pytest.mark.parametrize("at", [6, 20])
def test_a_core_of_another_version_of_elf_is_read_as_far_as_it_can_be(tmp_path: Path, at: int) -> None:
    (tmp_path / "core").write_bytes(_patched(at, b"\x09"))
    report = _report(run("-o-", "--core", tmp_path / "core"))
    assert "the core: ELF of version 9, read as version 1" in report["annotations"]["missing"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "core: not ELF, 0 bytes"),
        (b"hello, world\n" * 100, "core: not ELF"),
        (Path("/bin/true").read_bytes(), "core: an executable or a library, not a core"),
        (
            cores.core(cores.prstatus(1), elf_class=32, machine=3),
            "core: 32-bit, of i386: only 64-bit ones of x86-64 and aarch64 are read: a gdb of that machine may read it",
        ),
        (cores.core(cores.prstatus(1), elf_class=32, machine=62), "core: 32-bit, of x86-64 (x32): only 64-bit ones"),
        (_patched(4, b"\1"), "core: 32-bit, of x86-64 (x32): only 64-bit ones"),
        (
            cores.core(cores.prstatus(1), elf_class=32, machine=183),
            "core: 32-bit, of aarch64 (ilp32): only 64-bit ones",
        ),
        (cores.core(cores.prstatus(1), machine=3), "core: 64-bit, of i386: only 64-bit ones of x86-64 and aarch64"),
        (cores.core(cores.prstatus(1), machine=243), "core: 64-bit, of riscv: only 64-bit ones of x86-64"),
        (cores.core(cores.prstatus(1), machine=9999), "core: 64-bit, of ELF machine 9999: only 64-bit ones of x86-64"),
        (cores.core(cores.prstatus(1, order=">"), order=">"), "core: 64-bit, of x86-64, big-endian: only 64-bit ones"),
        (_patched(5, b"\2"), "core: ELF of another byte order than it says"),
        (_patched(5, b"\7"), "core: ELF of no known class or byte order"),
        (b"\x1f\x8b\x08" + bytes(100), "core: not ELF: compressed by gzip"),
        (b"\x28\xb5\x2f\xfd" + bytes(100), "core: not ELF: compressed by zstd"),
        (b"age-encryption.org/v1\n" + bytes(100), "core: not ELF: encrypted by age"),
        (b"KDUMP   " + bytes(100), "core: not ELF: a dump of a kernel"),
        (cores.core(_VMCOREINFO), "core: of a kernel, not of a process: crash(8) and drgn read it"),
        (cores.core(cores.prstatus(0) + _VMCOREINFO), "core: of a kernel, not of a process: crash(8) and drgn read it"),
        (
            cores.core(b"").replace(b"\4\0\0\0" + bytes(4) + b"x", bytes(8) + b"x"),
            "core: no segment of notes: it is damaged, or no core of a Linux process",
        ),
        (cores.core(cores.prpsinfo(1)), "tell of no thread: it is damaged, or no core of a Linux process"),
        (cores.core(cores.prstatus(1))[:200], "core: its notes, at 120 to 476, tell of no thread: it is cut at 200"),
        (cores.core(cores.prstatus(1))[:100], "core: the program headers are cut at 100"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_cores_are_refused_in_a_line(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "core").write_bytes(data)
    done = run("-o", tmp_path / "out", "--core", tmp_path / "core")
    assert (done.returncode, done.stdout) == (65, b"")
    assert done.stderr.decode().startswith(f"coresnap-snapshot: {tmp_path}/core: ")
    assert says in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    for name, status, says in (
        ("fifo", 65, "a FIFO, not a regular file: write the core to a file"),
        (".", 65, "a directory, not a regular file"),
        ("socket", 65, "a socket, not a regular file"),
        ("/dev/null", 65, "a device, not a regular file"),
        ("no\nsuch", 66, "No such file"),
        ("fifo/x", 66, "Not a directory"),
        ("loop", 66, "Too many levels of symbolic links"),
    ):
        done = run("-o-", "--core", tmp_path / name)
        assert (done.returncode, says in done.stderr.decode()) == (status, True), done.stderr
        assert done.stderr.count(b"\n") == 1


def test_what_may_not_be_read_is_refused(core: Path) -> None:
    if os.geteuid():
        pytest.skip("only root may become somebody else")
    core.chmod(0)
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    argv = [*nobody, sys.executable, "-IS", _PROGRAM, "-o-", "--core", str(core)]
    done = subprocess.run(argv, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (66, b"", 1)
    assert b"Permission denied" in done.stderr


def test_a_core_that_cannot_be_read_for_now(core: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """/proc/self/mem is a regular file whose first bytes give EIO, as a bad block does; then a bad block among the modules."""
    done = run("-o-", "--core", "/proc/self/mem")
    assert (done.returncode, done.stdout) == (75, b"")
    assert done.stderr == b"coresnap-snapshot: /proc/self/mem: Input/output error\n"
    whole = os.pread

    def pread(fd: int, count: int, offset: int) -> bytes:
        data = whole(fd, count, offset)
        if offset and data[:4] == b"\x7fELF":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pread", pread)
        assert take_snapshot.main(["-o-", "--core", str(core)]) == 75
    assert capsys.readouterr() == ("", f"coresnap-snapshot: {core}: Input/output error\n")


def test_a_report_that_cannot_be_written(core: Path, tmp_path: Path) -> None:
    for path in ("/dev/full", tmp_path / "none" / "out"):
        done = run("-o", path, "--core", core)
        assert done.returncode == 75
        assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "required: -o/--output, --core"),
        (("-o-",), "required: --core"),
        (("-o-", "--core", "x", "--kv", "a"), "argument --kv: a: KEY:VALUE expected"),
        (("-o-", "--core", "x", "--kv", ":a"), "argument --kv: :a: KEY:VALUE expected"),
        (("-o-", "--core", "x", "--kv", "a b:c"), "argument --kv: a b:c: KEY:VALUE expected"),
        (("-o-", "--core", "x", "--kv", "coresnap.object:1"), "a UUID in lower case expected"),
        (("-o-", "--core", "x", "--re", "y"), "unrecognized arguments"),
    ],
)
def test_usage(arguments: tuple[str, ...], says: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert says in done.stderr.decode()


def test_help_teaches() -> None:
    done = run("--help")
    assert done.returncode == 0
    for word in (b"SYNOPSIS", b"EXIT STATUS", b"EXAMPLE", b"BACKTRACE_DEFAULTS", b"--resource"):
        assert word in done.stdout


def test_a_core_cut_in_its_memory(real_core: Path, tmp_path: Path) -> None:
    """The notes are whole: every thread is there, and the report says what is not."""
    data = real_core.read_bytes()
    header = elf.read_core(lambda count, offset: data[offset : offset + count])
    length = (header.notes_end + len(data)) // 2
    (tmp_path / "core").write_bytes(data[:length])
    whole = _report(run("-o-", "--core", real_core))
    cut = _report(run("-o-", "--core", tmp_path / "core"))
    assert cut["threads"].keys() == whole["threads"].keys()
    assert cut["annotations"]["missing"] == [f"the core is cut: {length} of {header.expected_bytes} bytes"]
    assert cut["attributes"]["core.truncated"] is True
    assert "core.truncated" not in whole["attributes"]
    paths = [module["path"] for module in whole["modules"] if module["path"] != "[vdso]"]
    assert [module["path"] for module in cut["modules"]] == paths, "the list of files is in the notes, the vDSO is not"


def test_a_core_cut_in_its_notes(real_core: Path, tmp_path: Path) -> None:
    data = real_core.read_bytes()
    header = elf.read_core(lambda count, offset: data[offset : offset + count])
    length = header.notes_offset + 400  # the first thread's note is 356 bytes
    (tmp_path / "core").write_bytes(data[:length])
    report = _report(run("-o-", "--core", tmp_path / "core"))
    assert len(report["threads"]) == 1
    assert report["attributes"]["error.message"] == "SIGSEGV", "its code is in the next note"
    assert report["annotations"]["missing"][1] == "the notes are cut: 1 threads could be read"
    (tmp_path / "core").write_bytes(data[: header.notes_offset + 355])
    assert run("-o-", "--core", tmp_path / "core").returncode == 65


def test_aarch64(tmp_path: Path) -> None:
    """The register names and their places, of a core that is made: struct user_pt_regs."""
    registers = [*range(1000, 1031), 0x7FF0, cores.BASE + 0x10, 0x60000000]
    data = struct.pack("<12xH18xI76x34Q8x", 5, 1, *registers)
    (tmp_path / "core").write_bytes(cores.core(cores.note(cores.NT_PRSTATUS, data), machine=183))
    report = _report(run("-o-", "--core", tmp_path / "core"))
    frame = report["threads"]["1"]["stack"][0]
    assert report["arch"]["name"] == report["attributes"]["uname.machine"] == "aarch64"
    assert (frame["address"], frame["registers"]["x30"]) == (str(cores.BASE + 0x10), "1030")
    assert (frame["registers"]["sp"], report["classifiers"]) == (str(0x7FF0), ["SIGTRAP"])
