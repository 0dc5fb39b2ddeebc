#!/usr/bin/python3 -I
# SPDX-License-Identifier: Apache-2.0
"""coresnap query - tell an ordinary user of his own dumps

SYNOPSIS
    python3 -m coresnap.query [--settings FILE]

DESCRIPTION
    Started by the service manager for each connection to /run/coresnap/query, which is on standard input. `coresnap list`,
    info, why, dump and debug ask here where the spool is closed to who runs them. Who asks, the kernel says (SO_PEERCRED);
    a dump is the asker's where its record says so in reader_uid, which was decided when the process crashed: see
    docs/adr/0021. Three questions are answered: which dumps are mine, which of my processes left none, and give me this file.

EXIT STATUS
    0 the asker has been served, or refused; 69 there is no spool; 78 the settings are wrong.

SECURITY
    Runs as the dumps' user, and so could read every dump: it writes nothing, has no network and no capability, and reads of
    a dump its record alone. A request is one short packet of few typed keys. What is handed out are descriptors open for
    reading. A dump of somebody else's and one that is not there are answered by the same words. One user has four
    connections at a time, each for a minute at most, and ten seconds for each question.

BUGS
    A dump that is removed while its owner holds its core open keeps its space until he closes it.
"""

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

import argparse
import fcntl
import heapq
import json
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Any

from coresnap.ground import durable, program, settings, wire
from coresnap.ground.errors import BadInput, CoresnapError
from coresnap.ground.log import Log
from coresnap.spool import asked, inventory, ledger, record
from coresnap.spool.asked import Entry
from coresnap.spool.record import Record
from coresnap.spool.stages import Dump, Spool, is_uuid

_PATIENCE_SECONDS = 10.0
_QUESTIONS_MOST = 64
_AT_ONCE = 4
_CREDENTIALS = struct.Struct("=iII")
#: What the kernel says of a user that our user namespace has no number for: user_namespaces(7).
_NOBODY = 65534
#: Each question's keys; every value is text but the version.
_KEYS = {
    "list": {"version", "root", "what"},
    "losses": {"version", "root", "what"},
    "open": {"version", "root", "what", "uuid", "name"},
}
_TEXT_MAX = 4096
_NO_DUMP = "no such dump of yours, or it has no such file"


def main(arguments: list[str] | None = None) -> int:
    """Run the query service for one connection; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="coresnap-query", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", metavar="FILE", help="read this configuration file, and no other")
    parser.add_argument("-f", action="store_true", help=argparse.SUPPRESS)  # of $CORESNAPD_OPTS, and nothing here
    path = parser.parse_args(arguments).settings
    log = Log.open()
    return program.run("coresnap-query", lambda: _main(path, log), log.error)


def _main(path: str | None, log: Log) -> int:
    with socket.socket(fileno=os.dup(0)) as connection:
        connection.settimeout(_PATIENCE_SECONDS)
        uid = peer_uid(connection)
        try:
            if uid == _NOBODY:
                _refuse(connection, asked.REFUSED, "who you are cannot be told here")
            elif not _has_room(uid):
                _refuse(connection, asked.LATER, "you have asked several times at once")
            else:
                root = settings.load(path).dump_root
                with Spool(root) as spool:
                    Query(spool, uid, log).serve(connection)
        except OSError:
            pass  # who asks has gone, or does not say what he wants
    return 0


def peer_uid(connection: socket.socket) -> int:
    """Return the effective user that connected: SO_PEERCRED of unix(7)."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(credentials)[1]
    return uid


def _has_room(uid: int) -> bool:
    """Take one of the user's few places, for as long as this process lives; false where all are taken.

    A place is a byte that is locked, at an offset of a file that never grows.
    """
    directory = os.environ.get("RUNTIME_DIRECTORY")
    if not directory:
        return True
    fd = os.open(os.path.join(directory, "places"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    for place in range(_AT_ONCE):
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, uid * _AT_ONCE + place)
        except OSError:
            continue
        return True  # the descriptor stays open, and with it the lock
    return False


def _refuse(connection: socket.socket, status: str, detail: str) -> None:
    wire.send(connection, {"version": asked.VERSION, "status": status, "detail": detail})


class Query:
    """One user's view of a spool."""

    def __init__(self, spool: Spool, uid: int, log: Log) -> None:
        self.spool = spool
        self.uid = uid
        self.log = log

    def serve(self, connection: socket.socket) -> None:
        """Answer until who asks hangs up. Raises OSError."""
        for _question in range(_QUESTIONS_MOST):
            try:
                received = wire.receive(connection, max_fds=0)
                if received is None:
                    return
                what, request = self._check(received[0])
                if what == "open":
                    fd, answer = self._open(request["uuid"], request["name"])
                else:
                    fd, answer = self._list() if what == "list" else self._losses()
            except CoresnapError as error:
                _refuse(connection, asked.REFUSED, str(error))
                continue
            try:
                wire.send(connection, {"version": asked.VERSION, "status": asked.OK, **answer}, [fd])
            finally:
                os.close(fd)

    def _check(self, request: dict[str, Any]) -> tuple[str, dict[str, str]]:
        """Return what is wanted, and its values. Raises BadInput."""
        what = request.get("what")
        if not isinstance(what, str) or request.keys() != _KEYS.get(what) or request["version"] != asked.VERSION:
            raise BadInput("this is no question that this coresnap knows")
        values = {key: value for key, value in request.items() if key != "version"}
        if not all(isinstance(value, str) and len(value) <= _TEXT_MAX for value in values.values()):
            raise BadInput("a question has a value that is no text")
        if os.path.normpath(request["root"]) != os.path.normpath(self.spool.path):
            raise BadInput("the query service looks after another spool: name no settings, or ask as root")
        return what, values

    def _list(self) -> tuple[int, dict[str, Any]]:
        """Return a file of the user's dumps, a line each, and how many older ones are not in it. Raises OSError."""
        kept: list[tuple[int, str, bytes]] = []
        size_bytes = left_off = 0
        for entry in self._mine():
            line = entry.line()
            heapq.heappush(kept, (entry.record["captured"]["time_usec"], entry.record["uuid"], line))
            size_bytes += len(line)
            while len(kept) > asked.LIST_MOST or size_bytes > asked.LIST_MAX_BYTES:
                size_bytes -= len(heapq.heappop(kept)[2])
                left_off += 1
        return _file(line for _time_usec, _uuid, line in sorted(kept)), {"left_off": left_off}

    def _losses(self) -> tuple[int, dict[str, Any]]:
        """Return a file of what the ledger has of the user's processes: a line each. Raises OSError."""
        mine = (
            loss for loss in ledger.read(self.spool.root_fd) if type(loss.get("uid")) is int and loss["uid"] == self.uid
        )
        return _file(json.dumps(_for_its_user(loss)).encode() + b"\n" for loss in mine), {}

    def _mine(self) -> Iterator[Entry]:
        """Yield the user's dumps. Which may be his an inventory tells, and of each of those its own record."""
        found = inventory.take(self.spool, asked.STAGES)
        for number, uid in enumerate(found["uid"]):
            if uid != self.uid + 1:  # as the index has it
                continue
            row = found.row(number)
            for stage in (row.stage, *asked.STAGES):  # it may move meanwhile
                dump = self._mine_at(stage, row.uuid)
                if dump is not None:
                    with dump[0] as mine:
                        names = [name for name in os.listdir(mine.fd) if name in asked.FILES]
                        yield Entry(stage, names, _for_its_owner(dump[1]))
                    break

    def _mine_at(self, stage: str, uuid: str) -> tuple[Dump, Record] | None:
        """Return the dump, open, if it is there and the user's. The same file is read of any other."""
        try:
            dump = Dump(uuid, stage, durable.open_directory(uuid, self.spool.stage_fds[stage]))
        except OSError:
            return None
        try:
            data = durable.read(dump.fd, record.NAME, record.LIMIT_BYTES)
            if b'"reader_uid":%d,' % self.uid in data:  # what is another's is not even parsed
                document = record.parse(data)
                if document["reader_uid"] == self.uid and document["uuid"] == uuid:
                    return dump, document
        except (BadInput, OSError):
            pass
        dump.close()
        return None

    def _open(self, uuid: str, name: str) -> tuple[int, dict[str, Any]]:
        """Open a file of a dump of the user's. Raises BadInput, the same for one that is not there and one that is not his."""
        if is_uuid(uuid) and name in asked.FILES:
            for stage in asked.STAGES:
                found = self._mine_at(stage, uuid)
                if found is None:
                    continue
                with found[0] as dump:
                    try:
                        fd = durable.open_regular(dump.fd, name)
                    except OSError:
                        break
                self.log.info(
                    f"{uuid}: its user {self.uid} is given its {name}", CORESNAP_DUMP=uuid, CORESNAP_STAGE=stage
                )
                return fd, {}
        raise BadInput(_NO_DUMP)


def _file(lines: Iterable[bytes]) -> int:
    """Return a file of these lines, which nobody can change, to be read from its beginning."""
    fd = os.memfd_create("coresnap-query", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    for line in lines:
        durable.write(fd, line)
    os.lseek(fd, 0, os.SEEK_SET)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    return fd


def _for_its_user(loss: dict[str, Any]) -> dict[str, Any]:
    """Return a line of the ledger with the words of a limit, and without those of a disk or of a mistake in coresnap."""
    return loss if loss["reason"] in ledger.UNWANTED else {**loss, "detail": ""}


def _for_its_owner(document: Record) -> Record:
    """Return the record without what is the host's: the words of a store, and of who delivers to it."""
    failure = document["failure"]
    if failure and failure["reason"] == "send":
        failure["detail"] = ""
    for line in document["history"]:
        if line["event"].startswith("send"):
            line["detail"] = ""
    return document


if __name__ == "__main__":
    sys.exit(main())
