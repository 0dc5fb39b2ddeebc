# SPDX-License-Identifier: Apache-2.0
"""Patterns in which an asterisk stands for any text, and nothing else has a meaning. Imported while a process is held."""


def matches(pattern: str, text: str) -> bool:
    """Say whether an asterisk for any text, none too, makes the pattern this text. What is between is looked for once."""
    first, *rest = pattern.split("*")
    if not rest:
        return text == pattern
    last = rest.pop()
    if len(text) < len(first) + len(last) or not (text.startswith(first) and text.endswith(last)):
        return False
    at, end = len(first), len(text) - len(last)
    for piece in rest:
        found = text.find(piece, at, end)
        if found < 0:
            return False
        at = found + len(piece)
    return True
