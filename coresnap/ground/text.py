# SPDX-License-Identifier: Apache-2.0
"""Text for people: nothing that a crashed process wrote reaches a terminal unescaped; sizes and times in few letters."""

_UNITS = ("B", "kB", "mB", "gB", "tB")


def printable(text: str, most: int = 1000) -> str:
    """Return `text` on one line, with everything that is no printable character escaped, cut to `most` characters.

    str.isprintable is false for controls, for line and paragraph separators and for format characters such as the
    bidirectional overrides.
    """
    cut = text[:most]
    if cut.isprintable():
        return cut if cut == text else cut + "…"
    escaped = "".join(
        character if character.isprintable() else character.encode("unicode_escape", "backslashreplace").decode()
        for character in cut
    )
    return escaped + "…" if len(text) > most else escaped


def human_bytes(count: float) -> str:
    """Return a size as coresnap has always printed it: 3.12mB, of 1024 kB."""
    if 1 << 10 <= count < 1 << 20:  # most are one of these, and there may be very many
        return f"{count / 1024:.2f}kB"
    if 1 << 20 <= count < 1 << 30:
        return f"{count / (1 << 20):.2f}mB"
    for unit in _UNITS[:-1]:
        if abs(count) < 1024:
            return f"{int(count)}{unit}" if unit == "B" else f"{count:.2f}{unit}"
        count /= 1024
    return f"{count:.2f}{_UNITS[-1]}"


def human_duration(usec: int) -> str:
    """Return a time span in its largest unit or two: 3.2 ms, 12 s, 5 min, 2 h 10 min, 3 d."""
    seconds = usec / 1e6
    if seconds < 1:
        return f"{usec / 1000:.1f} ms"
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min"
    if seconds < 86400:
        hours, minutes = divmod(int(seconds) // 60, 60)
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{seconds // 86400:.0f} d"
