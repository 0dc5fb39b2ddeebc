# SPDX-License-Identifier: Apache-2.0
"""The object store: Backtrace's submission API, as docs/delivery.md tells of it, over HTTP or HTTPS.

A report is delivered when the store has acknowledged it; what an answer means stands in answer.py. The report's UUID makes
it the same one however often it is sent: a store that has it says so, and that is a success.
"""

from __future__ import annotations

import dataclasses
import time
from contextlib import ExitStack

from requests.utils import get_environ_proxies

from coresnap.ground.errors import BadSettings
from coresnap.spool.stages import is_uuid
from coresnap.store import answer, body
from coresnap.store.address import Address
from coresnap.store.body import Body
from coresnap.store.coroner import Coroner
from coresnap.store.face import Delivery, Parked, Receipt, StoreRefused
from coresnap.store.transport import Transport

_OBJECT = "coresnap.object"


class ObjectStore:
    """An open object store: one session, many deliveries."""

    def __init__(self, address: Address, settings: Coroner, *, timeout_usec: int) -> None:
        """Make ready; nothing is sent yet. Raises Parked or BadSettings."""
        self.name = address.shown
        self.warnings = settings.warnings
        if address.is_plain:
            self.warnings += (f"{self.name}: the token goes there unencrypted; whoever stands between can read it",)
        self._address = address
        self._settings = settings
        self._timeout_usec = timeout_usec
        self._transport = Transport(self.name, settings, _proxies(address, settings))
        self._body: Body | None = None

    def put(self, delivery: Delivery) -> Receipt:
        """Deliver a snapshot, and what goes with it, in one request; see face.Store."""
        if not is_uuid(delivery.uuid):
            raise StoreRefused(f"{delivery.uuid!r} is not a UUID")
        token = delivery.token or self._settings.tokens.get(delivery.project) or self._address.token
        if token is None:
            where = self._settings.path or self.name
            hint = f"[token] {delivery.project} = TOKEN in the coroner.cf"
            raise Parked(f"{where}: no token of project {delivery.project}", hint=hint, scope="project")
        form = delivery.format or body.format_of(delivery.fd)
        if form != "json" and _OBJECT not in dict(delivery.attributes):  # a report in JSON has its UUID in it
            named = (*delivery.attributes, (_OBJECT, delivery.uuid))
            delivery = dataclasses.replace(delivery, attributes=named)
        with ExitStack() as stack:
            self._body = body.make(delivery, form, stack)
            in_query = () if delivery.attachments else delivery.attributes
            url = self._address.url(token, form, in_query)
            said = self._transport.post(url, self._body, token, self._timeout_usec)
        name, already_there = answer.judge(said, delivery.uuid, self.name, token, hosted=self._address.hosted)
        return Receipt(
            uuid=delivery.uuid,
            store=self.name,
            project=delivery.project,
            object=name,
            acknowledged_usec=time.time_ns() // 1000,
            size_bytes=delivery.size_bytes,
            sha256=delivery.sha256,
            already_there=already_there,
        )

    def progress(self) -> tuple[int, int]:
        """Return how many bytes of the delivery under way the system has been handed, and how many there are."""
        return (self._body.sent_bytes, self._body.size_bytes) if self._body is not None else (0, 0)

    def close(self) -> None:
        """End the session."""
        self._transport.close()


def _proxies(address: Address, settings: Coroner) -> dict[str, str]:
    """Return the proxies: the one of the settings, else those that the environment names for this address."""
    if settings.proxy == "none":
        return {}
    if not settings.proxy:
        return dict(get_environ_proxies(address.origin, no_proxy=None))
    if not settings.proxy.startswith(("http://", "https://")) or not settings.proxy.isprintable():
        raise BadSettings(f"{settings.path}: proxy: http://HOST:PORT expected")
    return {"http": settings.proxy, "https": settings.proxy}
