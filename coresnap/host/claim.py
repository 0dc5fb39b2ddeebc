# SPDX-License-Identifier: Apache-2.0
"""The claim on the kernel's cores, for as long as coresnapd runs under systemd: made, watched, reported, given back."""

from __future__ import annotations

import os
from collections.abc import Callable

from coresnap.ground.errors import CoresnapError, Refused
from coresnap.ground.inotify import WRITTEN, Watch
from coresnap.ground.log import Log
from coresnap.ground.settings import Settings
from coresnap.ground.text import printable
from coresnap.host import kernel_log, pattern, rivals, transport, units
from coresnap.host.pattern import Host

_SHOWN = 60
_FAILED = "the capture service failed: `systemctl status coresnap-archive`"


class Claim:
    """core_pattern is ours from `begin` on, whoever writes to it."""

    def __init__(self, host: Host, specifiers: str, log: Log) -> None:
        """`specifiers` are archive's arguments, as core(5) has them."""
        self.host = host
        self.log = log
        self._pipe = pattern.pipe_pattern(specifiers)
        self._pattern = self._pipe
        self._why = ""
        self._before = ""
        self._lost = ""

    def begin(self, settings: Settings, crash: Callable[[], bool] = transport.crash_a_child) -> None:
        """Fit the units to the settings, and claim core_pattern, for the socket where it is found to work. Raises Refused."""
        self.fit(settings)
        rivals.refuse_rivals(pattern.read(self.host)[pattern.PATTERN])
        self._begin(crash)

    def _begin(self, crash: Callable[[], bool]) -> None:
        self._why = transport.socket_is_possible(self.host)
        if not self._why:
            self._take(pattern.socket_pattern())
            if crash():
                return
            self._why = "no crash comes over the coredump socket here"
            self.log.warning(f"{self._why}; archive gets the cores through a pipe")
        self._take(self._pipe)

    def fit(self, settings: Settings) -> None:
        """Have the units follow the settings; restart what runs by others. Raises Refused."""
        changed = units.install(self.host, settings)
        if changed:
            units.systemctl("daemon-reload")
            self.restart(changed)

    def restart(self, changed: list[str]) -> None:
        """Have systemd restart those units that run; nobody waits for it. Templates have ended by themselves soon enough."""
        running = [unit for unit in changed if not unit.endswith("@.service")]
        if running:
            units.systemctl("try-restart", "--no-block", *running)

    def _take(self, wanted: str) -> None:
        self._pattern = wanted
        self._before = pattern.claim(self.host, wanted)
        self.log.info(f"the kernel's cores come {self._how()}; core_pattern was `{printable(self._before, 200)}`")

    def _how(self) -> str:
        return "through archive" if self._pattern == self._pipe else "over the kernel's socket"

    def watch(self) -> Watch:
        """Return what is ready to be read when somebody writes to core_pattern on this machine's own /proc."""
        fd = os.open(os.path.join(self.host.sys, "kernel/core_pattern"), os.O_RDONLY | os.O_CLOEXEC)
        try:
            return Watch(fd, WRITTEN)
        finally:
            os.close(fd)

    def check(self, crash: Callable[[], bool] = transport.crash_a_child) -> None:
        """Look whether core_pattern is still ours; take it back from a collector that has taken it by itself.

        Where the capture service had failed and is at work again, it gets the cores as before.

        What is neither ours nor a known collector's, an administrator has written: it stays, and is complained of.
        """
        now = pattern.read(self.host)[pattern.PATTERN]
        if now == self._pattern or pattern.is_ours(now):
            if now != self._pattern:  # the socket was given up meanwhile: see fall_back()
                self._pattern, self._why = now, _FAILED
            self._lost = ""
            if self._why == _FAILED and units.is_active(units.CAPTURE):
                self._begin(crash)
            return
        rival = rivals.owner_of(now)
        if rival is not None and not rival.remedy:
            self.log.warning(f"{rival.name} has taken core_pattern; it is coresnap's again")
            self._take(self._pattern)
        elif now != self._lost:
            remedy = f": {rival.remedy}" if rival else "; `systemctl restart coresnapd` takes it back"
            self.log.error(f"cores do not come to coresnap: core_pattern is now `{printable(now, 200)}`{remedy}")
            self._lost = now

    def standing(self) -> str:
        """Say how the cores come, in a line for `systemctl status`."""
        if self._lost:
            return f"CORES GO ELSEWHERE: core_pattern is `{printable(self._lost, _SHOWN)}`"
        why = f" ({self._why})" if self._why else ""
        return f"cores come {self._how()}{why}; core_pattern was `{printable(self._before, _SHOWN)}`"


def claim_early(host: Host, specifiers: str, log: Log) -> None:
    """Have archive get the cores until coresnapd is at work, which may choose another way. Raises Refused."""
    now = pattern.read(host)[pattern.PATTERN]
    if pattern.is_ours(now):
        return
    rivals.refuse_rivals(now)
    pattern.claim(host, pattern.pipe_pattern(specifiers))
    log.info(
        f"the kernel's cores come through archive until coresnapd is at work; core_pattern was `{printable(now, 200)}`"
    )


def release(host: Host, log: Log) -> None:
    """Give core_pattern back to whoever had it, and stop what serves it. Raises Refused.

    Not where systemd is about to start coresnapd again: no crash is to find the sockets closed.
    """
    if is_restarting():
        return
    former = pattern.release(host)
    kernel_log.forget(host)
    log.info(f"core_pattern is `{printable(former, 200)}` again")
    units.systemctl("stop", "--no-block", *units.ALL)


def fall_back(host: Host, specifiers: str, log: Log) -> None:
    """Start the capture service, which has failed, once more; have archive do without it where that fails, too. Raises Refused."""
    try:
        units.systemctl("start", *units.CAPTURING)
    except Refused as error:
        if pattern.read(host)[pattern.PATTERN] == pattern.socket_pattern():
            pattern.claim(host, pattern.pipe_pattern(specifiers))
        log.error(f"archive gets the cores through a pipe, and captures by itself: {error.line()}")
        units.systemctl("stop", "--no-block", *units.CAPTURE_SOCKETS)  # what waits in their queues is let go
    else:
        log.warning("the capture service had failed, and is at work again")


def is_restarting(unit: str = "coresnapd.service") -> bool:
    """Say whether systemd is about to start this unit again, so that nothing needs to be given back."""
    try:
        jobs = units.systemctl("list-jobs", "--no-legend", "--plain")
    except CoresnapError:
        return False
    return any(line.split()[1:3] in ([unit, "restart"], [unit, "start"]) for line in jobs.splitlines())
