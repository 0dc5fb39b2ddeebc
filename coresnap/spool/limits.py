# SPDX-License-Identifier: Apache-2.0
"""How many cores are kept of a program, a unit and a user: counters on the disk, counted one by one across captures.

`<dump.root>/limits` is a table of fixed size: a head with a secret, then buckets of entries. An entry counts what was kept,
and what was not, in a window of time that begins with the first core kept in it; where it stands a keyed hash says, so that
nobody can choose names that share a bucket with another's. The stalest entry of a bucket gives way to a new one, and no
entry is made for what is not kept: who crashes under ever new names has spent what their user may before they have pushed
others out. A clock that is set back begins the window anew with what has been counted; one that is set forward ends it.

Whoever counts holds the record lock of the table's first byte, which ends with its process. It is waited for a second: who
has it for longer is stuck, or was stopped, and no process is held for that. Nothing is synced: a power cut may lose the
latest counts, and then a core too many is kept.

Imported while a crashed process is held.
"""

import _blake2  # hashlib would load OpenSSL, in ten times as long as all of archive takes
import errno
import fcntl
import os
import struct

from coresnap.ground import durable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

NAME = "limits"
EXE, UNIT, USER = "exe", "unit", "user"
KINDS = (EXE, UNIT, USER)
_MAGIC = b"coresnap limits 1\n"
_SECRET_BYTES = 16
_HEAD_BYTES = 4096
BUCKETS, WAYS = 512, 8
#: The key's hash, when the window began, when the last crash was; kept and not kept in the window; not kept in all; kind, name.
_ENTRY = struct.Struct("<16sQQIIQB79s")
_BUCKET_BYTES = WAYS * _ENTRY.size
_TABLE_BYTES = _HEAD_BYTES + BUCKETS * _BUCKET_BYTES
_NAME_BYTES = 79
_COUNT_MAX = (1 << 32) - 1
_TOTAL_MAX = (1 << 64) - 1
_LOCK_SECONDS = 3.0


class Limit:
    """At most so many cores in a window of time of what has this identity; `name` is what people are shown of that."""

    __slots__ = ("identity", "kind", "most", "name", "window_usec")

    def __init__(self, kind: str, most: int, window_usec: int, name: str, identity: str = "") -> None:
        """`identity` is the name, where it is not told."""
        self.kind = kind
        self.most = most
        self.window_usec = window_usec
        self.name = name
        self.identity = identity or name


class Row:
    """What is counted of one program, unit or user. `name` is the end of a longer one."""

    __slots__ = ("at", "kept", "key", "kind", "last_usec", "lost", "lost_total", "name", "started_usec")

    def __init__(self, at: int, fields: "tuple[bytes, int, int, int, int, int, int, bytes]") -> None:
        self.at = at
        self.key, self.started_usec, self.last_usec, self.kept, self.lost, self.lost_total, kind, name = fields
        self.kind = KINDS[kind % len(KINDS)]
        self.name = name.rstrip(b"\0").decode("utf-8", "replace")

    def pack(self) -> bytes:
        """Return the row as it stands in the table."""
        counts = self.kept, min(self.lost, _COUNT_MAX), min(self.lost_total, _TOTAL_MAX)
        name = self.name.encode("utf-8", "replace")[-_NAME_BYTES:]
        return _ENTRY.pack(self.key, self.started_usec, self.last_usec, *counts, KINDS.index(self.kind), name)

    def roll(self, window_usec: int, now_usec: int) -> int:
        """Begin a new window where the last has passed; return how many were not kept in that."""
        lost = 0
        if now_usec < self.started_usec:  # the clock has been set back
            self.started_usec = now_usec
        elif now_usec - self.started_usec >= window_usec:
            lost, self.lost = self.lost, 0
            self.started_usec, self.kept = now_usec, 0
        self.last_usec = now_usec
        return lost


class Admission:
    """What came of a crash: counted as kept, or, where `over` is not None, as not kept, by that limit and its row."""

    __slots__ = ("lost_before", "over", "rows")

    def __init__(self, rows: "list[Row]", lost_before: int, over: "tuple[Limit, Row] | None" = None) -> None:
        self.rows = rows
        self.lost_before = lost_before
        self.over = over

    def give_back(self, dir_fd: int) -> None:
        """Take back what was counted as kept, since it has not been. Raises OSError."""
        with _Table(dir_fd) as table:
            for row in self.rows:
                now = table.find(row.key, row.last_usec)
                if now.key == row.key and now.started_usec == row.started_usec and now.kept:
                    now.kept -= 1
                    table.put(now)


def admit(dir_fd: int, limits: "Sequence[Limit]", now_usec: int) -> Admission:
    """Count a crash against all of these limits, or as not kept where one of them is reached. Raises OSError."""
    with _Table(dir_fd) as table:
        rows: list[Row] = []
        lost_before = 0
        for limit in limits:
            row = table.row_of(limit, now_usec, {row.at for row in rows})
            lost_before = max(lost_before, row.roll(limit.window_usec, now_usec))
            rows.append(row)
        over = [(limit, row) for limit, row in zip(limits, rows, strict=True) if row.kept >= limit.most]
        for _limit, row in over:
            row.lost += 1
            row.lost_total += 1
            table.put(row)
        if over:
            return Admission([], 0, over[0])
        for row in rows:
            row.kept += 1
            table.put(row)
    return Admission(rows, lost_before)


def rows(dir_fd: int) -> "Iterator[Row]":
    """Yield what is counted, of all that the table knows, in no order; nothing where there is no table. Raises OSError."""
    try:
        fd = os.open(NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=dir_fd)
    except FileNotFoundError:
        return
    try:
        data = os.pread(fd, _TABLE_BYTES, 0)
    finally:
        os.close(fd)
    if not data.startswith(_MAGIC):
        return
    for at in range(_HEAD_BYTES, len(data) - _ENTRY.size + 1, _ENTRY.size):
        row = Row(at, _ENTRY.unpack_from(data, at))
        if any(row.key):
            yield row


def forget(dir_fd: int) -> None:
    """Begin to count anew, for all. Raises OSError."""
    with _Table(dir_fd) as table:
        table.clear()


def prepare(dir_fd: int, uid: int = -1, gid: int = -1) -> None:
    """Make the table, or leave the one that is there. Raises OSError."""
    with _Table(dir_fd) as table:
        os.fchown(table.fd, uid, gid)


class _Table:
    """The table, open and locked."""

    __slots__ = ("fd", "secret")

    def __init__(self, dir_fd: int) -> None:
        self.fd = os.open(NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=dir_fd)
        try:
            self._lock()
            self.secret = self._secret(dir_fd)
        except BaseException:
            os.close(self.fd)
            raise

    def __enter__(self) -> "_Table":
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self.fd)

    def _lock(self) -> None:
        if not durable.within(_LOCK_SECONDS, self._try_lock):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def _try_lock(self) -> bool:
        try:
            fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _secret(self, dir_fd: int) -> bytes:
        head = os.pread(self.fd, len(_MAGIC) + _SECRET_BYTES, 0)
        if head.startswith(_MAGIC) and len(head) == len(_MAGIC) + _SECRET_BYTES:
            return head[len(_MAGIC) :]
        os.posix_fallocate(self.fd, 0, _TABLE_BYTES)
        if os.geteuid() == 0:
            owner = os.fstat(dir_fd)
            os.fchown(self.fd, owner.st_uid, owner.st_gid)
        return self.clear()

    def clear(self) -> bytes:
        """Empty the table; return its new secret."""
        secret = os.urandom(_SECRET_BYTES)
        os.pwrite(self.fd, bytes(_TABLE_BYTES - _HEAD_BYTES), _HEAD_BYTES)
        os.pwrite(self.fd, _MAGIC + secret, 0)
        return secret

    def row_of(self, limit: Limit, now_usec: int, taken: "Collection[int]" = ()) -> Row:
        """Return the row of what is limited, a new one where it has none yet, and then in no place that is taken."""
        identity = f"{limit.kind}\0{limit.identity}".encode("utf-8", "replace")
        key = _blake2.blake2b(identity, digest_size=16, key=self.secret).digest()
        row = self.find(key, now_usec, taken)
        if row.key != key:
            name = limit.name.encode("utf-8", "replace")[-_NAME_BYTES:]
            row = Row(row.at, (key, now_usec, now_usec, 0, 0, 0, KINDS.index(limit.kind), name))
        return row

    def find(self, key: bytes, now_usec: int, taken: "Collection[int]" = ()) -> Row:
        """Return the row with this key, or else the one that gives way to it: an empty one, or the stalest of its bucket.

        Those at places that are `taken` give way to none.
        """
        at = _HEAD_BYTES + int.from_bytes(key[:4], "little") % BUCKETS * _BUCKET_BYTES
        data = os.pread(self.fd, _BUCKET_BYTES, at).ljust(_BUCKET_BYTES, b"\0")
        entries = list(_ENTRY.iter_unpack(data))
        ages = []
        for way, fields in enumerate(entries):
            if fields[0] == key:
                return Row(at + way * _ENTRY.size, fields)
            age = 0 if fields[2] > now_usec else fields[2]  # what comes from the future has no age
            ages.append(_TOTAL_MAX if at + way * _ENTRY.size in taken else age)
        way = ages.index(min(ages))
        return Row(at + way * _ENTRY.size, entries[way])

    def put(self, row: Row) -> None:
        """Write the row where it stands."""
        os.pwrite(self.fd, row.pack(), row.at)
