# SPDX-License-Identifier: Apache-2.0
"""Programs that die in all manner of ways; the snapshot of each is held against gdb and against the program's own word."""

from __future__ import annotations

import pytest

from tests.corpus.cases import CASES, Case
from tests.corpus.compare import Thread, compare
from tests.corpus.crashes import CannotBuild, crashed
from tests.corpus.names import plain

pytestmark = pytest.mark.walk

_QUICK = [case for case in CASES if case.quick]
#: Debug information has names for these languages' functions that are not made of their symbols.
_NAMED_OTHERWISE = ("rustc", "go")


@pytest.fixture(scope="module", params=_QUICK, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    assert isinstance(request.param, Case)
    try:
        crashed(request.param)
    except CannotBuild as error:
        pytest.skip(str(error))
    return request.param


@pytest.fixture(scope="module")
def threads(case: Case, tmp_path_factory: pytest.TempPathFactory) -> list[Thread]:
    return compare(case, tmp_path_factory.mktemp("report"))


def test_program_counters_are_gdbs(threads: list[Thread]) -> None:
    """Where gdb itself loses its way there is nothing to be equal to, from there on."""
    assert threads
    assert not [(thread.tid, *thread.pcs()) for thread in threads if not thread.agrees]
    assert not [
        (thread.tid, thread.kind, *thread.pcs()) for thread in threads if thread.theirs.sound and thread.kind != "equal"
    ]


def test_names_are_gdbs(case: Case, threads: list[Thread]) -> None:
    if case.compiler[:1] and case.compiler[0] in _NAMED_OTHERWISE:
        pytest.skip("its debug information has other names than its symbols")
    assert not [names for thread in threads for names in thread.differing_names()]


def test_it_died_where_it_said(case: Case, threads: list[Thread]) -> None:
    truths = [truth for thread in threads if (truth := thread.truth())]
    assert all(ours for ours, _gdbs in truths)
    tid = crashed(case).tid
    (dead,) = (thread for thread in threads if thread.tid == tid)
    if case.top:
        assert plain(dead.ours[0]["funcName"]) == case.top
