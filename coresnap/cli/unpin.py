# SPDX-License-Identifier: Apache-2.0
"""Let pinned dumps go again, once purge finds that they are old enough, or that there is no more room for them.

examples:
  coresnap unpin 84605573

Exit status 75: a worker is at it just now.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coresnap.cli.pin import add_arguments, mark

if TYPE_CHECKING:
    import argparse

__all__ = ["add_arguments", "run"]


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    return mark(args, pinned=False)
