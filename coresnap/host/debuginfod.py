# SPDX-License-Identifier: Apache-2.0
"""Debug files from debuginfod servers: GET URL/buildid/BUILD-ID/debuginfo, debuginfod(8). Their answers are not trusted."""

from __future__ import annotations

import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence

from coresnap import __version__
from coresnap.ground import durable
from coresnap.ground.errors import BadInput, Refused, TryLater
from coresnap.host.debug_cache import BUILD_ID, Cache

#: The largest debug file that is taken; that of a browser has some 2 GiB.
FILE_MAX_BYTES = 4 << 30
_BLOCK_BYTES = 1 << 18
_SILENCE_SECONDS = 60
_ALL_SECONDS = 1800
_NOT_THERE = (404, 406, 410)

#: Is called with the bytes that have come and those that are to come, 0 where that is not known.
Progress = Callable[[int, int], None]


def servers(text: str) -> list[str]:
    """Return the servers out of $DEBUGINFOD_URLS, or a setting like it: URLs divided by spaces. Other words are passed over."""
    return [word.rstrip("/") for word in text.split() if word.startswith(("http://", "https://"))]


def fetch(urls: Sequence[str], build_id: str, cache: Cache, most_bytes: int, progress: Progress) -> int:
    """Fetch a debug file into the cache; return its size in bytes.

    The servers are asked in their order; one that fails is no reason not to ask the next one. Raises Refused where none has
    it, TryLater where one that might have it cannot be asked, BadInput where what came is something else.
    """
    if not BUILD_ID.fullmatch(build_id):
        raise BadInput(f"{build_id[:200]!r} is no build-id")
    problem: BadInput | TryLater | None = None
    for url in urls:
        try:
            size_bytes = _fetch(f"{url}/buildid/{build_id}/debuginfo", build_id, cache, most_bytes, progress)
        except (BadInput, TryLater) as error:
            problem = error
            continue
        if size_bytes >= 0:
            return size_bytes
    if problem:
        raise problem
    cache.note_missing(build_id)
    raise Refused(f"{build_id}: no server has it", hint=f"{len(urls)} asked: {' '.join(urls)}"[:500])


def _fetch(url: str, build_id: str, cache: Cache, most_bytes: int, progress: Progress) -> int:
    """Fetch from one server; -1 where it does not have it."""
    request = urllib.request.Request(url, headers={"User-Agent": f"coresnap/{__version__}"})  # noqa: S310  # see servers()
    try:
        with urllib.request.urlopen(request, timeout=_SILENCE_SECONDS) as answer:  # noqa: S310
            return _take(answer, url, build_id, cache, min(most_bytes, FILE_MAX_BYTES), progress)
    except urllib.error.HTTPError as error:
        with error:
            if error.code in _NOT_THERE:
                return -1
            raise TryLater(f"{url}: {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        reason = error.reason
        said = reason.strerror if isinstance(reason, OSError) else None
        raise TryLater(f"{url}: {said or reason}") from error
    except http.client.HTTPException as error:
        raise TryLater(f"{url}: {error or type(error).__name__}") from error
    except OSError as error:
        raise TryLater(f"{url}: {error.strerror or error}") from error


def _take(
    answer: http.client.HTTPResponse, url: str, build_id: str, cache: Cache, most_bytes: int, progress: Progress
) -> int:
    """Write the body of an answer to the cache; return how many bytes it had."""
    length = answer.headers.get("Content-Length", "")
    total_bytes = int(length) if length.isascii() and length.isdigit() and len(length) < 20 else 0
    too_large = BadInput(f"{url}: more than {most_bytes} bytes", hint="symbols.max_bytes, and the disk, allow no more")
    if total_bytes > most_bytes:
        raise too_large
    done_bytes, deadline = 0, time.monotonic() + _ALL_SECONDS
    with cache.new_file(build_id) as fd:
        while block := answer.read1(_BLOCK_BYTES):
            done_bytes += len(block)
            if done_bytes > most_bytes:
                raise too_large
            if time.monotonic() > deadline:
                raise TryLater(f"{url}: {done_bytes} bytes came in {_ALL_SECONDS} s, and not all")
            durable.write(fd, block)
            progress(done_bytes, total_bytes)
        if done_bytes < total_bytes:
            raise TryLater(f"{url}: {done_bytes} of {total_bytes} bytes came")
    return done_bytes


def free_bytes(cache: Cache) -> int:
    """Return what may be written where the cache is, a tenth of the file system left free."""
    status = os.statvfs(cache.path)
    return max(0, status.f_frsize * (status.f_bavail - status.f_blocks // 10))
