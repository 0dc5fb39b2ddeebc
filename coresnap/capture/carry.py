# SPDX-License-Identifier: Apache-2.0
"""In a storm of crashes: an archive that has an interpreter hands over the crashes of those that wait for one.

What the kernel starts is archive.sh. In a storm it leaves a note in WAITING, which only root can write to: a file with its
arguments, its pid for a name, open in it as descriptor 7. Then it waits until no process has the pipe CARRIERS open for
writing; so nothing has to wake it where those that carried are gone, however they have ended.

An archive whose own crash the service has taken looks there for notes. It locks one, finds the process that has left it
and the crashed process, opens the core's pipe in it, and hands all of that over, the note included. Once the service has
taken the crash it ends the process that waits: that held the core's pipe, too. Nothing is lost, and nothing taken twice,
in whatever order they die:

* the lock, flock(2), is the service's too, and the service writes TAKEN over the note's first byte just before the core's first;
* who has waited, and has an interpreter at last, locks its note before anything else: there it says whether it is captured.

A note is unlinked before who left it is ended, so that the next process of that number has another; where one was left
behind archive.sh leaves none. Who cannot be carried is woken: in a storm that lasts somebody always carries. A note whose
process has ended is of one that was killed, by the kernel where memory was short, for instance: coresnapd looks for those.

Imported by archive after its own crash has been let go, or where it has waited.
"""

import _signal  # type: ignore[import-not-found]  # what signal adds, enumerations, takes longer than what is done here
import fcntl
import os
import select
import stat

from coresnap.capture import handover

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RUN = "/run/coresnap"
_CARRIERS, _WAITING = "carriers", "waiting"
#: archive.sh's descriptors while it waits: the core's pipe, and its note.
_PIPE_FD, _NOTE_FD = 5, 7
_CMDLINE_MAX_BYTES = 64 << 10
#: An offer waits for the service twice, and has the lock as long: nobody may give up on it, and take the crash, before that.
_LOCK_SECONDS = 150
#: Who carries looks so often, at such intervals, for whoever comes next: that is less than another interpreter's start.
_ROUNDS, _IDLE_MSEC = 8, 50


def is_captured(note_fd: int) -> bool:
    """Say whether the crash that one's own note tells of has been taken; else the note is void.

    Where somebody offers it just now, the answer comes when that is decided, and no once no offer can last so long.
    """
    _signal.signal(_signal.SIGALRM, _too_late)
    _signal.alarm(_LOCK_SECONDS)
    try:
        fcntl.flock(note_fd, fcntl.LOCK_EX)
    except OSError:
        pass  # who has it has been stuck since before the first byte
    finally:
        _signal.alarm(0)
    _unlink(f"{RUN}/{_WAITING}/{os.getpid()}", note_fd)
    return _told(note_fd).startswith(handover.TAKEN)


def _told(note_fd: int) -> bytes:
    """Return what a note tells, whatever it has been opened for; nothing where it does not tell yet, or cannot be read."""
    try:
        fd = os.open(f"/proc/self/fd/{note_fd}", os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.read(fd, _CMDLINE_MAX_BYTES)
    finally:
        os.close(fd)


def _too_late(_number: int, _frame: object) -> None:
    raise InterruptedError


def somebody_waits(run: str = RUN) -> bool:
    """Say whether there are notes."""
    try:
        return bool(os.listdir(f"{run}/{_WAITING}"))
    except OSError:
        return False


def carry(offer: "Callable[[bytes, list[str], list[int]], bool]", run: str = RUN) -> None:
    """Hand over the crashes of all that wait, as long as the service takes them. Raises nothing.

    `offer` is given what /proc/PID/stat tells of who waits, archive's arguments and the descriptors, and says whether the
    service has taken the crash.
    """
    try:
        waiting_fd = os.open(f"{run}/{_WAITING}", os.O_RDONLY | os.O_DIRECTORY)
        carries_fd = os.open(f"{run}/{_CARRIERS}", os.O_RDWR)
    except OSError:
        return  # nobody waits here
    try:
        idle = select.poll()
        rounds_left = _ROUNDS
        while rounds_left:
            carried = _round(waiting_fd, offer)
            if carried is None:
                wake_all(f"{run}/{_WAITING}")
                break
            rounds_left = _ROUNDS if carried else rounds_left - 1
            if not carried:
                idle.poll(_IDLE_MSEC)
    except OSError:
        pass  # they wake as we end, and go on by themselves
    finally:
        os.close(carries_fd)
        os.close(waiting_fd)


def killed(run: str = RUN) -> "Iterator[list[str]]":
    """Yield the arguments of each archive that was killed while it waited, its crash taken by nobody. Then its note goes.

    Who waits has its note open: a process that has not is another one, of the same number.
    """
    try:
        names = os.listdir(f"{run}/{_WAITING}")
    except OSError:
        return
    for name in filter(str.isdigit, names):
        path = f"{run}/{_WAITING}/{name}"
        if _waits(name, path):
            continue
        try:
            note_fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            continue  # it was carried
        try:
            fcntl.flock(note_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(note_fd).st_nlink:
                continue  # it was carried, and the name may be another's by now
            told = _told(note_fd)
            if _waits(name, path) or (not told and os.path.exists(f"/proc/{name}")):
                continue  # it has only just left its note, or is about to have it open
            if not told.startswith(handover.TAKEN):
                yield [os.fsdecode(argument) for argument in told.split(b"\0")[:-1]]
            os.unlink(path)
        except OSError:
            continue  # it is being carried
        finally:
            os.close(note_fd)


def _waits(name: str, path: str) -> bool:
    """Say whether the process of that number has the note there open, as one has that waits."""
    try:
        return os.path.samestat(os.stat(f"/proc/{name}/fd/{_NOTE_FD}"), os.stat(path))
    except OSError:
        return False


def wake_all(waiting: str = f"{RUN}/{_WAITING}") -> None:
    """Have all that wait go to a gate: the service takes nothing just now. Raises nothing.

    As the last that carries ends hardly more than one goes on, and has the pipe open again before the next has woken.
    """
    try:
        names = os.listdir(waiting)
    except OSError:
        return
    for name in names:
        fds: list[int] = []
        try:
            note = os.stat(f"{waiting}/{name}")
            waits_fd = _open(f"/proc/{name}", fds)
            pidfd = os.pidfd_open(int(name))
            fds.append(pidfd)
            if os.path.samestat(os.stat(f"fd/{_NOTE_FD}", dir_fd=waits_fd), note):
                _signal.pidfd_send_signal(pidfd, _signal.SIGURG)
        except (OSError, ValueError):
            continue  # it has ended
        finally:
            for fd in fds:
                os.close(fd)


def _round(waiting_fd: int, offer: "Callable[[bytes, list[str], list[int]], bool]") -> "bool | None":
    """Look at each note once; say whether any could be carried, None where one was offered and not taken."""
    names = [name for name in os.listdir(waiting_fd) if name.isdigit()]
    carried = False
    start = os.getpid() % len(names) if names else 0  # others carry, too: not all begin with the same one
    for name in names[start:] + names[:start]:
        try:
            note_fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW, dir_fd=waiting_fd)
        except OSError:
            continue  # another has carried it
        fds = [note_fd]
        try:
            fcntl.flock(note_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            known = _crash(name, note_fd, fds)
            if known is None:
                continue
            status, arguments, waits_fd, offered = known
            if not offer(status, arguments, offered):
                return None
            _mark_taken(note_fd)  # the service may have been killed before it could
            os.unlink(name, dir_fd=waiting_fd)
            _signal.pidfd_send_signal(waits_fd, _signal.SIGKILL)
            carried = True
        except OSError:
            continue  # another carries it, or it is just ending: who waits goes on by itself
        finally:
            for fd in reversed(fds):
                os.close(fd)
    return carried


def _mark_taken(note_fd: int) -> None:
    try:
        os.pwrite(note_fd, handover.TAKEN, 0)
    except OSError:
        pass  # who has left it is ended at once


def _crash(name: str, note_fd: int, fds: "list[int]") -> "tuple[bytes, list[str], int, list[int]] | None":
    """Find what a note tells of: who waits as /proc/PID/stat has it, arguments, who waits as a pidfd, what to hand over.

    What is opened is put into `fds`.
    None where it tells of nothing that can be carried. Raises OSError where a process has ended.
    """
    note = os.fstat(note_fd)
    if not note.st_nlink or _told(note_fd)[:1] in (b"", handover.TAKEN):
        return None
    waits_fd = _open(f"/proc/{name}", fds)
    words = [os.fsdecode(word) for word in _read(waits_fd, "cmdline").split(b"\0")[:-1]]
    arguments = words[2:]
    if not arguments or not words[0].endswith("/sh") or not arguments[0].isdigit():
        return None  # who left it has an interpreter by now, or has ended, and its number is another's
    left = os.stat(f"fd/{_NOTE_FD}", dir_fd=waits_fd)
    if not os.path.samestat(left, note):
        return None
    pidfd = os.pidfd_open(int(name))
    fds.append(pidfd)
    status = _read(
        waits_fd, "stat"
    )  # after it: where the directory still tells something, the process has lived all the time
    try:
        offered = _offered(waits_fd, arguments, fds)
    except OSError:
        offered = None
    if offered is None:
        _signal.pidfd_send_signal(pidfd, _signal.SIGURG)  # it need not wait as long as others are carried
        return None
    return status, arguments, pidfd, [*offered, note_fd]


def _offered(waits_fd: int, arguments: "list[str]", fds: "list[int]") -> "list[int] | None":
    """Open what is to be handed over, into `fds` too; None where that cannot be done. Raises OSError."""
    if not handover.is_short(arguments) or not stat.S_ISFIFO(os.stat(f"fd/{_PIPE_FD}", dir_fd=waits_fd).st_mode):
        return None
    pipe_fd = os.open(f"fd/{_PIPE_FD}", os.O_RDONLY, dir_fd=waits_fd)
    fds.append(pipe_fd)
    proc_fd = _open(f"/proc/{arguments[0]}", fds)
    if not handover.is_served(arguments[0], proc_fd):
        return None
    victim_fd = os.pidfd_open(int(arguments[0]))
    fds.append(victim_fd)
    # A process that is killed while it is held lets go of the pipe: this one was not, and is no other of its number.
    poll = select.poll()
    poll.register(pipe_fd, 0)
    if poll.poll(0):
        return None
    return [pipe_fd, proc_fd, victim_fd]


def _open(path: str, fds: "list[int]") -> int:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    fds.append(fd)
    return fd


def _read(proc_fd: int, name: str) -> bytes:
    fd = os.open(name, os.O_RDONLY, dir_fd=proc_fd)
    try:
        return os.read(fd, _CMDLINE_MAX_BYTES)
    finally:
        os.close(fd)


def _unlink(path: str, note_fd: int) -> None:
    """Unlink a note of one's own, if it is still that."""
    try:
        if os.path.samestat(os.stat(path), os.fstat(note_fd)):
            os.unlink(path)
    except OSError:
        pass
