#!/usr/bin/python3 -I
# SPDX-License-Identifier: Apache-2.0
"""coresnap send-worker - deliver snapshots to a store

DESCRIPTION
    Started by the sender, with a connection on standard input. Over it come messages, each with the open files of one
    dump: its snapshot and what goes with it. For each an answer goes back: delivered, with the store's receipt; later;
    parked (the store is at fault); or refused (the snapshot is). The store stays open from one message to the next. A
    worker whose coroner.cf has changed ends, as what it was given of it under systemd cannot.

SECURITY
    This is the program that may use the network. It is handed a core only where send.core says so.
"""

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

import hashlib
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

from coresnap.ground import program, runner, wire
from coresnap.ground.errors import BadInput, BadSettings, CoresnapError, Refused, TryLater
from coresnap.ground.formats import expand
from coresnap.ground.text import printable
from coresnap.spool.stages import is_uuid
from coresnap.store import (
    Attachment,
    Delivery,
    Parked,
    Receipt,
    Secret,
    Store,
    StoreRefused,
    is_name,
    open_store,
    small,
)

_MAX_FDS = 4
_TEXT_MAX = 4096
_INT_MAX = 2**63 - 1
_STORE_NAME_MAX = 1000
_DETAIL_MAX = 500
_HEX = frozenset("0123456789abcdef")
#: The keys of a request; token is null where the store knows none.
_FIELDS: dict[str, type] = {
    "version": int,
    "job": str,
    "uuid": str,
    "files": list,
    "project": str,
    "store": str,
    "store_max_bytes": int,
    "store_max_age_usec": int,
    "command": list,
    "timeout_usec": int,
    "snapshot": dict,
    "small": int,
}


#: The answer of a worker that ends, so that its owner has another started.
_OUTDATED = {"status": "later", "detail": "the coroner.cf has changed", "retry_after_usec": 1_000_000, "scope": "store"}


class _Kept:
    """The store, open from one request to the next, as long as they name the same one and it does not fail."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._store: Store | None = None
        self._warnings: tuple[str, ...] = ()

    def get(self, request: dict[str, Any]) -> Store:
        """Return the store of a request, opened if it is not yet."""
        limits = {name: request[f"store_{name}"] for name in ("max_bytes", "max_age_usec")}
        limits["timeout_usec"] = request["timeout_usec"]
        key = (request["store"], *limits.values(), _changed_nsec(request["store"]))
        if self._store is None or key != self._key:
            self.close()
            self._store = open_store(request["store"], **limits)
            self._key = key
            self._warn(tuple(getattr(self._store, "warnings", ())))
        return self._store

    def _warn(self, warnings: tuple[str, ...]) -> None:
        """Say what is to be said of the store, once: one that is down is opened for each probe."""
        if warnings != self._warnings:
            _tell(warnings)
        self._warnings = warnings

    def close(self) -> None:
        """Close the store; the next request opens it anew."""
        if self._store is not None:
            self._store.close()
        self._store = None


def _tell(lines: Iterable[str]) -> None:
    for line in lines:
        print(f"coresnap send-worker: {printable(line)}", file=sys.stderr, flush=True)


def _is_outdated(request: dict[str, Any]) -> bool:
    """Say whether another worker has to do it, to which the coroner.cf is given as it is now."""
    scheme, _colon, path = request["store"].partition(":")
    if scheme != "coroner" or request["command"]:
        return False
    from coresnap.store import coroner

    return coroner.is_outdated(path)


def _changed_nsec(store: str) -> int:
    """Return when the coroner.cf that a store's name names has changed."""
    try:
        return os.stat(store.removeprefix("coroner:")).st_mtime_ns if store.startswith("coroner:") else 0
    except OSError:
        return 0


def work(connection: socket.socket) -> int:
    """Serve requests until the owner closes the connection; return the exit status."""
    kept = _Kept()
    while (received := wire.receive(connection, max_fds=_MAX_FDS)) is not None:
        request, fds = received
        try:
            _check(request, fds)
            outdated = _is_outdated(request)
            files = dict(zip(request["files"], fds, strict=True))
            answer = dict(_OUTDATED) if outdated else _answer(kept, request, files)
        finally:
            for fd in fds:
                os.close(fd)
        wire.send(connection, {"version": 1, **answer})
        if outdated:
            break
    kept.close()
    return 0


def _check(request: dict[str, Any], fds: list[int]) -> None:
    """Raise BadInput naming the key of the request that is not as it must be; no value is shown, one may be a token."""
    if request.keys() - {"token"} != _FIELDS.keys():
        raise BadInput(f"request: an object of {', '.join(_FIELDS)} expected")
    for name, kind in _FIELDS.items():
        value = request[name]
        if type(value) is not kind or (kind is int and not _is_count(value)) or (kind is str and not _is_text(value)):
            raise BadInput(f"request: {name}: {kind.__name__} expected")
    files, snapshot, token = request["files"], request["snapshot"], request.get("token")
    right = {
        "version": request["version"] == 1,
        "job": request["job"] == "send",
        "uuid": is_uuid(request["uuid"]),
        "project": is_name(request["project"]),
        "command": all(_is_text(word) for word in request["command"]),
        "timeout_usec": request["timeout_usec"] > 0,
        "token": token is None or _is_text(token),
        "files": all(_is_text(name) and is_name(name) for name in files) and "snapshot" in files,
        "snapshot": snapshot.keys() == {"size_bytes", "sha256"} and _is_checksum(snapshot),
    }
    for name, holds in right.items():
        if not holds:
            raise BadInput(f"request: {name}: not as it must be")
    if len(files) != len(fds) or len(set(files)) != len(files):
        raise BadInput(f"request: {len(files)} files are named, {len(fds)} descriptors came, or one is named twice")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _INT_MAX


def _is_text(value: Any) -> bool:
    """Say whether this is text that the system can be handed: not too long, no NUL, nothing that is no character."""
    if not isinstance(value, str) or len(value) > _TEXT_MAX or "\0" in value:
        return False
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        return False
    return True


def _is_checksum(snapshot: dict[str, Any]) -> bool:
    sha256 = snapshot["sha256"]
    return _is_count(snapshot["size_bytes"]) and _is_text(sha256) and len(sha256) == 64 and _HEX.issuperset(sha256)


def _answer(kept: _Kept, request: dict[str, Any], files: dict[str, int]) -> dict[str, Any]:
    try:
        with ExitStack() as made:
            whole_sha256 = request["snapshot"]["sha256"]
            _make_small(request, files, made)
            if request["command"]:
                receipt = _run_command(request, files)
            else:
                store = kept.get(request)
                receipt = store.put(_delivery(request, files, whole_sha256))
                _tell(getattr(store, "remarks", ()))
    except StoreRefused as error:
        return {"status": "refused", "detail": error.line()}
    except (Parked, BadSettings, Refused) as error:  # no such store, no such command: no dump is to blame
        kept.close()
        return {"status": "parked", "detail": error.line(), "scope": getattr(error, "scope", "store")}
    except CoresnapError as error:
        kept.close()
        retry_usec, scope = getattr(error, "retry_after_usec", None), getattr(error, "scope", "store")
        return {"status": "later", "detail": error.line(), "retry_after_usec": retry_usec, "scope": scope}
    return {"status": "delivered", "receipt": receipt.to_json()}


def _make_small(request: dict[str, Any], files: dict[str, int], made: ExitStack) -> None:
    """Put a small report in the snapshot's place, where one is asked for and can be made."""
    if not request["small"]:
        return
    data = small.make(files["snapshot"], request["snapshot"]["size_bytes"], request["small"])
    if data is None:
        return
    file = made.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  # the stack closes it
    file.write(data)
    file.flush()
    files["snapshot"] = file.fileno()
    request["snapshot"] = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _delivery(request: dict[str, Any], files: dict[str, int], before_sha256: str) -> Delivery:
    attachments = tuple(Attachment(name, fd, os.fstat(fd).st_size) for name, fd in files.items() if name != "snapshot")
    token = request.get("token")
    return Delivery(
        uuid=request["uuid"],
        project=request["project"],
        fd=files["snapshot"],
        size_bytes=request["snapshot"]["size_bytes"],
        sha256=request["snapshot"]["sha256"],
        attachments=attachments,
        token=None if token is None else Secret(token),
        before_sha256=before_sha256,
    )


def _run_command(request: dict[str, Any], files: dict[str, int]) -> Receipt:
    """Run send.command; its exit status 0 is the only acknowledgement that there is."""
    with ExitStack() as copies:
        ours = {name: _that_opens(fd, copies) for name, fd in files.items()}
        return _run_command_on(request, ours)


def _that_opens(fd: int, copies: ExitStack) -> int:
    """Return a descriptor of the same bytes that its path under /proc opens again: a copy, where the file is another user's."""
    try:
        os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC))
    except PermissionError:
        copy = copies.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  # the stack closes it
        with open(os.dup(fd), "rb") as file:
            file.seek(0)
            shutil.copyfileobj(file, copy, 1 << 20)
        copy.flush()
        return copy.fileno()
    return fd


def _run_command_on(request: dict[str, Any], files: dict[str, int]) -> Receipt:
    paths = {name: f"/proc/self/fd/{fd}" for name, fd in files.items()}
    values = {
        "S": paths["snapshot"],
        "a": paths.get("assets.tar", paths.get("assets.tar.age", os.devnull)),
        "B": request["uuid"],
        "P": request["project"],
        "t": request["project"],
    }
    argv = expand(request["command"], values)
    result = runner.run(argv, timeout_usec=request["timeout_usec"], pass_fds=tuple(files.values()), abandon_fd=0)
    if result.status != 0 or result.timed_out:
        lines = result.output.decode("utf-8", "replace").strip().splitlines() or ["without a word"]
        how = "took too long" if result.timed_out else f"exit status {result.status}"
        raise TryLater(f"send.command {argv[0]}: {how}: {printable(lines[-1], _DETAIL_MAX)}")
    return Receipt(
        uuid=request["uuid"],
        store=f"command:{argv[0]}"[:_STORE_NAME_MAX],
        project=request["project"],
        object=request["uuid"],
        acknowledged_usec=time.time_ns() // 1000,
        size_bytes=request["snapshot"]["size_bytes"],
        sha256=request["snapshot"]["sha256"],
        already_there=False,
    )


def main() -> int:
    """Run the worker; return its exit status."""
    return program.run("coresnap send-worker", _serve)


def _serve() -> int:
    with socket.socket(fileno=os.dup(0)) as connection, program.hanging_up(connection):
        return work(connection)


if __name__ == "__main__":
    sys.exit(main())
