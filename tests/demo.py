# SPDX-License-Identifier: Apache-2.0
"""make demo: a real program dies of a real SIGSEGV, and its dump goes all the way, through the real programs.

Nothing of the machine is changed: the program runs under a tracer that holds it in its death (tests/crash), as the kernel
would hold it for archive. What is delivered in the end is held against what the program said before it died.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from coresnap.ground.text import human_bytes
from tests.crash import Crash, crash, victim
from tests.support.site import REPOSITORY, Site

_THREADS = 5
_BOLD, _GREEN = "1", "32"
_PLACE = REPOSITORY / "build" / "demo"


class Mismatch(Exception):
    """What was delivered is not what happened, or nothing was."""


def paint(text: str, colour: str) -> str:
    """Return the text in a colour (an SGR number) where standard output is a terminal that may have it."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty()
    return text if plain else f"\x1b[{colour}m{text}\x1b[m"


def title(text: str) -> None:
    """Print what happens next."""
    print(f"\n{paint(text, _BOLD)}", flush=True)


def passed_on(name: str, done: subprocess.CompletedProcess[str]) -> None:
    """Print what one of coresnap's programs said. Raises Mismatch where it failed."""
    for line in (done.stdout + done.stderr).splitlines():
        print(f"  {line}", flush=True)
    if done.returncode:
        raise Mismatch(f"{name} ended with {done.returncode}")


def shown(site: Site, stage: str) -> Path:
    """Print where the dump is and what is in it; return its directory. Raises Mismatch unless it is in that stage."""
    found = list(site.dumps())
    if [where for where, _path in found] != [stage]:
        raise Mismatch(f"one dump was expected in {stage}; there is {[where for where, _path in found]}")
    path = found[0][1]
    files = ", ".join(f"{file.name} {human_bytes(file.stat().st_size)}" for file in sorted(path.iterdir()))
    print(f"  {stage}/{path.name}\n    {files}", flush=True)
    return path


def check(name: str, delivered: Any, said: Any) -> None:
    """Hold one fact of the report against what the program said before it died."""
    if delivered != said:
        raise Mismatch(f"{name}: the report has {delivered!r}, the program said {said!r}")
    text = ", ".join(delivered) if isinstance(delivered, list) else delivered
    print(f"  {paint('same', _GREEN)}  {name:16}{text}", flush=True)


def compare(report: dict[str, Any], said: dict[str, Any]) -> None:
    """Hold the report against what the program said before it died."""
    threads = report["threads"].values()
    (faulting,) = (thread for thread in threads if thread["fault"])
    check("signal", report["attributes"]["signal.name"], signal.Signals(said["signal"]).name)
    check("si_code", report["annotations"]["siginfo"]["code"], said["code"])
    check("fault address", report["attributes"]["fault.address"], said["address"])
    if said["instruction"]:
        check("instruction", hex(int(faulting["stack"][0]["address"], 0)), said["instruction"])
    check("process", report["attributes"]["process.id"], said["pid"])
    check("faulting thread", int(report["mainThread"]), said["tid"])
    check("its name", faulting["name"], said["name"])
    check("thread count", len(threads), said["threads"])
    check("thread names", sorted(thread["name"] for thread in threads), [f"worker-{n}" for n in range(_THREADS)])


def show_stack(report: dict[str, Any], said: list[str]) -> None:
    """Print the stack of the thread that died; hold its innermost functions against those that the program said it was in."""
    stack = report["threads"][report["mainThread"]]["stack"]
    for number, frame in enumerate(stack):
        name = frame.get("funcName", "?")
        if said[number : number + 1] not in ([], [name]):
            raise Mismatch(f"frame {number}: the report has {name}, the program said {said[number]}")
        mark = paint("same", _GREEN) if number < len(said) else "    "
        place = os.path.basename(frame.get("library", "")) or "no file"
        print(f"  {mark}  #{number:<2} {int(frame['address'], 0):#018x} {paint(name, _BOLD)} ({place})", flush=True)
    if len(stack) < len(said):
        raise Mismatch(f"the report has {len(stack)} frames, the program said {said}")


def tell(crashed: Crash) -> None:
    """Print what happened."""
    said = crashed.said
    by = {"kernel": "the kernel", "gdb": "gdb"}[crashed.origin]
    print(f"  process {said['pid']} says: thread {said['tid']} ({said['name']}) touches {said['address']}")
    print(f"  its core, written by {by}: {human_bytes(crashed.core.stat().st_size)}", flush=True)


def demo(directory: Path) -> str:
    """Go the whole way; return the UUID of the dump that was delivered."""
    program = victim()
    mode = "null" if len(program) > 1 else "segv"  # Python without a compiler knows one death only
    site = Site(directory / "site")

    title(f"A program with {_THREADS} threads dies of SIGSEGV, and is held in its death")
    with crash([*program, mode, str(_THREADS)]) as crashed:
        tell(crashed)
        title("archive takes its core, and what /proc tells of it")
        passed_on("archive", site.archive(crashed.core, *crashed.core_pattern()))
        shown(site, "pending")
    title("process makes a snapshot of it")
    passed_on("process", site.run("process", "--once"))
    shown(site, "sending")
    title("send delivers the snapshot")
    passed_on("send", site.run("send", "--once"))
    path = shown(site, "committed")

    title("What was delivered, and what the program said before it died")
    receipt = json.loads((path / "receipt.json").read_bytes())
    report = json.loads((site.store / receipt["object"]).read_bytes())
    try:
        compare(report, crashed.said)
        title("The stack of the thread that died, and the functions that it said it was in")
        show_stack(report, crashed.said.get("functions", []))
    except KeyError as error:
        raise Mismatch(f"the report has no {error}") from error
    return path.name


@contextmanager
def _directory(place: Path | None) -> Iterator[Path]:
    """Give the demo an empty directory: `place`, which stays, or one that goes with the context."""
    if place is None:
        with tempfile.TemporaryDirectory(prefix="coresnap-demo-") as directory:
            yield Path(directory)
        return
    if place.exists():
        shutil.rmtree(place)
    place.mkdir(parents=True)
    yield place


def main(place: Path | None = None) -> int:
    """Run the demo; return its exit status. What it made stays in `place`, if one is given."""
    print("A real crash, all the way to a store. No setting of this machine is changed.", flush=True)
    try:
        with _directory(place) as directory:
            started = time.monotonic()
            uuid = demo(directory)
            seconds = time.monotonic() - started
    except (Mismatch, RuntimeError, OSError, ValueError, subprocess.SubprocessError) as error:
        said = f": {error.stderr.strip()}" if isinstance(error, subprocess.CalledProcessError) and error.stderr else ""
        print(f"\ndemo: {error}{said}", file=sys.stderr)
        return 1
    if place:
        settings = os.path.relpath(place / "site" / "coresnap.conf")
        print(f"\nLook around: {sys.executable} -m coresnap.cli --settings {settings} info {uuid[:8]}")
    print(f"delivered {uuid} in {seconds:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(_PLACE))
