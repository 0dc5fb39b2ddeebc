# SPDX-License-Identifier: Apache-2.0
"""The memory of a large process, read from the process itself, is byte for byte what the kernel dumps of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.machine import Machine
from tests.system.waiting import until

pytestmark = pytest.mark.long

_PROGRAMS = Path(__file__).with_name("programs")
_KERNEL = "/proc/sys/kernel"


@pytest.fixture(scope="module", params=["bookworm", "bookworm vsyscall=xonly", "bookworm vsyscall=emulate", "forky"])
def bare(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """Boot a guest whose cores go to a helper of the test's own."""
    suite, _blank, command_line = request.param.partition(" ")
    with Machine(suite, memory_mib=3072, command_line=command_line) as machine:
        machine.install()
        for name in ("bothways.py", "patchwork.py"):
            machine.run(
                "sh", "-c", f"cat > /root/{name}; chmod 755 /root/{name}", stdin=(_PROGRAMS / name).read_bytes()
            )
        machine.sh(
            f"coresnapd --prepare; echo 1 > {_KERNEL}/core_pipe_limit\n"
            f"echo '|/root/bothways.py /root/result %P' > {_KERNEL}/core_pattern"
        )
        yield machine


def _crash(guest: Machine, script: str) -> dict[str, int | str]:
    guest.sh(f"rm -f /root/result; {script} || true", seconds=600)
    until(guest, "[ -e /root/result ]", 120)
    assert guest.sh("cat /root/result.log").stdout == ""
    found: dict[str, int | str] = json.loads(guest.sh("cat /root/result").stdout)
    return found


def test_memory_of_every_kind(bare: Machine) -> None:
    found = _crash(bare, "/root/patchwork.py /root/scratch")
    assert found["reason"] == ""
    assert found["differs_at"] == -1
    assert int(found["disk_bytes"]) < 100 << 20
    if bare.sh("cat /proc/cmdline").stdout.endswith("emulate\n"):
        assert found["theirs_bytes"] == 0, "there is a page that only the kernel can read"
    else:
        assert int(found["theirs_bytes"]) > 1000 << 20, "the kernel was asked for the memory"


def test_memory_that_the_process_may_not_read_itself(bare: Machine) -> None:
    """Some kernels let nobody but a debugger read it: then the kernel's own dump is taken."""
    found = _crash(bare, "/root/patchwork.py /root/scratch hidden")
    assert (found["reason"], found["differs_at"]) == ("", -1)


def test_a_small_one_comes_from_the_kernel_alone(bare: Machine) -> None:
    found = _crash(bare, "python3 -c 'import ctypes; ctypes.string_at(16)'")
    assert (found["reason"], found["theirs_bytes"]) == ("", 0)


def test_many_mappings(bare: Machine) -> None:
    """So many that the core's headers do not come with its first mebibyte."""
    many = (
        "import ctypes, mmap; areas = [mmap.mmap(-1, 8192) for _ in range(1)]\n"
        "base = mmap.mmap(-1, 60000 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "base[:] = bytes(range(256)) * (len(base) // 256)\n"
        "libc = ctypes.CDLL(None); start = ctypes.addressof(ctypes.c_char.from_buffer(base))\n"
        "for page in range(0, 60000, 2): libc.mprotect(ctypes.c_void_p(start + page * 4096), ctypes.c_size_t(4096), 1)\n"
        "ctypes.string_at(16)\n"
    )
    found = _crash(bare, f'python3 -c "{many}"')
    assert (found["reason"], found["differs_at"]) == ("", -1)
    assert int(found["size_bytes"]) > 200 << 20
