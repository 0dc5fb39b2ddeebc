# SPDX-License-Identifier: Apache-2.0
"""Whatever bytes come back, an answer is one of five things, and an acknowledgement only where it says so."""

from __future__ import annotations

import json
import random

import pytest

from coresnap.ground.errors import BadSettings, TryLater
from coresnap.store import NotTaken, Parked, Secret, StoreBusy, StoreRefused, answer, coroner
from coresnap.store.answer import Answer

_UUID = "84605573-9de0-4000-8000-000000000001"
_TOKEN = Secret("0123456789abcdef" * 4)
_COUNT = 5000
_SEEDS = (
    b'{"response":"ok","_rxid":"574fcb58"}',
    b'{"error":{"code":400,"message":"report already exists"}}',
    b'{"error":{"code":403,"message":"invalid token %s"}}' % _TOKEN.reveal().encode(),
    b'{"response":"ok","_rxid":"%s","object":"1"}' % _TOKEN.reveal().upper().encode(),
)
_STATUSES = (200, 201, 299, 302, 400, 401, 404, 408, 409, 413, 422, 429, 500, 503, 599, 0)
_TYPES = ("application/json", "", "text/html", "application/problem+json; charset=x", "\r\n")


def _mutated(chance: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randrange(4)):
        position = chance.randrange(len(changed) + 1)
        what = chance.randrange(4)
        if what == 0:
            changed[position : position + chance.randrange(9)] = b""
        elif what == 1:
            changed[position:position] = chance.choice(
                [b'"', b"{", b"}", b",", b":", b"null", b"1e999", b"\\u0000", b"\xff"]
            )
        elif what == 2:
            changed[position:position] = changed[: chance.randrange(len(changed) + 1)]
        else:
            changed[position : position + 1] = chance.randbytes(1)
    return bytes(changed)


def test_an_acknowledgement_says_so() -> None:
    """A thousand ways in which it nearly does are none."""
    chance, taken, said = random.Random(1), 0, list[str]()
    for _ in range(_COUNT):
        body = _mutated(chance, chance.choice(_SEEDS))
        came = Answer(
            status=chance.choice(_STATUSES),
            body=body,
            whole=chance.random() < 0.9,
            content_type=chance.choice(_TYPES),
            retry_after=chance.choice(
                ["", "5", "x", "Fri, 01 Jan 2100 00:00:00 GMT", chance.randbytes(9).decode("latin-1")]
            ),
            date=chance.choice(["", "Fri, 01 Jan 2100 00:00:00 GMT", "Fri, 99 Jan 2100"]),
        )
        try:
            name, there = answer.judge(came, _UUID, "https://store", _TOKEN, hosted=chance.random() < 0.5)
        except (StoreRefused, Parked, StoreBusy, NotTaken, TryLater) as error:
            said.append(error.line())
            continue
        assert came.whole
        document = json.loads(body)
        taken += not there
        assert _TOKEN.reveal() not in name.lower()
        if there:
            assert answer._THERE.search(document["error"]["message"])
        else:
            assert (document["response"], came.status // 100, "error" in document) == ("ok", 2, False)
            assert document["_rxid"]
    assert taken > _COUNT // 100
    assert all(line.isprintable() for line in said)
    assert _TOKEN.reveal() not in "".join(said).lower()


@pytest.mark.parametrize(
    ("said", "there"),
    [
        (f"report {_UUID.upper()} already exists", True),
        ("duplicate uuid", True),
        ("UUID conflict", True),
        (f"{_UUID} is not unique", True),
        (f"{_UUID} exists", True),
        ("object was already received", True),
        ("Already exists.", True),
        ("the report's UUID collides", True),
        ("uuid is missing", False),
        ("invalid uuid", False),
        ("no such uuid exists", False),
        ("not a uuid", False),
        ("version conflict", False),
        ("duplicate key: name", False),
        ("uuid does not conflict", False),
        ("already exists: another attachment of this name", False),
        ("quota already exceeded for this report", False),
        ("the project no longer exists", False),
        ("", False),
    ],
)
def test_how_stores_say_that_a_report_is_there(said: str, there: bool) -> None:
    for status in (200, 400, 409, 422):
        body = json.dumps({"error": {"code": 400, "message": said}}).encode()
        came = Answer(status, body, content_type="application/json")
        if there:
            assert answer.judge(came, _UUID, "store", _TOKEN, hosted=True) == (_UUID, True)
        else:
            with pytest.raises((StoreRefused, NotTaken)):
                answer.judge(came, _UUID, "store", _TOKEN, hosted=True)
    with pytest.raises(TryLater):
        answer.judge(Answer(500, body, content_type="application/json"), _UUID, "store", _TOKEN, hosted=True)


def test_a_coroner_cf_of_any_bytes() -> None:
    chance = random.Random(2)
    whole = f"[universe]\nname = u\nwrite = https://h\nconnect_timeout = 5\n[token]\nweb = {_TOKEN.reveal()}\n".encode()
    read, said = 0, list[str]()
    for _ in range(_COUNT):
        try:
            coroner.parse(_mutated(chance, whole), "/coroner.cf")
        except BadSettings as error:
            said.append(error.line())
        else:
            read += 1
    assert read > _COUNT // 100
    assert all(line.startswith("/coroner.cf:") and line.isprintable() for line in said)
    assert _TOKEN.reveal()[:16] not in "".join(said)
