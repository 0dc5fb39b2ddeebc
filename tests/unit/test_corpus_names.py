# SPDX-License-Identifier: Apache-2.0
"""The corpus's own reckoning: names that are alike, stacks that are not, a debugger's text."""

from __future__ import annotations

import pytest

from tests.corpus import debugger, names
from tests.corpus.cases import CASES
from tests.corpus.compare import Outcome, Thread, unjudged


@pytest.mark.parametrize(
    ("whole", "plain"),
    [
        ("middle", "middle"),
        ("__libc_start_main@@GLIBC_2.34", "__libc_start_main"),
        ("shop::throws(int) [clone .cold]", "shop::throws"),
        ("string_at.lto_priv.0", "string_at"),
        ("cold_leaf.cold", "cold_leaf"),
        ("shop::Store<std::string, long>::get(std::string const&) const", "shop::Store<std::string, long>::get"),
        ("int shop::total<int>(std::vector<int> const&)", "shop::total<int>"),
        ("std::function<int (int)>::operator()(int) const", "std::function<int (int)>::operator()"),
        ("main.(*shelf).last", "main.(*shelf).last"),
        ("deaths::middle::h0123456789abcdef", "deaths::middle"),
        ("(anonymous namespace)::inner(int)", "(anonymous namespace)::inner"),
        ("strlen@plt", "strlen"),
    ],
)
def test_what_debug_information_does_not_have_is_no_difference(whole: str, plain: str) -> None:
    assert names.plain(whole) == plain


@pytest.mark.parametrize(
    ("ours", "theirs"), [("inner", "outer"), ("shop::die(int)", "die"), ("f(int)", "g(int)"), ("", "main")]
)
def test_names_of_two_functions_are_not_the_same(ours: str, theirs: str) -> None:
    assert not names.same(ours, theirs, "", "")


@pytest.mark.parametrize(
    ("ours", "theirs", "kind"),
    [
        ([1, 2, 3], [1, 2, 3], "equal"),
        ([1, 2], [1, 2, 3], "shorter"),
        ([], [1], "shorter"),
        ([1, 2, 3], [1, 2], "longer"),
        ([1, 4], [1, 2], "other"),
        ([1, 4, 3], [1, 2], "other"),
    ],
)
def test_program_counters_are_compared_frame_by_frame(ours: list[int], theirs: list[int], kind: str) -> None:
    stack = debugger.Stack([debugger.Frame(address, "f") for address in theirs], "")
    thread = Thread("case", 1, [{"address": str(address)} for address in ours], stack, None, "")
    assert thread.kind == kind
    assert Outcome([thread]).equal() == (kind == "equal")


def test_what_a_program_said_is_looked_for_in_its_order() -> None:
    def truth(*found: str) -> tuple[bool, bool] | None:
        ours = [{"address": "1", "funcName": name} for name in found]
        return Thread("case", 1, ours, debugger.Stack([], ""), ["shop::die", "middle"], "").truth()

    assert truth("raise", "shop::die(int)", "inner", "middle", "main") == (True, False)
    assert truth("middle", "shop::die(int)") == (False, False)
    assert truth("shop::diet", "middle") == (False, False)
    assert Thread("case", 1, [], debugger.Stack([], ""), None, "").truth() is None


def test_each_case_has_a_name_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


def test_a_difference_has_to_be_judged() -> None:
    stack = debugger.Stack([debugger.Frame(1, "f")], "")
    threads = [
        Thread(case, 1, [], stack, None, "")
        for case in ("gcc-Os/coroutine", "gcc-O2/null", "go/nil", "deleted/library")
    ]
    assert unjudged(Outcome(threads)) == ["gcc-O2/null"]
