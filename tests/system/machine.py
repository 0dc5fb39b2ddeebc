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
from contextlib import suppress
from pathlib import Path

from tests.system.booted import Booted, Done, GuestError
from tests.system.guest.agent import TIMED_OUT
from tests.system.image import BUILD, Image, image

_BOOT_SECONDS = 240.0
_KVM_SECONDS = 30.0
_NO_KVM = BUILD / "no-kvm"


class Machine(Booted):
    """A running guest with a kernel of its own. Use it as a context manager; its overlay goes with it."""

    def __init__(
        self,
        suite: str,
        *,
        memory_mib: int = 1536,
        processors: int = 2,
        command_line: str = "",
        network: bool = False,
    ) -> None:
        """Boot a guest and wait until it answers. Raises GuestError, with the end of its console.

        `command_line` is more of the kernel's. With `network` it has an interface, without an address, on which it finds what
        listens on this machine's loopback under 10.0.2.2, and nothing else.
        """
        self.image = image(suite)
        self.directory = Path(tempfile.mkdtemp(prefix=f"coresnap-vm-{suite}-"))
        self.console = self.directory / "console.log"
        self._memory_mib = memory_mib
        self._processors = processors
        self._command_line = command_line
        self._network = network
        self._qemu: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        overlay = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(self.image.disk), self._disk]
        subprocess.run(overlay, check=True)
        try:
            self.boot()
        except BaseException:
            self.close()
            raise

    @property
    def _disk(self) -> str:
        return str(self.directory / "disk.qcow2")

    def boot(self) -> None:
        """Start the machine from its disk as that is now."""
        accelerated = os.access("/dev/kvm", os.W_OK) and not _NO_KVM.exists()
        try:
            self._boot(accelerated)
        except GuestError:
            if accelerated:
                # A /dev/kvm inside a virtual machine need not work; without it everything does, slowly.
                _NO_KVM.touch()
            elif "Call Trace:" not in self.console.read_text(errors="replace"):
                raise
            # Or its kernel has crashed before anything of ours ran, which an emulated one does once in a long while.
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
            raise self.failed(done)
        return done

    def cut_power(self) -> None:
        """End the machine as a power cut does: what its disk was sent survives, its page cache does not."""
        assert self._qemu is not None
        self._qemu.kill()
        self._qemu.wait()
        self._disconnect()

    def reboot(self) -> None:
        """Shut the guest down as an administrator does, and start it again."""
        assert self._qemu is not None
        with suppress(GuestError):  # it may be down before it has answered
            self.run("systemctl", "--no-block", "reboot", check=False)
        self._qemu.wait(_BOOT_SECONDS)  # it ends in place of a reset
        self._disconnect()
        self.boot()

    def close(self) -> None:
        """End the machine and remove its overlay."""
        if self._qemu is not None:
            self.cut_power()
        shutil.rmtree(self.directory, ignore_errors=True)

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


def _qemu(built: Image, machine: Machine, agent: str, accelerated: bool) -> list[str]:
    return [
        *("qemu-system-x86_64", "-M", "q35", "-m", str(machine._memory_mib), "-smp", str(machine._processors)),
        *("-accel", "kvm" if accelerated else "tcg,thread=multi", "-cpu", "host" if accelerated else "max"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", str(built.kernel), "-initrd", str(built.initrd)),
        *("-append", f"console=ttyS0 root=/dev/vda rw quiet systemd.show_status=no {machine._command_line}"),
        *("-drive", f"id=disk,file={machine._disk},format=qcow2,if=none,cache=unsafe"),
        *("-device", "virtio-blk-pci,drive=disk", "-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
        *("-chardev", f"socket,id=agent,path={agent},server=on,wait=off"),
        *("-device", "virtserialport,chardev=agent,name=tests.agent"),
        *("-serial", f"file:{machine.console}"),
        *(("-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=") if machine._network else ()),
    ]
