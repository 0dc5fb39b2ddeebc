# SPDX-License-Identifier: Apache-2.0
"""`coresnap info` with reports: of real crashes, of programs that choose their texts with care, and of no sense at all."""

from __future__ import annotations

import html.parser
import json
import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from coresnap.cli import reports
from coresnap.host import debug_cache
from tests.crash import build, crash
from tests.integration.test_cli import HOSTILE, A, B, coresnap, on_a_terminal
from tests.support import errors, spools
from tests.support.site import REPOSITORY
from tests.support.spools import Made
from tests.unit.test_snapshot import report_of

MARKUP = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>\"' onload='x" + HOSTILE
_TAGS = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "main",
        "h1",
        "h2",
        "p",
        "span",
        "div",
        "pre",
        "table",
        "tr",
        "td",
    ),
    *("th", "br", "b", "details", "summary", "ul", "li"),
}
_ATTRIBUTES = {"lang", "charset", "http-equiv", "content", "name", "class", "title", "colspan"}


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return spools.make(tmp_path)


def _encoded(report: Any) -> bytes:
    return json.dumps(report).encode()


def _threads(*stacks: tuple[int, list[str]]) -> dict[str, Any]:
    """Return a report with so many threads of each stack, whose first thread crashed."""
    threads, tid = {}, 100
    for count, functions in stacks:
        for _ in range(count):
            frames = [{"funcName": name, "address": str(4096 * index + tid)} for index, name in enumerate(functions, 1)]
            threads[str(tid)] = {"name": f"n{tid}", "fault": tid == 100, "stack": frames}
            tid += 1
    return {"mainThread": "100", "threads": threads}


class _Parsed(html.parser.HTMLParser):
    """A page, taken apart as a browser would."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.names: set[str] = set()
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.names |= {name for name, _value in attrs}

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_real_crash_in_the_thread_that_crashed_first(made: Made, tmp_path: Path) -> None:
    """The functions are those that gdb prints, in the same order."""
    program = build("crash")
    with crash([program, "segv", "20"]) as crashed:
        core = crashed.core.read_bytes()
        (tmp_path / "core").write_bytes(core)
        tid = crashed.tid
    spools.add(made, "sending", A, report=_encoded(report_of(tmp_path / "core")))
    told = coresnap(made, "info", A).stdout
    gdb = ["gdb", "-nx", "-batch", "-iex", "set debuginfod enabled off", "-ex", "bt"]
    argv = [*gdb, str(program), str(tmp_path / "core")]
    listed = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    theirs = re.findall(r"^#\d+ +(?:0x[0-9a-f]+ in )?(\w+) \(", listed[listed.rindex("#0 ") :], re.MULTILINE)
    first = told[told.index(f"Thread {tid}, which crashed") :].partition("\n\n")[0]
    ours = re.findall(r"^  #\d+ +0x[0-9a-f]{16} (\w+) ", first, re.MULTILINE)
    assert [name for name in ours if "clone" not in name] == [name for name in theirs if "clone" not in name]
    assert ours[:3] == ["store", "die", "run"]
    assert told.index("which crashed") < told.index("threads: ") < told.index("History:")
    assert "Error: SIGSEGV: address not mapped (SEGV_MAPERR) at 0x" in told
    assert re.search(r"store \(crash \+ 0x1[0-9a-f]{3}\)", first)


def test_why_a_module_has_no_names(made: Made) -> None:
    modules = [{"path": "/srv/x", "missing": "its file is of another build"}, {"path": "/lib/y"}]
    spools.add(made, "sending", A, report=_encoded({"modules": modules, "annotations": {"missing": ["a thing"]}}))
    told = coresnap(made, "info", A).stdout
    assert "Not in the report: a thing; names of /srv/x: its file is of another build\n" in told
    assert "<li>names of /srv/x: its file is of another build</li>" in coresnap(made, "info", A, "--html", "-").stdout


@pytest.mark.parametrize("is_compressed", [False, True])
def test_a_new_report(made: Made, tmp_path: Path, *, is_compressed: bool) -> None:
    """It is made of the core, with the symbols that there are by now; the dump stays as it is."""
    program = tmp_path / "crash"
    program.write_bytes(build("crash").read_bytes())
    program.chmod(0o755)
    subprocess.run(["strip", "-o", tmp_path / "stripped", program], check=True)
    with crash([program, "segv", "2"]) as crashed:
        data = crashed.core.read_bytes()
        (tmp_path / "stripped").replace(program)
        stored = _encoded(report_of(crashed.core))
    core = {"size_bytes": len(data), "disk_bytes": len(data), "compressed_bytes": None, "class": 64, "truncated": None}
    spools.add(made, "committed", A, report=stored, exe=str(program), core=core)
    directory = made.path("committed", A)
    (directory / "core").write_bytes(data)
    if is_compressed:
        subprocess.run(["zstd", "-q", "--rm", directory / "core"], check=True)
    assert " store (crash + " not in coresnap(made, "info", A).stdout
    program.unlink()
    program.write_bytes(build("crash").read_bytes())
    assert " store (crash + " in coresnap(made, "info", A, "--fresh").stdout
    assert (directory / "snapshot").read_bytes() == stored


def test_a_new_report_has_the_names_of_a_cache_of_ones_own(made: Made, tmp_path: Path) -> None:
    """The debug files are where `coresnap symbols fetch --cache` has put them."""
    program = tmp_path / "crash"
    subprocess.run(["strip", "-o", program, build("crash")], check=True)
    listing = subprocess.run(["readelf", "-n", program], capture_output=True, text=True, check=True).stdout
    build_id = re.findall(r"Build ID: ([0-9a-f]+)", listing)[0]
    kept = tmp_path / "cache" / debug_cache.name_of(build_id)
    kept.parent.mkdir(parents=True)
    subprocess.run(["objcopy", "--only-keep-debug", build("crash"), kept], check=True)
    with crash([program, "segv", "2"]) as crashed:
        data = crashed.core.read_bytes()
    core = {"size_bytes": len(data), "disk_bytes": len(data), "compressed_bytes": None, "class": 64, "truncated": None}
    spools.add(made, "committed", A, exe=str(program), core=core)
    (made.path("committed", A) / "core").write_bytes(data)
    assert " store (crash + " not in coresnap(made, "info", A, "--fresh").stdout
    told = coresnap(made, "info", A, "--fresh", "--cache", os.path.relpath(tmp_path / "cache", REPOSITORY))
    assert " store (crash + " in told.stdout, told.stderr
    assert coresnap(made, "info", A, "--cache", str(tmp_path)).returncode == 2


def test_no_new_report_of_what_is_no_core(made: Made) -> None:
    spools.add(made, "committed", A)
    told = coresnap(made, "info", A, "--fresh")
    assert told.returncode == 65
    assert "no new report: exit status 65: coresnap-snapshot: " in told.stderr


def test_equal_stacks_are_printed_once(made: Made) -> None:
    """1,500 threads in three groups are three stacks, whatever their addresses."""
    report = _threads((1, ["die", "run"]), (1000, ["wait", "work", "run"]), (499, ["read", "run"]))
    spools.add(made, "sending", A, report=_encoded(report))
    told = coresnap(made, "info", A).stdout
    assert re.findall(r"#0 +0x\w+ (\w+)", told) == ["die", "wait", "read"]
    assert "Threads: 1500 in 3 stacks" in told
    assert "Thread 100 (n100), which crashed\n" in told
    assert "1000 threads: 101 (n101), 102 (n102), 103 (n103), 104 (n104) and 996 more\n" in told
    assert "\n499 threads: " in told
    page = _Parsed(coresnap(made, "info", A, "--html", "-").stdout)
    assert "1499 other threads, 2 stacks" in page.texts


def test_the_thread_that_crashed_is_first_wherever_it_stands(made: Made) -> None:
    report = _threads((1, ["one"]), (1, ["two"]))
    report["mainThread"] = "101"
    spools.add(made, "sending", A, report=_encoded(report))
    told = coresnap(made, "info", A).stdout
    assert re.findall(r"#0 +0x\w+ (\w+)", told) == ["two", "one"]


def test_rounds_of_a_recursion_are_counted(made: Made) -> None:
    rounds = ["leaf", *["ping", "pong"] * 300, "main"]
    report = _threads((1, rounds))
    report["annotations"] = {
        "stacks": [{"threads": ["100"], "end": "too many frames", "left_out": 7, "left_out_at": 401}]
    }
    spools.add(made, "sending", A, report=_encoded(report))
    told = coresnap(made, "info", A).stdout
    lines = [line.strip() for line in told[told.index("which crashed") :].split("\n\n")[0].splitlines()[1:]]
    assert [re.sub(r"0x\w+ ", "", line) for line in lines] == [
        *("#0   leaf", "#1   ping", "#2   pong", "… these 2 frames 199 times more"),
        "… 7 frames that the report does not have",
        *("#408 ping", "#409 pong", "… these 2 frames 99 times more", "#608 main"),
        "… the stack ends here: too many frames",
    ]
    assert len(re.findall(r"^  #\d", coresnap(made, "info", A, "--all").stdout, re.MULTILINE)) == 602


def test_a_stack_overflow_is_short(made: Made, tmp_path: Path) -> None:
    spools.add(made, "sending", A, report=_encoded(errors.report(errors.compiled(tmp_path, "errors.c"), "endless")))
    told = coresnap(made, "info", A).stdout
    assert "Kind: the stack was full" in told
    assert len(told.splitlines()) < 60
    assert " main (errors + 0x" in told


def test_places_in_the_source_and_marks_are_shown(made: Made) -> None:
    report = _threads((1, ["inner", "outer", "caller"]))
    inner, outer, caller = report["threads"]["100"]["stack"]
    inner |= {"sourceCode": "0", "line": 12, "column": 3, "library": "/opt/app/bin/app"}
    outer |= {"sourceCode": "0", "line": 40, "library": "/opt/app/bin/app"}
    caller |= {"guessed_frame": True}
    report["sourceCode"] = {"0": {"path": "/src/app.c"}}
    report["annotations"] = {
        "stacks": [{"threads": ["100"], "end": "bottom", "found": ["inlined", "registers", "scan"]}]
    }
    report["modules"] = [{"path": "/opt/app/bin/app", "start": "4096", "size": "65536"}]
    spools.add(made, "sending", A, report=_encoded(report))
    told = coresnap(made, "info", A).stdout
    assert "#0 0x0000000000001064 inner (app + 0x64) at /src/app.c:12 (inlined)\n" in told
    assert "#1 0x0000000000002064 outer (app + 0x1064) at /src/app.c:40\n" in told
    assert "#2 0x0000000000003064 caller (guessed)\n" in told
    page = _Parsed(coresnap(made, "info", A, "--html", "-").stdout)
    assert {"/src/app.c:12", " (inlined)", " (guessed)", "app + 0x64"} <= set(page.texts)


def test_frames_of_python_stand_below_those_of_the_interpreter(made: Made) -> None:
    report = _threads((1, ["string_at"]), (2, ["poll"]))
    python = [
        {"funcName": "read", "path": "/app/io.py", "line": 7},
        {"funcName": "<module>", "path": "/app/x.py", "line": 3},
    ]
    report |= {"lang": "python", "langVersion": "3.11", "annotations": {"python": {"100": python, "102": python[1:]}}}
    spools.add(made, "sending", A, report=_encoded(report))
    told = coresnap(made, "info", A).stdout
    assert "Runtime: python 3.11\n" in told
    assert "  Python: read at /app/io.py:7\n  Python: <module> at /app/x.py:3\n\nThread 101" in told
    assert "Thread 102 (n102)\n" in told, "its stack is another one than 101's"
    page = _Parsed(coresnap(made, "info", A, "--html", "-").stdout)
    assert {"<module>", "/app/io.py:7"} <= set(page.texts)


def _hostile() -> dict[str, Any]:
    report = _threads((1, [MARKUP, "x"]), (2, [MARKUP]))
    for thread in report["threads"].values():
        thread["name"] = MARKUP
        for frame in thread["stack"]:
            frame |= {"library": MARKUP, "sourceCode": MARKUP, "line": 7, "registers": {MARKUP: "7"}}
    report["sourceCode"] = {MARKUP: {"path": MARKUP}}
    report["classifiers"] = [MARKUP, "abort"]
    report |= {"fingerprint": MARKUP, "lang": MARKUP, "langVersion": MARKUP}
    report["attributes"] = {"error.message": f"{MARKUP}\n{MARKUP}", MARKUP: MARKUP}
    report["modules"] = [{"path": MARKUP, "start": "1", "size": "2", "build_id": MARKUP, "package": {"name": MARKUP}}]
    stacks = [{"threads": ["100"], "end": MARKUP, "detail": MARKUP, "found": [MARKUP]}]
    report["annotations"] = {
        **{"stacks": stacks, "missing": [MARKUP], "environment": {MARKUP: MARKUP}, "fingerprint": [MARKUP]},
        "siginfo": {"name": MARKUP},
        "python": {"100": [{"funcName": MARKUP, "path": MARKUP, "line": 7}]},
    }
    report["memory"] = [{"start": "4096", "size": 12, "data": "PHNjcmlwdD4mIjwnIg=="}]
    return report


def test_no_text_of_a_report_reaches_a_terminal_or_a_browser_unescaped(made: Made) -> None:
    """A report with markup and controls wherever a text may stand; the record has them as well."""
    texts = {"comm": MARKUP, "exe": f"/bin/{MARKUP}", "cmdline": MARKUP, "hostname": MARKUP}
    spools.add(made, "sending", A, report=_encoded(_hostile()), failure={"reason": MARKUP, "detail": MARKUP}, **texts)
    for shown in (coresnap(made, "info", A).stdout, on_a_terminal(made, "info", A, NO_COLOR="1")[1]):
        assert "alert(1)" in shown
        assert not [character for character in shown if not character.isprintable() and character not in "\r\n"]
    done = coresnap(made, "info", A, "--html", "-")
    assert (done.returncode, done.stderr) == (0, "")
    assert not [character for character in done.stdout if not character.isprintable() and character != "\n"]
    page = _Parsed(done.stdout)
    assert page.tags <= _TAGS
    assert page.names <= _ATTRIBUTES
    shown = " ".join(page.texts)
    assert shown.count("<script>alert(1)</script>") >= 15, "what the report says is shown, as text"
    assert '<script>&"<' in shown, "in the memory"


def test_a_page_needs_nothing_else(made: Made) -> None:
    spools.add(made, "sending", A, report=_encoded(_threads((1, ["main"]))))
    page = coresnap(made, "info", A, "--html", "-").stdout
    assert "default-src 'none'" in page
    assert not re.findall(r"<script|<link|<img|\bsrc=|\bhref=|url\(|@import", page)
    assert "prefers-color-scheme: dark" in page


def test_a_page_is_a_new_file_of_its_owners(made: Made, tmp_path: Path) -> None:
    spools.add(made, "sending", A, report=_encoded(_threads((1, ["main"]))))
    spools.add(made, "pending", B)
    path = tmp_path / "page.html"
    assert coresnap(made, "info", A, "--html", path).returncode == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text().startswith("<!doctype html>")
    again = coresnap(made, "info", A, "--html", path)
    assert (again.returncode, again.stderr) == (69, f"coresnap: {path} exists: name a new file\n")
    assert coresnap(made, "info", A, "--html", tmp_path / "none" / "page").returncode == 69
    full = coresnap(made, "info", A, "--html", "/dev/full")
    assert full.returncode == 69
    none = coresnap(made, "info", B, "--html", tmp_path / "other")
    assert none.returncode == 69
    assert "has no report to show" in none.stderr
    assert not (tmp_path / "other").exists()


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path to every value in a document."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in children for place in _places(child, (*path, key)))]


def test_a_report_of_no_sense_is_shown_as_far_as_it_has_any() -> None:
    """Each value in its turn is of another type."""
    from coresnap.cli import page, stacks

    whole = json.loads(json.dumps(_hostile()))
    count = 0
    for place in _places(whole):
        wrong: Any
        for wrong in (None, [], {}, 1.5, -1, True, "x", [[]], {"x": {}}, 2**70, str(2**70)):
            document = json.loads(json.dumps(whole))
            if place:
                inner = document
                for key in place[:-1]:
                    inner = inner[key]
                inner[place[-1]] = wrong
            else:
                document = wrong
            report = reports.parse(_encoded(document))
            assert (report is None) == (not isinstance(document, dict))
            if report is not None:
                assert page.page("x", [], report).endswith("</html>\n")
                assert all(isinstance(line, str) for line in stacks.lines(report, whole=True))
            count += 1
    assert count > 500
