# SPDX-License-Identifier: Apache-2.0
"""Deliver a report to a store by hand, as coroner does: PROJECT, the name of its TOKEN in the coroner.cf, and the FILE.

The store is the one of the coroner.cf: that of -c, else ~/.coroner.cf, else /usr/local/etc/coroner.cf; or the one that
--store names, `file:/DIRECTORY` or https://HOST[:PORT]. TOKEN may be left out where its name is the project's. It may be
the token itself, in hexadecimal digits, which other users of the machine can then see among its processes. The same
report put twice is stored once.

examples:
  coresnap put blackhole blackhole snapshot
  coresnap put -c ./coroner.cf web snapshot --attach core=core.4711 --kv release=7
  coresnap put --store file:/mnt/reports web snapshot

Exit status 65: FILE is no report, or an argument is wrong; 69: the store takes this report never; 75: not now; 78: the
address, the token, a certificate or the coroner.cf is wrong. Behind HTTPS_PROXY, or the coroner.cf's `proxy`, a proxy is used.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import stat
import uuid as uuids
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from coresnap.cli import terminal
from coresnap.cli.terminal import Progress
from coresnap.ground.errors import BadInput, BadSettings, Refused, TryLater
from coresnap.ground.text import human_bytes, printable
from coresnap.store import Attachment, Delivery, Parked, Secret, is_name, open_store
from coresnap.store.body import format_of

if TYPE_CHECKING:
    import argparse

    from coresnap.store import Receipt, Store

#: A string, or what begins or ends an object or a list. Possessive, it remembers nothing of where it could have gone.
_JSON_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[{}\[\]]', re.DOTALL)
_BLOCK_BYTES = 1 << 20
_DAY_SECONDS = 86_400


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("project", metavar="PROJECT", help="the project that the report is for")
    parser.add_argument("token", nargs="?", metavar="TOKEN", help="the name of its token, else the token")
    parser.add_argument("file", metavar="FILE", help="the report")
    parser.add_argument("-c", dest="coroner", metavar="FILE", help="read this coroner.cf")
    parser.add_argument("-u", dest="unlink", action="store_true", help="remove the file once the store has it")
    parser.add_argument("--store", metavar="ADDRESS", help="deliver to this store")
    parser.add_argument(
        "--format",
        metavar="FORMAT",
        default="",
        help="json, minidump and others; else what its bytes say, or btt",
    )
    parser.add_argument("--attach", metavar="NAME=FILE", action="append", default=[], help="a file that goes with it")
    parser.add_argument("--kv", metavar="KEY=VALUE", action="append", default=[], help="an attribute that goes with it")
    parser.add_argument("--timeout", metavar="SECONDS", type=int, default=_DAY_SECONDS, help="give up after so long")
    parser.add_argument("--json", action="store_true", help="print the receipt as JSON")
    parser.add_argument("-v", dest="verbose", action="store_true", help="say what is done")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if not 0 < args.timeout <= 7 * _DAY_SECONDS:
        terminal.note(f"put: --timeout: 1 to {7 * _DAY_SECONDS} seconds")
        return 2
    with ExitStack() as stack:
        fd, status = _open(args.file, stack)
        delivery = _delivery(args, fd, status, stack)
        try:
            store, token = _store(args, delivery)
            delivery = replace(delivery, token=token)
            stack.callback(store.close)
            receipt = _put(args, store, delivery)
        except Parked as error:
            raise BadSettings(str(error), hint=error.hint) from error
        if args.unlink:
            _unlink(args.file, status)
    if args.json:
        terminal.print_json(receipt.to_json())
    else:
        there = " (it was there)" if receipt.already_there else ""
        print(
            f"{receipt.uuid}: delivered to {receipt.store}, project {receipt.project}, as {printable(receipt.object)}{there}"
        )
    return 0


def _open(path: str, stack: ExitStack) -> tuple[int, os.stat_result]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from error
    stack.callback(os.close, fd)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise BadInput(f"{path} is not a regular file")
    return fd, status


def _delivery(args: argparse.Namespace, fd: int, status: os.stat_result, stack: ExitStack) -> Delivery:
    if not is_name(args.project):
        raise BadInput("PROJECT is not the name of a project")
    if not status.st_size:
        raise BadInput(f"{args.file} is empty")
    form = args.format or format_of(fd)
    if not re.fullmatch("[a-z0-9-]{1,32}", form):
        raise BadInput("--format: small letters expected")
    attachments: list[Attachment] = []
    for text in args.attach:
        name, equals, path = text.partition("=")
        if not equals or not is_name(name) or name in (one.name for one in attachments):
            raise BadInput(f"--attach {printable(text, 100)}: NAME=FILE expected, each name once")
        attached, its_status = _open(path, stack)
        attachments.append(Attachment(name, attached, its_status.st_size))
    attributes = {}
    for text in args.kv:
        key, equals, value = text.partition("=")
        if not equals or not re.fullmatch("[A-Za-z0-9._-]{1,128}", key) or key in attributes or not value.isprintable():
            raise BadInput(f"--kv {printable(text, 100)}: KEY=VALUE expected, each key once")
        attributes[key] = value
    sha256 = _digest(fd)
    return Delivery(
        uuid=_uuid(args.file, fd, status.st_size, form, sha256),
        project=args.project,
        fd=fd,
        size_bytes=status.st_size,
        sha256=sha256,
        attachments=tuple(attachments),
        attributes=tuple(attributes.items()),
        format=form,
    )


def _digest(fd: int) -> str:
    digest, offset = hashlib.sha256(), 0
    while block := os.pread(fd, _BLOCK_BYTES, offset):
        digest.update(block)
        offset += len(block)
    return digest.hexdigest()


def _uuid(path: str, fd: int, size_bytes: int, form: str, sha256: str) -> str:
    """Return what makes the report the same one each time: its own UUID, or one made of its bytes where it has none."""
    if form != "json":
        return str(uuids.UUID(hex=sha256[:32], version=4))
    try:
        with mmap.mmap(fd, size_bytes, access=mmap.ACCESS_READ) as report:
            return str(uuids.UUID(_outermost(report, b'"uuid"')))
    except (ValueError, OSError):
        raise BadInput(
            f"{path}: no report: a JSON object with a uuid expected", hint="--format says what else it is"
        ) from None


def _outermost(report: mmap.mmap, wanted: bytes) -> str:
    """Return the text under a key of the outermost object of a JSON document of any size. Raises ValueError where there is none."""
    depth, key = 0, False
    for match in _JSON_TOKEN.finditer(report):
        token = match[0]
        if token in (b"{", b"["):
            depth += 1
        elif token in (b"}", b"]"):
            depth -= 1
        elif key:
            return token[1:-1].decode("ascii")
        key = depth == 1 and token == wanted and report[match.end() : match.end() + 64].lstrip().startswith(b":")
    raise ValueError("no such key")


def _store(args: argparse.Namespace, delivery: Delivery) -> tuple[Store, Secret | None]:
    """Return the store, opened, and the token, which is looked for here: one that is missing is said before anything is sent."""
    address = args.store or ""
    if address.startswith("file:"):
        if not address.startswith("file:/"):
            raise BadSettings("--store: file: and the absolute path of a directory expected")
        from coresnap.ground import settings

        loaded = settings.load(args.settings)
        return open_store(address, max_bytes=loaded.store_max_bytes, max_age_usec=loaded.store_max_age_usec), None
    from coresnap.store import coroner
    from coresnap.store.open import object_store

    try:
        read = coroner.read(coroner.for_person(args.coroner))
    except Parked:
        if args.coroner or not address:
            raise
        read = coroner.Coroner("")
    store = object_store(read, address, timeout_usec=args.timeout * 1_000_000, told_by="--store")
    for warning in store.warnings:
        terminal.note(warning)
    token = read.tokens.get(args.token or args.project)
    if token is None and args.token and coroner.is_hex_token(args.token):
        token = Secret(args.token)
    if token is None and args.token:
        raise BadSettings(
            f"{read.path or 'no coroner.cf'}: no token of that name", hint="`NAME = TOKEN` in its [token]"
        )
    if args.verbose:
        told = f"{store.name}, project {delivery.project}, format {delivery.format}"
        terminal.note(f"{args.file}: {human_bytes(delivery.size_bytes)} to {told}; settings of {read.path or 'none'}")
    return store, token


def _put(args: argparse.Namespace, store: Store, delivery: Delivery) -> Receipt:
    sent = getattr(store, "progress", lambda: (0, 0))

    def position() -> int:
        done, progress.total_bytes = sent()
        return int(done)

    progress = Progress(args.file, 0, position)
    with progress:
        receipt = store.put(delivery)
    for remark in getattr(store, "remarks", ()):
        terminal.note(remark)
    if args.verbose and sent()[1]:
        terminal.note(f"{args.file}: {human_bytes(sent()[1])} sent")
    return receipt


def _unlink(path: str, before: os.stat_result) -> None:
    """Remove the file that the store has, if the path still leads to it, unchanged."""
    try:
        now = os.lstat(path)
        if any(getattr(now, name) != getattr(before, name) for name in ("st_dev", "st_ino", "st_size", "st_mtime_ns")):
            raise TryLater(f"{path}: delivered, but it is another file now, or has changed: it stays")
        os.unlink(path)
    except OSError as error:
        raise Refused(f"{path}: delivered, but it cannot be removed: {error.strerror}") from error
