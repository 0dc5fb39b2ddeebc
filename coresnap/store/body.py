# SPDX-License-Identifier: Apache-2.0
"""What is sent, made while it is sent: of any size in constant memory, and from the start again as often as need be.

requests reads the parts of a multipart body into memory, so the body is made here (docs/adr/0013).
"""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from coresnap.store.face import Delivery, StoreRefused

_BLOCK_BYTES = 1 << 18
_SPOOLED_BYTES = 1 << 20
_WORTH_BYTES = 512
_GZIP = 31  # zlib's window bits for gzip's format, zlib.h
_LEVEL = 6
_MINIDUMP = b"MDMP"


@dataclass(frozen=True)
class Segment:
    """A piece of a body: bytes as they are, or the first `size_bytes` of a file."""

    size_bytes: int
    data: bytes = b""
    fd: int = -1
    name: str = ""


class Body:
    """A body. Iterating over it begins anew; `sent_bytes` says how far it has come."""

    def __init__(self, segments: list[Segment], headers: dict[str, str]) -> None:
        self._segments = segments
        self.headers = headers
        self.size_bytes = sum(segment.size_bytes for segment in segments)
        self.sent_bytes = 0

    def __len__(self) -> int:
        return self.size_bytes

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[bytes]:
        self.sent_bytes = 0
        for segment in self._segments:
            for block in _blocks(segment):
                yield block
                self.sent_bytes += len(block)


def _blocks(segment: Segment) -> Iterator[bytes]:
    if segment.fd < 0:
        yield segment.data
        return
    offset = 0
    while offset < segment.size_bytes:
        block = os.pread(segment.fd, min(_BLOCK_BYTES, segment.size_bytes - offset), offset)
        if not block:
            raise StoreRefused(f"{segment.name}: {offset} bytes are there, {segment.size_bytes} were announced")
        yield block
        offset += len(block)


def format_of(fd: int) -> str:
    """Return the format of a snapshot, which its first bytes tell: a report in JSON, a minidump, or ptrace's own."""
    start = os.pread(fd, 64, 0)
    if start.startswith(_MINIDUMP):
        return "minidump"
    return "json" if start.lstrip().startswith(b"{") else "btt"


def make(delivery: Delivery, form: str, stack: ExitStack) -> Body:
    """Return the body of a delivery. The stack closes what it needs.

    A snapshot alone is a raw body, gzipped where that makes it smaller. With attachments, or attributes, the body is
    multipart, and not gzipped: what is large is so already. Raises StoreRefused where the snapshot is not the one on record.
    """
    packed = None
    if not delivery.attachments:
        packed = stack.enter_context(tempfile.SpooledTemporaryFile(_SPOOLED_BYTES))  # noqa: SIM115  # the stack closes it
    digest, zipper, packed_bytes = hashlib.sha256(), zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP), 0
    for block in _blocks(Segment(delivery.size_bytes, fd=delivery.fd, name="snapshot")):
        digest.update(block)
        if packed is not None:
            packed_bytes += packed.write(zipper.compress(block))
    if digest.hexdigest() != delivery.sha256:
        raise StoreRefused(f"snapshot: its checksum is {digest.hexdigest()}, {delivery.sha256} is on record")
    kind = "application/json" if form == "json" else "application/octet-stream"
    if packed is None:
        return _multipart(delivery, kind)
    packed_bytes += packed.write(zipper.flush())
    if delivery.size_bytes < _WORTH_BYTES or packed_bytes >= delivery.size_bytes * 9 // 10:
        return Body([Segment(delivery.size_bytes, fd=delivery.fd, name="snapshot")], {"Content-Type": kind})
    headers = {"Content-Type": kind, "Content-Encoding": "gzip"}
    if packed_bytes <= _SPOOLED_BYTES:
        packed.seek(0)
        return Body([Segment(packed_bytes, packed.read())], headers)
    packed.flush()
    return Body([Segment(packed_bytes, fd=packed.fileno(), name="snapshot")], headers)


def _multipart(delivery: Delivery, kind: str) -> Body:
    """Return a multipart/form-data body (RFC 7578): the attributes, the snapshot, the attachments."""
    boundary = secrets.token_hex(16)
    segments: list[Segment] = []

    def add(name: str, kind: str, rest: str = "") -> None:
        start = "\r\n" if segments else ""
        head = f'{start}--{boundary}\r\nContent-Disposition: form-data; name="{name}"{rest}\r\nContent-Type: {kind}\r\n\r\n'
        data = head.encode()
        segments.append(Segment(len(data), data))

    for name, value in delivery.attributes:
        add(_quoted(name), "text/plain; charset=utf-8")
        data = value.encode("utf-8", "replace")
        segments.append(Segment(len(data), data))
    add("upload_file", kind, f'; filename="{delivery.uuid}"')
    segments.append(Segment(delivery.size_bytes, fd=delivery.fd, name="snapshot"))
    for attachment in delivery.attachments:
        name = _quoted(attachment.name)
        add(f"attachment_{name}", "application/octet-stream", f'; filename="{name}"')
        segments.append(Segment(attachment.size_bytes, fd=attachment.fd, name=name))
    end = f"\r\n--{boundary}--\r\n".encode()
    segments.append(Segment(len(end), end))
    return Body(segments, {"Content-Type": f"multipart/form-data; boundary={boundary}"})


def _quoted(name: str) -> str:
    """Return a name as it may stand in a header (the HTML standard's way): nothing in it ends the line, or the quotes."""
    return name.replace("\r", "%0D").replace("\n", "%0A").replace('"', "%22")
