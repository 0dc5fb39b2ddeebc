#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""An object store to test against: it takes reports as Backtrace's submission API does, and lies when it is told to.

Written from the API's public description alone, with the standard library alone, so that a guest can run it as it is:

    lying_store.py --listen 127.0.0.1:6098 [--certificate PEM] [--token TOKEN]... [--log FILE]

Requests may have either form of address, /UNIVERSE/TOKEN/FORMAT or /post?format=FORMAT&token=TOKEN, a raw body or a
multipart one, gzipped or not. A second report with a UUID that it has is refused. What it accepted stands in `objects`,
what it saw in `requests`; a body is never held in memory.
"""

from __future__ import annotations

import argparse
import email.utils
import hashlib
import json
import mmap
import random
import re
import socket
import ssl
import sys
import tempfile
import threading
import time
import urllib.parse
import uuid as uuids
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any, Self

_BLOCK_BYTES = 1 << 16
_HEAD_MAX_BYTES = 1 << 16
_REPORT_MAX_BYTES = 64 << 20
_REASONS = {200: "OK", 307: "Temporary Redirect", 400: "Bad Request", 401: "Unauthorized", 429: "Too Many Requests"}


@dataclass(frozen=True)
class Lie:
    """What to do to one request, in place of an honest answer. `value` is what the kind says."""

    #: drop-request: hang up after so many bytes of the request, if it has them. drop-answer: store, then hang up after so
    #: many bytes of the answer. slow-answer: store, then a byte of the answer every `value` seconds. slow-refusal: the same
    #: without storing. status: this status. early: this status before the body has been read, and hang up. error: HTTP 200
    #: with this error code. busy: 429 with this Retry-After. redirect: 307 to there. type: store, and call the answer of
    #: this type. page: a page of a portal's. huge: so many bytes of JSON. garbage: a broken answer. twice: store, and say
    #: that it was there. verbatim: these bytes.
    kind: str
    value: Any = None


@dataclass
class Object:
    """What the store holds under a UUID. Parts are (bytes, SHA-256)."""

    format: str
    token: str
    upload: tuple[int, str]
    attachments: dict[str, tuple[int, str]]
    attributes: dict[str, str]
    rxid: str
    offered: int = 1


@dataclass
class Request:
    """What came, and what was answered: an HTTP status, or 0."""

    line: str
    headers: dict[str, str]
    address: str
    status: int = 0
    lie: Lie | None = None
    parts: list[str] = field(default_factory=list)


Plan = Callable[[int], "Lie | None"]


def honest(_number: int) -> Lie | None:
    """Plan no lie."""
    return None


class LyingStore:
    """A store that listens as long as the context lasts. `tokens` are the ones that it knows; none: any."""

    def __init__(
        self,
        *,
        tokens: set[str] | None = None,
        plan: Plan = honest,
        certificate: str = "",
        client_ca: str = "",
        listen: tuple[str, int] = ("127.0.0.1", 0),
        log: IO[str] | None = None,
    ) -> None:
        self.tokens = tokens or set()
        self.plan = plan
        self.objects: dict[str, Object] = {}
        self.requests: list[Request] = []
        self.connections = 0
        self._log = log
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self._tls: ssl.SSLContext | None = None
        if certificate:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certificate)
            if client_ca:
                self._tls.load_verify_locations(client_ca)
                self._tls.verify_mode = ssl.CERT_REQUIRED
        family = socket.AF_INET6 if ":" in listen[0] else socket.AF_INET
        self._listener = socket.create_server(listen, family=family, backlog=128)
        host, port = self._listener.getsockname()[:2]
        self.port: int = port
        self.address = f"{'https' if certificate else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"

    def __enter__(self) -> Self:
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()
        with self._lock:
            for connection in self._open:
                _hang_up(connection)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()[0]
            except OSError:
                return
            self.connections += 1
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, raw: socket.socket) -> None:
        """Answer the requests of one connection."""
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = raw
        try:
            if self._tls is not None:
                connection = self._tls.wrap_socket(raw, server_side=True, do_handshake_on_connect=False)
            with self._lock:
                self._open.add(connection)
            if isinstance(connection, ssl.SSLSocket):
                connection.do_handshake()
            reader = _Reader(connection)
            while self._answer(reader, connection):
                pass
        except (OSError, EOFError, ValueError):
            pass  # the other end has gone, or speaks no HTTP
        finally:
            with self._lock:
                self._open.discard(connection)
            _hang_up(connection)
            connection.close()

    def _answer(self, reader: _Reader, connection: socket.socket) -> bool:
        """Read a request and answer it; say whether the connection goes on."""
        reader.left_bytes = None
        reader.wait()
        with self._lock:
            lie = self.plan(len(self.requests))
            request = Request("", {}, "", lie=lie)
            self.requests.append(request)
        kind: str = lie.kind if lie else ""
        value: Any = lie.value if lie else None
        if kind == "drop-request":
            reader.left_bytes = value
        request.line, request.headers = reader.head()
        method, request.address, _version = request.line.split(" ")
        if kind == "early":
            connection.sendall(f"HTTP/1.1 {value} Early\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
            request.status = value
            return False
        with tempfile.TemporaryFile() as body:
            reader.body(request.headers, body)
            status, document = self._judge(method, request, body, stores=kind in _STORES)
        head, content = (
            f"Content-Type: {value if kind == 'type' else 'application/json'}\r\n",
            json.dumps(document).encode(),
        )
        if kind == "status":
            status, content = value, b'{"error":{"code":%d,"message":"as told"}}' % value
        elif kind == "error":
            status, content = 200, json.dumps({"error": {"code": value, "message": "as told"}}).encode()
        elif kind == "busy":
            status, content, head = 429, b"", f"{head}Retry-After: {value}\r\n"
        elif kind == "redirect":
            status, content, head = 307, b"", f"{head}Location: {value}\r\n"
        elif kind == "page":
            status, content, head = 200, b"<html>Please log in</html>", "Content-Type: text/html\r\n"
        elif kind == "huge":
            status, content = 200, b'{"response":"ok","_rxid":"%s"}' % (b"f" * value)
        elif kind == "garbage":
            status, content = 200, value if isinstance(value, bytes) else b'{"response":"ok","_rxid":'
        elif kind == "twice":
            status, content = _duplicate(value or 0, document.get("_rxid", ""))
        date = email.utils.formatdate(usegmt=True)
        answer = (
            f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}\r\nDate: {date}\r\n{head}"
            f"Content-Length: {len(content)}\r\n\r\n"
        ).encode() + content
        if kind == "verbatim":
            answer = value
        request.status = status
        if kind == "drop-answer":
            connection.sendall(answer[:value])
            return False
        if kind in ("slow-answer", "slow-refusal"):
            for number in range(len(answer)):
                connection.sendall(answer[number : number + 1])
                time.sleep(value)
        else:
            connection.sendall(answer)
        return kind != "verbatim" and request.headers.get("connection", "").lower() != "close"

    def _judge(self, method: str, request: Request, body: IO[bytes], *, stores: bool) -> tuple[int, dict[str, Any]]:
        """Take a report; return the status and the answer."""
        parts = urllib.parse.urlsplit(request.address)
        attributes = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
        if parts.path in ("/post", "/api/post"):
            token, form = attributes.pop("token", ""), attributes.pop("format", "")
        else:
            _root, _universe, token, form = [*parts.path.split("/"), "", "", ""][:4]
        if method != "POST":
            return 405, _error(405, "POST expected")
        if not form:
            return 404, _error(404, "nothing is here")
        if not token or (self.tokens and token not in self.tokens):
            return 403, _error(403, "invalid token")
        try:
            upload, attachments, fields, head = _parts(request.headers, body)
        except (ValueError, zlib.error) as error:
            return 400, _error(400, str(error))
        attributes |= fields
        request.parts = ["upload_file", *attachments]
        uuid = attributes.get("coresnap.object", "")
        if form == "json":
            try:
                uuid = str(uuids.UUID(json.loads(head)["uuid"]))
            except (ValueError, KeyError, TypeError, AttributeError):
                return 400, _error(400, "no report")
        if not stores:
            return 200, {}
        with self._lock:
            if uuid in self.objects:
                self.objects[uuid].offered += 1
                return 400, _error(400, f"report {uuid} already exists")
            rxid = str(uuids.uuid4())
            self.objects[uuid] = Object(form, token, upload, attachments, attributes, rxid)
            if self._log is not None:
                line = {"uuid": uuid, "format": form, "bytes": upload[0], "sha256": upload[1]}
                print(json.dumps({**line, "attachments": attachments}), file=self._log, flush=True)
        return 200, {"response": "ok", "_rxid": rxid}


#: The kinds of lie that store what came, as no lie does.
_STORES = ("", "drop-request", "drop-answer", "slow-answer", "type", "twice")


def _duplicate(shape: int, rxid: str) -> tuple[int, bytes]:
    """Return an answer for what is there already, in one of the shapes that such answers have."""
    message = ("duplicate uuid", "report already exists: uuid", "already received this uuid")[shape % 3]
    status = (409, 400, 200)[shape % 3]
    return status, json.dumps(_error(status if status != 200 else 409, f"{message} {rxid}")).encode()


def _error(code: int, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


def _hang_up(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


class _Reader:
    """Reads a connection; EOFError at its end, and where `left_bytes` of a request have been read."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._kept = b""
        self.left_bytes: int | None = None

    def wait(self) -> None:
        """Wait for the first byte of a request."""
        if not self._kept:
            self._kept = self._more()

    def _more(self) -> bytes:
        block = self._connection.recv(_BLOCK_BYTES)
        if not block:
            raise EOFError
        return block

    def _taken(self, count_bytes: int) -> None:
        if self.left_bytes is not None:
            self.left_bytes -= count_bytes
            if self.left_bytes <= 0:
                raise EOFError

    def line(self) -> str:
        """Return a line without its end."""
        while b"\n" not in self._kept:
            if len(self._kept) > _HEAD_MAX_BYTES:
                raise ValueError("line too long")
            self._kept += self._more()
        line, _newline, self._kept = self._kept.partition(b"\n")
        self._taken(len(line) + 1)
        return line.rstrip(b"\r").decode("latin-1")

    def head(self) -> tuple[str, dict[str, str]]:
        """Return the request's line and its headers."""
        first, headers = self.line(), {}
        while line := self.line():
            name, _colon, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return first, headers

    def body(self, headers: dict[str, str], file: IO[bytes]) -> None:
        """Copy the request's body into a file."""
        if headers.get("transfer-encoding") == "chunked":
            while size := int(self.line().partition(";")[0], 16):
                self._copy(size, file)
                self.line()
            self.line()
        else:
            self._copy(int(headers.get("content-length", "0")), file)

    def _copy(self, count_bytes: int, file: IO[bytes]) -> None:
        while count_bytes:
            block = self._kept[:count_bytes] or self._more()
            self._kept = self._kept[count_bytes:] or block[count_bytes:]
            block = block[:count_bytes]
            file.write(block)
            count_bytes -= len(block)
            self._taken(len(block))


def _parts(
    headers: dict[str, str], body: IO[bytes]
) -> tuple[tuple[int, str], dict[str, tuple[int, str]], dict[str, str], bytes]:
    """Take a body apart: the report, the attachments, the form's fields, and the report's first megabytes."""
    with tempfile.TemporaryFile() as plain:
        if encoding := headers.get("content-encoding"):
            body.seek(0)
            unzip = zlib.decompressobj({"gzip": 31, "deflate": 15}[encoding])
            while block := body.read(_BLOCK_BYTES):
                plain.write(unzip.decompress(block))
            plain.write(unzip.flush())
            body = plain
        body.flush()
        size_bytes = body.seek(0, 2)
        if not size_bytes:
            raise ValueError("an empty body")
        with mmap.mmap(body.fileno(), size_bytes, access=mmap.ACCESS_READ) as data:
            boundary = re.search(r'boundary="?([^";]+)', headers.get("content-type", ""))
            if boundary is None:
                return _digest(data, 0, size_bytes), {}, {}, data[:_REPORT_MAX_BYTES]
            return _multipart(data, b"--" + boundary[1].encode())


def _multipart(
    data: mmap.mmap, boundary: bytes
) -> tuple[tuple[int, str], dict[str, tuple[int, str]], dict[str, str], bytes]:
    upload, attachments, fields, head = (0, ""), {}, {}, b""
    for header, start, end in _each_part(data, boundary):
        name = re.search(rb'name="([^"]*)"', header)
        if name is None:
            raise ValueError("a part without a name")
        text = name[1].decode()
        if text in ("upload_file", "upload_file_minidump"):
            upload, head = _digest(data, start, end), data[start : min(end, start + _REPORT_MAX_BYTES)]
        elif text.startswith("attachment_"):
            attachments[text.removeprefix("attachment_")] = _digest(data, start, end)
        else:
            fields[text] = data[start:end].decode()
    if not upload[1]:
        raise ValueError("no upload_file")
    return upload, attachments, fields, head


def _each_part(data: mmap.mmap, boundary: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield each part's headers, and where its content begins and ends."""
    position = data.find(boundary)
    while position >= 0:
        start = position + len(boundary)
        if data[start : start + 2] == b"--":
            return
        split = data.find(b"\r\n\r\n", start)
        position = data.find(b"\r\n" + boundary, split + 2)
        if split < 0 or position < 0:
            break
        yield data[start:split], split + 4, position
        position += 2
    raise ValueError("a multipart body without an end")


def _digest(data: mmap.mmap, start: int, end: int) -> tuple[int, str]:
    digest = hashlib.sha256()
    for position in range(start, end, _BLOCK_BYTES):
        digest.update(data[position : min(end, position + _BLOCK_BYTES)])
    return end - start, digest.hexdigest()


def lies(seed: int, share: float, elsewhere: str = "https://elsewhere.invalid/post") -> Plan:
    """Plan lies of every kind for a share of the requests; the same seed plans the same."""
    chance = random.Random(seed)

    def later() -> str:
        return email.utils.formatdate(time.time() + 1, usegmt=True)

    kinds: list[Callable[[], Lie]] = [
        lambda: Lie("drop-request", chance.randrange(1, 4000)),
        lambda: Lie("drop-answer", chance.randrange(200)),
        lambda: Lie("slow-refusal", chance.choice([0.05, 0.0, 0.0, 0.0])),
        lambda: Lie("slow-answer", 0.0),
        lambda: Lie("status", chance.choice([408, 425, 500, 502, 503, 504])),
        lambda: Lie("status", chance.choice([401, 403, 404])),
        lambda: Lie("error", chance.choice([401, 408, 429, 500, 1, -7, 2**70])),
        lambda: Lie("busy", chance.choice(["1", later()])),
        lambda: Lie("redirect", chance.choice([elsewhere, "/post?token=&format=json"])),
        lambda: Lie("type", chance.choice(["text/html", "image/png", "multipart/mixed"])),
        lambda: Lie("page"),
        lambda: Lie("huge", 10 << 20),
        lambda: Lie("garbage", chance.randbytes(chance.randrange(300)) if chance.random() < 0.5 else None),
        lambda: Lie("twice", chance.randrange(3)),
        lambda: Lie("verbatim", chance.randbytes(50) + b"\r\n\r\n"),
        lambda: Lie("verbatim", b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}"),
    ]
    return lambda _number: chance.choice(kinds)() if chance.random() < share else None


def main() -> None:
    """Be a store until somebody ends it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listen", default="127.0.0.1:6098", help="where; port 0 takes any, which is printed")
    parser.add_argument("--certificate", default="", help="a certificate and its key")
    parser.add_argument("--client-ca", default="", help="ask for a client's certificate, of this authority")
    parser.add_argument("--token", action="append", help="a token that it knows; without any, it knows all")
    parser.add_argument("--log", type=argparse.FileType("a"), default=sys.stdout, help="a line for each object")
    parser.add_argument("--lie", type=float, default=0.0, metavar="SHARE", help="lie to this share of the requests")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    host, _colon, port = options.listen.rpartition(":")
    store = LyingStore(
        tokens=set(options.token or []),
        plan=lies(options.seed, options.lie),
        certificate=options.certificate,
        client_ca=options.client_ca,
        listen=(host.strip("[]"), int(port)),
        log=options.log,
    )
    with store:
        print(store.address, file=sys.stderr, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
