# SPDX-License-Identifier: Apache-2.0
"""A guest's network cable: `cable.py plug ADDRESS`, `cable.py pull`. What ip(8) would do, where there is none; netdevice(7)."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys

_SET_ADDRESS, _SET_MASK, _GET_FLAGS, _SET_FLAGS = 0x8916, 0x891C, 0x8913, 0x8914
_UP = 1


def main() -> None:
    """Plug it in, with an address, or pull it."""
    name = next(name for name in os.listdir("/sys/class/net") if name != "lo").encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        flags = struct.unpack_from("h", fcntl.ioctl(any_socket, _GET_FLAGS, name.ljust(40, b"\0")), 16)[0]
        up = sys.argv[1] == "plug"
        new = flags | _UP if up else flags & ~_UP
        if up:
            for what, address in ((_SET_ADDRESS, sys.argv[2]), (_SET_MASK, "255.255.255.0")):
                value = struct.pack("hH4s", socket.AF_INET, 0, socket.inet_aton(address))
                fcntl.ioctl(any_socket, what, name.ljust(16, b"\0") + value.ljust(24, b"\0"))
        fcntl.ioctl(any_socket, _SET_FLAGS, name.ljust(16, b"\0") + struct.pack("h", new).ljust(24, b"\0"))


if __name__ == "__main__":
    main()
