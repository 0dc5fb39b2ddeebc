# SPDX-License-Identifier: Apache-2.0
"""What the units have to know of the settings, as drop-ins of this boot (systemd.unit(5)).

The units as they are shipped are right for the settings as they are shipped: there are no drop-ins then.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from coresnap.ground import durable, runner
from coresnap.ground.errors import Refused
from coresnap.ground.settings import Settings
from coresnap.ground.settings.table import Values
from coresnap.host.pattern import Host

CAPTURE = "coresnap-archive.service"
PROCESSOR, SENDER = "coresnap-processor.service", "coresnap-sender.service"
PROCESS_WORKER, SEND_WORKER = "coresnap-process@.service", "coresnap-send@.service"
PURGE, METRICS = "coresnap-purge.service", "coresnap-metrics.service"
QUERY = "coresnap-query@.service"
SYMBOLS, SYMBOLS_WANTED = "coresnap-symbols.service", "coresnap-symbols-wanted.service"
PROCESS_SOCKET, SEND_SOCKET = "coresnap-process.socket", "coresnap-send.socket"
HOOKS, HOOK_WORKER, HOOK_SOCKET = "coresnap-hooks.service", "coresnap-hook@.service", "coresnap-hook.socket"
PENDING_PATH, SENDING_PATH = "coresnap-pending.path", "coresnap-sending.path"
HOOKS_PATH = "coresnap-hooks.path"
PATHS = {PENDING_PATH: "pending", SENDING_PATH: "sending", HOOKS_PATH: "hooks"}
#: What does the stages' work, by the settings that it found when it was started.
STAGES = [PROCESSOR, SENDER, HOOKS]
CAPTURE_SOCKETS = ["coresnap-archive.socket", "coresnap-handover.socket"]
CAPTURING = [*CAPTURE_SOCKETS, CAPTURE]
#: All that coresnapd.service has had started. A target's stop is its members', and capture is no member: it outlives shutdown.
ALL = ["coresnap.target", *CAPTURING]
_DROP_IN = "50-settings.conf"
_SPOOLING = (CAPTURE, PROCESSOR, SENDER, PURGE, METRICS, HOOKS)
#: What a worker takes beside what its command may take.
_WORKER_BYTES = 256 << 20
_SPARE_SECONDS = 60
_SYSTEMCTL_USEC = 90_000_000


def drop_ins(settings: Settings) -> dict[str, list[str]]:
    """Return the lines by which each unit differs from the one that is shipped."""
    lines: dict[str, list[str]] = {}

    def add(unit: str, section: str, *values: str) -> None:
        lines.setdefault(unit, []).extend([f"[{section}]", *values])

    root, default = settings.dump_root, Values()
    if root != default.dump_root:
        for unit in _SPOOLING:
            add(unit, "Unit", f"RequiresMountsFor={_quoted(root)}")
            add(unit, "Service", f"ReadWritePaths={_quoted(root)}")
        add(SYMBOLS_WANTED, "Unit", f"RequiresMountsFor={_quoted(root)}")
        for unit in (PROCESS_WORKER, SEND_WORKER, SYMBOLS, HOOK_WORKER):
            add(unit, "Service", f"InaccessiblePaths={_quoted(root)}")
        for unit, stage in PATHS.items():
            add(unit, "Path", "DirectoryNotEmpty=", f"DirectoryNotEmpty={_escaped(root)}/{stage}")
    if (settings.dump_user, settings.dump_group) != (default.dump_user, default.dump_group):
        for unit in (*_SPOOLING, PROCESS_WORKER, SYMBOLS_WANTED, QUERY):
            add(unit, "Service", f"User={settings.dump_user}", f"Group={settings.dump_group}")
        for unit in (PROCESS_SOCKET, SEND_SOCKET, HOOK_SOCKET):
            add(unit, "Socket", f"SocketUser={settings.dump_user}")
    if settings.metrics_textfile:
        add(METRICS, "Service", f"ReadWritePaths=-{_quoted(os.path.dirname(settings.metrics_textfile))}")
    if settings.snapshot_memory_bytes != default.snapshot_memory_bytes:
        add(PROCESS_WORKER, "Service", f"MemoryMax={settings.snapshot_memory_bytes + _WORKER_BYTES}")
    if _process_seconds(settings) != _process_seconds(default):
        add(PROCESS_WORKER, "Service", f"RuntimeMaxSec={_process_seconds(settings)}")
    if settings.send_coroner != default.send_coroner:
        credential = f"LoadCredential=coroner.cf:{_escaped(settings.send_coroner)}"
        add(SEND_WORKER, "Service", "LoadCredential=", credential)
    store = settings.send_store.removeprefix("file:")
    if settings.send_store not in (default.send_store, store):
        add(SEND_WORKER, "Service", f"ReadWritePaths={_quoted(store)}")
        add(HOOK_WORKER, "Service", f"InaccessiblePaths=-{_quoted(store)}")
    if settings.send_coroner != default.send_coroner:
        add(HOOK_WORKER, "Service", f"InaccessiblePaths=-{_quoted(settings.send_coroner)}")
    return lines


def _process_seconds(settings: Values) -> int:
    steps = 3 if settings.encrypt_recipients else 2  # the snapshot, the compression, the encryption
    return (steps * settings.snapshot_timeout_usec + settings.defaults_timeout_usec) // 1_000_000 + _SPARE_SECONDS


def install(host: Host, settings: Settings) -> list[str]:
    """Write the drop-ins, and take away those that are no longer needed; return the units that have changed. Raises Refused."""
    wanted = drop_ins(settings)
    changed = []
    for unit in sorted({*wanted, *_present(host)}):
        directory = os.path.join(host.units, f"{unit}.d")
        text = "\n".join(["# Written by coresnapd from its settings.", *wanted[unit], ""]) if unit in wanted else ""
        path = os.path.join(directory, _DROP_IN)
        if _read(path) == text:
            continue
        changed.append(unit)
        try:
            if not text:
                os.unlink(path)
                continue
            os.makedirs(directory, 0o755, exist_ok=True)
            fd = durable.open_directory(directory)
            try:
                durable.replace(fd, _DROP_IN, text.encode(), 0o644)
            finally:
                os.close(fd)
        except OSError as error:
            raise Refused(f"{path}: {error.strerror}") from error
    return changed


def _present(host: Host) -> Iterator[str]:
    try:
        names = os.listdir(host.units)
    except OSError:
        return
    for name in names:
        if name.startswith("coresnap-") and os.path.lexists(os.path.join(host.units, name, _DROP_IN)):
            yield name.removesuffix(".d")


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(1 << 16)
    except (OSError, ValueError):
        return ""


def _escaped(text: str) -> str:
    """Return a text with systemd's specifiers taken for what they are."""
    return text.replace("%", "%%")


def _quoted(path: str) -> str:
    escaped = _escaped(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def systemctl(*arguments: str) -> str:
    """Run systemctl; return what it says. Raises Refused where it fails."""
    result = runner.run(["systemctl", *arguments], timeout_usec=_SYSTEMCTL_USEC)
    said = result.output.decode("utf-8", "replace").strip()
    if result.status != 0 or result.timed_out:
        raise Refused(f"systemctl {' '.join(arguments)}: {said.splitlines()[-1] if said else result.status}")
    return said


def is_active(unit: str) -> bool:
    """Say whether a unit is at work."""
    try:
        return systemctl("is-active", unit) == "active"
    except Refused:
        return False
