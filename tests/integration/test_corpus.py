# SPDX-License-Identifier: Apache-2.0
"""Programs that die in all manner of ways, and gdb's word on each: the quick ones of the corpus."""

from __future__ import annotations

import pytest

from tests.corpus import debugger
from tests.corpus.cases import CASES, Case
from tests.corpus.compare import has
from tests.corpus.crashes import CannotBuild, crashed

_QUICK = [case for case in CASES if case.quick]


@pytest.mark.parametrize("case", _QUICK, ids=lambda case: case.name)
def test_gdb_finds_the_place_where_it_died(case: Case) -> None:
    """What the others are held against is itself held against the program's own word."""
    try:
        dead = crashed(case)
    except CannotBuild as error:
        pytest.skip(str(error))
    stacks = debugger.gdb(dead.core, dead.program)
    if case.compiler[:1] == ("go",):
        pytest.skip("gdb does not get from Go's signal stack to the goroutine's")
    assert has([frame.name for frame in stacks[dead.tid].frames], dead.functions)
