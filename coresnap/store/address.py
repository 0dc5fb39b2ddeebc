# SPDX-License-Identifier: Apache-2.0
"""Where reports are sent to, in the two forms that addresses of Backtrace's submission API have.

    https://submit.backtrace.io/UNIVERSE/TOKEN/FORMAT          hosted
    https://HOST:6098/post?format=FORMAT&token=TOKEN           on one's own premises; /api/post as well

The token is a part of either, so no address is ever shown: `shown` is what may be.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qs, quote, urlencode, urljoin, urlsplit

from coresnap.ground.errors import BadSettings
from coresnap.ground.text import printable
from coresnap.store.face import Secret

HOSTED = "submit.backtrace.io"
#: Formats that a whole hosted address may end with, by which it is known to be one.
FORMATS = ("json", "btt", "minidump", "symbols")
_LOCAL = re.compile(r"http://(127\.[0-9.]+|\[::1\]|localhost)(:[0-9]+)?$")
_PORTS = {"https": 443, "http": 80}
_ADDRESS_MAX = 4096
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|[0-9A-Fa-f:.]{2,45}(%[A-Za-z0-9._-]{1,32})?")
_UNIVERSE = re.compile(r"[A-Za-z0-9._-]{1,128}")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,256}")


@dataclass(frozen=True)
class Address:
    """An address of a store. `token` is the one that stood in it, if any; `path` is that of the form of one's own premises."""

    origin: str
    hosted: bool
    universe: str = ""
    path: str = ""
    token: Secret | None = field(default=None, repr=False)

    @property
    def shown(self) -> str:
        """Return the store's name, without secrets."""
        return f"{self.origin}/{self.universe}" if self.hosted else self.origin

    @property
    def is_plain(self) -> bool:
        """Say whether what is sent there can be read on its way: it is not encrypted, and leaves this machine."""
        return self.origin.startswith("http:") and not _LOCAL.match(self.origin)

    def url(self, token: Secret, form: str, attributes: Iterable[tuple[str, str]] = ()) -> str:
        """Return where a report of this format is posted to: a secret."""
        query = list(attributes)
        if self.hosted:
            path = f"/{self.universe}/{quote(token.reveal(), safe='')}/{form}"
        else:
            path, query = self.path, [("format", form), ("token", token.reveal()), *query]
        return f"{self.origin}{path}" + (f"?{urlencode(query)}" if query else "")


def parse(text: str, universe: str = "", *, where: str) -> Address:
    """Read an address, of `write` in a coroner.cf or of a whole submission.

    Raises BadSettings, which begins with `where` and quotes nothing: any part may be a token.
    """
    parts = _split(text if "://" in text else f"https://{text}", where)
    segments = [part for part in parts.path.split("/") if part]
    query = parse_qs(parts.query)
    token = query.get("token", [""])[0]
    hosted = parts.hostname == HOSTED
    if len(segments) == 3 and (hosted or segments[2] in FORMATS):
        hosted, (universe, token, _form) = True, segments
    elif hosted and segments:
        universe = segments[0] if len(segments) == 1 else ""
    if hosted and not _UNIVERSE.fullmatch(universe):
        raise BadSettings(f"{where}: the universe's name is missing, or is none", hint="name = UNIVERSE says it")
    if token and not _TOKEN.fullmatch(token):
        raise BadSettings(f"{where}: its token is none")
    path = quote("/" + "/".join(segments), safe="/%._~-") if segments else "/post"
    return Address(
        origin=_origin(parts),
        hosted=hosted,
        universe=universe if hosted else "",
        path="" if hosted else path,
        token=Secret(token) if token else None,
    )


def _split(text: str, where: str) -> SplitResult:
    if len(text) > _ADDRESS_MAX or not text.isascii() or not text.isprintable() or " " in text:
        raise BadSettings(f"{where}: not an address")
    try:
        parts = urlsplit(text)
        _port = parts.port
    except ValueError:
        raise BadSettings(f"{where}: not an address") from None
    if parts.scheme not in _PORTS or not _HOST.fullmatch(parts.hostname or ""):
        raise BadSettings(
            f"{where}: https://HOST or http://HOST expected, with :PORT where it is another than the usual"
        )
    if parts.username is not None or parts.fragment:
        raise BadSettings(f"{where}: an address has neither a user's name nor a fragment")
    return parts


def origin(url: str) -> str:
    """Return scheme, host and port of an address, in one spelling. Raises ValueError."""
    return _origin(urlsplit(url))


def _origin(parts: SplitResult) -> str:
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    port = parts.port
    return f"{parts.scheme}://{host}" + ("" if port in (None, _PORTS.get(parts.scheme)) else f":{port}")


def redirected(url: str, location: str) -> tuple[str, str]:
    """Return where a redirection leads: the origin, and the whole address, a secret. The origin is empty where it is none."""
    try:
        parts = urlsplit(urljoin(url, location))
        there = _origin(parts)
    except ValueError:
        return "", ""
    if parts.scheme not in _PORTS or not _HOST.fullmatch(parts.hostname or "") or parts.username is not None:
        return "", ""
    return printable(there, 300), parts.geturl()
