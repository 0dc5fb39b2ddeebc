# SPDX-License-Identifier: Apache-2.0
"""The kinds of messages about a dump: the MESSAGE_ID that finds them in the journal, and what `journalctl -x` says of them.

`make generate` writes them as a message catalog, whose form the systemd project's catalog page gives; @NAME@ there is a
field of the entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CATALOG = Path(__file__).parents[2] / "units" / "journal.catalog"


@dataclass(frozen=True)
class Message:
    """A kind of message."""

    id: str
    subject: str
    text: str


ARCHIVED = Message(
    "1bb093f1d7ec418da826ec73529e0bbc",
    "A process crashed, and its core was kept",
    "The core and what is known of the process are in the spool, as dump @CORESNAP_DUMP@. A snapshot is made of it next.\n"
    "`coresnap info @CORESNAP_DUMP@` tells more of the crash, `coresnap debug @CORESNAP_DUMP@` opens its core.",
)
LOST = Message(
    "cfdacd25ea56477982d76f30dfefc3e6",
    "A process crashed, and its core was not kept",
    "The message names the reason. `coresnap why` lists all cores that were not kept, with what can be done about it.",
)
SALVAGED = Message(
    "ddc68e2b44264bcdaa92b88399cf1cca",
    "What an interrupted capture left was kept",
    "The program that wrote the core of dump @CORESNAP_DUMP@ was killed before it had ended. What had been written by then\n"
    "goes its way as any dump; `coresnap info @CORESNAP_DUMP@` tells how much of the core there is.",
)
PROCESSED = Message(
    "0310eb4f84214b84b9128528e55faa33",
    "A snapshot was made of a core",
    "The snapshot of dump @CORESNAP_DUMP@ is delivered next. `coresnap dump --snapshot @CORESNAP_DUMP@` prints it.",
)
DELIVERED = Message(
    "f6a2fe54e308473690ea446cb5ec4bb9",
    "A snapshot was delivered",
    "A store has acknowledged the snapshot of dump @CORESNAP_DUMP@. The dump is kept for as long as the settings purge.* say.",
)
WAITS = Message(
    "f2bb7dff47c44435ac2a8f62910080ae",
    "An attempt failed and will be made again",
    "The work on dump @CORESNAP_DUMP@ did not succeed; the message says why, and when it is tried again. Nothing is lost.\n"
    "`coresnap retry @CORESNAP_STAGE@/@CORESNAP_DUMP@` does not wait until then.",
)
FAILED = Message(
    "018cbf1c523946be87398d934b15a8f1",
    "A dump was given up on",
    "The message says why. Dump @CORESNAP_DUMP@ is kept in the stage failed for as long as the settings purge.* say.\n"
    "Once the cause is mended, `coresnap retry @CORESNAP_DUMP@` has it tried again.",
)
RETRIED = Message(
    "d8e7b82a33f74f098dc678582d0dc9f4",
    "A dump that had been given up on is tried again",
    "Somebody has asked for it with `coresnap retry`. Dump @CORESNAP_DUMP@ is in @CORESNAP_STAGE@, as if it had just come there.",
)
MESSAGES = (ARCHIVED, LOST, SALVAGED, PROCESSED, DELIVERED, WAITS, FAILED, RETRIED)


def catalog() -> str:
    """Return the message catalog."""
    parts = ["# SPDX-License-Identifier: Apache-2.0", "# Written by `make generate` from coresnap/ground/catalog.py."]
    for message in MESSAGES:
        parts += ["", f"-- {message.id}", f"Subject: {message.subject}", "Defined-By: coresnap"]
        parts += ["Documentation: man:coresnap(1)", "", message.text]
    return "\n".join(parts) + "\n"


def main() -> None:
    """Write the message catalog."""
    CATALOG.write_text(catalog(), encoding="utf-8")


if __name__ == "__main__":
    main()
