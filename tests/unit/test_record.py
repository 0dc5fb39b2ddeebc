# SPDX-License-Identifier: Apache-2.0
"""dump.json: the typed reader and the schema derived from the same table agree."""

from __future__ import annotations

import copy
import json
from typing import Any

import jsonschema
import pytest

from coresnap.ground.errors import BadInput
from coresnap.spool import record

GOOD: dict[str, Any] = {
    "version": 1,
    "uuid": "00000000-0000-4000-8000-000000000000",
    "captured": {"time_usec": 1, "held_usec": 2, "transport": "pipe", "hostname": "host"},
    "victim": dict.fromkeys(record.FIELDS["victim"]),
    "place": dict.fromkeys(record.FIELDS["place"]),
    "core": {"size_bytes": 1, "disk_bytes": 1, "compressed_bytes": None, "class": 64, "truncated": None},
    "assets": {"size_bytes": 0, "missing": ["proc/maps"]},
    "reader_uid": None,
    "package": None,
    "snapshot": None,
    "encrypted": {"tool": "age", "recipients": ["age1x"]},
    "fingerprint": None,
    "journaled_usec": None,
    "pinned_usec": None,
    "core_removed": None,
    "sent_small": None,
    "attempts": {"process": 0, "send": 0},
    "next_try_usec": None,
    "failure": None,
    "history": [],
}


def _with(path: str, value: Any) -> dict[str, Any]:
    document = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    inner = document
    for name in parents:
        inner = inner[name]
    inner[last] = value
    return document


def _without(name: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD.items() if key != name}


def test_a_record_from_before_there_were_fingerprints() -> None:
    assert record.parse(json.dumps(_without("fingerprint")).encode())["fingerprint"] is None


BAD = [
    _with("uuid", 1),
    _with("captured.time_usec", -1),
    _with("captured.time_usec", 1.5),
    _with("captured.time_usec", 2**64),
    _with("captured.hostname", "x" * 10000),
    _with("captured.more", 1),
    _with("victim.pid", "1"),
    _with("victim.comm", ["x"]),
    _with("core.truncated", {}),
    _with("core.truncated", {"reason": "x", "expected_bytes": None}),
    _with("assets.missing", [1]),
    _with("assets.missing", ["x"] * 101),
    _with("history", [{"time_usec": 1, "event": "x"}]),
    _with("snapshot", []),
    _without("core"),
]


def test_the_good_one_is_read() -> None:
    assert record.parse(json.dumps(GOOD).encode()) == GOOD
    jsonschema.validate(GOOD, record.schema())


@pytest.mark.parametrize("document", BAD)
def test_reader_and_schema_refuse_the_same(document: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, record.schema())
    with pytest.raises(BadInput, match=r"^dump\.json: "):
        record.parse(json.dumps(document).encode())


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"null", b'{"version": true}', b"[" * 100000])
def test_what_is_no_record_is_refused(data: bytes) -> None:
    with pytest.raises(BadInput, match=r"^dump\.json"):
        record.parse(data)


def test_a_newer_version_says_so() -> None:
    with pytest.raises(BadInput, match="version 2") as refusal:
        record.parse(b'{"version": 2, "whatever": 1}')
    assert "upgrade" in refusal.value.hint


def test_history_is_bounded_and_keeps_its_beginning() -> None:
    document = copy.deepcopy(GOOD)
    for number in range(record.HISTORY_MAX + 50):
        record.note(document, f"event {number}")
    assert len(document["history"]) == record.HISTORY_MAX
    assert document["history"][0]["event"] == "event 0"
    assert document["history"][-1]["event"] == f"event {record.HISTORY_MAX + 49}"
    record.parse(json.dumps(document).encode())
