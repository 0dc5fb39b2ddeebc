# SPDX-License-Identifier: Apache-2.0
"""Dumps as the command line reads them: without a lock, while they move, with records that may be unreadable."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coresnap.ground import durable, settings
from coresnap.ground.errors import BadInput, Refused, TryLater
from coresnap.ground.text import printable
from coresnap.spool import record, stages
from coresnap.spool.stages import Dump, Spool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coresnap.spool.record import Record

#: The stages of finished dumps, the way that a dump goes: one that moves on while they are read is not missed.
LISTED = (stages.PENDING, stages.SENDING, stages.COMMITTED, stages.FAILED)
CORE, ASSETS, SNAPSHOT, RECEIPT = "core", "assets.tar", "snapshot", "receipt.json"
SHORT = 12
_PREFIX_LEAST = 4
_CANDIDATES_MOST = 8


def dump_root(path: str | None) -> str:
    """Return dump.root of the configuration in force, or of the file `path`. Raises BadSettings."""
    return settings.load(path).dump_root


def open_spool(root: str) -> Spool:
    """Open the spool. Raises Refused, with what to do where it is only a matter of rights."""
    try:
        return Spool(root)
    except Refused as error:
        if isinstance(error.__cause__, PermissionError):
            raise Refused(str(error), hint="ask as root, or as the user that the spool belongs to") from error
        raise


@dataclass(frozen=True)
class Entry:
    """A dump as it was found. Where `record` is None, `problem` says why, and `names` are its files."""

    stage: str
    uuid: str
    time_usec: int
    record: Record | None
    problem: str = ""
    names: tuple[str, ...] = ()

    @property
    def short(self) -> str:
        """The dump as a person names it."""
        return f"{self.stage}/{self.uuid[:SHORT]}..."

    def has(self, name: str) -> bool:
        """Say whether the dump has a file, complete: what the record says, or else the directory."""
        if self.record is None:
            return name in self.names
        return name == CORE or bool(
            self.record["snapshot"] if name == SNAPSHOT else self.record["assets"]["size_bytes"]
        )

    @property
    def disk_bytes(self) -> int:
        """What the record says that the dump takes on the disk; of a dump without a readable one nothing is known."""
        if self.record is None:
            return 0
        snapshot = self.record["snapshot"] or {"size_bytes": 0}
        total: int = self.record["core"]["disk_bytes"] + self.record["assets"]["size_bytes"] + snapshot["size_bytes"]
        return total

    def as_json(self) -> dict[str, Any]:
        """Return the dump as `--json` prints it."""
        return {"stage": self.stage, "uuid": self.uuid, "record": self.record, "problem": self.problem or None}


def look(spool: Spool, stage: str, uuid: str) -> Entry | None:
    """Read a dump's record; None where the dump is not, or no longer, in that stage."""
    try:
        document = record.parse(durable.read(spool.stage_fds[stage], f"{uuid}/{record.NAME}", record.LIMIT_BYTES))
        if document["uuid"] == uuid:
            return Entry(stage, uuid, document["captured"]["time_usec"], document)
        problem = f"{record.NAME} is of {document['uuid']}"
    except BadInput as error:
        problem = error.line().removeprefix(f"{uuid}/")
    except OSError as error:
        problem = f"{record.NAME}: {error.strerror}"
    return _look_without_record(spool.stage_fds[stage], stage, uuid, problem)


def _look_without_record(stage_fd: int, stage: str, uuid: str, problem: str) -> Entry | None:
    """Return what a dump shows of itself where its record cannot be read; None where there is no dump."""
    names: tuple[str, ...] = ()
    try:
        status = os.stat(uuid, dir_fd=stage_fd, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            return None
        fd = durable.open_directory(uuid, stage_fd)
        try:
            names = tuple(os.listdir(fd))
        finally:
            os.close(fd)
    except FileNotFoundError:
        return None
    except OSError:
        pass  # it may be there, but not be looked into
    return Entry(stage, uuid, status.st_mtime_ns // 1000, None, problem, names)


def look_all(spool: Spool, names: Sequence[str] = LISTED) -> list[Entry]:
    """Read all dumps of these stages, oldest first. One that moves meanwhile is looked up again, once."""
    found: dict[str, Entry] = {}
    for stage, uuid in [(name, uuid) for name in names for uuid in spool.uuids(name)]:
        entry = look(spool, stage, uuid) or next(filter(None, (look(spool, other, uuid) for other in names)), None)
        if entry:
            found[uuid] = entry
    return sorted(found.values(), key=lambda entry: (entry.time_usec, entry.uuid))


def resolve(spool: Spool, text: str) -> tuple[str, str]:
    """Return stage and UUID of the one dump that `text`, [STAGE/]BEGINNING-OF-UUID, names. Raises Refused."""
    stage, slash, beginning = text.rpartition("/")
    beginning = beginning.removesuffix("...").removesuffix("…").lower()
    if slash and stage not in stages.STAGES:
        raise Refused(f"{text}: there is no stage {stage}", hint=f"the stages are {', '.join(stages.STAGES)}")
    if len(beginning) < _PREFIX_LEAST or not re.fullmatch("[0-9a-f-]+", beginning):
        raise Refused(
            f"{text} is not the beginning of a UUID",
            hint=f"give at least {_PREFIX_LEAST} of its characters, as `coresnap list` prints them",
        )
    among = (stage,) if slash else LISTED
    found = {uuid: name for name in among for uuid in spool.uuids(name) if uuid.startswith(beginning)}
    if not found:
        raise Refused(
            f"no dump {text}", hint=f"`coresnap list` has what is there, `coresnap why {beginning}` what was not kept"
        )
    if len(found) > 1:
        some = [f"{name}/{uuid}" for uuid, name in sorted(found.items())[:_CANDIDATES_MOST]]
        more = ["…"] if len(found) > len(some) else []
        raise Refused(f"{text} may be any of {len(found)} dumps", hint=f"give more of it: {', '.join(some + more)}")
    ((uuid, name),) = found.items()
    return name, uuid


def open_dump(spool: Spool, text: str) -> Dump:
    """Open the dump that `text` names, to read it; it is not locked and may move. Raises Refused, TryLater."""
    for _attempt in range(3):
        stage, uuid = resolve(spool, text)
        try:
            return Dump(uuid, stage, durable.open_directory(uuid, spool.stage_fds[stage]))
        except FileNotFoundError:
            text = uuid  # it has moved on
        except OSError as error:
            raise Refused(f"{stage}/{uuid}: {error.strerror}") from error
    raise TryLater(f"{text} moves from stage to stage just now", hint="ask again")


def take(spool: Spool, text: str) -> Dump:
    """Open and lock the dump that `text` names, to change it. Raises Refused, TryLater."""
    stage, uuid = resolve(spool, text)
    if stage == stages.STAGING:
        raise Refused(f"{stage}/{uuid} is being captured", hint="what a dead archive left here coresnapd sweeps")
    dump = spool.take(stage, uuid)
    if dump is None:
        raise TryLater(f"{stage}/{uuid} is in work", hint="try again when its worker has ended")
    return dump


def open_file(dump: Dump, name: str) -> int:
    """Open a file of the dump for reading. Raises Refused, BadInput."""
    try:
        return durable.open_regular(dump.fd, name)
    except FileNotFoundError as error:
        raise Refused(f"{dump.stage}/{dump.uuid} has no {name}") from error
    except OSError as error:
        raise Refused(f"{dump.stage}/{dump.uuid}: {name}: {error.strerror}") from error


def load_record(dump: Dump) -> Record:
    """Read the dump's record. Raises BadInput, Refused."""
    try:
        return record.load(dump)
    except BadInput as error:
        raise BadInput(f"{dump.stage}/{dump.uuid}: {printable(str(error))}", hint=error.hint) from error
    except OSError as error:
        raise Refused(f"{dump.stage}/{dump.uuid}: {record.NAME}: {error.strerror}") from error
