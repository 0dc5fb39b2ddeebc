# SPDX-License-Identifier: Apache-2.0
"""What a report says of an error, held against what the program itself writes on standard error, and of what kind it is."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from coresnap.snapshot import lines
from coresnap.snapshot.classify import KINDS
from coresnap.snapshot.stacks import End, Found
from tests.crash import REPOSITORY
from tests.support import errors
from tests.unit.test_snapshot import SCHEMA


@pytest.fixture(scope="module")
def c(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return errors.compiled(tmp_path_factory.mktemp("c"), "errors.c")


@pytest.fixture(scope="module")
def cc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return errors.compiled(tmp_path_factory.mktemp("cc"), "errors.cc")


@pytest.fixture(scope="module")
def libcxx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return errors.compiled(tmp_path_factory.mktemp("libcxx"), "errors.cc", "-stdlib=libc++", compiler="clang++")
    except subprocess.CalledProcessError:
        pytest.skip("libc++-dev is not installed")


@pytest.fixture(scope="module", params=["-Copt-level=0", "-Copt-level=2"])
def rs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return errors.compiled(tmp_path_factory.mktemp("rs"), "errors.rs", request.param)


def _wrote(program: Path, mode: str, **environment: str) -> str:
    """Return what the program writes on standard error when it dies."""
    died = subprocess.run([program, mode], capture_output=True, check=False, env=environment, preexec_fn=_no_core)
    assert died.returncode < 0
    return died.stderr.decode()


def _no_core() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))  # where cores are piped, 1 has none written


@pytest.mark.parametrize(
    ("mode", "kinds"),
    [
        ("asserted", ["SIGABRT", "abort", "assertion"]),
        ("freed-twice", ["SIGABRT", "abort", "double-free", "heap-corruption"]),
        ("freed-wild", ["SIGABRT", "abort", "heap-corruption"]),
        ("smashed", ["SIGABRT", "abort", "stack-smashing"]),
    ],
)
def test_what_glibc_says(c: Path, mode: str, kinds: list[str]) -> None:
    found = errors.report(c, mode)
    wrote = _wrote(c, mode)
    assert len(wrote) > 10
    assert found["attributes"]["error.message"] == wrote.strip()
    assert found["classifiers"] == kinds


def test_what_a_static_program_says(tmp_path: Path) -> None:
    program = errors.compiled(tmp_path, "errors.c", "-static")
    found = errors.report(program, "asserted")
    assert found["attributes"]["error.message"] == _wrote(program, "asserted").strip()


@pytest.mark.parametrize(
    ("mode", "kinds"),
    [
        ("gave-up", ["SIGABRT", "abort"]),
        ("followed-null", ["SIGSEGV", "null-dereference"]),
        ("called-null", ["SIGSEGV", "jump-to-null"]),
        ("called-garbage", ["SIGSEGV", "jump-to-garbage"]),
        ("used-garbage", ["SIGSEGV", "non-canonical-address"]),
        ("wrote-constant", ["SIGSEGV", "protected-memory"]),
        ("divided", ["SIGFPE", "divide-by-zero"]),
        ("trapped", ["SIGILL", "illegal-instruction", "trap"]),
        ("endless", ["SIGSEGV", "stack-overflow"]),
        ("full-in-thread", ["SIGSEGV", "stack-overflow"]),
        ("cut-file", ["SIGBUS", "truncated-file"]),
        ("sent", ["SIGSEGV", "sent"]),
        ("handled", ["SIGSEGV", "raised"]),  # it came once the handler had returned
        ("handled-by-abort", ["SIGABRT", "abort", "null-dereference"]),
        ("handled-division", ["SIGABRT", "abort", "divide-by-zero"]),
        ("handled-overflow", ["SIGABRT", "abort", "stack-overflow"]),
        ("handled-plainly", ["SIGABRT", "abort"]),  # nobody asked what the first signal was of
    ],
)
def test_kinds(c: Path, mode: str, kinds: list[str]) -> None:
    """A message that was not found is not made up: the attribute tells of the signal then."""
    found = errors.report(c, mode)
    assert found["classifiers"] == kinds
    assert found["attributes"]["error.message"].startswith(kinds[0])


@pytest.mark.parametrize(
    ("mode", "type_", "says", "kinds"),
    [
        ("own", "shop::Empty", "shelf 2 is empty", []),
        ("noexcept", "shop::Empty", "shelf 2 is empty", []),
        ("again", "shop::Empty", "shelf 2 is empty", []),
        ("kept", "shop::Empty", "shelf 2 is empty", []),
        ("range", "std::out_of_range", "vector::_M_range_check: __n (which is 12) >= this->size() (which is 3)", []),
        ("memory", "std::bad_alloc", "", ["out-of-memory"]),  # its text is no data of the object
        ("two", "shop::Two", "", []),  # of two bases: where the text is, is not told by its type's name
        ("plain", "shop::Plain", "", []),
        ("number", "int", "", []),
        ("text", "char const*", "", []),
    ],
)
def test_an_exception_that_nobody_caught(cc: Path, mode: str, type_: str, says: str, kinds: list[str]) -> None:
    """libstdc++ writes `terminate called after throwing an instance of 'TYPE'` and `  what():  TEXT`."""
    wrote = _wrote(cc, mode)
    assert f"'{type_}'" in wrote
    assert f"  what():  {says}\n" in wrote or not says
    found = errors.report(cc, mode)
    assert found["attributes"]["error.message"] == (f"{type_}: {says}" if says else type_)
    assert found["classifiers"] == ["SIGABRT", "abort", "uncaught-exception", "terminate", *kinds]


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("own", "shop::Empty: shelf 2 is empty"),
        ("noexcept", "shop::Empty: shelf 2 is empty"),
        ("again", "shop::Empty: shelf 2 is empty"),
        ("kept", "shop::Empty: shelf 2 is empty"),
        ("range", "std::out_of_range: vector"),
        ("number", "int"),
    ],
)
def test_an_exception_of_libcxx(libcxx: Path, mode: str, says: str) -> None:
    """libc++abi writes `libc++abi: terminating with uncaught exception of type TYPE: TEXT`."""
    found = errors.report(libcxx, mode)
    assert _wrote(libcxx, mode).strip().endswith(f"exception of type {says}")
    assert found["attributes"]["error.message"] == says


@pytest.mark.parametrize("mode", ["joinable", "handled"])
def test_terminate_without_an_exception(cc: Path, mode: str) -> None:
    """One that was handled before is not the one; it may still stand in memory."""
    found = errors.report(cc, mode)
    assert found["classifiers"] == ["SIGABRT", "abort", "terminate"]
    assert found["attributes"]["error.message"].startswith("SIGABRT")


@pytest.fixture(scope="module", params=["", "-ldflags=-s -w"], ids=["", "stripped"])
def go(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return errors.compiled(tmp_path_factory.mktemp("go"), "errors.go", *filter(None, [request.param]))


@pytest.mark.parametrize("mode", ["text", "constant", "failed", "beyond", "null"])
def test_a_panic_of_go(go: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOTRACEBACK", "crash")
    (said, *_others) = [
        line for line in _wrote(go, mode, GOTRACEBACK="crash").splitlines() if line.startswith("panic: ")
    ]
    found = errors.report(go, mode)
    assert found["attributes"]["error.message"] == said
    assert found["classifiers"] == ["SIGABRT", "abort", "panic"]


def test_a_function_of_go_that_faults_at_once_is_named(go: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go makes a fault a call of sigpanic, whose return address is the fault's: here the first one of its function."""
    monkeypatch.setenv("GOTRACEBACK", "crash")
    found = errors.functions(errors.report(go, "null"))
    at = found.index("runtime.sigpanic")
    assert found[at + 1] == "main.null"
    assert [found[at + 2].startswith("main.main"), found[at + 3]] == [True, "main.main"]


def test_a_panic_of_go_that_is_no_text_is_left_out(go: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOTRACEBACK", "crash")
    assert errors.report(go, "number")["attributes"]["error.message"].startswith("SIGABRT")


def _interpreters() -> list[str]:
    """Return this Python, and whatever others there are beside it."""
    own = os.path.realpath(sys.executable)
    others = {os.path.realpath(path) for path in Path.home().glob(".pyenv/versions/3.*/bin/python3")}
    return [own, *sorted(others - {own})]


@pytest.mark.parametrize("interpreter", _interpreters(), ids=lambda path: Path(path).name)
def test_an_exception_of_python(tmp_path: Path, interpreter: str) -> None:
    """The interpreter tells its functions by name, or nothing is found."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\nclass Empty(LookupError): pass\n"
        "def hook(*_): sys.__excepthook__(*_); sys.stderr.flush(); os.abort()\n"
        "sys.excepthook = hook\nraise Empty(f'no shelf {6 + 1}', 2)\n"
    )
    found = errors.report(Path(interpreter), str(script))
    if not any("PyErr_PrintEx" in name for name in errors.functions(found)):
        pytest.skip("this interpreter has no symbols")
    assert found["attributes"]["error.message"] == "Empty: no shelf 7"
    assert found["classifiers"] == ["SIGABRT", "abort", "uncaught-exception"]
    assert "exception Empty" in found["annotations"]["fingerprint"]


def test_an_exception_of_python_that_was_handled_is_not_told(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import os\ntry:\n    raise ValueError('no')\nexcept ValueError:\n    os.abort()\n")
    found = errors.report(Path(os.path.realpath(sys.executable)), str(script))
    assert found["attributes"]["error.message"].startswith("SIGABRT")
    assert found["classifiers"] == ["SIGABRT", "abort"]


@pytest.mark.parametrize("mode", ["said", "unwrapped", "beyond", "thread"])
def test_a_panic_of_rust(rs: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line is on the stack, and the place in it is that of the panic: the numbers of threads differ."""
    monkeypatch.setenv("RUST_BACKTRACE", "0")
    wrote = _wrote(rs, mode).split("\n")
    at = next(index for index, line in enumerate(wrote) if "panicked at" in line)
    found = errors.report(rs, mode)
    first, second = found["attributes"]["error.message"].split("\n")
    assert first.partition("panicked")[2] == wrote[at].partition("panicked")[2]
    assert second == wrote[at + 1]
    assert found["classifiers"] == ["SIGABRT", "abort", "panic"]


def test_a_panic_whose_line_is_gone_is_not_made_up(rs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stack was used for something else since."""
    monkeypatch.setenv("RUST_BACKTRACE", "1")
    found = errors.report(rs, "said")
    assert found["attributes"]["error.message"].startswith("SIGABRT")
    assert found["classifiers"] == ["SIGABRT", "abort", "panic"]


# Fingerprints


def _marks(reports: list[dict[str, Any]]) -> set[str]:
    return {found["fingerprint"] for found in reports}


@pytest.mark.parametrize(
    "mode", ["asserted", "followed-null", "freed-twice", "called-garbage", "handled", "full-in-thread"]
)
def test_one_bug_has_one_fingerprint(tmp_path: Path, c: Path, mode: str) -> None:
    """Loaded elsewhere; built again from a text that has more in it, and otherwise; at another depth of the stack."""
    changed = "/* moved\n\n\n */\nint more(int n) { return n * n + 17; }\nint table[1000] = {1};\n"
    programs = [
        c,
        errors.compiled(tmp_path / "more", "errors.c", before=changed),
        errors.compiled(tmp_path / "O0", "errors.c", "-O0"),
        errors.compiled(tmp_path / "O2", "errors.c", "-O2"),
        errors.compiled(tmp_path / "O3", "errors.c", "-O3", "-fno-pie", "-no-pie", "-fomit-frame-pointer"),
    ]
    reports = [errors.report(program, mode) for program in (c, *programs)]
    build_ids = {
        module["build_id"] for one in reports for module in one["modules"] if module["path"].endswith("/errors")
    }
    assert len(build_ids) == len(programs)
    starts = [module["start"] for one in reports[:2] for module in one["modules"] if module["path"].endswith("/errors")]
    assert starts[0] != starts[1]
    assert len(_marks(reports)) == 1, [one["annotations"]["fingerprint"] for one in reports]


def test_a_static_program_has_the_fingerprint_of_the_dynamic_one(tmp_path: Path, c: Path) -> None:
    static = errors.compiled(tmp_path, "errors.c", "-static")
    for mode in ("asserted", "freed-twice", "gave-up"):
        reports = [errors.report(program, mode) for program in (c, static)]
        assert len(_marks(reports)) == 1, [one["annotations"]["fingerprint"] for one in reports]


def test_how_deep_a_recursion_was_does_not_count(c: Path) -> None:
    assert len(_marks([errors.report(c, f"deeper{depth}") for depth in (3, 4, 50)])) == 1


def test_where_in_the_round_a_stack_was_full_does_not_count(c: Path) -> None:
    """From whichever end it begins, it is full in the one or in the other."""
    found = [errors.report(c, mode) for mode in ("ping-pong", "pong-ping")]
    assert len(_marks(found)) == 1
    assert found[0]["annotations"]["fingerprint"] == ["SIGSEGV", "ping", "pong"]


def test_the_handler_of_a_signal_does_not_count(c: Path) -> None:
    for mode, signal in (("handled", "SIGSEGV"), ("handled-by-abort", "SIGSEGV"), ("handled-plainly", "SIGABRT")):
        made_of = errors.report(c, mode)["annotations"]["fingerprint"]
        assert made_of == [signal, "followed_null", mode.replace("-", "_"), "work", "main"]


def test_the_signal_that_a_handler_was_for(c: Path) -> None:
    found = errors.report(c, "handled-by-abort")
    earlier = found["annotations"]["earlier_siginfo"]
    assert (earlier["signo"], earlier["code"], earlier["address"]) == (11, 1, "0x10")
    assert found["annotations"]["siginfo"]["signo"] == 6
    assert found["attributes"]["fault.address"] == "0x10"
    message = found["attributes"]["error.message"]
    assert message.startswith("SIGABRT: sent by tgkill")
    assert message.endswith("; in the handler of SIGSEGV: address not mapped (SEGV_MAPERR) at 0x10")
    assert "earlier_siginfo" not in errors.report(c, "handled-plainly")["annotations"]
    assert "earlier_siginfo" not in errors.report(c, "followed-null")["annotations"]


def test_programs_of_which_only_their_c_library_is_sure_are_told_apart(tmp_path: Path) -> None:
    """musl has no unwind tables: what called it can only be guessed."""
    if shutil.which("musl-gcc") is None:
        pytest.skip("musl-gcc is not installed")
    found = []
    for name in ("one", "other", "one"):
        text = f"#include <stdlib.h>\n__attribute__((noipa)) void {name}(void) {{ abort(); }} int main(void) {{ {name}(); }}\n"
        (tmp_path / f"{name}.c").write_text(text)
        argv = ["musl-gcc", "-O1", "-Wl,--build-id", "-o", name, f"{name}.c"]
        subprocess.run(argv, cwd=tmp_path, check=True)
        found.append(errors.report(tmp_path / name))
    made_of = [one["annotations"]["fingerprint"] for one in found]
    assert found[0]["fingerprint"] == found[2]["fingerprint"], made_of
    assert found[0]["fingerprint"] != found[1]["fingerprint"], made_of
    assert made_of[1] == ["SIGABRT", "other"]


def test_other_bugs_have_other_fingerprints(c: Path, cc: Path) -> None:
    in_c = [
        "asserted",
        "freed-twice",
        "freed-wild",
        "smashed",
        "gave-up",
        "followed-null",
        "called-null",
        "divided",
        "endless",
    ]
    in_cc = [
        "own",
        "noexcept",
        "again",
        "kept",
        "range",
        "memory",
        "two",
        "plain",
        "number",
        "text",
        "joinable",
        "handled",
    ]
    reports = [*map(functools.partial(errors.report, c), in_c), *map(functools.partial(errors.report, cc), in_cc)]
    assert len(_marks(reports)) == len(in_c) + len(in_cc)


def test_without_symbols_it_is_the_offset_in_the_file(tmp_path: Path, c: Path) -> None:
    stripped = errors.compiled(tmp_path, "errors.c", "-s")
    found = [errors.report(stripped, "followed-null") for _ in range(2)]
    assert len(_marks(found)) == 1
    assert [name.partition("+")[0] for name in found[0]["annotations"]["fingerprint"]] == ["SIGSEGV"] + ["errors"] * 4
    assert _marks(found) != _marks([errors.report(stripped, "divided")])


def test_rebuilt_rust_has_the_same_fingerprint(tmp_path: Path, rs: Path) -> None:
    """The hash at the end of its symbols is another one."""
    more = errors.compiled(tmp_path, "errors.rs", "-Copt-level=1", "-Cmetadata=x", before="// a line\n")
    found = [errors.report(program, "said") for program in (rs, more)]
    assert len(_marks(found)) == 1, [one["annotations"]["fingerprint"] for one in found]


_FAULTY = """
#include <Python.h>
static __attribute__((noipa)) int follow(volatile int *at) { return *at; }
static __attribute__((noipa)) int overwrite(volatile int *at) { return *at = 1; }
static PyObject *read_null(PyObject *self, PyObject *none) { return PyLong_FromLong(follow((int *)8) + 1); }
static PyObject *write_null(PyObject *self, PyObject *none) { return PyLong_FromLong(overwrite((int *)8) + 1); }
static PyMethodDef methods[] = {{"read", read_null, METH_NOARGS, 0}, {"write", write_null, METH_NOARGS, 0}, {0}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "faulty", 0, -1, methods};
PyMODINIT_FUNC PyInit_faulty(void) { return PyModule_Create(&module); }
"""
_PYTHON = """
import sys, functools, threading, faulty
def inner(*_): faulty.read()
def other(*_): faulty.write()
def again(*_): faulty.read()
def deep(n): return list(map(deep, [n - 1])) if n else inner()
class New:
    def __init__(self): inner()
exec(sys.argv[1])
"""


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Python program that runs its argument, beside an extension that has two bugs."""
    directory = tmp_path_factory.mktemp("faulty")
    (directory / "it.py").write_text(_PYTHON)
    (directory / "faulty.c").write_text(_FAULTY)
    flags = subprocess.run(["/usr/bin/python3-config", "--includes"], capture_output=True, text=True, check=False)
    argv: list[str | Path] = [
        "gcc",
        "-O1",
        "-w",
        "-shared",
        "-fPIC",
        *flags.stdout.split(),
        "-o",
        directory / "faulty.so",
    ]
    if flags.returncode or subprocess.run([*argv, directory / "faulty.c"], check=False).returncode:
        pytest.skip("python3-dev is not installed")
    return directory / "it.py"


def _of_python(faulty: Path, *codes: str) -> list[dict[str, Any]]:
    return [errors.report(Path(os.path.realpath("/usr/bin/python3")), str(faulty), code) for code in codes]


def test_how_an_interpreter_came_to_call_does_not_count(faulty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "is_installed", lambda _package: False)
    ways = ("inner()", "list(map(inner, [1]))", "sorted([1, 2], key=inner)", "functools.partial(inner)()", "New()")
    found = _of_python(faulty, *ways, "deep(3)", "deep(9)", "threading.Thread(target=inner).start()")
    made_of = [one["annotations"]["fingerprint"] for one in found]
    assert made_of == [["SIGSEGV", "follow", "read_null"]] * len(found)
    assert _marks(found).isdisjoint(_marks(_of_python(faulty, "other()")))


def test_where_the_interpreter_itself_died_counts(faulty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "is_installed", lambda _package: False)
    ways = ("import os; os.abort()", "import os; list(map(lambda _: os.abort(), [1]))")
    given_up = _of_python(faulty, *ways)
    [made_of] = {tuple(one["annotations"]["fingerprint"]) for one in given_up}
    assert made_of[0] == "SIGABRT"
    assert made_of[1].startswith(("python3", "libpython3", "os_abort"))


def test_functions_of_python_count_in_place_of_its_interpreters(faulty: Path) -> None:
    if not lines.is_installed(lines.PYSTACK):
        pytest.skip("pystack is not installed for this interpreter")
    ways = ("inner()", "list(map(inner, [1]))", "sorted([1, 2], key=inner)")
    found = _of_python(faulty, *ways, "again()", "other()", "deep(3)", "deep(9)")
    made_of = [one["annotations"]["fingerprint"] for one in found]
    outer = ["python <string> <module>", "python it.py <module>"]
    assert made_of[:3] == [["SIGSEGV", "follow", "read_null", "python inner", *outer]] * 3
    assert made_of[3] == ["SIGSEGV", "follow", "read_null", "python again", *outer]
    assert made_of[4] == ["SIGSEGV", "overwrite", "write_null", "python other", *outer]
    assert made_of[5] == made_of[6] == ["SIGSEGV", "follow", "read_null", "python inner", "python deep", *outer]


def test_a_program_built_by_another_name_is_no_other_bug(tmp_path: Path, c: Path) -> None:
    """Functions have names; files may be called anything, as a version of a package is."""
    renamed = errors.compiled(tmp_path, "errors.c", name="errors-2.0")
    assert len(_marks([errors.report(program, "asserted") for program in (c, renamed)])) == 1


def test_the_schema_has_the_tables_words() -> None:
    stacks = SCHEMA["properties"]["annotations"]["properties"]["stacks"]["items"]["properties"]
    assert stacks["end"]["enum"] == list(End)
    assert stacks["found"]["items"]["enum"] == [*Found, "inlined"]
    assert SCHEMA["$defs"]["kind"]["enum"] == [kind.name for kind in KINDS]


def test_the_document_has_every_kind() -> None:
    text = (REPOSITORY / "docs" / "report.md").read_text()
    table = text.partition("## Kinds of crash")[2].partition("\n## ")[0]
    listed = [name for row in re.findall(r"^\| ([a-z, -]+) \|", table, re.MULTILINE)[1:] for name in row.split(", ")]
    assert sorted(listed) == sorted(kind.name for kind in KINDS)
