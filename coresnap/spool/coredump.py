# SPDX-License-Identifier: Apache-2.0
"""The journal's entry of a core dump, as coredumpctl(1) looks for it: systemd-coredump's own message and fields.

See systemd-coredump(8) and sd-messages.h. The names are systemd's; what they hold comes from a dump's record, and from the
asset what a worker has read of it.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping

from coresnap.ground.text import printable
from coresnap.spool.record import Record

MESSAGE_ID = "fc2e22bc6ee647b6b90729ab34a250b1"
#: What a worker may tell from the asset: the member, the field, and the most characters of it.
EVIDENCE = {
    "proc/cgroup": ("COREDUMP_PROC_CGROUP", 4 << 10),
    "proc/limits": ("COREDUMP_PROC_LIMITS", 4 << 10),
    "proc/status": ("COREDUMP_PROC_STATUS", 4 << 10),
    "proc/environ": ("COREDUMP_ENVIRON", 8 << 10),
    "proc/fd": ("COREDUMP_OPEN_FDS", 8 << 10),
    "proc/mountinfo": ("COREDUMP_PROC_MOUNTINFO", 16 << 10),
    "proc/maps": ("COREDUMP_PROC_MAPS", 32 << 10),
}


def message(document: Record) -> str:
    """Return the entry's text."""
    victim = document["victim"]
    name = printable(victim["comm"] or "?", 64)
    return f"Process {victim['pid']} ({name}) of user {victim['uid']} dumped core."


def fields(document: Record, filename: str, evidence: Mapping[str, object]) -> dict[str, str]:
    """Return the entry's fields; what is not known is left out. `evidence` is hostile: texts by member, as a worker sent them."""
    victim, place, captured = document["victim"], document["place"], document["captured"]
    package = document["package"] or {}
    known: dict[str, object] = {
        "PID": victim["pid"],
        "UID": victim["uid"],
        "GID": victim["gid"],
        "SIGNAL": victim["signal"],
        "SIGNAL_NAME": _signal_name(victim["signal"]),
        "TIMESTAMP": captured["time_usec"],
        "RLIMIT": victim["rlimit_core"],
        "HOSTNAME": captured["hostname"],
        "COMM": victim["comm"],
        "EXE": victim["exe"],
        "CMDLINE": victim["cmdline"],
        "CGROUP": place["cgroup"],
        "UNIT": place["unit"],
        "USER_UNIT": place["user_unit"],
        "SLICE": place["slice"],
        "SESSION": place["session"],
        "OWNER_UID": place["owner_uid"],
        "CWD": place["cwd"],
        "ROOT": place["root"],
        "FILENAME": filename,
        "TRUNCATED": "1" if document["core"]["truncated"] else None,
        "PACKAGE_NAME": package.get("name"),
        "PACKAGE_VERSION": package.get("version"),
        "PACKAGE_JSON": json.dumps(package) if package else None,
    }
    entry = {f"COREDUMP_{name}": str(value) for name, value in known.items() if value is not None}
    for member, (field, most) in EVIDENCE.items():
        text = evidence.get(member)
        if isinstance(text, str) and text:
            entry[field] = text[:most]
    return entry | {"MESSAGE_ID": MESSAGE_ID, "CORESNAP_DUMP": document["uuid"]}


def _signal_name(number: int | None) -> str | None:
    try:
        return signal.Signals(number).name if number else None
    except ValueError:
        return f"SIG{number}"
