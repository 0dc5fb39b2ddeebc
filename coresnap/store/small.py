# SPDX-License-Identifier: Apache-2.0
"""The small report of a crash that was reported often enough today: who, where, and how often, without the rest.

It has the report's uuid, fingerprint, classifiers and attributes, and the thread that crashed; no other thread, no memory,
no modules, no annotations. Two attributes are added: coresnap.small, which says that it is one, and coresnap.small.number,
which one of its fingerprint it was on its day. The same report and number always make the same bytes.
"""

from __future__ import annotations

import json
import os
from typing import Any

#: A report beyond this is not read: it is sent as it is, like one in another format.
READ_MAX_BYTES = 8 << 20
_KEPT = (
    "uuid",
    "fingerprint",
    "timestamp",
    "lang",
    "langVersion",
    "agent",
    "agentVersion",
    "mainThread",
    "arch",
    "classifiers",
)


def make(fd: int, size_bytes: int, number: int) -> bytes | None:
    """Return the small report of the one at `fd`; None where that is none in JSON, or too large to be read."""
    if size_bytes > READ_MAX_BYTES:
        return None
    try:
        report = json.loads(os.pread(fd, size_bytes, 0))
    except (ValueError, RecursionError):
        return None
    if not isinstance(report, dict) or not isinstance(report.get("threads"), dict):
        return None
    small: dict[str, Any] = {key: report[key] for key in _KEPT if key in report}
    attributes = report.get("attributes")
    small["attributes"] = {
        **(attributes if isinstance(attributes, dict) else {}),
        "coresnap.small": True,
        "coresnap.small.number": number,
    }
    main = str(report.get("mainThread"))
    threads = {main: report["threads"].get(main)}
    small["threads"] = {name: _without_source(thread) for name, thread in threads.items() if isinstance(thread, dict)}
    return json.dumps(small, separators=(",", ":")).encode()


def _without_source(thread: dict[str, Any]) -> dict[str, Any]:
    """Return a thread whose frames refer to no code that is not there."""
    stack = thread.get("stack")
    if not isinstance(stack, list):
        return thread
    frames = [
        {k: v for k, v in frame.items() if k != "sourceCode"} if isinstance(frame, dict) else frame for frame in stack
    ]
    return {**thread, "stack": frames}
