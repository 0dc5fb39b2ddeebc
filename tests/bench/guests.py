# SPDX-License-Identifier: Apache-2.0
"""coresnap and systemd-coredump in the same guest, each with core_pattern in turns: how long a crashed process is held."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.pairs import Figure, Pairs, Spread, judge, verdict
from tests.bench.programs import Unmeasurable
from tests.system.booted import GuestError
from tests.system.machine import Machine

MEASURE = "crashes in a guest beside systemd-coredump"
BAR = "several"
_PROGRAMS = Path(__file__).with_name("guest")
_MEMORY_MIB = 4096
_SETTINGS = ("kernel.core_pattern", "kernel.core_pipe_limit")
_STORM = 200
_MOST_BYTES = 512 << 20
_TURN_SECONDS = 600
_CONFIGURATION = "/etc/coresnap/coresnap.conf"


@dataclass(frozen=True)
class _Peer:
    """systemd-coredump as a release has it; `start` is what puts it in force where the release does not."""

    suite: str
    name: str
    start: str
    held_bar: float
    rejects: bool


_PIPE = _Peer("bookworm", "systemd-coredump 252", "", 0.7, rejects=False)
_SOCKET = _Peer("forky", "systemd-coredumpd 262", "systemctl enable --now systemd-coredumpd 2>&1", 0.5, rejects=True)


def through_a_pipe(_work: Path, runs: int) -> list[Figure]:
    """Measure on bookworm, where cores come through a pipe. Raises Unmeasurable."""
    return _measure(_PIPE, runs)


def over_the_socket(_work: Path, runs: int) -> list[Figure]:
    """Measure on forky, where cores come over the kernel's socket. Raises Unmeasurable."""
    return _measure(_SOCKET, runs)


def _measure(peer: _Peer, runs: int) -> list[Figure]:
    try:
        with _guest(peer) as guest:
            return [_told(figure) for figure in _figures(guest, peer, runs)]
    except (GuestError, OSError, subprocess.CalledProcessError) as error:
        raise Unmeasurable(str(error).splitlines()[0]) from error


def _figures(guest: Machine, peer: _Peer, runs: int) -> Iterator[Figure]:
    yield _held(guest, peer, runs, _patterns(guest))
    if peer.rejects:
        yield _reject(guest, peer, runs)
    yield _drain(guest, peer, runs)
    yield from _storm(guest, peer, runs)


def _told(figure: Figure) -> Figure:
    """Say that it has been taken: the next one may take many minutes."""
    print(f"        taken: {figure.measure}: {figure.figure}", file=sys.stderr, flush=True)
    return figure


@contextmanager
def _guest(peer: _Peer) -> Iterator[Machine]:
    """Boot a guest with both collectors at work, as their packages leave them; only core_pattern goes to and fro."""
    with Machine(peer.suite, memory_mib=_MEMORY_MIB) as guest:
        for program in ("crashes.py", "clear.py"):
            put = f"cat > /root/{program}; chmod +x /root/{program}"
            guest.run("sh", "-c", put, stdin=(_PROGRAMS / program).read_bytes())
        # Neither is to run out of room, or to vacuum, while the other is measured.
        coredump = "/etc/systemd/coredump.conf.d"
        guest.sh(
            f"mkdir -p {coredump}; printf '[Coredump]\\nMaxUse=1G\\nKeepFree=100M\\n' > {coredump}/bench.conf; {peer.start}"
        )
        _save(guest, "peer")
        guest.install()
        unit = "/etc/systemd/system/coresnapd.service.d"
        guest.sh(
            f"mkdir -p {unit} $(dirname {_CONFIGURATION}); printf '[Service]\\nWatchdogSec=0\\n' > {unit}/bench.conf\n"
            f"echo 'dump.quota = 1%' > {_CONFIGURATION}; systemctl daemon-reload; systemctl enable --now coresnapd 2>&1"
        )
        _save(guest, "ours")
        guest.sh("systemctl kill -s STOP coresnapd")  # or it would take core_pattern back
        yield guest


def _save(guest: Machine, name: str) -> None:
    for setting in _SETTINGS:
        path = f"/proc/sys/{setting.replace('.', '/')}"
        guest.sh(f'echo "{setting}=$(cat {path})" >> /root/{name}.conf')


def _patterns(guest: Machine) -> str:
    ours, theirs = (
        guest.sh(f"head -1 /root/{name}.conf").stdout.partition("=")[2].strip() for name in ("ours", "peer")
    )
    return f"core_pattern was `{ours}` and `{theirs}` in turns"


def _turns(guest: Machine, kind: str, runs: int) -> dict[str, list[dict[str, Any]]]:
    argv = ["python3", "/root/crashes.py", kind, str(runs), "ours=/root/ours.conf", "peer=/root/peer.conf"]
    turns: dict[str, list[dict[str, Any]]] = json.loads(guest.run(*argv, seconds=_TURN_SECONDS * (runs + 1)).stdout)
    return turns


def _pairs(turns: dict[str, list[dict[str, Any]]]) -> Pairs:
    """Return the longest hold of each turn."""
    return Pairs(*([max(turn["held_usec"]) for turn in turns[name]] for name in ("ours", "peer")))


def _held(guest: Machine, peer: _Peer, runs: int, patterns: str) -> Figure:
    pairs = _pairs(_turns(guest, "single", runs))
    detail = f"{pairs.detail('coresnap', 'the peer')}; {patterns}"
    return judge(f"held, `sleep` SIGSEGV, {peer.suite}", peer.name, peer.held_bar, pairs, detail)


def _reject(guest: Machine, peer: _Peer, runs: int) -> Figure:
    """Have the quota forbid everything, so that the kernel is told REJECT."""
    with _settings(guest, "dump.quota = 99%"):
        turns = _turns(guest, "single", runs)
    if any(turn["cores"] for turn in turns["ours"]):
        raise Unmeasurable("a crash that was to be rejected has left a core")
    pairs = _pairs(turns)
    return judge(f"REJECT, {peer.suite}", f"a capture of {peer.name}", 0.1, pairs, pairs.detail("coresnap", "the peer"))


@contextmanager
def _settings(guest: Machine, line: str) -> Iterator[None]:
    guest.sh(f"cp {_CONFIGURATION} /root/; echo {shlex.quote(line)} > {_CONFIGURATION}; coresnap config --compile")
    try:
        yield
    finally:
        guest.sh(f"cp /root/coresnap.conf {_CONFIGURATION}; coresnap config --compile")


def _drain(guest: Machine, peer: _Peer, runs: int) -> Figure:
    pairs = _pairs(_turns(guest, "big", runs))
    measure = f"drain of a 1 GB core, 44% non-zero pages, {peer.suite}"
    return judge(measure, peer.name, 0.5, pairs, pairs.detail("coresnap", "the peer"))


def _storm(guest: Machine, peer: _Peer, runs: int) -> list[Figure]:
    turns = _turns(guest, "storm", runs)
    kept, kept_by_peer = (sum(turn["kept"] for turn in turns[name]) for name in ("ours", "peer"))
    told = kept + sum(turn["on_record"] for turn in turns["ours"])
    crashes = _STORM * runs
    name = f"{_STORM} crashes at once, {peer.suite}"
    pairs = _pairs(turns)
    detail = f"{pairs.detail('coresnap', 'the peer')}; of {crashes} the peer kept {kept_by_peer}"
    memory = [turn["memory"] for turn in turns["ours"]]
    together = Spread.of([one["together"] / 1e6 for one in memory])
    parts = ", ".join(
        f"{what} {Spread.of([one[key] / 1e6 for one in memory])} MB"
        for key, what in (
            ("slice_anonymous", "the slice"),
            ("helpers", "the helpers"),
            ("slice", "the slice with its page cache"),
        )
    )
    live = max(one["live"] for one in memory)
    most = max(one["together"] for one in memory)
    return [
        Figure(f"{name}: kept, or on record", f"{crashes}", verdict(told == crashes), str(told), f"{kept} are kept"),
        judge(f"{name}: the longest hold", peer.name, 2, pairs, detail),
        Figure(
            f"{name}: memory of the slice and of the live helpers",
            "≤ 512 MB",
            verdict(most <= _MOST_BYTES),
            f"{together} MB",
            f"without page cache; at their most {parts}; up to {live} helpers live at once",
        ),
    ]
