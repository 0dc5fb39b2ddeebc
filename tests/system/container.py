# SPDX-License-Identifier: Apache-2.0
"""A disposable system in a container: systemd-nspawn boots the same file system that the guests are made of, at full speed.

The kernel is the host's, and with it core_pattern, which a container cannot write. It is for units, packages and load. Where
the host has no systemd of its own, or control groups of version 1, limits of a unit need not hold.
"""

from __future__ import annotations

import os
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.system.booted import Booted, Done, GuestError
from tests.system.guest.agent import TIMED_OUT
from tests.system.image import image

_BOOT_SECONDS = 90.0
_END_SECONDS = 20.0
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
#: Its mounts are its own: they and the loop device go with the last process. `start DIRECTORY IMAGE CGROUPS COMMAND...`
_START = r"""
directory=$1 image=$2 groups=$3
shift 3
for group in $groups; do echo $$ > "$group/cgroup.procs"; done
# nspawn, which leaves something there, only clears up on a file system that is not the disk's.
[ -e /run/systemd/system ] || { mkdir -p /run/systemd; mount -t tmpfs -o mode=755 coresnap /run/systemd; }
mount -t tmpfs -o mode=755 coresnap "$directory/mnt"
cd "$directory/mnt"
mkdir image upper work root
mount -o ro,loop "$image" image
mount -t overlay -o lowerdir=image,upperdir=upper,workdir=work coresnap root
rm root/etc/fstab root/etc/systemd/system/sysinit.target.wants/agent.service
ln -sf /dev/null root/etc/systemd/system/agent.service
ln -sf /dev/null root/etc/systemd/system/systemd-firstboot.service  # it would ask somebody
trap : TERM
status=133
while [ $status = 133 ]; do  # it has asked for a reboot
    status=0
    setpriv --pdeathsig TERM "$@" --directory=root || status=$?
done
exit $status
"""


class Container(Booted):
    """A running container. Use it as a context manager; what it has written goes with it."""

    def __init__(self, suite: str) -> None:
        """Boot a container and wait until it is up. Raises GuestError, with the end of its console."""
        self.image = image(suite)
        self.name = f"coresnap-{suite}-{secrets.token_hex(4)}"
        self.directory = Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
        self.console = self.directory / "console.log"
        self._leader: int | None = None
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._groups: list[Path] = []
        try:
            self._boot()
        except BaseException:
            self.close()
            raise

    def _boot(self) -> None:
        (self.directory / "mnt").mkdir()
        environment = {**_ENVIRONMENT, "NOTIFY_SOCKET": str(self.directory / "notify")}
        argv = ["systemd-nspawn", "--boot", "--quiet", f"--machine={self.name}", "--register=no", "--notify-ready=yes"]
        argv += ["--private-network", "--link-journal=no", "--console=pipe"]
        if not Path("/run/systemd/system").exists():
            # Without a manager to ask for one, it gets a control group from here.
            argv.append("--keep-unit")
            environment["SYSTEMD_NSPAWN_UNIFIED_HIERARCHY"] = "1"  # systemd 258 and later know no other
            self._groups = [Path(mount) / self.name for mount in _hierarchies()]
            for group in self._groups:
                group.mkdir()
        notices = self._listen()
        groups = " ".join(map(str, self._groups))
        start = ["sh", "-euc", _START, "start", str(self.directory), str(self.image.disk), groups]
        # It does not outlive the tests, however those end.
        own = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"]
        with self.console.open("wb") as log:
            self._nspawn = subprocess.Popen(
                [*own, *start, *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        self._wait_until_up(notices)

    def _listen(self) -> socket.socket:
        """Return the socket that nspawn tells of a boot. Unread it must not stay: nspawn would wait, and PID 1 for nspawn."""
        path = self.directory / "notify"
        path.unlink(missing_ok=True)
        notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notices.bind(str(path))
        return notices

    def _wait_until_up(self, notices: socket.socket) -> None:
        """Wait for a PID 1 that is another one than before, and for it to have started all."""
        assert self._nspawn is not None
        before, deadline = self._leader, time.monotonic() + _BOOT_SECONDS
        ended = os.pidfd_open(self._nspawn.pid)
        try:
            ready = False
            while not ready or self._leader == before:
                readable, _, _ = select.select([notices.fileno(), ended], [], [], max(0, deadline - time.monotonic()))
                if notices.fileno() in readable:
                    lines = notices.recv(4096).decode().splitlines()
                    ready = ready or "READY=1" in lines
                    leaders = [line.partition("=")[2] for line in lines if line.startswith("X_NSPAWN_LEADER_PID=")]
                    if leaders:
                        self._leader = int(leaders[0])
                else:
                    raise GuestError(f"the container {'ended' if readable else 'is not up'}\n{self.console_tail()}")
        finally:
            os.close(ended)
            notices.close()
        # `running` or `degraded`: a unit of no concern here may have failed.
        self.run("systemctl", "is-system-running", "--wait", seconds=deadline - time.monotonic(), check=False)

    def run(self, *argv: str, stdin: bytes = b"", seconds: float = 120, check: bool = True) -> Done:
        """Run a command in the container. Raises GuestError where it fails (with `check`), or takes too long."""
        try:
            ended = self._run(argv, stdin, seconds)
            status, stdout, stderr = ended.returncode, ended.stdout, ended.stderr
        except subprocess.TimeoutExpired as late:
            status, stdout, stderr = TIMED_OUT, late.stdout or b"", late.stderr or b""
        done = Done(list(argv), status, stdout.decode("utf-8", "replace"), stderr.decode("utf-8", "replace"))
        if status == TIMED_OUT or (check and status):
            raise self.failed(done)
        return done

    def _run(self, argv: Sequence[str], stdin: bytes, seconds: float) -> subprocess.CompletedProcess[bytes]:
        enter = [
            "nsenter",
            f"--target={self._leader}",
            "--all",
            "--root",
            "--wd",
            "setpriv",
            "--pdeathsig",
            "KILL",
            "--",
        ]
        return subprocess.run(
            [*enter, *argv], input=stdin, capture_output=True, timeout=seconds, env=_ENVIRONMENT, check=False
        )

    def console_tail(self) -> str:
        """Return the last lines of the console, which has little, and of the journal, which can be read without its daemon."""
        try:
            journal = self._run(["journalctl", "--no-pager", "-n", "40"], b"", 20).stdout.decode("utf-8", "replace")
        except subprocess.TimeoutExpired:
            journal = ""
        return f"{super().console_tail()}\njournal:\n{journal}"

    def reboot(self) -> None:
        """Shut the container down as an administrator does, and start it again."""
        notices = self._listen()
        self.run("systemctl", "--no-block", "reboot", check=False)
        self._wait_until_up(notices)

    def close(self) -> None:
        """End the container, and remove what it has written."""
        if self._nspawn is not None:
            self._end(self._nspawn)
        for group in self._groups:
            for directory, _names, _files in os.walk(group, topdown=False):
                os.rmdir(directory)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _end(self, nspawn: subprocess.Popen[bytes]) -> None:
        """Have nspawn end, which clears up: because its PID 1 is killed, else in order, else at once."""
        leader = self._leader
        for _attempt in range(3):
            if nspawn.poll() is not None:
                return
            if leader is not None and Path(f"/proc/{leader}").exists():
                os.kill(leader, signal.SIGKILL)
                leader = None
            else:
                os.killpg(nspawn.pid, signal.SIGTERM)
            try:
                nspawn.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                continue
        if nspawn.poll() is None:
            raise GuestError(f"{self.name} does not end\n{self.console_tail()}")


def _hierarchies() -> list[str]:
    """Return where the control groups are that systemd looks at: version 2, and systemd's own of version 1."""
    mounts = Path("/proc/self/mounts").read_text()
    return re.findall(r"^\S+ (\S+) (?:cgroup2|cgroup \S*name=systemd\S*) ", mounts, re.MULTILINE)
