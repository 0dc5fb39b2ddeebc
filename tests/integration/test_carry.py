# SPDX-License-Identifier: Apache-2.0
"""In a storm archive.sh waits with a note; an archive carries its crash to the service, or it goes on by itself."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from coresnap import archive
from coresnap.capture import carry, handover
from coresnap.ground.inotify import Watch

_REPOSITORY = Path(__file__).parents[2]
_ARCHIVE_SH = (_REPOSITORY / "coresnap" / "archive.sh").read_text()
_CORE = b"what the kernel sends"
#: Takes archive's place: tells that it was started, and what is still in its input.
_ARCHIVE_PY = "import os\ndef main(arguments):\n    print('went on', arguments[-1], os.read(0, 100), flush=True)\n"


class _Waiting:
    """archive.sh as the kernel has started it for a crash, with its core in a pipe, and the crashed process."""

    def __init__(self, run: Path, script: Path, victim: int, exe: str, before: str) -> None:
        self.note_directory = run / "waiting"
        core_fd, self.kernel_fd = os.pipe()
        os.write(self.kernel_fd, _CORE)
        argv = [str(script), str(victim), "1", "2", "", exe]
        if before:
            argv = ["/bin/sh", "-c", f'{before}\nexec "$@"', str(run), *argv]
        self.process = subprocess.Popen(argv, stdin=core_fd, stdout=subprocess.PIPE, text=True)
        os.close(core_fd)

    @property
    def note(self) -> Path:
        return self.note_directory / str(self.process.pid)

    def has_left_its_note(self) -> bool:
        """Say whether it has its note open, the last that it needs. It may go on, or end, at any moment."""
        try:
            return self.note.exists() and bool(Path(f"/proc/{self.process.pid}/fd/7").read_text())
        except OSError:
            return False

    def kernel_lets_go(self) -> None:
        """Close the kernel's end of the pipe."""
        os.close(self.kernel_fd)
        self.kernel_fd = -1

    def is_let_go(self) -> bool:
        """Say whether the kernel would let the crashed process go: nobody has the core's pipe open for reading."""
        try:
            os.write(self.kernel_fd, b"more")
        except BrokenPipeError:
            return True
        return False

    def went_on(self) -> str:
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], 60)[0], "it waits still"
        return str(self.process.stdout.read())

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        if self.kernel_fd >= 0:
            os.close(self.kernel_fd)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a directory as tmpfiles.d makes /run/coresnap, and the machine's load in it."""
    (tmp_path / "waiting").mkdir(0o700)
    os.mkfifo(tmp_path / "carriers", 0o600)
    for digit in range(10):
        (tmp_path / f"gate.{digit}").touch()
    (tmp_path / "loadavg").write_text("9.00 5.00 1.00 31/400 4711\n")
    return tmp_path


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


@contextmanager
def _waiting(run: Path, victim: int, exe: str = "!a b*$(id)", before: str = "") -> Iterator[_Waiting]:
    """Start archive.sh; yield once it has left its note. `before` is shell, run by the same process, with `run` as $0."""
    script = _ARCHIVE_SH
    for there, here in (("run=/run/coresnap\n", f"run={run}\n"), ("/proc/loadavg", f"{run}/loadavg")):
        assert there in script
        script = script.replace(there, here)
    path = run / "archive"
    path.write_text(script)
    path.chmod(0o755)
    (run / "python" / "coresnap").mkdir(parents=True)
    (run / "python" / "coresnap" / "archive.py").write_text(_ARCHIVE_PY)
    fd = os.open(run / "waiting", os.O_RDONLY | os.O_DIRECTORY)
    with Watch(fd) as watch:
        waiting = _Waiting(run, path, victim, exe, before)
        try:
            while waiting.process.poll() is None and not waiting.has_left_its_note():
                select.select([watch.fd], [], [], 0.02)
                watch.drain()
            yield waiting
        finally:
            waiting.end()
            os.close(fd)


@contextmanager
def _somebody_carries(run: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Have a process open the pipe as one does that carries."""
    argv = ["/bin/sh", "-c", 'exec 8<>"$1"; echo; read -r _', "sh", str(run / "carriers")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        yield process
        process.kill()


def test_its_crash_is_handed_over_and_it_is_ended(run: Path, victim: subprocess.Popen[bytes]) -> None:
    offered: list[tuple[list[str], bytes, str]] = []

    def offer(status: bytes, arguments: list[str], fds: list[int]) -> bool:
        pipe_fd, proc_fd, pidfd, note_fd = fds
        assert status.startswith(b"%d (archive)" % waiting.process.pid)
        assert os.path.samestat(os.fstat(note_fd), waiting.note.stat())
        assert not select.select([pidfd], [], [], 0)[0]
        offered.append((arguments, os.read(pipe_fd, 100), os.readlink("exe", dir_fd=proc_fd)))
        return True

    with _somebody_carries(run), _waiting(run, victim.pid) as waiting:
        carry.carry(offer, str(run))
        assert waiting.process.wait(30) == -signal.SIGKILL
        assert waiting.is_let_go()
    sleep = os.path.realpath("/usr/bin/sleep")
    assert offered == [([str(victim.pid), "1", "2", "", "!a b*$(id)"], _CORE, sleep)]
    assert not list((run / "waiting").iterdir())


def test_it_goes_on_where_the_service_does_not_take_its_crash(run: Path, victim: subprocess.Popen[bytes]) -> None:
    with _somebody_carries(run), _waiting(run, victim.pid) as waiting:
        carry.carry(lambda *_: False, str(run))
        assert waiting.went_on() == f"went on !a b*$(id) {_CORE!r}\n", "although another still carries"
        assert waiting.process.wait(30) == 0
        assert waiting.is_let_go()


def test_it_goes_on_once_nobody_carries(run: Path, victim: subprocess.Popen[bytes]) -> None:
    with _somebody_carries(run) as other, _waiting(run, victim.pid) as waiting:
        assert waiting.process.stdout is not None
        assert not select.select([waiting.process.stdout], [], [], 0.3)[0], "another still carries"
        other.kill()
        assert waiting.went_on() == f"went on !a b*$(id) {_CORE!r}\n"
        assert waiting.process.wait(30) == 0
        assert waiting.is_let_go()


def test_an_archive_whose_own_crash_is_not_taken_has_nobody_wait(
    run: Path, victim: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other would wait for a service that is stuck, each with its process held."""
    monkeypatch.setattr(archive, "_NOTES", f"{run}/waiting/")
    monkeypatch.setattr(archive, "_handed_over", lambda _arguments: False)

    class Captures(Exception):
        """It captures by itself."""

    def captures() -> None:
        raise Captures

    monkeypatch.setattr(archive, "_leave_the_gate", captures)
    with _somebody_carries(run), _waiting(run, victim.pid) as waiting:
        with pytest.raises(Captures):
            archive.main([str(victim.pid), "1", "2"])
        assert waiting.went_on() == f"went on !a b*$(id) {_CORE!r}\n"


def test_at_the_gate_it_can_be_carried_still(run: Path, victim: subprocess.Popen[bytes]) -> None:
    """Nobody carried for a moment; it waits for an interpreter, and is no process that was killed."""
    with (run / f"gate.{victim.pid % 10}").open("rb") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        with _waiting(run, victim.pid) as waiting:
            children = Path(f"/proc/{waiting.process.pid}/task/{waiting.process.pid}/children")
            while not any("flock" in _name(child) for child in children.read_text().split()):
                assert waiting.process.poll() is None
            assert list(carry.killed(str(run))) == []
            carry.carry(lambda *_: True, str(run))
            assert waiting.process.wait(30) == -signal.SIGKILL
            assert waiting.is_let_go()


def _name(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


def test_it_goes_on_at_once_where_nobody_carries(run: Path, victim: subprocess.Popen[bytes]) -> None:
    with _waiting(run, victim.pid) as waiting:
        assert waiting.went_on() == f"went on !a b*$(id) {_CORE!r}\n"


def test_it_goes_on_where_there_is_no_place_for_notes(run: Path, victim: subprocess.Popen[bytes]) -> None:
    (run / "carriers").unlink()
    with _waiting(run, victim.pid) as waiting:
        assert waiting.went_on() == f"went on !a b*$(id) {_CORE!r}\n"


def test_another_process_under_a_note_s_number_is_let_alone(run: Path, victim: subprocess.Popen[bytes]) -> None:
    (run / "waiting" / str(victim.pid)).touch()
    carry.carry(lambda *_: pytest.fail("there is nothing to hand over"), str(run))
    assert victim.poll() is None
    assert list(carry.killed(str(run))) == []


def test_whose_core_is_lost_as_one_that_waits_is_killed_is_known_once(
    run: Path, victim: subprocess.Popen[bytes]
) -> None:
    with _somebody_carries(run), _waiting(run, victim.pid) as waiting:
        assert list(carry.killed(str(run))) == []
        waiting.process.kill()
        waiting.process.wait()
        carry.carry(lambda *_: pytest.fail("there is nothing to hand over"), str(run))
        with waiting.note.open() as note:
            fcntl.flock(note, fcntl.LOCK_EX)
            assert list(carry.killed(str(run))) == [], "somebody offers it, and the service may take it"
        assert list(carry.killed(str(run))) == [[str(victim.pid), "1", "2", "", "!a b*$(id)"]]
        assert list(carry.killed(str(run))) == []
        assert not list((run / "waiting").iterdir())


def test_another_process_of_its_number_does_not_hide_that_it_was_killed(
    run: Path, victim: subprocess.Popen[bytes]
) -> None:
    note = run / "waiting" / str(os.getpid())
    note.write_bytes(b"")
    assert list(carry.killed(str(run))) == [], "one that has not written its note yet"
    note.write_bytes(b"1\x002\x00")
    assert list(carry.killed(str(run))) == [["1", "2"]]
    assert not note.exists()


def test_what_was_taken_before_is_not_lost(run: Path, victim: subprocess.Popen[bytes]) -> None:
    """Who carried it was killed, and who waited."""
    with _somebody_carries(run), _waiting(run, victim.pid) as waiting:
        with waiting.note.open("r+b") as note:
            os.pwrite(note.fileno(), handover.TAKEN, 0)
        waiting.process.kill()
        waiting.process.wait()
        assert list(carry.killed(str(run))) == []
        assert not list((run / "waiting").iterdir())


def test_a_note_that_does_not_tell_yet_is_let_alone(run: Path, victim: subprocess.Popen[bytes]) -> None:
    """What it will tell would be written over the answer."""
    with _somebody_carries(run), _waiting(run, victim.pid) as waiting:
        os.truncate(waiting.note, 0)
        carry.carry(lambda *_: pytest.fail("it is being written"), str(run))
        assert waiting.process.poll() is None


def test_a_note_that_was_left_behind_is_none_of_the_next_process_of_that_number(
    run: Path, victim: subprocess.Popen[bytes]
) -> None:
    """Who offered it, and the service, may have it still: what they write into it is of another crash."""
    with _waiting(run, victim.pid, before='printf + >"$0/waiting/$$"') as waiting:
        assert waiting.went_on() == f"went on !a b*$(id) {_CORE!r}\n"
        assert waiting.note.read_text() == "+"


def test_what_is_too_long_to_be_handed_over_keeps_nobody_from_carrying_others(
    run: Path, victim: subprocess.Popen[bytes]
) -> None:
    with _somebody_carries(run), _waiting(run, victim.pid, exe="!" + 4095 * "a") as waiting:
        carry.carry(lambda *_: pytest.fail("it cannot be offered"), str(run))
        assert waiting.went_on().startswith("went on !aaa"), "it does not wait for those who carry others"


def test_nobody_gives_up_on_an_offer_that_may_still_be_taken() -> None:
    assert carry._LOCK_SECONDS * 1000 > 2 * archive._HANDOVER_MSEC


def test_a_victim_that_was_killed_is_not_carried(run: Path, victim: subprocess.Popen[bytes]) -> None:
    """Its number may be another's by now: who waits has the kernel's own descriptor of it."""
    with _somebody_carries(run), _waiting(run, victim.pid) as waiting:
        waiting.kernel_lets_go()
        carry.carry(lambda *_: pytest.fail("it is another's crash"), str(run))
        assert waiting.went_on() == f"went on !a b*$(id) {_CORE!r}\n", "it does not wait for those who carry others"


def test_what_another_offers_just_now_is_not_offered_twice(run: Path, victim: subprocess.Popen[bytes]) -> None:
    with _somebody_carries(run), _waiting(run, victim.pid) as waiting, waiting.note.open() as note:
        fcntl.flock(note, fcntl.LOCK_EX)
        carry.carry(lambda *_: pytest.fail("another offers it"), str(run))
        assert waiting.process.poll() is None


@pytest.mark.parametrize("taken", [True, False])
def test_who_has_waited_learns_whether_it_was_taken(tmp_path: Path, taken: bool) -> None:
    """The lock is the service's, too, which has the note from who offered it: it may have died meanwhile."""
    path = tmp_path / str(os.getpid())
    path.write_bytes(b"1\x002\x00")
    own_fd, offered_fd = os.open(path, os.O_WRONLY), os.open(path, os.O_RDWR)
    fcntl.flock(offered_fd, fcntl.LOCK_EX)
    service_fd = os.dup(offered_fd)
    os.close(offered_fd)  # who offered it is gone

    def decide() -> None:
        if taken:
            os.pwrite(service_fd, handover.TAKEN, 0)
        os.close(service_fd)

    timer = threading.Timer(0.2, decide)
    timer.start()
    assert carry.is_captured(own_fd) is taken
    timer.join()
    os.close(own_fd)


def test_the_script_knows_whom_the_service_cannot_serve() -> None:
    (line,) = (line for line in _ARCHIVE_SH.splitlines() if "case $group in" in line)
    assert line.split("in ", 1)[1].split(")")[0].replace("*", "").split(" | ") == [
        group.decode() for group in handover._NOT_SERVED
    ]
