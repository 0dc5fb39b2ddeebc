# SPDX-License-Identifier: Apache-2.0
"""Which ordinary user may read a dump: the owner of a process that had nothing that its owner may not have.

Decided once, when the crash is fresh, and put on record; nobody is always a right answer. Two witnesses have to agree, each
of which the kernel wrote. The core's auxiliary vector tells of the process as its program was started: it shows set-uid and
set-gid programs, capabilities of files, and who has changed his ids since, whatever prctl(2) has said of dumpable. status
tells of it as it died: ids, and the capabilities without which ptrace(2) would not let its user look into it either.

getauxval(3), proc_pid_status(5), credentials(7), capabilities(7).
"""

from coresnap.capture.capture import HELD
from coresnap.capture.place import PID_NAMESPACE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from coresnap.capture.victim import Victim

    Place = Mapping[str, str | int | None]

_AT_UID, _AT_EUID, _AT_GID, _AT_EGID, _AT_SECURE = 11, 12, 13, 14, 23
_DUMPABLE_BY_ITS_USER = 1
#: Users of services, root's and nobody's: one service that is broken into is not to read what others of its user left. SYS_UID_MAX
#: of login.defs(5); the dynamic ones of systemd.exec(5); the numbers that stand for no user.
_OF_NO_PERSON = (range(1000), range(61184, 65520), range(65534, 65536), range(2**32 - 1, 2**32))


def reader_of(
    victim: "Victim", transport: str, status_file: bytes, place: "Place", vector: "Mapping[int, int]"
) -> "int | None":
    """Return the user that may read the dump, None where only root and dump.user may.

    `status_file` is /proc/PID/status, empty where it was not read of the process itself; `vector` the core's NT_AUXV.
    """
    uid, gid = victim.uid, victim.gid
    if uid is None or gid is None or transport not in HELD or victim.dumpable != _DUMPABLE_BY_ITS_USER:
        return None
    if any(uid in numbers for numbers in _OF_NO_PERSON):
        return None
    started_as = [vector.get(key) for key in (_AT_UID, _AT_EUID, _AT_GID, _AT_EGID, _AT_SECURE)]
    if started_as != [uid, uid, gid, gid, 0]:  # in a user namespace the numbers are others, as a rule
        return None
    if not _died_as(status_file, uid, gid) or _is_of_a_container(place, uid):
        return None
    return uid


def _died_as(status_file: bytes, uid: int, gid: int) -> bool:
    """Say whether all its ids were these, and it had no capability."""
    found: dict[bytes, list[bytes]] = {}
    for line in status_file.splitlines()[:200]:
        name, _colon, rest = line.partition(b":")
        found.setdefault(name, rest.split())
    ids, groups = [str(uid).encode()] * 4, [str(gid).encode()] * 4
    capabilities = found.get(b"CapPrm", [])
    return (
        found.get(b"Uid") == ids
        and found.get(b"Gid") == groups
        and len(capabilities) == 1
        and not capabilities[0].strip(b"0")
    )


def _is_of_a_container(place: "Place", uid: int) -> bool:
    """Say whether a container's manager may mean another person by this number. A user's own sandbox is that user's."""
    container = place["container"]
    return container is not None and not (container == PID_NAMESPACE and place["owner_uid"] == uid)
