# SPDX-License-Identifier: Apache-2.0
"""The memory of a process that is being dumped, read by ourselves in place of what the kernel sends of it page by page.

A kernel that dumps core writes each page by itself into the pipe or socket, and writes zeros for those that are not there.
While it is stopped in that, the process still has its memory, and /proc/PID/mem gives a mebibyte at a time, /proc/PID/pagemap
what need not be read at all. So the headers and notes are taken from the kernel, and the memory from the process itself, as
the program headers say. Where anything is not as expected, what the kernel sends is taken as before: nothing is lost, as it
waits there. Layouts: proc_pid_pagemap(5), proc_pid_status(5).

Imported while a crashed process is held.
"""

import os

PAGE_BYTES = 4096
#: Of an entry of pagemap the byte with bits 56 to 63: present is bit 63, swapped out 62.
_ENTRY_BYTES = 8
_IN_MEMORY = 0x40
#: How much of pagemap is read at once, a description of 32 MiB.
_WINDOW_PAGES = 8192
_STATUS_MAX_BYTES = 16 << 10
_DUMPING = b"\nCoreDumping:\t1\n"
_PENDING = b"\nSigPnd:\t"
_SIGKILL = 1 << 8


class Unreadable(Exception):
    """The memory cannot be read by us here, or not as it should be; the kernel's own dump of it can."""


class Memory:
    """The memory of one process. Close it when done."""

    __slots__ = ("_mem_fd", "_pagemap_fd", "_proc_fd", "_window", "_window_page")

    def __init__(self, proc: str) -> None:
        """Open it; `proc` is the process's directory in /proc. Raises Unreadable where it is not being dumped, or not ours."""
        self._mem_fd = self._pagemap_fd = self._proc_fd = -1
        self._window, self._window_page = b"", -1
        try:
            self._proc_fd = os.open(proc, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._mem_fd = os.open("mem", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc_fd)
            self._pagemap_fd = os.open("pagemap", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc_fd)
        except OSError as error:
            self.close()
            raise Unreadable(error.strerror) from error
        if not self.is_whole():
            self.close()
            raise Unreadable("it is not being dumped")

    def __enter__(self) -> "Memory":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what is open."""
        for fd in (self._proc_fd, self._mem_fd, self._pagemap_fd):
            if fd >= 0:
                os.close(fd)
        self._mem_fd = self._pagemap_fd = self._proc_fd = -1

    def is_whole(self) -> bool:
        """Say whether the process is being dumped, and has not been killed meanwhile: then all that was read was its memory.

        The kernel may take the memory of a process away as soon as it has been killed, and not before.
        """
        try:
            fd = os.open("status", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc_fd)
            try:
                status = os.read(fd, _STATUS_MAX_BYTES)
            finally:
                os.close(fd)
        except OSError:
            return False
        _before, _name, after = status.partition(_PENDING)
        try:
            pending = int(after[:16], 16)
        except ValueError:
            return False
        return _DUMPING in status and not pending & _SIGKILL

    def fill(self, view: memoryview, address: int, *, anonymous: bool, readable: bool) -> bool:
        """Fill the view, whole pages, with what is at `address`; say no, and leave it as it is, where there are zeros only.

        `anonymous` is memory that no file is behind: what of it is not there is zero. `readable` is what the process may read
        itself: what we cannot read of it the kernel cannot dump either, and leaves zeros there. Raises Unreadable.
        """
        if anonymous and not self._is_there(address // PAGE_BYTES, len(view) // PAGE_BYTES):
            return False
        filled = 0
        while filled < len(view):
            try:
                count = os.preadv(self._mem_fd, [view[filled:]], address + filled)
            except OSError as error:
                # Behind the end of a mapped file, say, or where a device is mapped.
                page = (address + filled) // PAGE_BYTES
                if filled % PAGE_BYTES or (not readable and self._is_there(page, 1)):
                    raise Unreadable(f"{address + filled:#x}: {error.strerror}") from error
                view[filled : filled + PAGE_BYTES] = bytes(PAGE_BYTES)
                count = PAGE_BYTES
            if not count:
                raise Unreadable("it is gone")
            filled += count
        return True

    def same(self, data: bytes, address: int) -> bool:
        """Say whether these bytes are at this address."""
        try:
            return os.pread(self._mem_fd, len(data), address) == data
        except OSError:
            return False

    def _is_there(self, page: int, count: int) -> bool:
        """Say whether any of these pages is in memory or swapped out. Raises Unreadable."""
        while count > 0:
            at = page - self._window_page
            if not self._window or not 0 <= at < len(self._window):
                self._look(page)
                at = 0
            part = self._window[at : at + count]
            if max(part) >= _IN_MEMORY:
                return True
            page, count = page + len(part), count - len(part)
        return False

    def _look(self, page: int) -> None:
        try:
            entries = os.pread(self._pagemap_fd, _WINDOW_PAGES * _ENTRY_BYTES, page * _ENTRY_BYTES)
        except OSError as error:
            raise Unreadable(f"pagemap: {error.strerror}") from error
        self._window, self._window_page = entries[_ENTRY_BYTES - 1 :: _ENTRY_BYTES], page
        if not self._window:
            raise Unreadable("pagemap ends")
