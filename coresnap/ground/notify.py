# SPDX-License-Identifier: Apache-2.0
"""sd_notify(3), through the sdnotify package; without a supervisor, or without the package, nothing happens."""

from __future__ import annotations

import os


def _notify(message: str) -> None:
    if "NOTIFY_SOCKET" not in os.environ:
        return
    try:
        import sdnotify
    except ImportError:
        return
    notifier = sdnotify.SystemdNotifier()
    if notifier.socket is None:
        return
    notifier.socket.setblocking(False)  # a manager that does not read, as a PID 1 that has crashed, holds nobody up
    notifier.notify(message)
    notifier.socket.close()  # it leaves that to its user


def ready() -> None:
    """Say that the program has started, or has read its settings again."""
    _notify("READY=1")


def stopping() -> None:
    """Say that the program is about to end."""
    _notify("STOPPING=1")


def reloading() -> None:
    """Say that the settings are being read again; ready() follows."""
    import time

    _notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def status(text: str) -> None:
    """Show a line in `systemctl status`. ASCII only, since sdnotify encodes no more; other characters become `?`."""
    line = " ".join(text.split()).encode("ascii", "replace").decode()
    _notify(f"STATUS={line}")


def watchdog() -> None:
    """Say that the program is alive."""
    _notify("WATCHDOG=1")
