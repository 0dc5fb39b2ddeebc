# SPDX-License-Identifier: Apache-2.0
"""What the query service and those who ask it have agreed on: an ordinary user's view of the spool.

A packet asks (see coresnap.ground.wire), a packet answers, several times over one connection. Every request has `version`,
`root` (dump.root, so that nobody is told of another spool than he asked for) and `what`:

    list                  status ok, left_off: older dumps that are not in it; beside it a file, an Entry a line
    losses                status ok; beside it a file, what the ledger has of the asker's processes, a line each
    open, uuid, name      status ok; beside it the file `name` of that dump, open for reading

Any other status is a refusal, with its `detail`. The service tells of no dump but the asker's own: one that is not his is
answered as one that is not there.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from coresnap.ground.errors import BadInput
from coresnap.spool import record, stages
from coresnap.spool.record import Record

VERSION = 1
PATH = "/run/coresnap/query"
OK, REFUSED, LATER = "ok", "refused", "later"
#: What of a dump its owner may read, encrypted or not. Its record comes with the list.
FILES = (*stages.CORES, stages.ASSETS, stages.ASSETS + stages.AGE, "snapshot")
#: The stages of finished dumps, the way that a dump goes: one that moves on while they are read is not missed.
STAGES = (stages.PENDING, stages.SENDING, stages.COMMITTED, stages.FAILED)
LIST_MAX_BYTES = 64 << 20
LIST_MOST = 10_000
_NAMES_MOST = 100
_NAME_MAX = 255


class Entry(NamedTuple):
    """A dump of the asker's: its stage, its record, and the names of its files."""

    stage: str
    names: list[str]
    record: Record

    def line(self) -> bytes:
        """Return the entry as a line of a list."""
        return json.dumps(self._asdict(), separators=(",", ":")).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Entry:
        """Read a line of a list. Raises BadInput."""
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"the query service: a line of its list: {error}") from error
        if not isinstance(found, dict) or found.keys() != {"stage", "names", "record"} or found["stage"] not in STAGES:
            raise BadInput("the query service: a line of its list is not as it must be")
        names = found["names"]
        if not isinstance(names, list) or len(names) > _NAMES_MOST or not all(map(_is_name, names)):
            raise BadInput("the query service: names: a short list of names expected")
        return cls(found["stage"], names, record.parse(json.dumps(found["record"]).encode()))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _NAME_MAX


def request(root: str, what: str, **more: str) -> dict[str, Any]:
    """Return a request."""
    return {"version": VERSION, "root": root, "what": what, **more}
