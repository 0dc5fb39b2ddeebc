# SPDX-License-Identifier: Apache-2.0
"""The second half of a capture, after the crashed process has been let go.

Check, write the asset and the record, sync, and rename the dump to pending; or unlink everything and put the loss on record.
"""

import os
import time
from dataclasses import dataclass

from coresnap.capture.assets import ASSETS, Assets
from coresnap.capture.capture import HELD, WITHDRAWN, Capture
from coresnap.capture.loss import put_on_record
from coresnap.capture.members import MODULES
from coresnap.capture.place import place_of
from coresnap.capture.reader import reader_of
from coresnap.ground import durable, elf
from coresnap.ground.errors import BadInput, CoresnapError, Refused
from coresnap.ground.redact import Redaction
from coresnap.spool import ledger, record, stages
from coresnap.spool.stages import Dump, Spool

#: What is cut off a core that filled the disk, so that its record finds room.
_ROOM_BYTES = 1 << 20
_TEXT_MAX = 8192
_INEXACT = (
    "reservations: locked by another process, which may have been stopped (lslocks tells), or not writable:"
    " what fills the spool is not counted exactly until coresnap-purge counts anew"
)


@dataclass(frozen=True)
class Outcome:
    """What became of a capture: kept, whole or `truncated` for a reason, or not kept for a `reason`."""

    uuid: str
    kept: bool
    reason: str
    detail: str
    truncated: str
    size_bytes: int
    held_usec: int
    on_record: bool
    error: CoresnapError | OSError | None
    #: It is one of many that a limit left out, counted, and not told of by itself.
    quiet: bool = False


def finish(capture: Capture) -> Outcome:
    """Bring the capture to its end. Raises nothing that a core, a process or a file system may cause."""
    capture.wait_for_host()
    truncated = ""
    try:
        if not capture.reason:
            truncated = _keep(capture)
    except BadInput as error:
        _blame_core(capture, error)
    except OSError as error:
        if capture.dump is None or capture.dump.stage == stages.STAGING:
            capture.fail(error)
        else:
            capture.detail = f"the rename to pending may not survive a power cut: {error.strerror}"
    on_record = bool(capture.reason) and _drop(capture)
    outcome = Outcome(
        uuid=capture.uuid,
        kept=not capture.reason,
        reason=capture.reason,
        detail=capture.detail,
        truncated=truncated,
        size_bytes=capture.copied.size_bytes,
        held_usec=capture.held_usec,
        on_record=on_record,
        error=capture.error,
        quiet=capture.declined is not None and not ledger.is_told(capture.declined.count),
    )
    _close(capture)
    return outcome


def _blame_core(capture: Capture, error: BadInput) -> None:
    """Say what was wrong with the bytes that came."""
    copied = capture.copied
    if not copied.size_bytes and not copied.reason:
        capture.reason, capture.detail = "empty", "not one byte came"
    else:
        capture.reason = copied.reason or "cut-short"
        capture.detail = f"{copied.detail or error} ({copied.size_bytes} bytes came)"


def _keep(capture: Capture) -> str:
    """Make the dump durable in pending; return the reason for which its core is not whole, or nothing.

    Raises BadInput where the core's notes are not complete, OSError where the file system fails.
    """
    copied, dump = capture.copied, capture.dump
    assert dump is not None
    assert capture.spool is not None
    if copied.reason in ("not-a-core", "quota"):
        raise BadInput(copied.detail)
    header = elf.read_core(lambda count, offset: os.pread(capture.core_fd, count, offset))
    if header.notes_end > copied.size_bytes or not header.notes_end:
        raise BadInput(f"the notes end at {header.notes_end}")
    reason = copied.reason
    if not reason and copied.size_bytes < header.expected_bytes:
        reason = "cut-short"
    if reason == "disk-full":
        copied.size_bytes = max(header.notes_end, copied.size_bytes - _ROOM_BYTES)
    durable.truncate(capture.core_fd, copied.size_bytes)
    durable.sync(capture.core_fd)
    assets_bytes, missing = _write_assets(capture, dump)
    truncated = {"reason": reason, "expected_bytes": header.expected_bytes} if reason else None
    core: dict[str, object] = {
        "size_bytes": copied.size_bytes,
        "disk_bytes": os.fstat(capture.core_fd).st_blocks * 512,
        "compressed_bytes": None,
        "class": header.elf_class,
        "truncated": truncated,
    }
    _identify(capture)
    document = _record(capture, dump, core, {"size_bytes": assets_bytes, "missing": missing})
    record.store(dump, document, *capture.settings.owner())
    if capture.reservation is not None:
        capture.reservation.close(dump.disk_bytes())
        if not capture.reservation.exact:
            capture.detail = _INEXACT
        capture.reservation = None
    capture.spool.move(dump, stages.PENDING)
    return reason


def _write_assets(capture: Capture, dump: Dump) -> "tuple[int, list[str]]":
    """Write the asset; return its size and what it lacks. A salvaged dump may have one already."""
    evidence = capture.evidence
    if capture.assets is None:
        if durable.exists(dump.fd, ASSETS):
            return os.stat(ASSETS, dir_fd=dump.fd, follow_symlinks=False).st_size, []
        capture.assets = Assets(dump.fd, capture.settings.owner(), None)
        capture.assets.put_evidence(evidence.members if evidence else {}, _redaction(capture))
    assets = capture.assets
    assets.finish()
    if not assets.size_bytes:
        return 0, [f"{ASSETS}: {assets.problem}"]
    missing = evidence.missing() if evidence else ["everything: the capture was interrupted"]
    return assets.size_bytes, [*missing, *([f"{MODULES}: {assets.problem}"] if assets.problem else [])]


def _identify(capture: Capture) -> None:
    """Fill in what the evidence tells of the victim, and what only the core's notes tell where there is none."""
    victim = capture.victim
    members = capture.evidence.members if capture.evidence else {}
    if "proc/comm" in members:
        victim.comm = _text(members["proc/comm"].removesuffix(b"\n"))
    if "proc/exe" in members:
        victim.exe = _text(members["proc/exe"])
    if "proc/cmdline" in members:
        words = _redaction(capture).argv(members["proc/cmdline"])
        victim.cmdline = _text(words.rstrip(b"\0").replace(b"\0", b" "))
    try:
        notes = elf.identity(lambda count, offset: os.pread(capture.core_fd, count, offset))
    except BadInput:
        return
    if victim.tid is None and victim.pid not in (None, notes.pid):
        # The notes' numbers are those of a pid namespace of its own: which thread it was is known of the first alone.
        victim.tid, notes.tid = victim.pid if notes.tid == notes.pid else None, None
    for name in ("pid", "tid", "uid", "gid", "signal", "comm"):
        if getattr(victim, name) is None:
            setattr(victim, name, getattr(notes, name))
    if victim.cmdline is None and notes.psargs is not None:
        victim.cmdline = _redaction(capture).text(notes.psargs)


def _redaction(capture: Capture) -> Redaction:
    return Redaction(capture.settings.redact_names, capture.settings.redact_values)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")[:_TEXT_MAX]


def _record(capture: Capture, dump: Dump, core: "dict[str, object]", assets: "dict[str, object]") -> "record.Record":
    victim, place = capture.victim, _place(capture)
    time_usec = victim.time * 1_000_000 if victim.time else time.time_ns() // 1000
    document: record.Record = {
        "version": record.VERSION,
        "uuid": dump.uuid,
        "captured": {
            "time_usec": time_usec,
            "held_usec": capture.held_usec,
            "transport": capture.transport,
            "hostname": os.uname().nodename,
        },
        "victim": {name: getattr(victim, name) for name in record.FIELDS["victim"]},
        "place": place,
        "core": core,
        "assets": assets,
        "reader_uid": _reader_uid(capture, place),
        "package": None,
        "snapshot": None,
        "encrypted": None,
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
    told = [f"the process was held for {capture.held_usec / 1000:.1f} ms"] if capture.transport in HELD else []
    if capture.admission is not None and capture.admission.lost_before:
        told.append(f"{capture.admission.lost_before} crashes like it, before, were over a limit and not kept")
    record.note(document, "captured", "; ".join(told))
    return document


def _reader_uid(capture: Capture, place: "dict[str, str | int | None]") -> "int | None":
    members = capture.evidence.members if capture.evidence else {}
    vector = elf.auxiliary_vector(lambda count, offset: os.pread(capture.core_fd, count, offset))
    return reader_of(capture.victim, capture.transport, members.get("proc/status", b""), place, vector)


def _place(capture: Capture) -> "dict[str, str | int | None]":
    """Return where the process belonged, as far as the evidence tells."""
    members = capture.evidence.members if capture.evidence else {}
    place = place_of(members.get("proc/cgroup", b""), members.get("proc/status", b""))
    place["boot_id"] = _host_id("/proc/sys/kernel/random/boot_id")
    place["machine_id"] = _host_id("/etc/machine-id")
    for name in ("cwd", "root"):
        place[name] = _text(members[f"proc/{name}"]) if f"proc/{name}" in members else None
    return place


def _host_id(path: str) -> "str | None":
    """Return an id of 128 bits without its hyphens, as the journal has them; see machine-id(5), random(4)."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            text = file.read(64).strip().replace("-", "")
    except OSError:
        return None
    return text if len(text) == 32 and text.isalnum() else None


def _drop(capture: Capture) -> bool:
    """Unlink what there is of the dump and put the loss in the ledger; say whether the ledger took it."""
    try:
        _identify(capture)
    except OSError:
        pass  # the loss is recorded without a name then
    if capture.spool is None:
        try:
            capture.spool = Spool(capture.settings.root, capture.within)
        except Refused:
            pass  # that is why it is not kept
    if capture.core_fd >= 0:
        os.close(capture.core_fd)  # its blocks are free before the ledger wants one
        capture.core_fd = -1
    if capture.spool is not None and capture.admission is not None:
        try:
            capture.admission.give_back(capture.spool.root_fd)  # what has not been kept is no share of a limit
        except OSError:
            pass
    on_record = capture.reason != WITHDRAWN and put_on_record(
        capture.spool,
        capture.settings.root,
        capture.reason,
        capture.detail,
        capture.uuid,
        capture.victim,
        capture.declined,
    )
    if capture.spool is not None and capture.dump is not None:
        try:
            capture.spool.remove(capture.dump)
        except OSError as error:
            capture.detail += f"; {capture.dump.uuid} is left in staging for the sweep: {error.strerror}"
    return on_record


def _close(capture: Capture) -> None:
    if capture.reservation is not None:
        capture.reservation.close()
    if capture.core_fd >= 0:
        os.close(capture.core_fd)
    if capture.assets is not None:
        capture.assets.close()
    if capture.dump is not None:
        capture.dump.close()
    if capture.spool is not None and capture.transport != "salvage":
        capture.spool.close()
