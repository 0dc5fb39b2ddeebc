#!/usr/bin/python3 -I
# SPDX-License-Identifier: Apache-2.0
"""coresnap send-worker - deliver snapshots to a store

DESCRIPTION
    Started by the sender, with a connection on standard input. Over it come messages, each with the open files of one
    dump: its snapshot and what goes with it. For each an answer goes back: delivered, with the store's receipt; later;
    parked (the store is at fault); or refused (the snapshot is). The store stays open from one message to the next.

SECURITY
    This is the program that may use the network. It is never handed a core.
"""

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

import socket
import time
from typing import Any

from coresnap.ground import program, runner, wire
from coresnap.ground.errors import BadInput, CoresnapError, TryLater
from coresnap.ground.formats import expand
from coresnap.store import Attachment, Delivery, Parked, Receipt, Store, StoreRefused, open_store

_MAX_FDS = 4
_FIELDS = {
    "uuid": str,
    "files": list,
    "project": str,
    "store": str,
    "store_max_bytes": int,
    "store_max_age_usec": int,
    "command": list,
    "timeout_usec": int,
    "snapshot": dict,
}


class Stores:
    """The stores that have been opened, by what they were opened with."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, int, int], Store] = {}

    def get(self, request: dict[str, Any]) -> Store:
        """Return the store of a request, opened if it is not yet."""
        key = (request["store"], request["store_max_bytes"], request["store_max_age_usec"])
        if key not in self._open:
            self._open[key] = open_store(key[0], max_bytes=key[1], max_age_usec=key[2])
        return self._open[key]


def work(connection: socket.socket) -> int:
    """Serve requests until the owner closes the connection; return the exit status."""
    stores = Stores()
    while (received := wire.receive(connection, max_fds=_MAX_FDS)) is not None:
        request, fds = received
        try:
            _check(request, fds)
            answer = _answer(stores, request, dict(zip(request["files"], fds, strict=True)))
        finally:
            for fd in fds:
                os.close(fd)
        wire.send(connection, {"version": 1, **answer})
    return 0


def _check(request: dict[str, Any], fds: list[int]) -> None:
    for name, kind in _FIELDS.items():
        if type(request.get(name)) is not kind:
            raise BadInput(f"request: {name}: {kind.__name__} expected")
    if len(request["files"]) != len(fds) or "snapshot" not in request["files"]:
        raise BadInput(f"request: {request['files']} are named, {len(fds)} descriptors came")


def _answer(stores: Stores, request: dict[str, Any], files: dict[str, int]) -> dict[str, Any]:
    try:
        if request["command"]:
            receipt = _run_command(request, files)
        else:
            receipt = stores.get(request).put(_delivery(request, files))
    except StoreRefused as error:
        return {"status": "refused", "detail": error.line()}
    except Parked as error:
        return {"status": "parked", "detail": error.line()}
    except CoresnapError as error:
        return {"status": "later", "detail": error.line(), "retry_after_usec": getattr(error, "retry_after_usec", None)}
    return {"status": "delivered", "receipt": receipt.to_json()}


def _delivery(request: dict[str, Any], files: dict[str, int]) -> Delivery:
    attachments = tuple(Attachment(name, fd, os.fstat(fd).st_size) for name, fd in files.items() if name != "snapshot")
    snapshot = request["snapshot"]
    return Delivery(
        uuid=request["uuid"],
        project=request["project"],
        fd=files["snapshot"],
        size_bytes=int(snapshot["size_bytes"]),
        sha256=str(snapshot["sha256"]),
        attachments=attachments,
    )


def _run_command(request: dict[str, Any], files: dict[str, int]) -> Receipt:
    """Run send.command; its exit status 0 is the only acknowledgement that there is."""
    paths = {name: f"/proc/self/fd/{fd}" for name, fd in files.items()}
    values = {
        "S": paths["snapshot"],
        "a": paths.get("assets.tar", os.devnull),
        "B": request["uuid"],
        "P": request["project"],
        "t": request["project"],
    }
    argv = expand(request["command"], values)
    result = runner.run(argv, timeout_usec=request["timeout_usec"], pass_fds=tuple(files.values()))
    if result.status != 0 or result.timed_out:
        lines = result.output.decode("utf-8", "replace").strip().splitlines() or ["without a word"]
        how = "took too long" if result.timed_out else f"exit status {result.status}"
        raise TryLater(f"send.command {argv[0]}: {how}: {lines[-1][:500]}")
    return Receipt(
        uuid=request["uuid"],
        store=f"command:{argv[0]}",
        project=request["project"],
        object=request["uuid"],
        acknowledged_usec=time.time_ns() // 1000,
        size_bytes=int(request["snapshot"]["size_bytes"]),
        sha256=str(request["snapshot"]["sha256"]),
        already_there=False,
    )


def main() -> int:
    """Run the worker; return its exit status."""
    with socket.socket(fileno=os.dup(0)) as connection:
        return program.run("coresnap send-worker", lambda: work(connection))


if __name__ == "__main__":
    sys.exit(main())
