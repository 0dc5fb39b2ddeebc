# SPDX-License-Identifier: Apache-2.0
"""A process's place, from the control groups of real systems and of hostile ones."""

from __future__ import annotations

import pytest

from coresnap.capture.place import KEYS, place_of

_ID = "4f1d2a9c0b7e" + "0" * 52
_USER = "/user.slice/user-1000.slice"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/system.slice/nginx.service", {"unit": "nginx.service", "slice": "system.slice"}),
        ("/init.scope", {"unit": "init.scope", "slice": "-.slice"}),
        (
            "/system.slice/system-getty.slice/getty@tty1.service",
            {"unit": "getty@tty1.service", "slice": "system-getty.slice"},
        ),
        (
            f"{_USER}/session-c2.scope",
            {"unit": "session-c2.scope", "slice": "user-1000.slice", "session": "c2", "owner_uid": 1000},
        ),
        (
            f"{_USER}/user@1000.service/app.slice/app-org.gnome.Terminal.slice/vte-spawn-1.scope",
            {
                "unit": "user@1000.service",
                "user_unit": "vte-spawn-1.scope",
                "slice": "user-1000.slice",
                "owner_uid": 1000,
            },
        ),
        (
            f"{_USER}/user@1000.service/init.scope",
            {"unit": "user@1000.service", "slice": "user-1000.slice", "owner_uid": 1000},
        ),
        (
            r"/machine.slice/machine-build\x2dbox.scope/payload/system.slice/x.service",
            {"unit": r"machine-build\x2dbox.scope", "slice": "machine.slice", "container": "nspawn:build-box"},
        ),
        (
            r"/machine.slice/build\x2dbox.scope/payload/system.slice/x.service",
            {"unit": r"build\x2dbox.scope", "slice": "machine.slice", "container": "nspawn:build-box"},
        ),
        ("/machine.slice/box.scope/supervisor", {"unit": "box.scope", "slice": "machine.slice"}),
        ("/system.slice/box.scope/payload", {"unit": "box.scope", "slice": "system.slice"}),
        (
            f"{_USER}/user@1000.service/machine.slice/box.scope/payload",
            {
                "unit": "user@1000.service",
                "user_unit": "box.scope",
                "slice": "user-1000.slice",
                "owner_uid": 1000,
                "container": "nspawn:box",
            },
        ),
        (
            f"/system.slice/docker-{_ID}.scope",
            {"unit": f"docker-{_ID}.scope", "slice": "system.slice", "container": "docker:4f1d2a9c0b7e"},
        ),
        (
            f"/machine.slice/libpod-{_ID}.scope/container",
            {"unit": f"libpod-{_ID}.scope", "slice": "machine.slice", "container": "podman:4f1d2a9c0b7e"},
        ),
        (
            f"/kubepods.slice/kubepods-burstable.slice/cri-containerd-{_ID}.scope",
            {
                "unit": f"cri-containerd-{_ID}.scope",
                "slice": "kubepods-burstable.slice",
                "container": "containerd:4f1d2a9c0b7e",
            },
        ),
        ("/lxc.payload.web/init.scope", {"unit": "init.scope", "slice": "-.slice", "container": "lxc:web"}),
        ("/system.slice/_cpu.service", {"unit": "cpu.service", "slice": "system.slice"}),
        ("/", {}),
    ],
)
def test_unified(path: str, expected: dict[str, object]) -> None:
    place = place_of(f"0::{path}\n".encode())
    assert place == {**dict.fromkeys(KEYS), "cgroup": path, **expected}


def test_version_1_has_systemd_s_own_hierarchy() -> None:
    file = b"12:cpu,cpuacct:/elsewhere\n1:name=systemd:/system.slice/cron.service\n0::/\n"
    assert place_of(file)["unit"] == "cron.service"


def test_a_pid_namespace_that_nobody_has_named() -> None:
    assert place_of(b"0::/a\n", b"Name:\tx\nNSpid:\t812\t1\n")["container"] == "pid namespace"
    assert place_of(b"0::/a\n", b"Name:\tNSpid: 1 2\nNSpid:\t812\n")["container"] is None


@pytest.mark.parametrize(
    "file", [b"", b"\0" * 100, b"0::" + b"/a.slice" * 10000, b"::::\n" * 1000, b"0::/\xff\xfe.service\n"]
)
def test_nothing_breaks_it(file: bytes) -> None:
    place = place_of(file)
    assert all(len(value) <= 4096 for value in place.values() if isinstance(value, str))
