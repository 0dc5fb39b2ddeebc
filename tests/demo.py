# SPDX-License-Identifier: Apache-2.0
"""make demo: a real program dies of a real SIGSEGV, and its dump goes all the way, through the real programs.

Nothing of the machine is changed: the program runs under a tracer that holds it in its death (tests/crash), as the kernel
would hold it for archive.
"""

from __future__ import annotations

import getpass
import grp
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from coresnap.ground.program import argv_of
from coresnap.ground.text import human_bytes
from coresnap.spool.stages import STAGES
from tests.crash import Crash, build, crash

_COLOUR = sys.stdout.isatty() and "NO_COLOR" not in os.environ
_THREADS = 5


class Mismatch(Exception):
    """What was delivered is not what happened."""


def title(text: str) -> None:
    """Print what happens next."""
    print(f"\n\x1b[1m{text}\x1b[0m" if _COLOUR else f"\n{text}", flush=True)


def run(*argv: str, stdin: Path | None = None) -> None:
    """Run one of coresnap's programs; what it says is shown."""
    with open(stdin or os.devnull, "rb") as source:
        done = subprocess.run(
            argv, stdin=source, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True, check=False
        )
    for line in done.stdout.splitlines():
        print(f"  {line}")
    if done.returncode:
        raise Mismatch(f"{Path(argv[-1] if argv[0] == sys.executable else argv[0]).name} ended with {done.returncode}")


def dumps(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield the stage and the directory of each dump."""
    for stage in STAGES:
        for path in sorted((root / stage).iterdir()):
            yield stage, path


def show(root: Path) -> tuple[str, Path]:
    """Print where the dump is, and what is in it; return that."""
    found = list(dumps(root))
    if len(found) != 1:
        raise Mismatch(f"{len(found)} dumps in the spool, 1 expected")
    stage, path = found[0]
    files = ", ".join(f"{file.name} {human_bytes(file.stat().st_size)}" for file in sorted(path.iterdir()))
    print(f"  {stage}/{path.name}\n    {files}", flush=True)
    return stage, path


def check(name: str, delivered: Any, said: Any) -> None:
    """Hold one fact of the report against what the program said before it died."""
    if delivered != said:
        raise Mismatch(f"{name}: the report has {delivered!r}, the program said {said!r}")
    print(f"  {name:14} {delivered}")


def compare(report: dict[str, Any], crashed: Crash) -> None:
    """Hold the report against what the program said before it died."""
    said, threads = crashed.said, report["threads"]
    check("fault address", report["attributes"]["fault.address"], said["address"])
    check("si_code", report["annotations"]["siginfo"]["code"], said["code"])
    check("signal", report["classifiers"], ["SIGSEGV"])
    check("threads", len(threads), said["threads"])
    faulting = [thread["name"] for thread in threads.values() if thread["fault"]]
    check("faulting", faulting, [said["name"]])
    check(
        "thread names", sorted(thread["name"] for thread in threads.values()), [f"worker-{i}" for i in range(_THREADS)]
    )


def demo(directory: Path) -> str:
    """Go the whole way; return the UUID of the dump that was delivered."""
    root, store = directory / "spool", directory / "store"
    settings, compiled = directory / "coresnap.conf", directory / "archive.settings"
    group = grp.getgrgid(os.getgid()).gr_name
    settings.write_text(
        f"dump.root = {root}\ndump.user = {getpass.getuser()}\ndump.group = {group}\ndump.quota = 1%\n"
        f"send.store = file:{store}\nsend.coroner = {directory}/coroner.cf\n"
    )
    print(f"coresnap's settings, spool and store are in {directory}")
    run(sys.executable, "-m", "coresnap.daemon", "--prepare", "--settings", str(settings), "--compiled", str(compiled))

    title(f"A program with {_THREADS} threads dies of SIGSEGV")
    with crash([build("crash"), "segv", str(_THREADS)]) as crashed:
        size = human_bytes(crashed.core.stat().st_size)
        print(f"  it said: {json.dumps(crashed.said)}\n  its core, by the {crashed.origin}: {size}", flush=True)
        title("archive takes its core, while it is held")
        archive = str(Path(argv_of("archive")[-1]))
        run(
            "/usr/bin/python3", "-IS", archive, "--settings", str(compiled), *crashed.core_pattern(), stdin=crashed.core
        )
        show(root)
    title("process makes a snapshot of it")
    run(sys.executable, "-m", "coresnap.process", "--settings", str(settings), "--once")
    show(root)
    title("send delivers the snapshot")
    run(sys.executable, "-m", "coresnap.send", "--settings", str(settings), "--once")
    stage, path = show(root)
    if stage != "committed":
        raise Mismatch(f"the dump is in {stage}")

    title("What the store has, held against what the program said")
    receipt = json.loads((path / "receipt.json").read_text())
    report = json.loads((store / receipt["object"]).read_text())
    compare(report, crashed)
    print(f"  {'died of':14} {report['attributes']['error.message']}")
    return path.name


def main() -> int:
    """Run the demo; return its exit status."""
    started = time.monotonic()
    os.chdir(Path(__file__).parents[1])
    try:
        with tempfile.TemporaryDirectory(prefix="coresnap-demo-") as directory:
            uuid = demo(Path(directory))
    except (Mismatch, RuntimeError) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    print(f"\ndelivered {uuid} in {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
