# SPDX-License-Identifier: Apache-2.0
"""A disposable machine with a kernel of its own: qemu, with KVM where there is one, and a fresh overlay of an image each time."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.system.guest.agent import TIMED_OUT
from tests.system.image import BUILD, Image, image

_REPOSITORY = Path(__file__).parents[2]
_BOOT_SECONDS = 240.0
_KVM_SECONDS = 30.0
_NO_KVM = BUILD / "no-kvm"
#: Puts the files of a directory in place as a package manager does: each one is written beside the former, and renamed.
_REPLACE = """
import os, shutil, sys
new = sys.argv[1]
for directory, _directories, names in os.walk(new):
    there = os.path.join("/", os.path.relpath(directory, new))
    os.makedirs(there, exist_ok=True)
    for name in names:
        path = os.path.join(there, name)
        shutil.copy2(os.path.join(directory, name), path + ".new", follow_symlinks=False)
        os.rename(path + ".new", path)
"""


class GuestError(Exception):
    """The guest did not come up, or a command in it failed that must not."""


@dataclass(frozen=True)
class Done:
    """A command that has ended in the guest."""

    argv: list[str]
    status: int
    stdout: str
    stderr: str


class Machine:
    """A running guest. Use it as a context manager; its overlay goes with it."""

    def __init__(self, suite: str, *, memory_mib: int = 1536, processors: int = 2) -> None:
        """Boot a guest and wait until it answers. Raises GuestError, with the end of its console."""
        self.image = image(suite)
        self.directory = Path(tempfile.mkdtemp(prefix=f"coresnap-vm-{suite}-"))
        self.console = self.directory / "console.log"
        self._memory_mib = memory_mib
        self._processors = processors
        self._qemu: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        overlay = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(self.image.disk), self._disk]
        subprocess.run(overlay, check=True)
        try:
            self.boot()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def _disk(self) -> str:
        return str(self.directory / "disk.qcow2")

    def boot(self) -> None:
        """Start the machine from its disk as that is now."""
        accelerated = os.access("/dev/kvm", os.W_OK) and not _NO_KVM.exists()
        try:
            self._boot(accelerated)
        except GuestError:
            if not accelerated:
                raise
            # A /dev/kvm inside a virtual machine need not work; without it everything does, slowly.
            _NO_KVM.touch()
            self.cut_power()
            self._boot(accelerated=False)

    def _boot(self, accelerated: bool) -> None:
        path = self.directory / "agent"
        path.unlink(missing_ok=True)
        errors = self.directory / "qemu.log"
        with errors.open("wb") as log:
            argv = _qemu(self.image, self, str(path), accelerated)
            self._qemu = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=log)
        self._channel = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + (_KVM_SECONDS if accelerated else _BOOT_SECONDS)
        while self._channel.connect_ex(str(path)):
            if self._qemu.poll() is not None:
                raise GuestError(f"qemu ended at once: {errors.read_text()}")
            time.sleep(0.05)
        try:
            # `running` or `degraded`: a unit of no concern here may have failed.
            self.run("systemctl", "is-system-running", "--wait", seconds=deadline - time.monotonic(), check=False)
        except OSError as error:
            said = errors.read_text()[:1000]
            raise GuestError(f"the guest does not answer: {error}\n{said}\n{self.console_tail()}") from error

    def run(self, *argv: str, stdin: bytes = b"", seconds: float = 120, check: bool = True) -> Done:
        """Run a command in the guest. Raises GuestError where it fails (with `check`), or takes too long."""
        assert self._channel is not None
        request = {"argv": list(argv), "seconds": seconds, "stdin_bytes": len(stdin)}
        self._channel.settimeout(seconds)
        self._channel.sendall(json.dumps(request).encode() + b"\n" + stdin)
        head = json.loads(self._read_line())
        stdout, stderr = self._read(head["stdout_bytes"]), self._read(head["stderr_bytes"])
        done = Done(list(argv), head["status"], stdout.decode("utf-8", "replace"), stderr.decode("utf-8", "replace"))
        if done.status == TIMED_OUT or (check and done.status):
            raise GuestError(
                f"{' '.join(argv)}: status {done.status}\n{done.stdout}{done.stderr}\n{self.console_tail()}"
            )
        return done

    def sh(self, script: str, *, seconds: float = 120, check: bool = True) -> Done:
        """Run a shell script in the guest."""
        return self.run("sh", "-euc", script, seconds=seconds, check=check)

    def put(self, tree: Path, target: str = "/") -> None:
        """Copy what is in a directory of the host's into one of the guest's."""
        tar = subprocess.run(
            ["tar", "-C", tree, "--owner=0", "--group=0", "-cf", "-", "."], capture_output=True, check=True
        )
        self.run("tar", "-C", target, "--no-overwrite-dir", "-xf", "-", stdin=tar.stdout)

    def install(self) -> None:
        """Install coresnap, as it is in this tree, as `make install` does in the guest itself."""
        with _installed() as tree:
            self.put(tree)
        self._after_install()

    def upgrade(self, change: Callable[[Path], None]) -> None:
        """Replace the files by those of this tree, after `change` in what is installed, as an upgrade of a package does."""
        with _installed() as tree:
            change(tree)
            self.sh("rm -rf /root/new; mkdir /root/new")
            self.put(tree, "/root/new")
        self.run("python3", "-c", _REPLACE, "/root/new")
        self._after_install()

    def _after_install(self) -> None:
        after = (_REPOSITORY / "tools" / "after-install").read_bytes()
        self.run("sh", "-s", "/usr/local", stdin=after)

    def cut_power(self) -> None:
        """End the machine as a power cut does: what its disk was sent survives, its page cache does not."""
        assert self._qemu is not None
        self._qemu.kill()
        self._qemu.wait()
        self._disconnect()

    def reboot(self) -> None:
        """Shut the guest down as an administrator does, and start it again."""
        assert self._qemu is not None
        self.run("systemctl", "--no-block", "reboot", check=False)
        self._qemu.wait(_BOOT_SECONDS)  # it ends in place of a reset
        self._disconnect()
        self.boot()

    def close(self) -> None:
        """End the machine and remove its overlay."""
        if self._qemu is not None:
            self.cut_power()
        shutil.rmtree(self.directory, ignore_errors=True)

    def console_tail(self) -> str:
        """Return the last lines of the console."""
        text = self.console.read_text(errors="replace") if self.console.exists() else ""
        return "console:\n" + "\n".join(text.splitlines()[-40:])

    def _disconnect(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _read(self, count: int) -> bytes:
        assert self._channel is not None
        blocks = []
        while count:
            block = self._channel.recv(min(count, 1 << 20))
            if not block:
                raise GuestError(f"the guest went down\n{self.console_tail()}")
            blocks.append(block)
            count -= len(block)
        return b"".join(blocks)

    def _read_line(self) -> bytes:
        line = bytearray()
        while not line.endswith(b"\n"):
            line += self._read(1)
        return bytes(line)


@contextmanager
def _installed() -> Iterator[Path]:
    """Yield a directory in which coresnap is installed."""
    with tempfile.TemporaryDirectory() as directory:
        argv = ["make", "-s", "install", f"DESTDIR={directory}", "PREFIX=/usr/local"]
        subprocess.run(argv, cwd=_REPOSITORY, check=True)
        yield Path(directory)


def _qemu(built: Image, machine: Machine, agent: str, accelerated: bool) -> list[str]:
    return [
        *("qemu-system-x86_64", "-M", "q35", "-m", str(machine._memory_mib), "-smp", str(machine._processors)),
        *("-accel", "kvm" if accelerated else "tcg,thread=multi", "-cpu", "host" if accelerated else "max"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", str(built.kernel), "-initrd", str(built.initrd)),
        *("-append", "console=ttyS0 root=/dev/vda rw quiet systemd.show_status=no"),
        *("-drive", f"id=disk,file={machine._disk},format=qcow2,if=none,cache=unsafe"),
        *("-device", "virtio-blk-pci,drive=disk", "-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
        *("-chardev", f"socket,id=agent,path={agent},server=on,wait=off"),
        *("-device", "virtserialport,chardev=agent,name=tests.agent"),
        *("-serial", f"file:{machine.console}"),
    ]
