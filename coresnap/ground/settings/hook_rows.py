# SPDX-License-Identifier: Apache-2.0
"""The rows of the table of settings: hooks."""

from __future__ import annotations

from dataclasses import dataclass

from coresnap.ground.settings import kinds
from coresnap.ground.settings.delivery_rows import DeliveryValues
from coresnap.ground.settings.row import HOUR, SECOND, row

_FORMATS = "Bwepusf"


# A row is its line and its text; the formatter would make it ten lines.
# fmt: off
@dataclass(frozen=True)
class HookValues(DeliveryValues):
    """The values of these rows."""

    on_sending: tuple[str, ...] = row(
        "on.sending", kinds.Argv(_FORMATS, may_be_empty=True), "", "on", """
        Command that is run for each dump once its snapshot is made. It is run as the user coresnap-hook, in a sandbox of its
        own in which it reaches the network, and its own directory /var/lib/coresnap-hook, but no dump, no store and no
        token; its output goes to the journal. Without systemd there is no sandbox: it is that user, or nobody, where
        coresnapd is root, and else its own. Beside the formats it has in its environment CORESNAP_UUID, _STAGE,
        _TIME_USEC, _EXE, _COMM, _SIGNAL, _PID, _UID, _FINGERPRINT, _HOSTNAME and _DETAIL. What the crashed process chose
        of these is any text: quote it. Hooks are run one by one; one that fails is one warning in the journal, and makes no
        difference to its dump. Each is run once, or twice where it was interrupted; of more than 10,000 that wait the
        latest are left out.
        """,
    )
    on_committed: tuple[str, ...] = row(
        "on.committed", kinds.Argv(_FORMATS, may_be_empty=True), "", "on", """
        The same for each dump whose snapshot a store has acknowledged.
        """,
    )
    on_failed: tuple[str, ...] = row(
        "on.failed", kinds.Argv(_FORMATS, may_be_empty=True), "", "on", """
        The same for each dump that is given up on; _DETAIL says why.
        """,
    )
    on_timeout_usec: int = row(
        "on.timeout", kinds.Duration(SECOND, HOUR), "30s", "on", """
        Longest time that a hook may take before it is killed with all that it has started.
        """,
    )
