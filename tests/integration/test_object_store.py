# SPDX-License-Identifier: Apache-2.0
"""The object store's client against a real server that answers as the API is described, and lies where it is told to."""

from __future__ import annotations

import gc
import gzip
import hashlib
import http.client
import json
import logging
import os
import socket
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from coresnap.ground.errors import BadSettings, CoresnapError, TryLater
from coresnap.spool.stages import new_uuid
from coresnap.store import Attachment, Delivery, NotTaken, Parked, Receipt, StoreBusy, StoreRefused
from coresnap.store.object_store import ObjectStore
from coresnap.store.open import object_store
from tests.support import certificates
from tests.support.certificates import Certificates
from tests.support.deliveries import TOKEN, Maker, settings
from tests.support.lying_store import Lie, LyingStore

TIMEOUT_USEC = 20_000_000


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Maker]:
    maker = Maker(tmp_path)
    yield maker
    maker.close()


@pytest.fixture
def store() -> Iterator[LyingStore]:
    with LyingStore(tokens={TOKEN}) as running:
        yield running


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates.make(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def client(store: LyingStore) -> Iterator[ObjectStore]:
    opened = _client(store.address)
    yield opened
    opened.close()


def _client(write: str, *lines: str, timeout_usec: int = TIMEOUT_USEC) -> ObjectStore:
    return object_store(settings(write, *lines), timeout_usec=timeout_usec)


def _put(store: LyingStore, delivery: Delivery, *lines: str) -> Receipt:
    """Deliver over a session of its own."""
    opened = _client(store.address, *lines)
    try:
        return opened.put(delivery)
    finally:
        opened.close()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_report_is_delivered_and_acknowledged(store: LyingStore, client: ObjectStore, make: Maker) -> None:
    delivery = make.delivery()
    receipt = client.put(delivery)
    (stored,) = store.objects.values()
    assert (stored.format, stored.upload) == ("json", (delivery.size_bytes, delivery.sha256))
    assert (receipt.uuid, receipt.object, receipt.store) == (delivery.uuid, stored.rxid, store.address)
    assert (receipt.project, receipt.already_there) == ("web", False)
    assert Receipt.from_json(receipt.to_json()) == receipt
    assert store.requests[0].line.startswith(f"POST /post?format=json&token={TOKEN} ")


def test_many_deliveries_over_one_connection(store: LyingStore, client: ObjectStore, make: Maker) -> None:
    for _ in range(50):
        client.put(make.delivery())
    assert (len(store.objects), store.connections) == (50, 1)


def test_twice_is_once(store: LyingStore, client: ObjectStore, make: Maker) -> None:
    delivery = make.delivery()
    assert [client.put(delivery).already_there for _ in range(3)] == [False, True, True]
    assert (len(store.objects), store.objects[delivery.uuid].offered) == (1, 3)


def test_a_large_report_is_gzipped_and_a_small_one_is_not(store: LyingStore, client: ObjectStore, make: Maker) -> None:
    uuid = new_uuid()
    large = json.dumps({"uuid": uuid, "stack": "main" * 50_000}).encode()
    client.put(make.delivery(large, uuid=uuid))
    client.put(make.delivery())
    first, second = store.requests
    assert first.headers["content-encoding"] == "gzip"
    assert int(first.headers["content-length"]) < len(large) // 10
    assert "content-encoding" not in second.headers
    assert store.objects[uuid].upload == (len(large), _sha256(large))


def test_what_gzip_does_not_make_smaller_goes_as_it_is(store: LyingStore, client: ObjectStore, make: Maker) -> None:
    data = os.urandom(100_000)
    client.put(make.delivery(data))
    assert int(store.requests[0].headers["content-length"]) == len(data)


def test_a_packed_report_that_does_not_fit_into_memory(store: LyingStore, client: ObjectStore, make: Maker) -> None:
    uuid = new_uuid()
    data = json.dumps({"uuid": uuid, "memory": os.urandom(3 << 20).hex()}).encode()
    client.put(make.delivery(data, uuid=uuid))
    assert len(data) // 2 < int(store.requests[0].headers["content-length"]) < len(data) * 3 // 4
    assert store.objects[uuid].upload[1] == _sha256(data)


@pytest.mark.parametrize(
    ("data", "form"),
    [(b"MDMP\x93\xa7" + bytes(600), "minidump"), (b"\x00\x01btt", "btt"), (b'  {"uuid": 1}', "json")],
)
def test_the_format_is_what_the_bytes_say(
    store: LyingStore, client: ObjectStore, make: Maker, data: bytes, form: str
) -> None:
    delivery = make.delivery(data)
    if form == "json":  # of which this store makes nothing
        with pytest.raises(StoreRefused):
            client.put(delivery)
    else:
        assert not client.put(delivery).already_there
        assert client.put(delivery).already_there, "without a UUID in it, it goes by coresnap.object"
    assert f"format={form}&" in store.requests[0].line


def test_attachments_and_attributes_go_along(store: LyingStore, client: ObjectStore, make: Maker) -> None:
    core, assets = os.urandom(3 << 20), b""
    attachments = make.attachment("core.zst", core), make.attachment("assets.tar", assets)
    awkward = (("hostname", "web1"), ("say", 'a "b"\r\n--c&d=é'), ("", "nothing"))
    delivery = make.delivery(b"", *attachments, attributes=awkward)
    client.put(delivery)
    stored = store.objects[delivery.uuid]
    assert stored.upload == (delivery.size_bytes, delivery.sha256)
    assert stored.attachments == {"core.zst": (len(core), _sha256(core)), "assets.tar": (0, _sha256(b""))}
    assert stored.attributes == dict(awkward)
    alone = make.delivery(attributes=awkward)
    client.put(alone)
    assert store.objects[alone.uuid].attributes == dict(awkward)


def test_what_is_not_as_recorded_is_not_sent(store: LyingStore, client: ObjectStore, make: Maker) -> None:
    other = make.delivery(b'{"uuid": "other"}')
    wrong = Delivery(other.uuid, "web", other.fd, other.size_bytes, "0" * 64, (), other.token)
    with pytest.raises(StoreRefused, match="on record"):
        client.put(wrong)
    assert store.requests == []


def test_an_attachment_that_is_shorter_than_announced_leaves_nothing_behind(
    store: LyingStore, client: ObjectStore, make: Maker
) -> None:
    fd = make.file(b"x" * 1000)
    with pytest.raises(StoreRefused, match="1000 bytes are there, 2000 were announced"):
        client.put(make.delivery(b"", Attachment("core", fd, 2000)))
    assert store.objects == {}
    assert not client.put(make.delivery()).already_there


def test_no_token_is_nobodys_fault_but_the_projects(store: LyingStore, client: ObjectStore, make: Maker) -> None:
    with pytest.raises(Parked, match="no token of project web") as caught:
        client.put(make.delivery(token=None))
    assert caught.value.scope == "project"
    assert store.requests == []
    known = _client(store.address, "[token]", f"web = {TOKEN}")
    known.put(make.delivery(token=None))
    known.close()


# What answers mean.


@pytest.mark.parametrize(
    ("lie", "error", "scope"),
    [
        *((Lie("status", status), TryLater, "") for status in (408, 425, 429, 500, 502, 503, 504, 599)),
        *((Lie("status", status), Parked, "project") for status in (401, 403)),
        (Lie("status", 404), Parked, "store"),
        (Lie("status", 407), Parked, "store"),
        *((Lie("status", status), StoreRefused, "") for status in (400, 413, 422)),
        *((Lie("status", status), TryLater, "") for status in (409, 418, 204, 203, 300, 303, 304)),
        (Lie("error", 400), StoreRefused, ""),
        (Lie("verbatim", b"HTTP/1.1 413 Too large\r\nContent-Length: 0\r\n\r\n"), StoreRefused, ""),
        (
            Lie("verbatim", b"HTTP/1.1 400 Bad request\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n"),
            TryLater,
            "",
        ),
        (Lie("error", 401), Parked, "project"),
        (Lie("error", 503), TryLater, ""),
        (Lie("error", -1), TryLater, ""),
        (Lie("error", 200), TryLater, ""),
        (Lie("error", 10**30), TryLater, ""),
        (Lie("error", "x"), TryLater, ""),
        (Lie("error", None), TryLater, ""),
        (Lie("page"), TryLater, ""),
        (Lie("type", "text/html"), TryLater, ""),
        (Lie("type", "image/png; charset=utf-8"), TryLater, ""),
        (Lie("huge", 10 << 20), TryLater, ""),
        *(
            (Lie("garbage", text), TryLater, "")
            for text in (
                b'{"response":"ok","_rxid":',
                b"",
                b"\xff\xfe",
                b"[]",
                b'"ok"',
                b'{"response":"ok"}',
                b'{"response":"ok","_rxid":""}',
                b'{"response":"ok","_rxid":7}',
                b'{"response":"ok","_rxid":"%s"}' % (b"x" * 5000),
                b'{"response":"later","_rxid":"a"}',
                b'{"response":"ok","_rxid":"a","error":null}',
                b'{"response":"ok","_rxid":"a","error":{"message":"quota is exceeded already"}}',
                b"[" * 60_000,
                b'{"a":' * 60_00,
                b'{"response":"ok","_rxid":"a"}}',
            )
        ),
        *(
            (Lie("verbatim", data), TryLater, "")
            for data in (
                b"\r\n\r\n",
                b"HTTP/1.1 200 OK\r\n\r\n",
                b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}",
                b"HTTP/1.1 200 OK\r\nContent-Length: 1" + b"0" * 50 + b"\r\n\r\n{}",
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
                b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
                b"HTTP/1.1 2000 OK\r\n\r\n",
                b'HTTP/1.1 101 Go\r\nContent-Length: 32\r\n\r\n{"response": "ok", "_rxid": "1"}',
                b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
                b"HTTP/1.1 200 " + b"x" * 100_000,
                b"HTTP/1.1 100 Continue\r\n\r\n" * 3,
                b"SSH-2.0-OpenSSH\r\n",
            )
        ),
        (Lie("drop-request", 1), TryLater, ""),
        (Lie("drop-request", 150), TryLater, ""),
        *((Lie("drop-answer", count), TryLater, "") for count in (0, 1, 12, 17, 90, 150)),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_an_answer_means(store: LyingStore, make: Maker, lie: Lie, error: type[CoresnapError], scope: str) -> None:
    """None but the store's own acknowledgement is a success, whatever it is that comes; and the next delivery goes through."""
    store.plan = lambda _number: lie
    with pytest.raises(error) as caught:
        _put(store, make.delivery())
    assert type(caught.value) in (error, NotTaken if error is TryLater else error)
    assert scope == (caught.value.scope if isinstance(caught.value, Parked) else "")
    assert "\n" not in caught.value.line()
    store.plan = lambda _number: None
    assert not _put(store, make.delivery()).already_there


@pytest.mark.parametrize(
    ("lie", "kind"),
    [
        (Lie("status", 500), NotTaken),
        (Lie("page"), NotTaken),
        (Lie("drop-request", 300), NotTaken),
        (Lie("drop-answer", 0), NotTaken),
        (Lie("status", 503), TryLater),
        (Lie("status", 429), TryLater),
        (Lie("status", 408), TryLater),
    ],
    ids=str,
)
def test_what_may_be_one_dumps_fault(store: LyingStore, make: Maker, lie: Lie, kind: type[TryLater]) -> None:
    store.plan = lambda _number: lie
    with pytest.raises(TryLater) as caught:
        _put(store, make.delivery())
    assert type(caught.value) is kind


def test_what_is_too_much_goes_without_its_attachments(store: LyingStore, client: ObjectStore, make: Maker) -> None:
    """Also where the store says so at once, and hangs up on the rest."""
    for kind in ("status", "early"):
        store.plan = lambda number, kind=kind: Lie(kind, 413) if number % 2 == 0 else None  # type: ignore[misc]  # a default binds the loop's value
        delivery = make.delivery(b"", make.attachment("core", os.urandom(20 << 20)), attributes=(("a", "b"),))
        assert not client.put(delivery).already_there
        assert client.remarks == (f"{delivery.uuid}: {store.address} takes no more at once: it goes without core",)
        assert store.objects[delivery.uuid].attachments == {}
        assert store.objects[delivery.uuid].attributes == {"a": "b"}
    store.plan = lambda _number: None
    client.put(make.delivery())
    assert client.remarks == ()


def test_a_connection_that_breaks_at_any_byte(store: LyingStore, client: ObjectStore, make: Maker) -> None:
    """Of the request or of the answer: what was not acknowledged whole is asked for again, and stored once."""
    client.put(make.delivery())
    asked, answered = 520, 260  # more than either has
    cuts = [
        *(("drop-request", count) for count in range(1, asked)),
        *(("drop-answer", count) for count in range(answered)),
    ]
    early = {"drop-request": 0, "drop-answer": 0}
    for kind, count in cuts:
        delivery = make.delivery()
        store.plan = lambda _number, kind=kind, count=count: Lie(kind, count)  # type: ignore[misc]  # a default binds the loop's value
        try:
            first = client.put(delivery)
        except TryLater:
            early[kind] += 1
        else:
            assert delivery.uuid in store.objects, (kind, count)
            assert not first.already_there
        store.plan = lambda _number: None
        client.put(delivery)
        assert store.objects[delivery.uuid].upload[1] == delivery.sha256
    assert len(store.objects) == len(cuts) + 1
    assert 250 < early["drop-request"] < asked - 10, "some had gone through before"
    assert 150 < early["drop-answer"] < answered - 10


@pytest.mark.parametrize("shape", [0, 1, 2])
def test_already_there_is_a_success(store: LyingStore, make: Maker, shape: int) -> None:
    store.plan = lambda _number: Lie("twice", shape)
    assert _put(store, make.delivery()).already_there


def test_a_quota_that_is_exceeded_already_is_no_success(store: LyingStore, make: Maker) -> None:
    for said in ("quota already exceeded", "the report's project was removed already", "duplicate parameter: format"):
        body = json.dumps({"error": {"code": 400, "message": said}}).encode()
        store.plan = lambda _number, body=body: Lie("garbage", body)  # type: ignore[misc]  # a default binds the loop's value
        with pytest.raises(StoreRefused, match=said):
            _put(store, make.delivery())


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("7", 7, 7),
        ("0", 0, 0),
        ("999999999", 86400, 86400),
        ("Fri, 01 Jan 2100 00:00:00 GMT", 86400, 86400),
        ("Fri, 01 Jan 1999 00:00:00 GMT", 0, 0),
    ],
)
def test_retry_after(store: LyingStore, make: Maker, text: str, least: int, most: int) -> None:
    store.plan = lambda _number: Lie("busy", text)
    with pytest.raises(StoreBusy) as caught:
        _put(store, make.delivery())
    assert caught.value.retry_after_usec is not None
    assert least * 1_000_000 <= caught.value.retry_after_usec <= most * 1_000_000


@pytest.mark.parametrize("text", ["soon", "-5", "1e9", "Fri, 99 Jan 2100 00:00:00 GMT", "", "9" * 40])
def test_a_retry_after_that_is_none(store: LyingStore, make: Maker, text: str) -> None:
    store.plan = lambda _number: Lie("busy", text)
    with pytest.raises(TryLater) as caught:
        _put(store, make.delivery())
    assert getattr(caught.value, "retry_after_usec", None) is None


def test_a_store_with_a_wrong_clock(store: LyingStore, make: Maker) -> None:
    """Its Retry-After is held against its own Date."""
    head = b"HTTP/1.1 503 Busy\r\nDate: Fri, 01 Jan 2100 00:00:00 GMT\r\nRetry-After: Fri, 01 Jan 2100 00:01:00 GMT\r\n"
    store.plan = lambda _number: Lie("verbatim", head + b"Content-Length: 0\r\n\r\n")
    with pytest.raises(StoreBusy) as caught:
        _put(store, make.delivery())
    assert caught.value.retry_after_usec == 60_000_000


def test_an_answer_that_trickles_ends_at_the_time_limit(store: LyingStore, make: Maker) -> None:
    store.plan = lambda _number: Lie("slow-refusal", 0.05)
    client = _client(store.address, timeout_usec=500_000)
    with pytest.raises(TryLater, match="longer than"):
        client.put(make.delivery())
    client.close()


def test_a_handshake_that_never_ends(make: Maker) -> None:
    """Whoever answers takes the connection, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = _client(f"https://127.0.0.1:{listener.getsockname()[1]}", timeout_usec=500_000)
        with pytest.raises(TryLater, match="longer than"):
            client.put(make.delivery())
        client.close()


def test_a_store_that_is_not_there(make: Maker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(TryLater, match=f"{address}: Connection refused"):
        _client(address).put(make.delivery())
    with pytest.raises(TryLater, match="http://coresnap.invalid: "):
        _client("http://coresnap.invalid").put(make.delivery())


def test_a_kept_connection_that_the_store_has_closed(store: LyingStore, client: ObjectStore, make: Maker) -> None:
    """It is opened anew within the same delivery: no back-off for what is no failure."""
    client.put(make.delivery())
    store.plan = lambda number: Lie("drop-request", 1) if number == 1 else None
    assert not client.put(make.delivery()).already_there
    assert store.connections == 2


# Redirections.


def test_a_redirection_within_the_store_is_followed(store: LyingStore, make: Maker) -> None:
    store.plan = lambda number: Lie("redirect", f"/api/post?format=json&token={TOKEN}") if number == 0 else None
    assert not _put(store, make.delivery()).already_there
    assert [request.status for request in store.requests] == [307, 200]


def test_a_redirection_without_end(store: LyingStore, make: Maker) -> None:
    store.plan = lambda _number: Lie("redirect", "/post?again")
    with pytest.raises(Parked, match="redirects without end"):
        _put(store, make.delivery())
    assert len(store.requests) <= 4


def test_a_token_goes_nowhere_else(store: LyingStore, make: Maker) -> None:
    with LyingStore() as other:
        host = other.address.removeprefix("http://")
        for location in (
            f"{other.address}/post?format=json&token={TOKEN}",
            f"//{host}/",
            f"http://{store.port}@{host}/",
            f"https://127.0.0.1:{store.port}/",
            f"http://localhost:{store.port}/",
            f"http://{TOKEN.upper()}.invalid/",
            "gopher://x/",
            "http://[",
            "http://a:b/",
            "javascript:alert(1)",
        ):
            store.plan = lambda _number, location=location: Lie("redirect", location)  # type: ignore[misc]  # a default binds the loop's value
            with pytest.raises(Parked, match="redirects to") as caught:
                _put(store, make.delivery())
            assert TOKEN not in caught.value.line().lower(), location
        assert other.connections == 0


# The way there.


def test_a_token_that_goes_unencrypted_is_warned_about() -> None:
    for address, warned in (
        ("http://h", 1),
        ("http://127.0.0.1.h", 1),
        ("https://h", 0),
        ("http://127.0.0.1:80", 0),
        ("http://[::1]", 0),
    ):
        client = _client(address)
        assert [warning for warning in client.warnings if "unencrypted" in warning] == list(client.warnings)
        assert len(client.warnings) == warned
        client.close()


def test_tls_by_an_authority_of_ones_own(certified: Certificates, make: Maker) -> None:
    with LyingStore(certificate=str(certified.server)) as store:
        _put(store, make.delivery(), f"ssl.ca_file = {certified.ca}")
        with pytest.raises(Parked, match="certificate is not trusted") as caught:
            _put(store, make.delivery())
        assert "ssl.ca_file" in caught.value.hint
        _put(store, make.delivery(), "curl.ssl_verifypeer = 0")
        with pytest.raises(Parked, match="No such file"):
            _put(store, make.delivery(), "ssl.ca_file = /nonexistent/ca.pem")
        assert len(store.objects) == 2


def test_the_name_in_a_certificate_counts(tmp_path: Path, make: Maker) -> None:
    other = certificates.make(tmp_path, "subjectAltName=DNS:other.example")
    with LyingStore(certificate=str(other.server)) as store:
        with pytest.raises(Parked, match="certificate is not trusted"):
            _put(store, make.delivery(), f"ssl.ca_file = {other.ca}")
        _put(store, make.delivery(), f"ssl.ca_file = {other.ca}", "curl.ssl_verifyhost = 0")
        with pytest.raises(Parked, match="certificate is not trusted"):
            _put(store, make.delivery(), "curl.ssl_verifyhost = 0")


def test_a_clients_certificate(certified: Certificates, make: Maker) -> None:
    trust = f"ssl.ca_file = {certified.ca}"
    with LyingStore(certificate=str(certified.server), client_ca=str(certified.ca)) as store:
        _put(
            store, make.delivery(), trust, f"ssl.certificate = {certified.client}", f"ssl.key = {certified.client_key}"
        )
        with pytest.raises(TryLater):
            _put(store, make.delivery(), trust)
        assert len(store.objects) == 1


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_ipv6(certified: Certificates, make: Maker) -> None:
    with LyingStore(certificate=str(certified.server), listen=("::1", 0)) as store:
        assert store.address.startswith("https://[::1]:")
        receipt = _put(store, make.delivery(), f"ssl.ca_file = {certified.ca}")
        assert receipt.store == store.address
        assert store.requests[0].headers["host"] == f"[::1]:{store.port}"


class Proxy:
    """A proxy: it tunnels (CONNECT), and passes plain requests on to where it is told to."""

    def __init__(self, target_port: int) -> None:
        self._target = ("127.0.0.1", target_port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.heads: list[str] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()[0]
            except OSError:
                return
            with connection, socket.create_connection(self._target) as store:
                self._pass(connection, store)

    def _pass(self, connection: socket.socket, store: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(1)
        self.heads.append(head.decode())
        if head.startswith(b"CONNECT "):
            connection.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
        else:  # a store gets the path alone
            method, _space, rest = head.partition(b" http://")
            store.sendall(method + b" /" + rest.partition(b"/")[2])
        back = threading.Thread(target=_copy, args=(store, connection), daemon=True)
        back.start()
        _copy(connection, store)
        back.join()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while block := source.recv(1 << 16):
            target.sendall(block)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


@pytest.fixture
def proxy(store: LyingStore) -> Iterator[Proxy]:
    running = Proxy(store.port)
    yield running
    running.close()


def test_the_hosted_form_through_a_proxy(store: LyingStore, proxy: Proxy, make: Maker) -> None:
    """The proxy stands in for submit.backtrace.io, which nothing here may reach."""
    client = _client("http://submit.backtrace.io", f"proxy = {proxy.address}")
    receipt = client.put(make.delivery())
    client.close()
    assert receipt.store == "http://submit.backtrace.io/universe"
    assert store.requests[0].address == f"/universe/{TOKEN}/json"
    assert proxy.heads[0].startswith(f"POST http://submit.backtrace.io/universe/{TOKEN}/json HTTP/1.1")


def test_tls_through_a_proxy(certified: Certificates, make: Maker) -> None:
    with LyingStore(certificate=str(certified.server)) as store:
        proxy = Proxy(store.port)
        client = _client("https://localhost:6098", f"ssl.ca_file = {certified.ca}", f"proxy = {proxy.address}")
        client.put(make.delivery())
        client.close()
        proxy.close()
        assert proxy.heads[0].startswith("CONNECT localhost:6098 HTTP/1.")
        assert TOKEN not in "".join(proxy.heads)
        assert len(store.objects) == 1


def test_a_proxy_of_the_environment(
    store: LyingStore, proxy: Proxy, make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", proxy.address)
    for lines, count in (((), 1), (("proxy = none",), 1)):
        _put(store, make.delivery(), *lines)
        assert len(proxy.heads) == count
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    _put(store, make.delivery())
    assert len(proxy.heads) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # http.client forgets the proxy's answer
def test_a_proxy_that_refuses(make: Maker) -> None:
    """It is asked for a tunnel, and wants a name and a password, or does not want to."""
    with LyingStore(plan=lambda number: Lie("early", (407, 403)[number])) as proxy:
        for kind, said in ((Parked, "the proxy refuses: HTTP 407"), (TryLater, "the proxy refuses: HTTP 403")):
            client = _client("https://localhost:6098", f"proxy = {proxy.address}")
            with pytest.raises(kind, match=said):
                client.put(make.delivery())
            client.close()
        assert [request.line.split()[0] for request in proxy.requests] == ["CONNECT", "CONNECT"]
    gc.collect()


def test_a_proxy_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://name:secret@localhost:1080")
    monkeypatch.delenv("https_proxy", raising=False)
    with pytest.raises(BadSettings, match="none of HTTP's") as caught:
        _client("https://store.example")
    assert "secret" not in caught.value.line()
    _client("https://store.example", "proxy = none").close()


def test_a_proxy_that_is_not_there(make: Maker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    client = _client("https://localhost:6098", f"proxy = http://name:secret@127.0.0.1:{port}")
    with pytest.raises(TryLater, match="proxy: Connection refused") as caught:
        client.put(make.delivery())
    assert "secret" not in caught.value.line()
    with pytest.raises(BadSettings, match="proxy: http://HOST:PORT expected"):
        _client("https://localhost:6098", "proxy = localhost:3128")


# Secrets.


@pytest.mark.parametrize("hosted", [False, True])
def test_no_token_in_what_is_said(
    hosted: bool, store: LyingStore, proxy: Proxy, make: Maker, caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Not in errors, their causes and contexts, nor in the libraries' logs, with all that they can say switched on."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(http.client.HTTPConnection, "debuglevel", 1)
    address = "http://submit.backtrace.io" if hosted else store.address
    echo = f'{{"error": {{"code": 403, "message": "no such token: {TOKEN.upper()}"}}}}'.encode()
    said = []
    for lie in (
        None,
        Lie("status", 500),
        Lie("garbage", echo),
        Lie("garbage", json.dumps({"response": "ok", "_rxid": TOKEN}).encode()),
        Lie("type", f"text/{TOKEN}"),
        Lie("redirect", f"http://{TOKEN}.invalid/{TOKEN}"),
        Lie("redirect", f"/again/{TOKEN}"),
        Lie("drop-request", 3),
        Lie("drop-answer", 0),
        Lie("verbatim", f"HTTP/1.1 {TOKEN} x\r\n\r\n".encode()),
        Lie("verbatim", f"HTTP/1.1 200 OK\r\nContent-Length: {TOKEN}\r\nX {TOKEN}: \r\n\r\n".encode()),
        Lie("slow-refusal", 0.1),
    ):
        store.plan = lambda _number, lie=lie: lie  # type: ignore[misc]  # a default binds the loop's value
        client = _client(address, f"proxy = {proxy.address if hosted else 'none'}", timeout_usec=1_000_000)
        try:
            said.append(repr(client.put(make.delivery())))
        except CoresnapError as error:
            said += [error.line(), *traceback.format_exception(error), repr(error.__context__), repr(error.__cause__)]
        client.close()
    said += [caplog.text, *(repr(record.__dict__) for record in caplog.records), *capfd.readouterr()]
    assert any("urllib3" in record.name for record in caplog.records), "the library was heard"
    assert TOKEN not in "\n".join(said).lower()
    assert any(TOKEN in request.line for request in store.requests)


def test_a_gzipped_answer_is_not_unpacked(store: LyingStore, make: Maker) -> None:
    packed = gzip.compress(b'{"response":"ok","_rxid":"a","more":"' + bytes(100 << 20) + b'"}')
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n".encode()
    store.plan = lambda _number: Lie("verbatim", head + packed)
    with pytest.raises(TryLater, match="not a store's"):
        _put(store, make.delivery())
