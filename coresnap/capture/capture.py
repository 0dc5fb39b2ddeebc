# SPDX-License-Identifier: Apache-2.0
"""The first half of a capture: from the crash to the core's last byte, while the crashed process is held.

Nothing runs here that could run later: checking, syncing, writing the asset, recording and logging are
coresnap.capture.finish's, which is not even imported before the process has been let go.
"""

import errno
import os
import select
import stat
import time

from coresnap.capture import policy
from coresnap.capture.copy import Copied, copy
from coresnap.capture.evidence import Evidence, Reader
from coresnap.capture.members import Wish, read
from coresnap.capture.source import Gone, Withdrawn
from coresnap.capture.victim import comm_of, exe_of
from coresnap.ground import durable
from coresnap.ground.errors import CoresnapError, Refused
from coresnap.spool.quota import QuotaExceeded, Reservation, check_free
from coresnap.spool.stages import Dump, Spool, new_uuid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from coresnap.capture.assets import Assets
    from coresnap.capture.source import Source
    from coresnap.capture.victim import Victim
    from coresnap.ground.flat import ArchiveSettings
    from coresnap.spool.limits import Admission

CORE = "core"
#: The transports by which a process was held.
HELD = ("pipe", "handover", "socket")
#: Why a capture has ended that another has taken over; no reason of the ledger's.
WITHDRAWN = "withdrawn"
#: What a dump takes beside its core: the asset, the record, directories.
OVERHEAD_BYTES = 1 << 20
_HOST_BUDGET_USEC = 2_000_000
_CGROUP_BYTES = 4096
_STATUS_BYTES = 16 << 10
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Capture:
    """One capture under way. `reason` and `detail` say why it has failed, empty as long as it has not."""

    __slots__ = (
        "admission",
        "assets",
        "copied",
        "core_fd",
        "declined",
        "detail",
        "dump",
        "error",
        "evidence",
        "held_usec",
        "reason",
        "reservation",
        "settings",
        "spool",
        "started_nsec",
        "transport",
        "uuid",
        "victim",
        "within",
    )

    def __init__(
        self,
        settings: "ArchiveSettings",
        victim: "Victim",
        transport: str,
        started_nsec: int,
        within: str = "",
        uuid: str = "",
    ) -> None:
        """`started_nsec` is CLOCK_MONOTONIC when it began; `transport` is a source's, or salvage; `within`: see Spool.

        `uuid` is what the crash goes by, kept or on record.
        """
        self.uuid = uuid or new_uuid()
        self.settings = settings
        self.within = within
        self.victim = victim
        self.transport = transport
        self.started_nsec = started_nsec
        self.held_usec = 0
        self.reason = ""
        self.detail = ""
        self.error: CoresnapError | OSError | None = None
        self.declined: policy.Declined | None = None
        self.admission: Admission | None = None
        self.spool: Spool | None = None
        self.dump: Dump | None = None
        self.evidence: Evidence | None = None
        self.assets: Assets | None = None
        self.reservation: Reservation | None = None
        self.copied = Copied()
        self.core_fd = -1

    def hold(self, source: "Source", proc: "str | None", reader: "Reader | None" = None) -> None:
        """Take the evidence and the core. An error is kept for the second half, and ends this one."""
        try:
            self._hold(source, proc, reader or Reader(source.fds()))
        except (CoresnapError, OSError) as error:
            self.fail(error)
            self._forget_another()  # the loss is recorded under a name, too
            source.refuse()
        self.held_usec = (time.monotonic_ns() - self.started_nsec) // 1000

    def _hold(self, source: "Source", proc: "str | None", reader: Reader) -> None:
        self._refuse_at_once(proc)
        settings = self.settings
        self.spool = Spool(settings.root, self.within)
        if proc is not None and self.transport in HELD:
            self._ask_the_settings(proc)
        wish = Wish(settings.environ, settings.modules_max_bytes, settings.uid)
        self.evidence = Evidence(proc, wish, reader)
        stays = source.keeps_process()
        later = stays and not policy.needs_limits(self.settings, self.victim)
        if not later:
            self._take_evidence()
        policy.decide(self.settings, self.victim, self.evidence.members.get("proc/limits", b""))
        need_bytes = OVERHEAD_BYTES + self._core_bytes(source.fd)
        self.reservation = Reservation(self.spool, self.settings.quota_percent, self.settings.ceiling_bytes, need_bytes)
        self.dump = self.spool.new(self.uuid)
        self.core_fd = durable.create(self.dump.fd, CORE, *self.settings.owner())
        source.begin()
        self.copied = copy(source.fd, self.core_fd, self.reservation, OVERHEAD_BYTES, proc if stays else None)
        if later:  # its evidence has been read while its core was copied
            self._take_evidence()

    def _refuse_at_once(self, proc: "str | None") -> None:
        """Raise QuotaExceeded where there is no room for any core, however small, before anything else is done for this one."""
        try:
            check_free(os.statvfs(self.within + self.settings.root), self.settings.quota_percent, OVERHEAD_BYTES)
        except QuotaExceeded:
            if proc is not None:
                self._name(proc)  # the ledger has its name all the same
            raise
        except OSError:
            pass  # what is wrong there the spool tells

    def _ask_the_settings(self, proc: str) -> None:
        """Raise Declined where they want no core of this process. Nothing has been done for it yet, and no byte has moved."""
        settings, uid = self.settings, self.victim.uid
        try:
            exe = exe_of(proc) if policy.needs_exe(settings) else None
            cgroup = read(f"{proc}/cgroup", _CGROUP_BYTES) if policy.needs_unit(settings) else None
            status = read(f"{proc}/status", _STATUS_BYTES) if settings.core_max_bytes else None
            if self.victim.pidfd is not None and has_exited(self.victim.pidfd):
                exe, cgroup, status = self.victim.exe, None, None
            known = policy.Known(exe, cgroup)
            policy.decide_by_name(settings, uid, known)
            policy.decide_by_size(settings, memory_bytes(status or b""))
            wanted = policy.limits_of(settings, uid, known)
            if wanted:
                assert self.spool is not None
                self.admission = policy.decide_by_count(self.spool.root_fd, wanted, time.time_ns() // 1000)
        except policy.Declined:
            self._name(proc)
            raise
        except OSError:
            pass  # counts that cannot be had forbid nothing

    def _name(self, proc: str) -> None:
        """Read what the process is called, and nothing else."""
        victim = self.victim
        names = victim.comm or comm_of(proc), exe_of(proc)
        if victim.pidfd is None or not has_exited(victim.pidfd):
            victim.comm, victim.exe = names[0], names[1] or victim.exe

    def _take_evidence(self) -> None:
        assert self.evidence is not None
        self.evidence.wait_for_victim(self.settings.evidence_budget_usec)
        self._forget_another()

    def _forget_another(self) -> None:
        """Forget what /proc told where the process has ended: it may have told of another one under its number."""
        if self.evidence is None:
            return
        if self.victim.pidfd is not None and has_exited(self.victim.pidfd):
            self.evidence.forget_victim()

    def wait_for_host(self) -> None:
        """Take what is still to come of the evidence, and be done with its reader. The process has been let go."""
        self._trim()
        if self.evidence is not None:
            keeps = self.dump is not None and not self.reason and not self.copied.reason
            self.evidence.wait_for_host(_HOST_BUDGET_USEC, self._put_piece if keeps else None)
            self._trim()

    def _trim(self) -> None:
        """Give back the room that what has been written did not need: others wait for it, and this may not end so soon."""
        if self.reservation is not None:
            self.reservation.trim(OVERHEAD_BYTES)

    def _put_piece(self, name: str, data: bytes) -> None:
        """Put a piece of a mapped file into the asset, which is begun with the first: they are too large to be held here."""
        from coresnap.capture.assets import Assets  # few crashes need it before it is finished
        from coresnap.ground.redact import Redaction

        if self.reason or self.dump is None or self.evidence is None:
            return
        try:
            if self.assets is None:
                self.assets = Assets(self.dump.fd, self.settings.owner(), self.reservation)
                redaction = Redaction(self.settings.redact_names, self.settings.redact_values)
                self.assets.put_evidence(self.evidence.members, redaction)
            self.assets.put_piece(name, data)
        except OSError as error:
            self.fail(error)

    def _core_bytes(self, source_fd: int) -> int:
        """Foresee what the core takes on the disk: what the process has in memory or swapped out, or the file's blocks."""
        status = os.fstat(source_fd)
        if stat.S_ISREG(status.st_mode):
            return status.st_blocks * 512
        assert self.evidence is not None
        return memory_bytes(self.evidence.members.get("proc/status", b""))

    def fail(self, error: "CoresnapError | OSError") -> None:
        """Note why the capture has failed, as one of the ledger's reasons."""
        self.error = error
        if isinstance(error, policy.Declined):
            self.reason, self.declined = error.reason, error
        elif isinstance(error, QuotaExceeded):
            self.reason = "quota"
        elif isinstance(error, Gone):
            self.reason = "empty"
        elif isinstance(error, Withdrawn):
            self.reason = WITHDRAWN
        elif isinstance(error, Refused):
            self.reason = "no-spool"
        elif isinstance(error, OSError):
            self.reason = "disk-full" if error.errno in _FULL else "write-error"
        else:
            self.reason = "internal"
        self.detail = error.line() if isinstance(error, CoresnapError) else str(error)


def memory_bytes(status: bytes) -> int:
    """Sum RssAnon, RssShmem and VmSwap of a /proc/PID/status; what is missing counts nothing."""
    total_bytes = 0
    for line in status.splitlines():
        name, _colon, value = line.partition(b":")
        if name in (b"RssAnon", b"RssShmem", b"VmSwap"):
            number = value.split()[0] if value.split() else b""
            total_bytes += int(number) << 10 if number.isdigit() and len(number) < 16 else 0
    return total_bytes


def has_exited(pidfd: int) -> bool:
    """Say whether the process has ended, so that /proc may have told of another one under its number."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return any(events & select.POLLIN for _fd, events in poll.poll(0))
