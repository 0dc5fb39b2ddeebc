# SPDX-License-Identifier: Apache-2.0
"""HTTP for the object store: requests, with what it leaves open bounded, and no token in anything that it says.

* A request ends at its time limit, however slowly the other end trickles (requests knows only how long one read may take):
  the connection is shut down under it.
* Redirections are followed to the same origin alone, for the address has the token in it.
* Exceptions and debug logs of the libraries quote addresses. The former end here, the latter pass a filter.
* Neither .netrc nor other files of a home are read; proxies come from the coroner.cf, then from the environment.

SECURITY
    The answer is read up to a bound, as it comes; nothing in it is unpacked.
"""

from __future__ import annotations

import http.client
import logging
import re
import socket
import ssl
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.util.ssl_match_hostname import CertificateError

from coresnap import __version__
from coresnap.ground.errors import TryLater
from coresnap.store import address
from coresnap.store.answer import Answer
from coresnap.store.body import Body
from coresnap.store.coroner import Coroner
from coresnap.store.face import NotTaken, Parked, Secret, StoreRefused

_ANSWER_MAX_BYTES = 1 << 16
_REDIRECTIONS = 3
_REDIRECTS = {301, 302, 307, 308}
_LOGGERS = (
    "urllib3",
    "urllib3.connectionpool",
    "urllib3.connection",
    "urllib3.util.retry",
    "urllib3.response",
    "requests",
)
_FAILURES = (requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError)


class Transport:
    """A session with one store, kept open from one request to the next."""

    def __init__(self, store: str, settings: Coroner, proxies: dict[str, str]) -> None:
        """`store` is its name in messages. Raises Parked where a certificate's file cannot be read."""
        self._store = store
        self._timeouts = settings.connect_usec / 1e6, settings.idle_usec / 1e6
        self._watched: list[socket.socket] = []
        self._answered = 0
        self._session = _Session()
        self._session.trust_env = False
        self._session.proxies = dict(proxies)
        self._session.headers.update({"User-Agent": f"coresnap/{__version__}", "Accept-Encoding": "identity"})
        self._session.verify = (settings.ca_file or True) if settings.verify_peer else False
        if settings.certificate:
            self._session.cert = (settings.certificate, settings.key) if settings.key else settings.certificate
        for file in filter(None, (settings.ca_file, settings.certificate, settings.key)):
            _check(file)
        checks_host = settings.verify_host and settings.verify_peer
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, _Adapter(self._opened, checks_host=checks_host))

    def close(self) -> None:
        """End the connection."""
        self._session.close()
        self._forget()

    def post(self, url: str, body: Body, token: Secret, timeout_usec: int) -> Answer:
        """Post a body; return the answer, whatever its status. Raises TryLater, Parked, or what the body raises."""
        with _silent(token), self._limited(timeout_usec) as expired:
            for _ in range(_REDIRECTIONS):
                reused = self._answered > 0
                outcome = self._try(url, body, timeout_usec)
                if isinstance(outcome, str) and reused and not expired.is_set():
                    outcome = self._try(url, body, timeout_usec)  # the store had closed the connection that was kept
                if expired.is_set():
                    outcome = "it took longer than it may"
                if isinstance(outcome, str):
                    reached = bool(self._watched)
                    self.close()
                    raise (NotTaken if reached else TryLater)(f"{self._store}: {outcome}")
                answer, location = outcome
                if answer.status not in _REDIRECTS:
                    return answer
                url = self._redirected(url, location, token)
        raise Parked(f"{self._store} redirects without end")

    def _try(self, url: str, body: Body, timeout_usec: int) -> tuple[Answer, str] | str:
        """Post once; return the answer and where it redirects to, or why there is none."""
        connect, idle = self._timeouts
        timeouts = min(connect, timeout_usec / 1e6), idle
        try:
            with self._session.post(
                url, data=body, headers=body.headers, timeout=timeouts, allow_redirects=False, stream=True
            ) as response:
                answer = _read(response), response.headers.get("Location", "")
            self._answered += 1
        except StoreRefused:  # the body's: the request was left unfinished
            self.close()
            raise
        except _FAILURES as error:
            failure: BaseException = error
        else:
            return answer
        # Outside of the handler: no traceback of what is raised from here on leads to the exception that has the address.
        self._answered = 0
        if (verification := _verification(failure)) is not None:
            self.close()
            hint = "ssl.ca_file in the coroner.cf names the authorities to trust"
            raise Parked(f"{self._store}: its certificate is not trusted: {verification}", hint=hint)
        said = _words(failure)
        if said.endswith(" 407"):
            raise Parked(f"{self._store}: {said}", hint="proxy = http://NAME:PASSWORD@HOST:PORT in the coroner.cf")
        return said

    def _redirected(self, url: str, location: str, token: Secret) -> str:
        origin, target = address.redirected(url, location)
        if origin != address.origin(url):
            where = f"to {token.redact(origin)}" if origin else "to what is no address"
            hint = "a token goes nowhere but to the store; if that is where it is now, name it in the coroner.cf"
            raise Parked(f"{self._store} redirects {where}", hint=hint)
        return target

    def _opened(self, connection: socket.socket) -> None:
        """Remember a connection by a descriptor of its own: TLS takes the first one over."""
        self._forget()
        self._answered = 0
        self._watched.append(connection.dup())

    def _forget(self) -> None:
        while self._watched:
            self._watched.pop().close()

    @contextmanager
    def _limited(self, timeout_usec: int) -> Iterator[threading.Event]:
        """Shut the connection down when the time is over; the event says that it was."""
        expired = threading.Event()

        def end() -> None:
            expired.set()
            for connection in self._watched:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # it has ended

        timer = threading.Timer(timeout_usec / 1e6, end)
        timer.daemon = True
        timer.start()
        try:
            yield expired
        finally:
            timer.cancel()
            timer.join()


class _Session(requests.Session):
    """Leaves redirections alone; even one that it is not to follow it would take apart."""

    def get_redirect_target(self, _response: requests.Response) -> None:
        """Find none."""


class _Adapter(HTTPAdapter):
    """Has every connection reported when it is opened, and its host checked or not."""

    def __init__(self, opened: Callable[[socket.socket], None], *, checks_host: bool) -> None:
        self._opened = opened
        self._checks_host = checks_host
        super().__init__(pool_connections=1, pool_maxsize=1, max_retries=0)

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        """Make the pool of direct connections; see HTTPAdapter."""
        if not self._checks_host:
            options["assert_hostname"] = False
        super().init_poolmanager(*arguments, **options)
        self._watch(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        """Make the pool of connections through a proxy; see HTTPAdapter."""
        known = proxy in self.proxy_manager
        if not self._checks_host:
            options["assert_hostname"] = False
        manager = super().proxy_manager_for(proxy, **options)
        if not known:
            self._watch(manager)
        return manager

    def _watch(self, manager: Any) -> None:
        manager.pool_classes_by_scheme = {
            scheme: _watching(pool, self._opened) for scheme, pool in manager.pool_classes_by_scheme.items()
        }


def _watching(pool: Any, opened: Callable[[socket.socket], None]) -> Any:
    """Return a class of pools whose connections are reported, and print nothing of what they send."""

    class Connection(pool.ConnectionCls):  # type: ignore[misc]  # which class it is, is known at run time
        debuglevel = 0  # http.client's, which prints addresses, may have been raised for all

        def _new_conn(self) -> socket.socket:
            connection: socket.socket = super()._new_conn()
            opened(connection)
            return connection

    return type(f"Watching{pool.__name__}", (pool,), {"ConnectionCls": Connection})


def _check(file: str) -> None:
    try:
        open(file, "rb").close()
    except OSError as error:
        raise Parked(
            f"{file}: {error.strerror}", hint="in a service it has to be a credential: LoadCredential="
        ) from error


def _read(response: requests.Response) -> Answer:
    """Read an answer up to a bound."""
    blocks, left_bytes = [], _ANSWER_MAX_BYTES + 1
    while left_bytes > 0 and (block := response.raw.read(left_bytes, decode_content=False)):
        blocks.append(block)
        left_bytes -= len(block)
    whole = left_bytes > 0 and not response.headers.get("Content-Encoding", "")
    return Answer(
        status=response.status_code,
        body=b"".join(blocks),
        whole=whole,
        content_type=response.headers.get("Content-Type", ""),
        retry_after=response.headers.get("Retry-After", ""),
        date=response.headers.get("Date", ""),
    )


def _chain(failure: BaseException) -> Iterator[BaseException]:
    """Yield an exception and what it was made of: requests and urllib3 wrap one in the other, by any of three ways."""
    todo, seen = [failure], set[int]()
    while todo and len(seen) < 20:
        error = todo.pop()
        if id(error) in seen:
            continue
        seen.add(id(error))
        yield error
        inner = (error.__cause__, error.__context__, getattr(error, "reason", None), *error.args)
        todo.extend(one for one in inner if isinstance(one, BaseException))


def _verification(failure: BaseException) -> str | None:
    """Return why a certificate was not trusted, if that is what failed."""
    for error in _chain(failure):
        if isinstance(error, ssl.SSLCertVerificationError | CertificateError):
            said = getattr(error, "verify_message", None)
            return said if isinstance(said, str) else "it is another host's"
    return None


def _words(failure: BaseException) -> str:
    """Say what failed, in the system's words or by kind; never in the library's, which quote the address."""
    errors = list(_chain(failure))
    for error in errors:
        if (
            refusal := re.match(r"Tunnel connection failed: ([0-9]{3})\b", str(error))
            if type(error) is OSError
            else None
        ):
            return f"the proxy refuses: HTTP {refusal[1]}"
    for error in errors:
        if isinstance(error, OSError) and not isinstance(error, requests.RequestException) and error.strerror:
            proxy = "proxy: " if any(isinstance(one, requests.exceptions.ProxyError) for one in errors) else ""
            return f"{proxy}{re.sub(r'[^ -~]', '?', str(error.strerror))[:200]}"
    if any(isinstance(error, TimeoutError | urllib3.exceptions.TimeoutError) for error in errors):
        return "no answer in time"
    names = (type(error).__name__ for error in errors)
    return f"the connection failed: {next((name for name in names if name != 'ConnectionError'), 'ConnectionError')}"


@contextmanager
def _silent(token: Secret) -> Iterator[None]:
    """Keep a token out of the libraries' logs, and their warnings off standard error."""

    def redact(record: logging.LogRecord) -> bool:
        record.msg, record.args = token.redact(record.getMessage()), None
        record.exc_info = record.exc_text = record.stack_info = None
        return True

    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        logger.addFilter(redact)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", urllib3.exceptions.InsecureRequestWarning)
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(redact)
