# SPDX-License-Identifier: Apache-2.0
"""Which files of a live process are pinned, and that no other is."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from coresnap.capture.members import suspected
from coresnap.capture.reach import PINNED_MAX, Pinned, pin

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="/proc/PID/map_files is followed by root alone")

_SOMEBODY = 1234
_SLEEP = shutil.which("sleep") or ""
#: It maps the first page of each file, says so, and stays.
_MAPPER = """
import mmap, sys
kept = []
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        kept.append(mmap.mmap(file.fileno(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC))
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture
def public(tmp_path: Path) -> Iterator[Path]:
    """A directory that everybody can read, as that of pytest is not."""
    directory = Path("/var/tmp") / f"coresnap-test-{os.getpid()}"
    directory.mkdir(mode=0o755)
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@contextmanager
def _process(*paths: Path, within: Sequence[str] = ()) -> Iterator[int]:
    """Yield the number of a process that has mapped these files, and been started `within` a command."""
    argv = [*within, "/usr/bin/python3", "-c", _MAPPER, *map(str, paths)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        yield process.pid
        process.stdin.close()


def _pinned(pid: int, uid: int = 0) -> list[Pinned]:
    proc_fd = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY)
    try:
        maps = Path(f"/proc/{pid}/maps").read_bytes()
        return pin(proc_fd, maps, suspected(proc_fd, maps), uid)
    finally:
        os.close(proc_fd)


def _inodes(pinned: list[Pinned]) -> set[int]:
    inodes = {os.fstat(file.fd).st_ino for file in pinned}
    for file in pinned:
        file.close()
    return inodes


def _in_a_namespace(script: str) -> list[str]:
    return ["unshare", "--mount", "sh", "-ec", f'{script}; exec "$@"', "sh"]


def _program(path: Path) -> Path:
    return Path(shutil.copy(_SLEEP, path))


@pytest.mark.parametrize(
    "within", [(), ("unshare", "--mount", "sh", "-ec", 'mount -t tmpfs none /mnt; exec "$@"', "sh")]
)
@pytest.mark.parametrize("uid", [0, _SOMEBODY])
def test_what_is_reached_is_the_system_s_or_known_to_be_so(public: Path, within: Sequence[str], uid: int) -> None:
    """What is not the distribution's may have no build-id to be known by: that is looked at later."""
    program = _program(public / "program")
    with _process(program, within=within) as pid:
        (file,) = _pinned(pid, uid)
        status = program.stat()
        assert file.reached == (status.st_dev, status.st_ino)
        assert _inodes([file]) == {status.st_ino}


def _out_of_reach(pid: int, uid: int = 0) -> list[Pinned]:
    """Return what is pinned and will not be reached."""
    pinned = _pinned(pid, uid)
    for file in pinned:
        if file.reached is not None:
            file.close()
    return [file for file in pinned if file.reached is None]


def test_the_usual_process_is_told_at_once() -> None:
    """None of its files is looked up; of one in a mount namespace of its own they all are."""
    proc_fd = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY)
    maps = Path("/proc/self/maps").read_bytes()
    system = b"\n".join(line for line in maps.split(b"\n") if b" /usr/lib" in line)
    assert b"xp " in system
    assert suspected(proc_fd, system) == []
    os.close(proc_fd)
    with _process(within=_in_a_namespace("mount -t tmpfs none /mnt")) as pid:
        proc_fd = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY)
        assert len(suspected(proc_fd, Path(f"/proc/{pid}/maps").read_bytes())) >= 3
        os.close(proc_fd)


def test_a_deleted_file_outlives_its_process(public: Path) -> None:
    program = _program(public / "program")
    with _process(program) as pid:
        inode = program.stat().st_ino
        program.unlink()
        (file,) = _pinned(pid)
        line = next(line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "program (deleted)" in line)
        assert file.start == int(line.split("-")[0], 16)
        assert file.reached is None
    assert os.fstat(file.fd).st_ino == inode
    assert Path(f"/proc/self/fd/{file.fd}").read_bytes() == Path(_SLEEP).read_bytes()
    file.close()
    file.close()


def test_a_replaced_file(public: Path) -> None:
    program = _program(public / "program")
    with _process(program) as pid:
        inode = program.stat().st_ino
        _program(public / "new").replace(program)
        assert _inodes(_pinned(pid)) == {inode}
        assert program.stat().st_ino != inode


@pytest.mark.parametrize("where", ["file", "directory"])
def test_a_file_that_its_reader_may_not_read(public: Path, where: str) -> None:
    (public / "home").mkdir(mode=0o755)
    program = _program(public / "home" / "program")
    with _process(program) as pid:
        assert _out_of_reach(pid, _SOMEBODY) == []
        (program if where == "file" else public / "home").chmod(0o711 if where == "file" else 0o750)
        assert _inodes(_out_of_reach(pid, _SOMEBODY)) == {program.stat().st_ino}
        assert _out_of_reach(pid) == []
        os.chown(program if where == "file" else public / "home", _SOMEBODY, _SOMEBODY)
        assert _out_of_reach(pid, _SOMEBODY) == [], "its owner may"


def test_a_file_in_a_mount_namespace_of_its_own(public: Path) -> None:
    """Under one path there is another file outside, under the other there is none."""
    both, inside = _program(public / "both"), public / "inside"
    script = f"mount -t tmpfs none {public}; cp {_SLEEP} {both}; cp {_SLEEP} {inside}"
    with _process(both, inside, within=_in_a_namespace(script)) as pid:
        there = {(Path(f"/proc/{pid}/root{path}")).stat().st_ino for path in (both, inside)}
        pinned = _pinned(pid)
        status = both.stat()
        assert {file.reached for file in pinned} == {None, (status.st_dev, status.st_ino)}
        assert _inodes(pinned) == there


def test_a_file_in_a_root_of_its_own(public: Path) -> None:
    """What is its own in there is told from what has only another path."""
    jail, own = public / "jail", public / "own"
    jail.mkdir()
    script = f'mount --rbind / {jail}; mount -t tmpfs none {jail}{public}; cp {_SLEEP} {jail}{own}; set -- chroot {jail} "$@"'
    with _process(own, within=_in_a_namespace(script)) as pid:
        assert os.readlink(f"/proc/{pid}/root") == str(jail)
        (file,) = _pinned(pid)
        assert _inodes([file]) == {Path(f"/proc/{pid}/root{own}").stat().st_ino}


def test_only_so_many_files_are_pinned(public: Path) -> None:
    programs = [_program(public / str(number)) for number in range(PINNED_MAX + 20)]
    with _process(*programs) as pid:
        for program in programs:
            program.unlink()
        assert len(_inodes(_pinned(pid))) == PINNED_MAX


def test_what_is_no_list_of_mappings() -> None:
    """The list is the kernel's; what it names may be gone by now, and a name may be anything."""
    proc_fd = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY)
    lines = [b"", b"x", b"1-2 r-xp 0 0:0 0", b"1000-2000 r-xp 00000000 00:01 7 /gone (deleted)", b"a b c d e /f"]
    lines += [b"zz-yy r-xp 00000000 00:01 8 /x\xff\n y (deleted)", b"3000-4000 rwxp 00000000 00:00 0 [heap]"]
    assert pin(proc_fd, b"\n".join(lines), lines, 0) == []
    assert suspected(-1, b"\n".join(lines)) == []
    os.close(proc_fd)
