# SPDX-License-Identifier: Apache-2.0
"""Debug files from a server: a real one on loopback, one that lies, one that is not there; and names that come of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from coresnap.cli import debug
from coresnap.host import debug_cache
from coresnap.host.debug_cache import Cache
from coresnap.snapshot import images
from coresnap.snapshot.core import open_core
from coresnap.snapshot.images import Images
from coresnap.snapshot.modules import list_modules
from coresnap.snapshot.names import Names
from tests.crash import crash
from tests.support.site import REPOSITORY, Site, kept_core

_SOURCE = """
static __attribute__((noinline)) int deep(volatile int *at) { return *at = 1; }
int main(void) { return deep(0) + 1; }
"""


@dataclass
class _Server:
    """A debuginfod of these answers: status, body, and the length that is claimed."""

    url: str
    answers: dict[str, tuple[int, bytes, int]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def has(self, build_id: str, body: bytes, *, status: int = 200, claims: int = -1) -> None:
        self.answers[f"/buildid/{build_id}/debuginfo"] = (status, body, len(body) if claims < 0 else claims)


@pytest.fixture
def server() -> Iterator[_Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known.asked.append(self.path)
            status, body, length = known.answers.get(self.path, (404, b"", 0))
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        known = _Server(f"http://127.0.0.1:{listener.server_port}")
        thread = threading.Thread(target=listener.serve_forever)
        thread.start()
        yield known
        listener.shutdown()
        thread.join()


@dataclass(frozen=True)
class _Dump:
    site: Site
    uuid: str
    path: Path
    build_id: str
    debug: bytes
    cache: Path


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, str, Path, str, bytes]:
    """A dump of a stripped program's crash, all the way to the store."""
    directory = tmp_path_factory.mktemp("fetch")
    (directory / "deep.c").write_text(_SOURCE)
    subprocess.run(["gcc", "-g", "-O1", "-Wl,--build-id", "deep.c", "-o", "deep"], cwd=directory, check=True)
    subprocess.run(["objcopy", "--only-keep-debug", "deep", "deep.debug"], cwd=directory, check=True)
    subprocess.run(["strip", "deep"], cwd=directory, check=True)
    site = Site(directory / "site")
    with crash([directory / "deep"]) as crashed:
        site.archive(crashed.core, *crashed.core_pattern()).check_returncode()
    site.once().check_returncode()
    [(stage, path)] = site.dumps()
    assert stage == "committed"
    listing = subprocess.run(["readelf", "-n", directory / "deep"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"Build ID: ([0-9a-f]+)", listing)
    assert found
    return site, path.name, path, found[1], (directory / "deep.debug").read_bytes()


@pytest.fixture
def dump(committed: tuple[Site, str, Path, str, bytes], tmp_path: Path) -> _Dump:
    (tmp_path / "cache").mkdir()
    return _Dump(*committed, tmp_path / "cache")


def _symbols(
    dump: _Dump, *arguments: str, urls: str = "", lines: str = "", settings: str = ""
) -> subprocess.CompletedProcess[str]:
    file = dump.site.settings
    if settings:
        file = dump.cache.parent / "other.conf"
        file.write_text(dump.site.settings.read_text() + settings)
    argv = [sys.executable, "-m", "coresnap.cli", "--settings", str(file), "symbols", *arguments]
    environment = {**os.environ, "DEBUGINFOD_URLS": urls, "no_proxy": "*"}
    argv += ["--cache", str(dump.cache)]
    return subprocess.run(
        argv, cwd=REPOSITORY, env=environment, input=lines, capture_output=True, text=True, check=False, timeout=60
    )


def _files(dump: _Dump) -> list[str]:
    return sorted(str(path.relative_to(dump.cache)) for path in dump.cache.rglob("*") if path.is_file())


def _name(dump: _Dump) -> str:
    """Return what the innermost frame is called, with the cache and the program alone."""
    core_file = dump.cache.parent / "core"
    core_file.write_bytes(kept_core(dump.path))
    with core_file.open("rb") as file:
        core = open_core(file.fileno())
        found = Images(core, {}, [str(dump.cache)])
        address = core.notes.threads[0].registers()[core.machine.program_counter]
        module = list_modules(core).find(address)
        name = Names(found).name(module, address) if module else None
        found.close()
    return name.function if name else ""


def test_a_debug_file_is_fetched_and_names_what_had_no_name(dump: _Dump, server: _Server) -> None:
    server.has(dump.build_id, dump.debug)
    assert _name(dump) == ""
    done = _symbols(dump, "fetch", dump.uuid[:8], urls=f"ima:enforcing {server.url}/ http://127.0.0.1:1")
    name = f".build-id/{dump.build_id[:2]}/{dump.build_id[2:]}.debug"
    assert f"{dump.build_id}: " in done.stdout, done.stderr
    assert name in _files(dump)
    assert (dump.cache / name).read_bytes() == dump.debug
    assert (dump.cache / name).stat().st_mode & 0o777 == 0o644
    assert _name(dump) == "deep"
    asked = len(server.asked)
    again = _symbols(dump, "fetch", dump.uuid[:8], urls=server.url)
    assert f"/buildid/{dump.build_id}/debuginfo" not in server.asked[asked:], "what is there is not fetched again"
    assert "there already" in again.stderr


def test_the_debugger_finds_them(dump: _Dump, server: _Server, tmp_path: Path) -> None:
    server.has(dump.build_id, dump.debug)
    exe = json.loads((dump.path / "dump.json").read_text())["victim"]["exe"]
    (tmp_path / "core").write_bytes(kept_core(dump.path))

    def shown() -> str:
        argv = debug._argv("/usr/bin/gdb", exe, str(tmp_path / "core"), ["-batch", "-ex", "bt"], str(dump.cache))
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

    assert "deep (" not in shown()
    _symbols(dump, "fetch", dump.uuid, urls=server.url)
    assert "deep (" in shown()
    assert "deep.c:" in shown()


def test_what_no_server_has_is_said_and_remembered(dump: _Dump, server: _Server) -> None:
    done = _symbols(dump, "fetch", "-", urls=server.url, lines=f"{dump.build_id}\n../../etc\n\n")
    assert done.returncode == 69
    assert f"{dump.build_id}: no server has it: 1 asked: {server.url}" in done.stderr
    assert server.asked == [f"/buildid/{dump.build_id}/debuginfo"]
    assert _symbols(dump, "fetch", "-", urls=server.url, lines=dump.build_id).returncode == 0
    assert len(server.asked) == 1, "the timer's unit asks but once a day"
    os.utime(dump.cache / ".build-id" / dump.build_id[:2] / f"{dump.build_id[2:]}.none", (0, 0))
    assert _symbols(dump, "fetch", "-", urls=server.url, lines=dump.build_id).returncode == 69
    assert len(server.asked) == 2


@pytest.mark.parametrize("case", ["another build", "no ELF", "empty", "cut", "too large", "larger than it says", "500"])
def test_what_is_not_the_debug_file_is_not_kept(dump: _Dump, server: _Server, case: str) -> None:
    other = bytearray(dump.debug)
    at = other.index(bytes.fromhex(dump.build_id))
    other[at] ^= 1
    most = "" if "larger" not in case and "too" not in case else "symbols.max_bytes = 1M\n"
    large = dump.debug.ljust(3 << 20, b"\0")
    body, claims, status, line = {
        "another build": (bytes(other), -1, 65, "the file that came is of build-id"),
        "no ELF": (b"<html>" * 100, -1, 65, "no ELF file"),
        "empty": (b"", -1, 65, "no ELF file"),
        "cut": (dump.debug[:2000], len(dump.debug), 75, f"2000 of {len(dump.debug)} bytes came"),
        "too large": (large, -1, 65, "more than 1048576 bytes"),
        "larger than it says": (large, 10, 65, "no ELF file"),
        "500": (b"", -1, 75, "500"),
    }[case]
    server.has(dump.build_id, body, claims=claims, status=500 if case == "500" else 200)
    done = _symbols(dump, "fetch", "-", urls=server.url, lines=dump.build_id, settings=most)
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert line in done.stderr
    assert done.stderr.count("\n") == 1
    assert _files(dump) == []


def test_a_server_that_is_down_is_no_reason_not_to_ask_the_next_one(dump: _Dump, server: _Server) -> None:
    down = "http://127.0.0.1:1"
    done = _symbols(dump, "fetch", "-", urls=down, lines=dump.build_id)
    assert done.returncode == 75
    assert "127.0.0.1:1/buildid/" in done.stderr
    assert done.stderr.endswith("debuginfo: Connection refused\n")
    server.has(dump.build_id, dump.debug)
    done = _symbols(dump, "fetch", "-", lines=dump.build_id, settings=f"symbols.urls = {down} {server.url}\n")
    assert done.returncode == 0, done.stderr


def test_without_a_server_it_says_what_to_set(dump: _Dump) -> None:
    done = _symbols(dump, "fetch", "-", lines=dump.build_id)
    assert done.returncode == 78
    assert "set symbols.urls, or DEBUGINFOD_URLS" in done.stderr
    assert _symbols(dump, "fetch").returncode == 2


def test_what_is_wanted_is_what_frames_are_in(dump: _Dump, server: _Server) -> None:
    done = _symbols(dump, "wanted")
    assert done.returncode == 0
    assert dump.build_id in done.stdout.split()
    report = json.loads((dump.path / "snapshot").read_bytes())
    in_frames = {frame.get("debug_identifier") for thread in report["threads"].values() for frame in thread["stack"]}
    assert set(done.stdout.split()) <= in_frames
    server.has(dump.build_id, dump.debug)
    _symbols(dump, "fetch", "-", urls=server.url, lines=done.stdout)
    assert dump.build_id not in _symbols(dump, "wanted").stdout


def test_what_is_wanted_needs_no_cache(dump: _Dump) -> None:
    dump.cache.rename(dump.cache.with_name("elsewhere"))
    assert dump.build_id in _symbols(dump, "wanted").stdout.split()


def test_all_modules(dump: _Dump, server: _Server) -> None:
    _symbols(dump, "fetch", "--all", dump.uuid, urls=server.url)
    report = json.loads((dump.path / "snapshot").read_bytes())
    ids = {
        module["build_id"] for module in report["modules"] if module["path"].startswith("/") and "build_id" in module
    }
    there = {one for one in ids if (Path("/usr/lib/debug") / debug_cache.name_of(one)).exists()}
    assert {path.split("/")[2] for path in server.asked} == ids - there


def test_the_cache_makes_room_and_forgets_what_was_left(dump: _Dump) -> None:
    cache = Cache(str(dump.cache))
    files = []
    for number in range(3):
        build_id = f"{number:02x}" * 20
        forged = dump.debug.replace(bytes.fromhex(dump.build_id), bytes.fromhex(build_id))
        with cache.new_file(build_id) as fd:
            os.write(fd, forged)
        files.append(dump.cache / debug_cache.name_of(build_id))
        os.utime(files[-1], (1000 + number, 1000 + number))
    left = files[0].parent / ".killed.debug.77"
    left.write_bytes(b"x")
    os.utime(left, (0, 0))
    assert cache.make_room(1 << 30) == []
    assert not left.exists()
    assert cache.make_room(2 * files[0].stat().st_blocks * 512) == ["00" * 20]
    assert [file.exists() for file in files] == [False, True, True]
    cache.close()


def test_the_snapshot_looks_where_they_are_put() -> None:
    assert images.DEBUG_DIRECTORIES == (debug_cache.SYSTEM, debug_cache.PATH)
