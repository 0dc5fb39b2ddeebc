# SPDX-License-Identifier: Apache-2.0
"""dump.json: who crashed, what was kept, and what has been done with it since. One table declares its fields.

The stage is not in it: where the directory lies is the only truth about that.
"""

import json
import time

from coresnap.ground import durable
from coresnap.ground.errors import BadInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from coresnap.spool.stages import Dump

    Record = dict[str, Any]
else:
    Record = dict

VERSION = 1
NAME = "dump.json"
LIMIT_BYTES = 256 << 10
HISTORY_MAX = 100
_MEND = "the dump is left alone; `coresnap dump` has its core, `coresnap rm` removes it"
_STRING_MAX = 8192
_INT_MAX = 2**64 - 1

_INT, _STR = (int,), (str,)
_INT_OR_NULL, _STR_OR_NULL = (int, type(None)), (str, type(None))


class _Optional:
    """An object that may be null."""

    def __init__(self, shape: "dict[str, Any]") -> None:
        self.shape = shape


class _List:
    """A list of at most `most` items."""

    def __init__(self, item: "Any", most: int) -> None:
        self.item = item
        self.most = most


FIELDS: "dict[str, Any]" = {
    "version": _INT,
    "uuid": _STR,
    "captured": {"time_usec": _INT, "held_usec": _INT, "transport": _STR, "hostname": _STR},
    "victim": {
        "pid": _INT_OR_NULL,
        "tid": _INT_OR_NULL,
        "uid": _INT_OR_NULL,
        "gid": _INT_OR_NULL,
        "signal": _INT_OR_NULL,
        "dumpable": _INT_OR_NULL,
        "rlimit_core": _INT_OR_NULL,
        "comm": _STR_OR_NULL,
        "exe": _STR_OR_NULL,
        "cmdline": _STR_OR_NULL,
    },
    "place": {
        **dict.fromkeys(("cgroup", "unit", "user_unit", "slice", "session"), _STR_OR_NULL),
        "owner_uid": _INT_OR_NULL,
        **dict.fromkeys(("container", "boot_id", "machine_id", "cwd", "root"), _STR_OR_NULL),
    },
    "core": {
        "size_bytes": _INT,
        "disk_bytes": _INT,
        "compressed_bytes": _INT_OR_NULL,
        "class": _INT,
        "truncated": _Optional({"reason": _STR, "expected_bytes": _INT}),
    },
    "assets": {"size_bytes": _INT, "missing": _List(_STR, 100)},
    "reader_uid": _INT_OR_NULL,
    "package": _Optional(dict.fromkeys(("name", "version", "type", "architecture"), _STR_OR_NULL)),
    "snapshot": _Optional({"size_bytes": _INT, "sha256": _STR}),
    "encrypted": _Optional({"tool": _STR, "recipients": _List(_STR, 32)}),
    "fingerprint": _STR_OR_NULL,
    "journaled_usec": _INT_OR_NULL,
    "pinned_usec": _INT_OR_NULL,
    "core_removed": _Optional({"time_usec": _INT, "why": _STR}),
    "sent_small": _INT_OR_NULL,
    "attempts": {"process": _INT, "send": _INT},
    "next_try_usec": _INT_OR_NULL,
    "failure": _Optional({"reason": _STR, "detail": _STR}),
    "history": _List({"time_usec": _INT, "event": _STR, "detail": _STR}, HISTORY_MAX),
}

#: What a record from before there was such a field has in it.
_ADDED = dict.fromkeys(("encrypted", "fingerprint", "reader_uid", "pinned_usec", "core_removed", "sent_small"))


def parse(data: bytes) -> "Record":
    """Read a record. Raises BadInput naming the key that is not as declared."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{NAME}: {error}") from error
    version = document.get("version") if isinstance(document, dict) else None
    if isinstance(version, int) and version > VERSION:
        raise BadInput(
            f"{NAME} is of version {version}; this coresnap reads up to {VERSION}",
            hint="a newer coresnap wrote it: upgrade this one",
        )
    if version != VERSION:
        raise BadInput(f"{NAME}: version: {VERSION} expected")
    for name, value in _ADDED.items():
        document.setdefault(name, value)
    _check(document, FIELDS, "")
    return document  # type: ignore[no-any-return]  # _check has just established it


def _check(value: "Any", shape: "Any", key: str) -> None:
    if type(shape) is dict:
        if type(value) is not dict or value.keys() != shape.keys():
            raise BadInput(f"{NAME}: {key or 'document'}: an object of {', '.join(shape)} expected")
        for name, inner in shape.items():
            item = value[name]
            kind = type(item)
            if type(inner) is tuple and kind in inner:  # most are, and need no call
                if kind is str:
                    if len(item) <= _STRING_MAX:
                        continue
                elif kind is not int or 0 <= item <= _INT_MAX:
                    continue
            _check(item, inner, f"{key}.{name}" if key else name)
    elif isinstance(shape, _Optional):
        if value is not None:
            _check(value, shape.shape, key)
    elif isinstance(shape, _List):
        if not isinstance(value, list) or len(value) > shape.most:
            raise BadInput(f"{NAME}: {key}: a list of at most {shape.most} expected")
        for index, item in enumerate(value):
            _check(item, shape.item, f"{key}[{index}]")
    elif type(value) not in shape:
        raise BadInput(f"{NAME}: {key}: {' or '.join(kind.__name__ for kind in shape)} expected")
    elif type(value) is str and len(value) > _STRING_MAX:
        raise BadInput(f"{NAME}: {key}: more than {_STRING_MAX} characters")
    elif type(value) is int and not 0 <= value <= _INT_MAX:
        raise BadInput(f"{NAME}: {key}: out of range")


def schema() -> "dict[str, Any]":
    """Return the JSON schema of a record, derived from the table."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": NAME, **_schema(FIELDS)}


def _schema(shape: "Any") -> "dict[str, Any]":
    if isinstance(shape, _Optional):
        return {"anyOf": [{"type": "null"}, _schema(shape.shape)]}
    if isinstance(shape, _List):
        return {"type": "array", "maxItems": shape.most, "items": _schema(shape.item)}
    if isinstance(shape, dict):
        properties = {name: _schema(inner) for name, inner in shape.items()}
        return {"type": "object", "properties": properties, "required": list(shape), "additionalProperties": False}
    result: dict[str, Any] = {"type": [{int: "integer", str: "string"}.get(kind, "null") for kind in shape]}
    if int in shape:
        result |= {"minimum": 0, "maximum": _INT_MAX}
    if str in shape:
        result["maxLength"] = _STRING_MAX
    return result


def load(dump: "Dump") -> "Record":
    """Read the record of a dump. Raises BadInput, or OSError where it cannot be read."""
    try:
        record = parse(durable.read(dump.fd, NAME, LIMIT_BYTES))
    except FileNotFoundError as error:
        raise BadInput(f"{NAME} is missing", hint=_MEND) from error
    except BadInput as error:
        raise BadInput(str(error), hint=error.hint or _MEND) from error
    if record["uuid"] != dump.uuid:
        raise BadInput(f"{NAME}: uuid: {record['uuid']} lies in the directory of {dump.uuid}")
    return record


def store(dump: "Dump", record: "Record", mode: int, uid: int = -1, gid: int = -1) -> None:
    """Write the record of a locked dump durably. The dump's directory is synced with it."""
    data = json.dumps(record, separators=(",", ":")).encode()
    durable.replace(dump.fd, NAME, data, mode, uid, gid)


def note(record: "Record", event: str, detail: str = "") -> None:
    """Add a line to the record's history; the oldest but the first give way."""
    history = record["history"]
    history.append({"time_usec": time.time_ns() // 1000, "event": event, "detail": detail[:_STRING_MAX]})
    if len(history) > HISTORY_MAX:
        del history[1 : len(history) - HISTORY_MAX + 1]


def until_due_usec(record: "Record", wall_usec: int, most_usec: int) -> int:
    """Return how long until the record's next try; a clock that was set back does not make it longer than the back-off."""
    next_try_usec = record["next_try_usec"]
    if next_try_usec is None:
        return 0
    wait_usec: int = next_try_usec - wall_usec
    return wait_usec if wait_usec <= most_usec * 2 else 0
