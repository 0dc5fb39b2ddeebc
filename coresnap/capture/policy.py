# SPDX-License-Identifier: Apache-2.0
"""Whether a crash's core is to be kept, from what is known before its first byte. Imported while a process is held.

One place for what settings forbid, with one meaning on every transport: over the kernel's socket a refusal is a REJECT, over
a pipe it is closed. How much room there is, the reservation (coresnap.spool.quota) decides.
"""

from coresnap.ground.errors import CoresnapError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from coresnap.capture.victim import Victim
    from coresnap.ground.flat import ArchiveSettings

HONOUR = "honour"
#: Limits by which a process wants no core. The second is the kernel's word for it, which its pipe goes by and its socket does not.
_NO_CORE = (0, 1)
_LIMIT = b"Max core file size"


class Declined(CoresnapError):
    """The settings do not want this core; `reason` is one of the ledger's."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


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
