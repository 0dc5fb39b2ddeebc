# SPDX-License-Identifier: Apache-2.0
"""What runtime a process was: programs of several languages that really crash, and names of files that others have."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from coresnap.snapshot.core import open_core
from coresnap.snapshot.images import Images
from coresnap.snapshot.modules import Module, Modules, list_modules
from coresnap.snapshot.runtimes import Runtime, hint, identify
from tests.crash import build, crash
from tests.unit.test_snapshot import report_of

_CRASH_PY = "import ctypes; ctypes.string_at(0)"


def _runtime(argv: list[str | Path], *, root: str = "") -> Runtime:
    with crash(argv) as crashed, crashed.core.open("rb") as file:
        core = open_core(file.fileno())
        images = Images(core, {}, root=root)
        try:
            return identify(core, list_modules(core), images)
        finally:
            images.close()


def _tool(name: str, *more: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(map(os.path.expanduser, more)))
    if not found:
        pytest.skip(f"{name} is not installed")
    return found


def test_c_and_cxx(tmp_path: Path) -> None:
    assert _runtime([build("crash"), "null", "1"]) == Runtime("", "", "c")
    (tmp_path / "it.cc").write_text("#include <string>\nint main() { throw std::string(); }\n")
    subprocess.run([_tool("g++"), "it.cc", "-o", "it"], cwd=tmp_path, check=True)
    assert _runtime([tmp_path / "it"]) == Runtime("", "", "c++")


def test_python() -> None:
    interpreter = os.path.realpath("/usr/bin/python3")
    version = os.path.basename(interpreter).removeprefix("python")
    assert _runtime([interpreter, "-c", _CRASH_PY]) == Runtime("CPython", version, "python")


def test_go(tmp_path: Path) -> None:
    (tmp_path / "it.go").write_text("package main\nfunc main() { var p *int; *p = 1 }\n")
    environment = os.environ | {"GOCACHE": str(tmp_path / "cache"), "HOME": str(tmp_path), "GOFLAGS": "-mod=mod"}
    subprocess.run([_tool("go"), "build", "-o", "it", "it.go"], cwd=tmp_path, env=environment, check=True)
    version = subprocess.run(["go", "version"], capture_output=True, text=True, check=True, env=environment).stdout
    argv: list[str | Path] = ["/usr/bin/env", "GOTRACEBACK=crash", tmp_path / "it"]
    found = _runtime(argv)
    assert found == Runtime("Go", version.split()[2].removeprefix("go"), "go")
    assert _runtime(argv, root=str(tmp_path)) == Runtime("Go", "", "go"), "its note is in the core"


def test_rust(tmp_path: Path) -> None:
    (tmp_path / "it.rs").write_text("fn main() { std::process::abort() }\n")
    compiler = _tool("rustc", "~/.cargo/bin")
    subprocess.run([compiler, "it.rs", "-o", "it"], cwd=tmp_path, check=True)
    found = _runtime([tmp_path / "it"])
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    assert found == Runtime("", version, "rust")


@pytest.mark.parametrize(
    ("path", "runtime"),
    [
        ("/usr/lib/jvm/java-17-openjdk-amd64/lib/server/libjvm.so", Runtime("JVM", "17", "java")),
        ("/opt/jdk-21.0.2/lib/server/libjvm.so", Runtime("JVM", "21.0.2", "java")),
        ("/opt/app/libjvm.so (deleted)", Runtime("JVM", "", "java")),
        ("/usr/lib/x86_64-linux-gnu/libnode.so.108", Runtime("Node.js", "", "nodejs")),
        ("/usr/lib/libpython3.12.so.1.0", Runtime("CPython", "3.12", "python")),
        ("/usr/lib/libpython3.13t.so", Runtime("CPython", "3.13", "python")),
        ("/usr/lib/libruby-3.1.so.3.1", Runtime("Ruby", "3.1", "ruby")),
        ("/usr/lib/libperl.so.5.36", Runtime("Perl", "5.36", "perl")),
        ("/usr/share/dotnet/shared/Microsoft.NETCore.App/8.0.1/libcoreclr.so", Runtime(".NET", "", "csharp")),
        ("/usr/lib/libnodesomething.so", Runtime("", "", "c")),
    ],
)
def test_by_the_names_of_files(path: str, runtime: Runtime, tmp_path: Path) -> None:
    with crash([build("crash"), "null", "1"]) as crashed, crashed.core.open("rb") as file:
        core = open_core(file.fileno())
        listed = Modules([*list_modules(core).listed, Module(path, 0x1000, 0x2000, 0x1000)], [])
        assert identify(core, listed, Images(core, {})) == runtime
        assert identify(core, Modules([], []), Images(core, {})) == Runtime("", "", "c")
        nowhere = core._replace(notes=copy.copy(core.notes))
        nowhere.notes.auxv = {}
        assert identify(nowhere, listed, Images(core, {})) == runtime


def test_what_a_go_program_is_told() -> None:
    go = Runtime("Go", "1.22", "go")
    assert "GOTRACEBACK=crash" in hint(go, {"PATH": "/bin"})
    assert "GOTRACEBACK=crash" in hint(go, {"GOTRACEBACK": "all"})
    assert hint(go, {"GOTRACEBACK": "crash"}) == hint(go, {}) == hint(Runtime("", "", "c"), {"PATH": "/bin"}) == ""


def test_the_interpreter_of_the_tests_is_what_it_is() -> None:
    assert _runtime([os.path.realpath(sys.executable), "-c", _CRASH_PY]).lang == "python"


_JAVA = """
public class It {
    public static void main(String[] a) throws Exception {
        var field = sun.misc.Unsafe.class.getDeclaredField("theUnsafe");
        field.setAccessible(true);
        ((sun.misc.Unsafe) field.get(null)).putAddress(0, 0);
    }
}
"""


def _functions(report: dict[str, Any]) -> list[str]:
    return [frame.get("funcName", "") for frame in report["threads"][report["mainThread"]]["stack"]]


def test_node_js() -> None:
    node = os.path.realpath(_tool("node"))
    with crash([node, "-e", "process.abort()"]) as crashed:
        report = report_of(crashed.core)
    assert (report["lang"], report["attributes"]["runtime"]) == ("nodejs", "Node.js")
    names = [function.partition("(")[0] for function in _functions(report)]
    assert names.index("abort") < names.index("node::Abort") < names.index("node::Start")


def test_a_jvm(tmp_path: Path) -> None:
    java = os.path.realpath(_tool("java"))
    (tmp_path / "It.java").write_text(_JAVA)
    log = tmp_path / "hs.log"
    try:
        with crash([java, "-Xmx64m", f"-XX:ErrorFile={log}", tmp_path / "It.java"]) as crashed:
            report = report_of(crashed.core)
    except RuntimeError as error:
        pytest.skip(f"no JVM that runs a source: {error}")
    version = subprocess.run([java, "-version"], capture_output=True, text=True, check=True).stderr.split('"')[1]
    assert report["lang"] == "java"
    assert report["attributes"]["runtime"].startswith("JVM")
    assert version.startswith(report["langVersion"].replace("unknown", ""))
    names = [function.partition("(")[0] for function in _functions(report)]
    assert names.index("VMError::report_and_die") < names.index("JVM_handle_linux_signal")
    assert "Unsafe_PutLong" in log.read_text()
    assert "Unsafe_PutLong" in names
