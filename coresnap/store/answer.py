# SPDX-License-Identifier: Apache-2.0
"""What a store's answer means for a dump. An answer that cannot be understood never counts as an acknowledgement.

A success is {"response": "ok", "_rxid": "…"}; an error {"error": {"code": N, "message": "…"}}, which may come under HTTP
200 as well, and then counts by its code.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from coresnap.ground.errors import TryLater
from coresnap.ground.text import printable
from coresnap.store.face import NotTaken, Parked, Secret, StoreBusy, StoreRefused

_SECOND = 1_000_000
_RETRY_MAX_USEC = 86_400 * _SECOND
_RXID_MAX, _SAID_MAX, _DEPTH_MAX = 200, 200, 50
_SUCCESSES, _ERRORS = range(200, 300), range(400, 600)
_PASSING = {408, 425, 429}
#: What concerns all that comes to a store; a 500 may be this one report's.
_OVERLOADS = {*_PASSING, 502, 503, 504}
_REFUSALS = {400, 422}
TOO_LARGE = 413
#: Types that JSON comes under. A page of a portal's comes under none of them.
_JSON_TYPES = re.compile(r"application/(json|[a-z0-9.+-]+\+json|octet-stream)|text/(json|plain)|")
#: How stores say that they have a report of this UUID, which is nowhere written down. A quota can be exceeded already; that is
#: none of these.
_THERE = re.compile(
    r"\bduplicate\b|\balready (exists?|there|present|stored|known|received|submitted|uploaded|processed)\b",
    re.IGNORECASE,
)
_OF_A_REPORT = re.compile(r"\b(uuid|report|object)\b", re.IGNORECASE)
_NOTHING_ELSE = re.compile(r"\W*(duplicate|already \w+)\W*", re.IGNORECASE)
#: The same of the UUID itself: any word of a clash, unless it is denied.
_CLASH = re.compile(r"\b(conflicts?|collision|collides|not unique|in use|exists)\b", re.IGNORECASE)
_DENIED = re.compile(r"\b(no|never|none|not (?!unique))\b", re.IGNORECASE)


@dataclass(frozen=True)
class Answer:
    """An answer, as it came: its body cut after a bound, and then not `whole`."""

    status: int
    body: bytes
    whole: bool = True
    content_type: str = ""
    retry_after: str = ""
    date: str = ""


def judge(answer: Answer, uuid: str, store: str, token: Secret, *, hosted: bool) -> tuple[str, bool]:
    """Return the store's own name for the report, and whether it was there before.

    Raises StoreRefused, Parked, StoreBusy or TryLater; see face. `store` is the store's name in messages. The answer may
    have the token in it; nothing that comes out of here has.
    """
    document = _document(answer)
    code, said = _error(document)
    status = answer.status
    if status in _SUCCESSES and code is None:
        return _acknowledged(answer, document, store, token), False
    if _is_there(status, said, uuid):
        return uuid, True
    if status in _SUCCESSES:  # an error under a success
        status = code if code is not None and code in _ERRORS else 0
    what = f"{store}: HTTP {answer.status}" + (f", error {code}" if code not in (None, answer.status) else "")
    what += f": {_shown(said, _SAID_MAX, token)}" if said else ""
    if status == TOO_LARGE or (status in _REFUSALS and code is not None):  # what stands between says 400, too, in HTML
        raise StoreRefused(what)
    if status in (401, 403):
        raise Parked(what, hint="it does not take the project's token", scope="project")
    if status == 404:
        hint = "is the universe's name right, and the token?" if hosted else "is its address right?"
        raise Parked(what, hint=hint, scope="project" if hosted else "store")
    if status == 407:
        raise Parked(what, hint="the proxy asks for a name and a password: proxy = http://NAME:PASSWORD@HOST:PORT")
    retry_usec = retry_after_usec(answer.retry_after, answer.date)
    if retry_usec is not None and (status in _PASSING or status >= 500):
        raise StoreBusy(what, retry_usec)
    raise (TryLater if status in _OVERLOADS else NotTaken)(what)


def _shown(text: str, most: int, token: Secret) -> str:
    """Return what a store says as it may be told, without the token: before it is escaped, and after."""
    return token.redact(printable(token.redact(text), most))


def _acknowledged(answer: Answer, document: dict[str, Any] | None, store: str, token: Secret) -> str:
    """Return the name that the store gave to what it has taken."""
    if document is None:
        kind = _shown(answer.content_type, 60, token)
        why = (
            f"it is {kind}" if kind and not _is_json(answer.content_type) else "it is no JSON object of a few kilobytes"
        )
        raise NotTaken(
            f"{store}: HTTP {answer.status}, but the answer is not a store's: {why}", hint="is there a portal between?"
        )
    rxid = document.get("_rxid")
    if document.get("response") != "ok" or not isinstance(rxid, str) or not 0 < len(rxid) <= _RXID_MAX:
        raise NotTaken(f"{store}: HTTP {answer.status}, but the answer does not say that the report was taken")
    return _shown(rxid, _RXID_MAX, token)


def _is_there(status: int, said: str, uuid: str) -> bool:
    """Say whether an error means that the store has the report. In doubt it does not."""
    if status not in (200, 400, 409, 422):
        return False
    of_uuid = uuid in said.lower() or re.search(r"\buuid\b", said, re.IGNORECASE) is not None
    if of_uuid and _CLASH.search(said) and not _DENIED.search(said):
        return True
    if not _THERE.search(said):
        return False
    return of_uuid or _OF_A_REPORT.search(said) is not None or _NOTHING_ELSE.fullmatch(said) is not None


def _document(answer: Answer) -> dict[str, Any] | None:
    """Return the answer's JSON object, None where it has none that can be understood."""
    if (
        not answer.whole
        or not _is_json(answer.content_type)
        or answer.body.count(b"{") + answer.body.count(b"[") > _DEPTH_MAX
    ):
        return None
    try:
        document = json.loads(answer.body)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _is_json(content_type: str) -> bool:
    return _JSON_TYPES.fullmatch(content_type.partition(";")[0].strip().lower()) is not None


def _error(document: dict[str, Any] | None) -> tuple[int | None, str]:
    """Return the code and the message of an error; no code where the answer is none."""
    if document is None or "error" not in document:
        return None, ""
    error = document["error"]
    if not isinstance(error, dict):
        return 0, error if isinstance(error, str) else ""
    code, said = error.get("code"), error.get("message")
    small = type(code) is int and abs(code) < 1 << 31
    return code if small else 0, said if isinstance(said, str) else ""


def retry_after_usec(text: str, date: str) -> int | None:
    """Return how long a Retry-After asks to wait (RFC 9110, 10.2.3), a day at most; None where it cannot be understood.

    A moment is held against the answer's own Date, so that a clock that is wrong, here or there, does not matter.
    """
    if re.fullmatch("[0-9]{1,9}", text):
        return min(int(text) * _SECOND, _RETRY_MAX_USEC)
    moment = _moment(text)
    if moment is None:
        return None
    now = _moment(date) or time.time()
    return min(max(int((moment - now) * _SECOND), 0), _RETRY_MAX_USEC)


def _moment(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text[:100]).timestamp()
    except (ValueError, OverflowError, TypeError, IndexError):
        return None
