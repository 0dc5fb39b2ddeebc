#!/usr/bin/python3 -I
# SPDX-License-Identifier: Apache-2.0
"""coresnap process-worker - run defaults.command and snapshot.command on one dump

DESCRIPTION
    Started by the stage processor, with a connection on standard input. Over it come one message and the open files of
    one dump; back goes one answer: done, failed (worth another attempt) or refused (never worth one), with a line.
    The commands get the files as /proc/self/fd/N: they can open them by path, and no other dump's. After a snapshot has
    been made zstd(1) compresses the core, where a file for that came, too; then, where files for that came, age(1) encrypts core
    and asset, also those of which no snapshot will be made any more.

SECURITY
    This program and its commands are the ones that touch a core, which is hostile. They need no network, no other file
    of the spool and no privilege.
"""

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

import json
import shutil
import socket
import time
from typing import Any

from coresnap.ground import program, runner, wire
from coresnap.ground.errors import BadInput, CoresnapError
from coresnap.ground.formats import expand
from coresnap.snapshot.asset import read_asset
from coresnap.snapshot.core import open_core
from coresnap.snapshot.modules import main_package
from coresnap.snapshot.report import HEAD_BYTES, fingerprint_of
from coresnap.spool import compressed, coredump, encrypted, record, stages

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_DEFAULTS_MAX_BYTES = 64 << 10
_OUTPUT_MAX_BYTES = 64 << 10
_BAD_INPUT = 65
_EVIDENCE_MAX_BYTES = wire.LIMIT_BYTES - (16 << 10)
_CONNECTION_FD = 0
#: Snapshot, core, asset, compressed core; and core, compressed core and asset encrypted.
_MAX_FDS = 7
_FIELDS = {
    "uuid": str,
    "files": list,
    "exe": str,
    "pid": int,
    "uid": int,
    "signal": int,
    "snapshot_command": list,
    "own_options": list,
    "defaults_command": list,
    "snapshot_timeout_usec": int,
    "defaults_timeout_usec": int,
    "memory_bytes": int,
    "max_bytes": int,
    "output": str,
    "compress_bytes": int,
    "recipients": list,
    "last_attempt": bool,
}


def work(connection: socket.socket) -> int:
    """Serve the one request on the connection; return the exit status."""
    received = wire.receive(connection, max_fds=_MAX_FDS)
    if received is None:
        return 0
    request, fds = received
    _check(request, fds)
    files = dict(zip(request["files"], fds, strict=True))
    sealed = {name: files.pop(name + stages.AGE) for name in list(files) if name + stages.AGE in files}
    compressed_fd = files.pop(stages.COMPRESSED, -1)
    try:
        answer = _process(request, files)
        if answer["status"] == "done":
            answer["package"] = _package(files[stages.CORE])
            answer["fingerprint"] = fingerprint_of(os.pread(files["snapshot"], HEAD_BYTES, 0))
        if compressed_fd >= 0 and answer["status"] == "done":
            answer |= _compress(request, files[stages.CORE], compressed_fd)
        if request["recipients"] and (answer["status"] != "failed" or request["last_attempt"]):
            packed = {stages.COMPRESSED: compressed_fd} if answer.get("compressed") else {}
            answer |= _encrypt(request, answer, files | packed, sealed)
    except CoresnapError as error:
        answer = {"version": 1, "status": "failed", "detail": error.line()}
    if stages.ASSETS in request["files"]:
        answer["evidence"] = _evidence(fds[request["files"].index(stages.ASSETS)])
    wire.send(connection, answer)
    return 0


def _check(request: dict[str, Any], fds: list[int]) -> None:
    for name, kind in _FIELDS.items():
        if type(request.get(name)) is not kind:
            raise BadInput(f"request: {name}: {kind.__name__} expected")
    if len(request["files"]) != len(fds):
        raise BadInput(f"request: {len(request['files'])} files are named, {len(fds)} came")


def _process(request: dict[str, Any], files: dict[str, int]) -> dict[str, Any]:
    started_nsec = time.monotonic_ns()
    environment = {"PATH": _PATH, "LANG": "C.UTF-8"}
    if request["defaults_command"]:
        argv = [*request["defaults_command"], os.path.basename(request["exe"])]
        result = runner.run(
            argv,
            timeout_usec=request["defaults_timeout_usec"],
            env=environment,
            output="capture",
            errors="inherit",
            output_limit_bytes=_DEFAULTS_MAX_BYTES,
            abandon_fd=_CONNECTION_FD,
        )
        if result.status != 0:
            return {"version": 1, "status": "failed", "detail": f"defaults.command: {result.ending()}"}
        environment["BACKTRACE_DEFAULTS"] = result.output.decode("utf-8", "replace").replace("\0", "")
    argv = _command(expand(request["snapshot_command"], _formats(request, files)), request["own_options"])
    result = runner.run(
        argv,
        timeout_usec=request["snapshot_timeout_usec"],
        env=environment,
        pass_fds=tuple(files.values()),
        output={"log": "capture"}.get(request["output"], request["output"]),
        output_limit_bytes=_OUTPUT_MAX_BYTES,
        memory_bytes=request["memory_bytes"],
        file_size_bytes=request["max_bytes"],
        abandon_fd=_CONNECTION_FD,
    )
    elapsed_usec = (time.monotonic_ns() - started_nsec) // 1000
    if result.status == 0:
        return {"version": 1, "status": "done", "elapsed_usec": elapsed_usec, "detail": runner.last_line(result.output)}
    status = "refused" if result.status == _BAD_INPUT else "failed"
    return {"version": 1, "status": status, "detail": f"snapshot.command: {result.ending()}"}


def _compress(request: dict[str, Any], core_fd: int, target_fd: int) -> dict[str, Any]:
    """Compress the core, which keeps as it is where that fails."""
    most_bytes, timeout_usec = request["compress_bytes"], request["snapshot_timeout_usec"]
    problem = compressed.compress(core_fd, target_fd, most_bytes, timeout_usec, _CONNECTION_FD)
    return {"compressed": not problem, "compress_detail": problem}


def _encrypt(
    request: dict[str, Any], answer: dict[str, Any], files: dict[str, int], sealed: dict[str, int]
) -> dict[str, Any]:
    """Encrypt the asset, and the core in the form that it will be kept in. What is not encrypted does not go on."""
    core = stages.COMPRESSED if stages.COMPRESSED in files else stages.CORE
    for name in [core, *([stages.ASSETS] if stages.ASSETS in files else [])]:
        problem = encrypted.encrypt(
            files[name], sealed[name], request["recipients"], request["snapshot_timeout_usec"], _CONNECTION_FD
        )
        if problem:
            status = "failed" if answer["status"] == "done" else answer["status"]
            told = f"{answer['detail']}; " if answer["status"] != "done" else ""
            return {"status": status, "encrypted": False, "detail": f"{told}{name} is not encrypted: {problem}"}
    return {"encrypted": True}


def _package(core_fd: int) -> dict[str, str]:
    """Return what the executable says of its package; nothing where the core does not have it."""
    try:
        package = main_package(open_core(core_fd))
    except (BadInput, OSError):
        return {}
    return {key: package[key] for key in record.FIELDS["package"].shape if key in package}


def _evidence(fd: int) -> dict[str, str]:
    """Return what the asset tells for the journal, as much of it as a message holds; nothing where it cannot be read."""
    try:
        members = read_asset(f"/proc/self/fd/{fd}", [], coredump.EVIDENCE)
    except (BadInput, OSError):
        return {}
    texts: dict[str, str] = {}
    left_bytes = _EVIDENCE_MAX_BYTES
    for name, (_field, most) in coredump.EVIDENCE.items():
        text = members.get(name, b"")[:most].replace(b"\0", b"\n").decode("utf-8", "replace").rstrip("\n")
        left_bytes -= len(json.dumps(text))
        if left_bytes < 0:
            break
        texts[name] = text
    return texts


def _formats(request: dict[str, Any], files: dict[str, int]) -> dict[str, str]:
    paths = {name: f"/proc/self/fd/{fd}" for name, fd in files.items()}
    return {
        "S": paths["snapshot"],
        "c": paths["core"],
        "a": paths.get("assets.tar", os.devnull),
        "B": request["uuid"],
        "e": request["exe"],
        "p": str(request["pid"]),
        "u": str(request["uid"]),
        "s": str(request["signal"]),
    }


def _command(argv: list[str], own_options: list[str]) -> list[str]:
    """Find coresnap's own snapshot program where it is, beside this one; what the settings say of its reports goes to it."""
    if argv[0] == "coresnap-snapshot":
        return [*program.argv_of("take_snapshot"), *own_options, *argv[1:]]
    return [shutil.which(argv[0], path=_PATH) or argv[0], *argv[1:]]


def main() -> int:
    """Run the worker; return its exit status."""
    with socket.socket(fileno=os.dup(0)) as connection, program.hanging_up(connection):
        return program.run("coresnap process-worker", lambda: work(connection))


if __name__ == "__main__":
    sys.exit(main())
