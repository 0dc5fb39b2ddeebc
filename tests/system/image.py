# SPDX-License-Identifier: Apache-2.0
"""Build a guest's disk from Debian packages, once: a root file system, its kernel and initrd, in build/vm/SUITE-DIGEST."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent
_REPOSITORY = _HERE.parents[1]
BUILD = _REPOSITORY / "build" / "vm"
SUITES = ("bookworm", "trixie", "forky")
_PACKAGES = (
    *(
        "systemd",
        "systemd-sysv",
        "systemd-coredump",
        "dbus",
        "udev",
        "kmod",
        "procps",
        "linux-image-cloud-amd64",
        "zstd",
        "systemd-container",
        "gdb",
    ),
    *("python3", "python3-systemd", "python3-sdnotify", "python3-requests", "python3-jsonschema"),
)
_DISK_BYTES = 6 << 30
_RECIPE = 1  #: raise it when what build() does changes


@dataclass(frozen=True)
class Image:
    """A guest's disk, never written to after it has been built, and the kernel that boots it."""

    suite: str
    disk: Path
    kernel: Path
    initrd: Path


def image(suite: str) -> Image:
    """Return the image of a suite, built if it is not there. Needs root, mmdebstrap and mkfs.ext4."""
    guest = b"".join(path.read_bytes() for path in sorted((_HERE / "guest").iterdir()))
    digest = hashlib.sha256(repr((suite, _PACKAGES, _DISK_BYTES, _RECIPE)).encode() + guest).hexdigest()[:12]
    directory = BUILD / f"{suite}-{digest}"
    built = Image(suite, directory / "disk.img", directory / "vmlinuz", directory / "initrd")
    if not built.disk.exists():
        print(f"building the {suite} guest (about a minute)", file=sys.stderr, flush=True)
        _build(suite, directory)
    return built


def _build(suite: str, directory: Path) -> None:
    work = directory.with_suffix(".new")
    shutil.rmtree(work, ignore_errors=True)
    root = work / "root"
    root.mkdir(parents=True)
    argv = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(_PACKAGES)}"]
    # The mirror may be a copy of a day gone by; the packages are signed all the same.
    argv += ['--aptopt=Acquire::Check-Valid-Until "false"', suite, str(root), _mirror()]
    subprocess.run(argv, check=True)
    _furnish(root)
    shutil.copyfile(next((root / "boot").glob("vmlinuz-*")), work / "vmlinuz")
    shutil.copyfile(next((root / "boot").glob("initrd.img-*")), work / "initrd")
    disk = work / "disk.img"
    with disk.open("wb") as file:
        file.truncate(_DISK_BYTES)
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-d", str(root), str(disk)], check=True)
    shutil.rmtree(root)
    work.rename(directory)


def _mirror() -> str:
    """Return the mirror that this machine's own packages come from."""
    apt = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=True,
    )
    sites = [site for site in apt.stdout.splitlines() if site.endswith("/debian")]
    if not sites:
        raise RuntimeError("no Debian mirror among this machine's apt sources")
    return sites[0]


def _furnish(root: Path) -> None:
    """Put in what makes it a guest: the agent, a name, a file system table."""
    shutil.copyfile(_HERE / "guest" / "agent.py", root / "usr/local/lib/agent.py")
    unit = root / "etc/systemd/system/agent.service"
    shutil.copyfile(_HERE / "guest" / "agent.service", unit)
    wants = root / "etc/systemd/system/sysinit.target.wants"
    wants.mkdir(exist_ok=True)
    os.symlink("../agent.service", wants / "agent.service")
    (root / "etc/hostname").write_text("guest\n")
    (root / "etc/fstab").write_text("/dev/vda / ext4 defaults 0 1\n")
    (root / "etc/machine-id").write_text("uninitialized\n")
    shutil.rmtree(root / "var/cache/apt", ignore_errors=True)
