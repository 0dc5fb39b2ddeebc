# SPDX-License-Identifier: Apache-2.0
"""Whether a crash's core is to be kept, from what is known before its first byte. Imported while a process is held.

One place for what settings forbid, with one meaning on every transport: over the kernel's socket a refusal is a REJECT, over
a pipe it is closed. How much room there is, the reservation (coresnap.spool.quota) decides.

What is told of the process here costs a read of /proc each, and is asked for only where a setting needs it.
"""

from coresnap.ground.asterisk import matches
from coresnap.ground.errors import CoresnapError
from coresnap.spool import limits
from coresnap.spool.limits import Limit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from coresnap.capture.victim import Victim
    from coresnap.ground.flat import ArchiveSettings

HONOUR = "honour"
#: Limits by which a process wants no core. The second is the kernel's word for it, which its pipe goes by and its socket does not.
_NO_CORE = (0, 1)
_LIMIT = b"Max core file size"
_DELETED = " (deleted)"
_SESSION = "session-"
#: systemd-run(1) has a new name for each start.
_TRANSIENT = "run-"
_OF_UNIT, _OF_USER = "unit:", "uid:"


class Declined(CoresnapError):
    """The settings do not want this core; `reason` is one of the ledger's.

    `count` is how many have not been kept, this one included, by a limit whose window ends at `until_usec`.
    """

    def __init__(self, reason: str, detail: str, count: int = 0, until_usec: int = 0) -> None:
        super().__init__(detail)
        self.reason = reason
        self.count = count
        self.until_usec = until_usec


class Known:
    """What settings may ask of a process before its core: its executable and its control group; None is unknown."""

    __slots__ = ("exe", "service", "unit")

    def __init__(self, exe: "str | None", cgroup_file: "bytes | None") -> None:
        """`cgroup_file` is /proc/PID/cgroup."""
        self.exe = exe.removesuffix(_DELETED) if exe else None
        self.unit, self.service = unit_of(cgroup_file or b"")


def needs_exe(settings: "ArchiveSettings") -> bool:
    """Say whether the executable's path is asked for."""
    return bool(settings.limit_exe[0] or settings.include or settings.exclude)


def needs_unit(settings: "ArchiveSettings") -> bool:
    """Say whether the unit is asked for."""
    patterns = (*settings.include, *settings.exclude)
    return bool(settings.limit_exe[0] or settings.limit_unit[0]) or any(map(_is_of_unit, patterns))


def _is_of_unit(pattern: str) -> bool:
    return pattern.startswith(_OF_UNIT)


def decide_by_name(settings: "ArchiveSettings", uid: "int | None", known: Known) -> None:
    """Raise Declined where the patterns leave this process out. One of which nothing is known is left in."""
    for pattern in settings.exclude:
        if _is_meant(pattern, uid, known):
            raise Declined("excluded", f"archive.exclude has `{pattern}`")
    if settings.include and known.exe is not None and not any(_is_meant(one, uid, known) for one in settings.include):
        raise Declined("excluded", "archive.include has no pattern for it")


def _is_meant(pattern: str, uid: "int | None", known: Known) -> bool:
    if pattern.startswith(_OF_USER):
        return pattern.removeprefix(_OF_USER) == str(uid)
    if _is_of_unit(pattern):
        return known.unit is not None and matches(pattern.removeprefix(_OF_UNIT), known.unit)
    exe = known.exe
    return exe is not None and matches(pattern, exe if "/" in pattern else exe.rpartition("/")[2])


def decide_by_size(settings: "ArchiveSettings", memory_bytes: int) -> None:
    """Raise Declined where the process has more in memory, or swapped out, than a core may have."""
    if settings.core_max_bytes and memory_bytes > settings.core_max_bytes:
        raise Declined(
            "too-large", f"it had {memory_bytes} bytes in memory; archive.core_max_bytes is {settings.core_max_bytes}"
        )


def limits_of(settings: "ArchiveSettings", uid: "int | None", known: Known) -> "list[Limit]":
    """Return the limits that count for this process; one that needs what is not known does not.

    A program is counted by itself in each service, of whatever instance, and for each user: an interpreter is the executable
    of many. Elsewhere a unit's name may be a new one for each start, and says nothing. All that somebody does who has logged in
    is in one unit, which is none that a limit is meant for.
    """
    found = []
    if settings.limit_exe[0] and known.exe is not None:
        found.append(Limit(limits.EXE, *settings.limit_exe, known.exe, f"{known.exe}\0{uid}\0{known.service}"))
    if settings.limit_unit[0] and known.unit is not None and not known.unit.startswith(_SESSION):
        found.append(Limit(limits.UNIT, *settings.limit_unit, known.unit))
    if settings.limit_user[0] and uid is not None:
        found.append(Limit(limits.USER, *settings.limit_user, str(uid)))
    return found


def decide_by_count(dir_fd: int, wanted: "list[Limit]", now_usec: int) -> limits.Admission:
    """Count the crash. Raises Declined where a limit is reached, OSError where the counts cannot be had."""
    admission = limits.admit(dir_fd, wanted, now_usec)
    if admission.over is None:
        return admission
    limit, row = admission.over
    detail = (
        f"limit.{limit.kind}: {row.kept} of {limit.name} kept within {limit.window_usec // 1_000_000} s, {row.lost} not"
    )
    raise Declined("rate", detail, row.lost, row.started_usec + limit.window_usec)


def unit_of(cgroup_file: bytes) -> "tuple[str | None, str]":
    """Return the unit that /proc/PID/cgroup tells, and the service without its instance, empty where it is none.

    As coresnap.capture.place does, which tells more and takes longer. In a user's manager the user's own unit comes after it.
    """
    path = ""
    for line in cgroup_file.decode("utf-8", "replace").splitlines()[:100]:
        number, _colon, rest = line.partition(":")
        controllers, _colon, found = rest.partition(":")
        if number == "0" or controllers == "name=systemd":
            path = found
            if controllers:
                break
    units = [part.removeprefix("_") for part in path.split("/") if part.endswith((".service", ".scope"))]
    if not units:
        return None, ""
    unit = units[0]
    if len(units) > 1 and unit.startswith("user@") and units[1] != "init.scope":
        unit = f"{unit}/{units[1]}"
    name, _at, _instance = units[0].partition("@")
    return unit, name if units[0].endswith(".service") and not name.startswith(_TRANSIENT) else ""


def needs_limits(settings: "ArchiveSettings", victim: "Victim") -> bool:
    """Say whether nothing can be decided before proc/limits has been read."""
    return settings.rlimit_core == HONOUR and victim.rlimit_core is None


def decide(settings: "ArchiveSettings", victim: "Victim", limits: bytes) -> None:
    """Raise Declined where the core is not wanted. `limits` is /proc/PID/limits, empty where it is not known."""
    if settings.rlimit_core == HONOUR:
        limit = victim.rlimit_core if victim.rlimit_core is not None else _soft_limit(limits)
        if limit in _NO_CORE:
            raise Declined("rlimit", f"its RLIMIT_CORE is {limit}, which archive.rlimit_core = honour goes by")


def _soft_limit(limits: bytes) -> "int | None":
    """Return the soft limit of a core's size; None where it is unlimited or not known. proc_pid_limits(5)."""
    for line in limits.splitlines():
        if line.startswith(_LIMIT):
            soft = line[len(_LIMIT) :].split()[:1]
            return int(soft[0]) if soft and soft[0].isdigit() and len(soft[0]) < 20 else None
    return None
