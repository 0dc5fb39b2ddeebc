# SPDX-License-Identifier: Apache-2.0
"""Cases built and crashed, on demand and once: build/corpus has them by what they were made from."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.corpus.cases import Case
from tests.crash import REPOSITORY, crash
from tests.support.site import Site

_HERE = Path(__file__).parent
_PLACE = REPOSITORY / "build" / "corpus"
_CAPTURE = REPOSITORY / "coresnap" / "capture"
_SECONDS = 120
#: Where compilers are that no distribution has put on PATH.
_MORE_PATHS = (os.path.expanduser("~/.cargo/bin"), "/usr/local/go/bin")
#: chroot(1) would change the directory, in which the kernel is to write the core.
_JAILED = "import os, sys; os.chroot(sys.argv[1]); os.execv(sys.argv[2], sys.argv[2:])"
#: What a program says on standard error in its death is not for whoever runs the tests.
_SILENT = ("/bin/sh", "-c", 'exec "$@" 2> /dev/null', "sh")
_MOUNTED = 'mount -t tmpfs corpus "$1" && cp -a "$2/." "$1" && shift 2 && exec "$@"'


class CannotBuild(Exception):
    """A compiler is missing here, or does not make this; or the program did not die."""


@dataclass(frozen=True)
class Crashed:
    """A program, its core, its asset where one was made, and what it said: the functions that it died in, innermost first.

    `program` is its executable, and `exe` the path that the process had of it.
    """

    program: Path
    core: Path
    asset: Path | None
    exe: str
    tid: int
    functions: list[str]


def crashed(case: Case) -> Crashed:
    """Return a case's crash. Raises CannotBuild."""
    program = _build(case)
    made_from: list[str | bytes] = [case.name, case.place, *case.arguments, _libc(), *(_JAILED, _MOUNTED)]
    if _is_archived(case, program):
        made_from += [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(_CAPTURE.glob("*.py"))]
    directory = (program.parents[1] if case.compiler else program.parent) / _digest(*made_from)
    with _alone(directory):
        if not (directory / "told").exists():
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            _crash(case, program, directory)
    told = json.loads((directory / "told").read_bytes())
    asset = directory / "assets.tar"
    executable = program if case.compiler else Path(told["exe"])
    return Crashed(executable, directory / "core", asset if asset.exists() else None, **told)


def _build(case: Case) -> Path:
    """Return the program of a case; an interpreter's is the interpreter."""
    source = _HERE / "programs" / case.source
    missing = [name for name in case.needs if _which(name) is None]
    if missing:
        raise CannotBuild(f"{', '.join(missing)} not installed")
    made_from: list[str | bytes] = [
        source.read_bytes(),
        *case.compiler,
        *case.side,
        *(word for words in case.after for word in words),
    ]
    if case.side:
        made_from.append((_HERE / "programs" / "side.c").read_bytes())
    place = _PLACE / _digest(*made_from)
    place.mkdir(parents=True, exist_ok=True)
    if not case.compiler:
        (place / source.name).write_bytes(source.read_bytes())
        return place / source.name
    directory = place / "built"
    with _alone(directory):
        if not directory.exists():
            _compile(case, source, directory)
    return directory / "program"


def _compile(case: Case, source: Path, directory: Path) -> None:
    """Compile where it is to lie: debug information and debug links have its path."""
    directory.mkdir()
    words = {"program": str(directory / "program"), "directory": str(directory), "source": str(source)}
    side = (*case.side, "-o", "{directory}/libside.so", str(_HERE / "programs" / "side.c"))
    main = (*case.compiler[:2], "-o", "{program}", *case.compiler[2:], "{source}")
    if case.side and "-lside" in main:  # the source before its libraries
        main = (*case.compiler[:2], "-o", "{program}", "{source}", *case.compiler[2:])
    try:
        for command in (*([side] if case.side else []), main, *case.after):
            argv = [_which(command[0]) or command[0], *(word.format(**words) for word in command[1:])]
            environment = {**os.environ, "GO111MODULE": "off", "GOFLAGS": "", "CGO_ENABLED": "0"}
            done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment, cwd=directory)
            if done.returncode:
                raise CannotBuild(f"{' '.join(argv)}: {done.stderr.strip()[-500:]}")
    except BaseException:
        shutil.rmtree(directory)
        raise


def _crash(case: Case, program: Path, directory: Path) -> None:
    """Have it die; keep what is left of it."""
    with _placed(case, program, directory) as argv:
        try:
            with crash([*_SILENT, *argv, *case.arguments], seconds=_SECONDS) as dead:
                subprocess.run(["cp", "--sparse=always", dead.core, directory / "core"], check=True)
                if _is_archived(case, program):
                    _archive(dead.core, dead.core_pattern(), directory / "assets.tar")
                told = {"exe": dead.exe, "tid": dead.tid, "functions": dead.said.get("functions", [])}
        except RuntimeError as error:
            raise CannotBuild(f"{case.name} did not die as it should: {error}") from error
    (directory / "told").write_text(json.dumps(told))


def _is_archived(case: Case, program: Path) -> bool:
    """Say whether its files cannot be had later, or cannot be known again; a Go program by the note of Go's linker."""
    files = [program, *([program.parent / "libside.so"] if case.side else [])] if case.compiler else []
    listed = [subprocess.run(["readelf", "-nW", file], capture_output=True, text=True, check=False) for file in files]
    return bool(case.place) or not all("Build ID: " in one.stdout or "GO BUILDID" in one.stdout for one in listed)


def _archive(core: Path, words: Sequence[str], asset: Path) -> None:
    """Have archive take it, as it would from the kernel, for what it keeps of the dead process."""
    with tempfile.TemporaryDirectory(prefix="coresnap-corpus-") as directory:
        site = Site(Path(directory) / "site")
        site.archive(core, *words).check_returncode()
        [(_stage, dump)] = site.dumps()
        shutil.copyfile(dump / "assets.tar", asset)


@contextmanager
def _placed(case: Case, program: Path, directory: Path) -> Iterator[list[str]]:
    """Yield the command by which the program runs in its place; what it is not to be found in later goes."""
    if not case.compiler:
        yield ["/usr/bin/python3", str(program)]
    elif not case.place:
        yield [str(program)]
    elif case.place == "copy":
        shutil.copytree(program.parent, directory / "copy")
        yield [str(directory / "copy" / "program")]
    elif os.geteuid():
        raise CannotBuild("only root makes a jail or mounts a file system")
    elif case.place == "jail":
        jail = directory / "jail"
        _furnish(jail, program)
        yield ["/usr/bin/python3", "-c", _JAILED, str(jail), "/program"]
        shutil.rmtree(jail)
    else:
        point = directory / "point"
        point.mkdir()
        inside = ["/bin/sh", "-c", _MOUNTED, "sh", str(point), str(program.parent), str(point / "program")]
        yield ["/usr/bin/unshare", "--mount", *inside]


def _furnish(jail: Path, program: Path) -> None:
    """Copy the program and what it is linked with below another root."""
    jail.mkdir()
    shutil.copy(program, jail / "program")
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    for word in listed.split():
        if word.startswith("/"):
            (jail / word[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(word, jail / word[1:])


def _which(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", os.defpath), *_MORE_PATHS)))


@cache
def _libc() -> bytes:
    """Return what tells one C library from another: a core is of one alone."""
    with open("/proc/self/maps", encoding="utf-8") as file:
        paths = {line.split()[-1] for line in file if "/libc" in line}
    return b"".join(hashlib.sha256(Path(path).read_bytes()).digest() for path in sorted(paths)) + sys.version.encode()


def _digest(*parts: str | bytes) -> str:
    data = b"".join(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest() for part in parts)
    return hashlib.sha256(data).hexdigest()[:16]


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Have nobody else build what is built here."""
    with open(f"{directory}.lock", "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
