# SPDX-License-Identifier: Apache-2.0
"""Dumps as the command line reads them: without a lock, while they move, with records that may be unreadable."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from coresnap.cli import words
from coresnap.cli.served import Served, ServedDump, that_opens
from coresnap.ground import durable, settings
from coresnap.ground.errors import BadInput, Refused, TryLater
from coresnap.ground.text import printable
from coresnap.spool import index, inventory, record, sight, stages
from coresnap.spool.inventory import Inventory
from coresnap.spool.stages import Dump, Spool

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from coresnap.spool.inventory import Row
    from coresnap.spool.record import Record

#: The stages of finished dumps, the way that a dump goes: one that moves on while they are read is not missed.
LISTED = (stages.PENDING, stages.SENDING, stages.COMMITTED, stages.FAILED)
CORE, ASSETS, SNAPSHOT, RECEIPT = stages.CORE, "assets.tar", "snapshot", "receipt.json"
LARGE = "/var/tmp"  # noqa: S108  # what is made there has no name
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


def open_to_read(root: str) -> Spool:
    """Open the spool; to whom it is closed, what is his of it: see coresnap.query. Raises Refused, TryLater, BadInput."""
    try:
        return Spool(root)
    except Refused as error:
        if isinstance(error.__cause__, PermissionError):
            return Served(root, error)
        raise


def has_file(names: Collection[str], name: str) -> bool:
    """Say whether a dump that has these files has this one; a core may be compressed, and both it and the asset encrypted."""
    others = {CORE: stages.CORES, ASSETS: (ASSETS + stages.AGE,)}
    return name in names or any(other in names for other in others.get(name, ()))


@dataclass(frozen=True)
class Entry:
    """A dump as it was found. Where `record` is None, `problem` says why; `names` are its files, None if not known."""

    stage: str
    uuid: str
    time_usec: int
    record: Record | None
    problem: str = ""
    names: tuple[str, ...] | None = ()

    @property
    def short(self) -> str:
        """The dump as a person names it."""
        return f"{self.stage}/{self.uuid[:SHORT]}..."

    def has(self, name: str) -> bool:
        """Say whether the dump has a file: it is in the directory, and complete as far as there is a record to say so."""
        if self.names is None or not has_file(self.names, name):
            return False
        if self.record is None or name == CORE:
            return True
        return bool(self.record["snapshot"] if name == SNAPSHOT else self.record["assets"]["size_bytes"])

    @property
    def core_is_gone(self) -> bool:
        """Say whether the core has been removed: by purge, or by something other than coresnap."""
        return self.stage != stages.STAGING and self.names is not None and not has_file(self.names, CORE)

    @cached_property
    def disk_bytes(self) -> int:
        """What the record says that the dump's files take on the disk; without a readable one nothing is known."""
        if self.record is None:
            return 0
        total: int = self.record["core"]["disk_bytes"] if self.has(CORE) else 0
        if self.has(ASSETS):
            total += self.record["assets"]["size_bytes"]
        return total + self.record["snapshot"]["size_bytes"] if self.has(SNAPSHOT) else total

    def as_json(self) -> dict[str, Any]:
        """Return the dump as `--json` prints it."""
        return {
            "stage": self.stage,
            "uuid": self.uuid,
            "files": None if self.names is None else sorted(self.names),
            "record": self.record,
            "problem": self.problem or None,
        }


def look(spool: Spool, stage: str, uuid: str) -> Entry | None:
    """Read a dump's record and what files it has; None where the dump is not, or no longer, in that stage."""
    if isinstance(spool, Served):
        return next((one for one in _look_at_served(spool, [stage]) if one.uuid == uuid), None)
    stage_fd = spool.stage_fds[stage]
    try:
        fd = durable.open_directory(uuid, stage_fd)
    except OSError as error:
        return _look_from_outside(stage_fd, stage, uuid, error)
    with Dump(uuid, stage, fd) as dump:
        document, problem = _read(dump)
        names = tuple(os.listdir(fd))
        if (document is None or not has_file(names, CORE)) and not spool.holds(stage, uuid):
            return None  # it is being removed
        time_usec = document["captured"]["time_usec"] if document else os.fstat(fd).st_mtime_ns // 1000
    return Entry(stage, uuid, time_usec, document, problem, names)


def _read(dump: Dump) -> tuple[Record | None, str]:
    """Return the record, or None and why there is none."""
    try:
        document = record.parse(durable.read(dump.fd, record.NAME, record.LIMIT_BYTES))
    except BadInput as error:
        return None, error.line()
    except OSError as error:
        return None, f"{record.NAME}: {error.strerror}"
    if document["uuid"] != dump.uuid:
        return None, f"{record.NAME} is of {document['uuid']}"
    return document, ""


def _look_from_outside(stage_fd: int, stage: str, uuid: str, why: OSError) -> Entry | None:
    """Return what there is to see of a dump that may not be looked into; None where there is no dump."""
    try:
        status = os.stat(uuid, dir_fd=stage_fd, follow_symlinks=False)
    except OSError:
        return None
    if not stat.S_ISDIR(status.st_mode):
        return None
    return Entry(stage, uuid, status.st_mtime_ns // 1000, None, f"{record.NAME}: {why.strerror}", None)


def _look_at_served(spool: Served, names: Sequence[str]) -> list[Entry]:
    found = [
        Entry(one.stage, uuid, one.record["captured"]["time_usec"], one.record, names=tuple(one.names))
        for uuid, one in spool.entries.items()
        if one.stage in names
    ]
    return sorted(found, key=lambda entry: (entry.time_usec, entry.uuid))


def inventory_of(spool: Spool, names: Sequence[str]) -> Inventory:
    """Return what there is to see of all dumps of these stages; of a spool that is closed, of those that are one's own."""
    if not isinstance(spool, Served):
        return inventory.take(spool, names)
    found = Inventory()
    for stage in index.SEEN:
        for entry in _look_at_served(spool, [stage] if stage in names else []):
            found.put(stage, entry.uuid, sight.values_of(dict.fromkeys(entry.names or (), 0), entry.record))
    return found


def look_at(spool: Spool, rows: Iterable[Row]) -> Iterator[Entry]:
    """Read these dumps whole, one at a time; one that has moved since is where it is now."""
    for row in rows:
        entries = (look(spool, stage, row.uuid) for stage in (row.stage, *stages.STAGES))
        if entry := next(filter(None, entries), None):
            yield entry


def core_gone(document: Record | None) -> str:
    """Say what has become of a core that is not in its dump any more."""
    removed = document["core_removed"] if document else None
    if removed:
        return f"purge removed it on {words.when(removed['time_usec'])}: {printable(removed['why'], 200)}"
    return "something other than coresnap has deleted it"


def resolve(spool: Spool, text: str) -> tuple[str, str]:
    """Return stage and UUID of the one dump that `text`, [STAGE/]BEGINNING-OF-UUID, names. Raises Refused."""
    stage, slash, beginning = text.rpartition("/")
    beginning = beginning.removesuffix("...").removesuffix("…").lower()
    if slash and stage not in stages.STAGES:
        raise Refused(f"{text}: there is no stage {stage}", hint=f"the stages are {', '.join(stages.STAGES)}")
    if len(beginning) < _PREFIX_LEAST or not re.fullmatch("[0-9a-f-]+", beginning):
        raise Refused(
            f"`{text}` is not the beginning of a UUID",
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
        if isinstance(spool, Served):
            return spool.open(uuid)
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


def names_of(dump: Dump) -> list[str]:
    """Return the names of the dump's files, as far as who asks may know of them."""
    return dump.names if isinstance(dump, ServedDump) else os.listdir(dump.fd)


def open_plainly(dump: Dump, name: str) -> int:
    """Open a file of the dump for reading. Raises OSError, BadInput."""
    return dump.open(name) if isinstance(dump, ServedDump) else durable.open_regular(dump.fd, name)


def read_file(dump: Dump, name: str, limit_bytes: int) -> bytes:
    """Return a file of the dump, whole. Raises Refused, BadInput, TryLater."""
    with open(open_file(dump, name), "rb") as file:
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise BadInput(f"{name} has more than {limit_bytes} bytes")
    return data


def open_file(dump: Dump, name: str) -> int:
    """Open a file of the dump for reading. Raises Refused, BadInput, TryLater."""
    try:
        return open_plainly(dump, name)
    except FileNotFoundError as error:
        hint = core_gone(_known_of(dump)) if name == CORE else ""
        raise Refused(f"{dump.stage}/{dump.uuid} has no {name}", hint=hint) from error
    except OSError as error:
        raise Refused(f"{dump.stage}/{dump.uuid}: {name}: {error.strerror}") from error


def _known_of(dump: Dump) -> Record | None:
    try:
        return load_record(dump)
    except (BadInput, Refused):
        return None


def load_record(dump: Dump) -> Record:
    """Read the dump's record. Raises BadInput, Refused."""
    if isinstance(dump, ServedDump):
        return dump.record
    try:
        return record.load(dump)
    except BadInput as error:
        raise BadInput(f"{dump.stage}/{dump.uuid}: {printable(str(error))}", hint=error.hint) from error
    except OSError as error:
        raise Refused(f"{dump.stage}/{dump.uuid}: {record.NAME}: {error.strerror}") from error


def opens_again(fd: int) -> int:
    """Return a descriptor of the same bytes that its path under /proc opens again. Raises TryLater."""
    try:
        return that_opens(fd)
    except OSError as error:
        raise TryLater(f"{LARGE}: {error.strerror}", hint="a copy is made there: free some space") from error
