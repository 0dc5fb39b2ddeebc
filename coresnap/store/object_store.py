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
from coresnap.store.face import Delivery, Parked, Receipt, Secret, StoreRefused
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
        self.remarks: tuple[str, ...] = ()

    def put(self, delivery: Delivery) -> Receipt:
        """Deliver a snapshot, and what goes with it, in one request; see face.Store.

        Where that is too much for the store the snapshot goes alone, and `remarks` says so.
        """
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
        self.remarks = ()
        until_usec = time.monotonic_ns() // 1000 + self._timeout_usec
        said = self._post(delivery, form, token, until_usec)
        if said.status == answer.TOO_LARGE and delivery.attachments:
            names = ", ".join(attachment.name for attachment in delivery.attachments)
            self.remarks = (f"{delivery.uuid}: {self.name} takes no more at once: it goes without {names}",)
            delivery = dataclasses.replace(delivery, attachments=())
            said = self._post(delivery, form, token, until_usec)
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

    def _post(self, delivery: Delivery, form: str, token: Secret, until_usec: int) -> answer.Answer:
        with ExitStack() as stack:
            self._body = body.make(delivery, form, stack)
            in_query = () if delivery.attachments else delivery.attributes
            url = self._address.url(token, form, in_query)
            left_usec = max(until_usec - time.monotonic_ns() // 1000, 1)
            return self._transport.post(url, self._body, token, left_usec)

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
        found = dict(get_environ_proxies(address.origin, no_proxy=None))
        if any("://" in proxy and not proxy.startswith(("http://", "https://")) for proxy in found.values()):
            raise BadSettings(
                "the environment names a proxy that is none of HTTP's", hint="`proxy = …` in the coroner.cf goes first"
            )
        return found
    if not settings.proxy.startswith(("http://", "https://")) or not settings.proxy.isprintable():
        raise BadSettings(f"{settings.path}: proxy: http://HOST:PORT expected")
    return {"http": settings.proxy, "https": settings.proxy}
