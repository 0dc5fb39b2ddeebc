# SPDX-License-Identifier: Apache-2.0
"""Command lines with % formats: the words are split first and expanded after, so no value can become two words."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

from coresnap.ground.errors import BadSettings

#: Every format and what it stands for; a setting allows some of them.
MEANINGS = {
    "S": "path of the snapshot",
    "B": "UUID of the dump",
    "a": "path of the asset",
    "c": "path of the core",
    "e": "path of the executable, as the crashed process gave it",
    "p": "process id of the crashed process",
    "u": "user id of the crashed process",
    "s": "number of the signal",
    "P": "project",
    "t": "name of the token, which is the project's",
    "w": "the stage that the dump has come to",
    "f": "fingerprint of the crash; nothing where it has none",
    "%": "a percent sign",
}


def check(words: "Sequence[str]", allowed: str) -> None:
    """Raise BadSettings where a word has a format that is not one of the letters `allowed`, or ends in a lone percent sign."""
    expand(words, dict.fromkeys(allowed, ""))


def expand(words: "Sequence[str]", values: "Mapping[str, str]") -> "list[str]":
    """Return the words with each %X replaced by values["X"], and %% by a percent sign. Raises BadSettings."""
    return [_expand_word(word, values) for word in words]


def _expand_word(word: str, values: "Mapping[str, str]") -> str:
    head, *parts = word.split("%")
    pieces = [head]
    rest = iter(parts)
    for part in rest:
        if part[:1] in values and part:
            pieces.append(values[part[0]] + part[1:])
        elif not part:
            after = next(rest, None)
            if after is None:
                raise BadSettings(f"`{word}` ends in a lone %", hint="write %% for a percent sign")
            pieces.append("%" + after)
        else:
            allowed = " ".join(f"%{letter}" for letter in values)
            raise BadSettings(f"`{word}`: %{part[0]} is not known here", hint=f"allowed: {allowed} %%")
    return "".join(pieces)
