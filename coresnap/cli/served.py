# SPDX-License-Identifier: Apache-2.0
"""An ordinary user's own dumps, as the query service tells of them: a spool that is read without being able to open it."""

from __future__ import annotations

import errno
import json
import os
from typing import TYPE_CHECKING, Any

from coresnap.cli import terminal
from coresnap.ground.errors import BadInput, Refused, TryLater
from coresnap.spool import asked
from coresnap.spool.asked import Entry
from coresnap.spool.stages import Dump, Spool

if TYPE_CHECKING:
    from coresnap.spool.record import Record

_PATIENCE_SECONDS = 60.0
_AS_ROOT = "ask as root, or as the user that the spool belongs to"
_BLOCK_BYTES = 1 << 20


class Served(Spool):
    """The dumps of whoever asks. They are read once, when it is opened; nothing can be changed through it."""

    __slots__ = ("_connection", "entries")

    def __init__(self, path: str, why: Refused) -> None:
        """Ask the query service. Raises Refused: `why` the spool cannot be opened itself, where there is no service."""
        import socket  # who can open the spool himself does not wait for its import

        self.path = path
        self.root_fd, self.stage_fds = -1, {}
        self.uid, self.gid = os.geteuid(), os.getegid()
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self._connection.settimeout(_PATIENCE_SECONDS)
        try:
            self._connection.connect(asked.PATH)
        except OSError as error:
            self._connection.close()
            raise Refused(str(why), hint=_AS_ROOT) from error
        try:
            self.entries = self._list()
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def uuids(self, stage: str) -> list[str]:
        """Return the user's dumps of a stage."""
        return [uuid for uuid, entry in self.entries.items() if entry.stage == stage]

    def take(self, stage: str, uuid: str) -> Dump | None:
        """Refuse: only who can open the spool may change it."""
        raise Refused(f"{stage}/{uuid} is not yours to change", hint=_AS_ROOT)

    def open(self, uuid: str) -> ServedDump:
        """Return a dump, to read it."""
        return ServedDump(self, self.entries[uuid])

    def file(self, uuid: str, name: str) -> int:
        """Return a file of a dump, open for reading. Raises Refused, TryLater, BadInput."""
        _answer, fd = self._ask("open", uuid=uuid, name=name)
        return fd

    def losses(self) -> list[dict[str, Any]]:
        """Return what is on record of the user's processes of which no core was kept, oldest first. Raises as `file`."""
        _answer, fd = self._ask("losses")
        found = []
        for line in _lines(fd):
            try:
                loss = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise BadInput(f"the query service: a line of the ledger: {error}") from error
            known = isinstance(loss, dict) and isinstance(loss.get("time_usec"), int)
            if not known or not isinstance(loss.get("reason"), str):
                raise BadInput("the query service: a line of the ledger is not as it must be")
            found.append(loss)
        return found

    def _list(self) -> dict[str, Entry]:
        answer, fd = self._ask("list")
        left_off = answer.get("left_off")
        if isinstance(left_off, int) and left_off:
            terminal.note(f"{left_off} older dumps of yours are not shown: there are too many")
        found = map(Entry.from_line, _lines(fd))
        return {entry.record["uuid"]: entry for entry in found}

    def _ask(self, what: str, **more: str) -> tuple[dict[str, Any], int]:
        """Ask; return the answer and its one file. Raises Refused, TryLater, BadInput."""
        from coresnap.ground import wire

        try:
            wire.send(self._connection, asked.request(self.path, what, **more))
            received = wire.receive(self._connection, max_fds=1)
        except ConnectionError:
            received = None
        except OSError as error:
            why = "no answer" if isinstance(error, TimeoutError) else error.strerror
            raise TryLater(f"the query service: {why}", hint="try again, or ask as root") from error
        if received is None:
            raise TryLater(
                "the query service has hung up", hint="too many may be asking: try again; its journal says more"
            )
        answer, fds = received
        if answer.get("status") == asked.OK and len(fds) == 1:
            return answer, fds[0]
        for fd in fds:
            os.close(fd)
        detail = str(answer.get("detail", "it does not say why"))
        if answer.get("status") == asked.LATER:
            raise TryLater(f"the query service: {detail}", hint="try again")
        raise Refused(f"the query service: {detail}")


def _lines(fd: int) -> list[bytes]:
    with open(fd, "rb") as file:
        data = file.read(asked.LIST_MAX_BYTES + 1)
    if len(data) > asked.LIST_MAX_BYTES:
        raise BadInput(f"the query service: a list of more than {asked.LIST_MAX_BYTES} bytes")
    return data.splitlines()


class ServedDump(Dump):
    """A dump of the user's; its directory is not open, its files are asked for."""

    __slots__ = ("names", "record", "spool")

    def __init__(self, spool: Served, entry: Entry) -> None:
        super().__init__(entry.record["uuid"], entry.stage, -1)
        self.spool = spool
        self.names: list[str] = entry.names
        self.record: Record = entry.record

    def open(self, name: str) -> int:
        """Open a file for reading. Raises FileNotFoundError, Refused, TryLater, BadInput."""
        if name not in self.names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return self.spool.file(self.uuid, name)


def that_opens(fd: int) -> int:
    """Return a descriptor of the same bytes whose path under /proc opens again: a copy without a name, where it does not.

    The files of a user's dumps are coresnap's: he can use a descriptor, and not open it anew. Raises OSError.
    """
    try:
        os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC))
    except PermissionError:
        try:
            return _copied(fd)
        finally:
            os.close(fd)
    return fd


def _copied(fd: int) -> int:
    """Copy a file without its holes."""
    import tempfile

    size_bytes, at = os.fstat(fd).st_size, 0
    with tempfile.TemporaryFile(dir="/var/tmp") as copy:  # it has no name
        os.ftruncate(copy.fileno(), size_bytes)
        while at < size_bytes:
            try:
                at = os.lseek(fd, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    break  # nothing but a hole is left
                raise
            end = os.lseek(fd, at, os.SEEK_HOLE)
            while at < end and (block := os.pread(fd, min(_BLOCK_BYTES, end - at), at)):
                at += os.pwrite(copy.fileno(), block, at)
        return os.dup(copy.fileno())
