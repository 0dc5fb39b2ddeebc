#!/usr/bin/python3 -IS
# SPDX-License-Identifier: Apache-2.0
"""archive - take the core of a crashed process into the spool

SYNOPSIS
    archive [--settings FILE] [--proc DIR] [PID TID UID GID SIGNAL TIME RLIMIT DUMPABLE PIDFD EXE] < CORE

DESCRIPTION
    The kernel starts archive for each process that dies of a signal which dumps core, as core_pattern says:

        |/usr/local/lib/coresnap/archive %P %I %u %g %s %t %c %d %F %E

    (after `make install`; a distribution's package has it in /usr/lib/coresnap). core_pipe_limit has to be above 0, so
    that the kernel keeps /proc/PID until archive has read it.

    As it is installed a shell script comes before it, archive.sh. In a storm of crashes that leaves a note in
    /run/coresnap/waiting, and waits while another archive carries: one whose own crash the capture service has taken gives it
    the crashes that the notes tell of, and ends who has waited. Who is not carried goes on by itself: ten archives run at a
    time, by locks on /run/coresnap/gate.0 to gate.9, and the others wait for two minutes at most.

    It reads what dies with the process from /proc/PID, copies the core from standard input, sparsely and in one pass,
    and closes its input: from then on the process is gone. Then it makes the dump durable and renames it to pending.
    An argument that the kernel left empty, or that is missing, is unknown and no error; by hand, `archive < core` works.

OPTIONS
    --settings FILE  the flat settings that `coresnap config --compile` wrote
                     (default /var/cache/coresnap/archive.settings; where there are none, built-in defaults hold)
    --proc DIR       read DIR in place of /proc/PID
    --help           print this

EXIT STATUS
    0 kept; 65 what came is no core, or its notes are cut; 69 there is no spool, or the settings do not want it;
    75 no room; 2 usage.
    Every core that is not kept is in the ledger: `coresnap why`.

SECURITY
    Runs as root, in the initial namespaces, started by the kernel with an empty environment. All that the process
    could choose (its name, its memory, /proc/PID/environ) is data here: nothing of it is run, and of its memory
    nothing but ELF headers and notes is read, through bounded readers.

BUGS
    A core that comes without its victim's number (by hand) has no evidence of the process, only of the host.
"""

import sys
import time

STARTED_NSEC = time.monotonic_ns()

import os  # the clock is read first: imports count as held time

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from coresnap.capture import handover  # the path is set first

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from coresnap.capture.capture import Capture

#: What archive.sh has open in a storm: its note, what tells others that we carry, and the lock by which few archives at a
#: time have an interpreter.
_NOTE_FD, _CARRIES_FD, _GATE_FD = 7, 8, 9
_NOTES = "/run/coresnap/waiting/"
#: A service that has not taken a crash by then is stuck, or has more to do than this machine can.
_HANDOVER_MSEC = 60_000
_EXIT_STATUS = {
    "": 0,
    **dict.fromkeys(("no-spool", "rlimit", "rate", "excluded", "too-large"), 69),
    **dict.fromkeys(("empty", "not-a-core", "cut-short"), 65),
    "internal": 1,
}


def main(arguments: "Sequence[str]") -> int:
    """Run archive with these arguments; return its exit status."""
    _open_standard_descriptors()
    options = _options(arguments)
    if isinstance(options, int):
        return options
    settings_path, proc, positional = options
    if positional == arguments and positional:
        if _was_carried() or _handed_over(positional):
            os.dup2(1, 0)  # the service has the pipe
            _carry()
            os._exit(0)
        _wake_all()

    _leave_the_gate()
    from coresnap.capture.capture import Capture
    from coresnap.capture.source import Source
    from coresnap.capture.victim import from_core_pattern
    from coresnap.ground import flat

    settings, problem = flat.read(settings_path or flat.PATH)
    victim = from_core_pattern(positional)
    source = Source(0, "hand" if victim.pid is None else "pipe")
    capture = Capture(settings, victim, source.transport, _started_nsec())
    capture.hold(source, proc or (None if victim.pid is None else f"/proc/{victim.pid}"))
    os.dup2(1, 0)  # closes the pipe: the process is let go
    return _afterwards(capture, problem)


def _handed_over(arguments: "Sequence[str]") -> bool:
    """Give the crash to the capture service, where there is one that can have it."""
    pid = arguments[0]
    if not pid.isdigit() or not os.path.exists(handover.PATH):
        return False
    fds = [0]
    try:
        proc_fd = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY)
        fds.append(proc_fd)
        if not handover.is_served(pid, proc_fd):
            return False
    except OSError:
        return False
    if len(arguments) > 8 and arguments[8].isdigit():
        fds.append(int(arguments[8]))
    return handover.offer(handover.PATH, _started_nsec(), list(arguments), fds, _HANDOVER_MSEC)


def _was_carried() -> bool:
    """Say whether another archive has handed the crash over, while archive.sh waited for us to be started."""
    try:
        if not os.readlink(f"/proc/self/fd/{_NOTE_FD}").startswith(_NOTES):
            return False
    except OSError:
        return False  # it has not waited
    from coresnap.capture import carry

    return carry.is_captured(_NOTE_FD)


def _somebody_waits() -> bool:
    try:
        return bool(os.listdir(_NOTES))
    except OSError:
        return False


def _wake_all() -> None:
    """Have nobody wait to be carried: the service has not taken our crash, and may be stuck."""
    if _somebody_waits():
        from coresnap.capture import carry

        carry.wake_all(_NOTES)


def _carry() -> None:
    """Hand over the crashes of those that wait, now that nothing is held by us."""
    if not _somebody_waits():
        return
    from coresnap.capture import carry

    carry.carry(
        lambda status, arguments, fds: handover.offer(
            handover.PATH, _started_nsec(status), arguments, fds, _HANDOVER_MSEC
        )
    )


def _started_nsec(status: bytes = b"") -> int:
    """Return CLOCK_MONOTONIC when the kernel started us, to a clock tick: before the interpreter archive.sh may have waited.

    `status` is another's /proc/PID/stat in place of our own: field 22, in ticks of CLOCK_BOOTTIME, proc_pid_stat(5).
    """
    try:
        if not status:
            fd = os.open("/proc/self/stat", os.O_RDONLY)
            status = os.read(fd, 4096)
            os.close(fd)
        fields = status.rpartition(b")")[2].split()
        ticks_nsec = (int(fields[19]) + 1) * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))
        lived_nsec = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - ticks_nsec
        return min(STARTED_NSEC, time.monotonic_ns() - lived_nsec)
    except (OSError, ValueError, IndexError):
        return STARTED_NSEC


def _leave_the_gate() -> None:
    """Let another archive have its interpreter, and nobody wait for us to carry: what comes now may take long."""
    for fd in (_CARRIES_FD, _GATE_FD):
        try:
            os.close(fd)
        except OSError:
            pass


def _open_standard_descriptors() -> None:
    """Open what the kernel left closed, so that no file of ours becomes standard output."""
    for fd in (1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _options(arguments: "Sequence[str]") -> "int | tuple[str, str, Sequence[str]]":
    """Split options from the kernel's arguments; an integer is an exit status to end with."""
    values = {"--settings": "", "--proc": ""}
    rest = list(arguments)
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if option == "--help":
            print(__doc__)
            return 0
        if option not in values or not rest:
            print(f"archive: {option}: unknown option, or no value: see archive --help", file=sys.stderr)
            return 2
        values[option] = rest.pop(0)
    if not rest and os.isatty(0):
        print("archive: reads a core from standard input, which is a terminal: see archive --help", file=sys.stderr)
        return 2
    return values["--settings"], values["--proc"], rest


def _afterwards(capture: "Capture", problem: str) -> int:
    """Do what can be done after the process has been let go: imported here, because imports count."""
    import site

    site.main()  # -S left the distribution's packages out; the journal's is among them
    from coresnap.capture.finish import finish
    from coresnap.capture.tell import tell
    from coresnap.ground import log as logging

    outcome = finish(capture)
    log = logging.Log.open()
    if problem:
        log.warning(problem)
    tell(log, capture, outcome)
    return _EXIT_STATUS.get(outcome.reason, 75)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
