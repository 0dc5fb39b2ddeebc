# SPDX-License-Identifier: Apache-2.0
"""archive, the real program: what it keeps, what it refuses, and what it says."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from coresnap.ground import elf
from coresnap.spool.quota import ENTRIES
from tests.crash import build, crash
from tests.support.site import ARCHIVE, Site, assert_whole

_THREE_PAGES = 3 * 4096


def _record(site: Site) -> dict[str, object]:
    ((_stage, path),) = site.dumps()
    document: dict[str, object] = json.loads((path / "dump.json").read_text())
    return document


def _one_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one line that the program said."""
    (line,) = done.stderr.splitlines()
    assert line.startswith("coresnap: ")
    return line


def test_a_held_crash_is_captured_whole(site: Site) -> None:
    with crash([build("crash"), "segv", "4"]) as crashed:
        core = crashed.core.read_bytes()
        done = site.archive(crashed.core, *crashed.core_pattern())
        maps = Path(f"/proc/{crashed.pid}/maps").read_bytes()
    assert done.returncode == 0, done
    assert_whole(site, core)
    ((stage, path),) = site.dumps()
    assert stage == "pending"
    document = json.loads((path / "dump.json").read_text())
    victim = document["victim"]
    assert (victim["pid"], victim["tid"], victim["signal"]) == (crashed.pid, crashed.said["tid"], 11)
    assert victim["exe"] == str(build("crash"))
    assert victim["cmdline"].endswith("crash segv 4")
    assert document["captured"]["transport"] == "pipe"
    assert 0 < document["captured"]["held_usec"] < 60_000_000
    with tarfile.open(path / "assets.tar") as asset:
        names = asset.getnames()
        member = asset.extractfile("proc/maps")
        tasks = asset.extractfile("proc/task")
        assert member is not None
        assert tasks is not None
        assert member.read() == maps
        assert [line.split(b"\t")[2] for line in tasks.read().splitlines()] == [b"worker-%d" % n for n in range(4)]
    for name in (
        *(
            "status",
            "maps",
            "smaps_rollup",
            "limits",
            "cgroup",
            "mountinfo",
            "cmdline",
            "comm",
            "environ",
            "auxv",
            "stat",
        ),
        *("io", "fd", "exe", "cwd", "root", "task"),
    ):
        assert f"proc/{name}" in names
    for name in ("meminfo", "loadavg", "uptime", "version", "cpuinfo", "os-release", "vmstat"):
        assert f"host/{name}" in names


def test_secrets_of_the_environment_stay_out(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "hunter2")
    with crash([build("crash"), "abort", "1"]) as crashed:
        assert site.archive(crashed.core, *crashed.core_pattern()).returncode == 0
    ((_stage, path),) = site.dumps()
    with tarfile.open(path / "assets.tar") as asset:
        member = asset.extractfile("proc/environ")
        assert member is not None
        environ = member.read()
    assert b"PATH=" in environ
    assert b"hunter2" not in environ


def test_mode_and_owner(tmp_path: Path, real_core: Path) -> None:
    owner = {"dump.user": "nobody", "dump.group": "nogroup"} if os.getuid() == 0 else {}
    site = Site(tmp_path / "site", **{"dump.mode": "0640", **owner})
    assert site.archive(real_core).returncode == 0
    ((_stage, path),) = site.dumps()
    assert path.stat().st_mode & 0o777 == 0o700
    for file in path.iterdir():
        assert file.stat().st_mode & 0o777 == 0o640, file
        if owner:
            assert (file.owner(), file.group()) == ("nobody", "nogroup")


def test_who_is_stopped_while_counting_holds_no_process(site: Site, real_core: Path) -> None:
    """The core is kept, without the lock of the table of reservations, and that is said once."""
    site.archive(real_core).check_returncode()
    with (site.root / "reservations").open("r+b") as table:
        fcntl.lockf(table, fcntl.LOCK_EX, 1, ENTRIES)
        done = site.archive(real_core)
    assert done.returncode == 0, done
    archived, warned = done.stderr.splitlines()
    assert "archived in" in archived
    assert "reservations" in warned
    assert site.stages() == ["pending", "pending"]


def test_the_kernels_empty_arguments_are_no_error(site: Site, real_core: Path) -> None:
    assert site.archive(real_core, *[""] * 10).returncode == 0
    document = _record(site)
    assert document["victim"]["signal"] == 11  # type: ignore[index]  # from the notes
    assert document["captured"]["transport"] == "hand"  # type: ignore[index]  # JSON


@pytest.mark.parametrize(("threads", "tid"), [("1", 4194304), ("3", None)])
def test_the_notes_numbers_of_another_pid_namespace_are_not_ours(site: Site, threads: str, tid: int | None) -> None:
    """Over the kernel's socket only the notes tell which thread it was, and they are of the process's own namespace."""
    with crash([build("crash"), "segv", threads]) as crashed:
        assert site.archive(crashed.core, str(crashed.pid), "", "0", "0", "11").returncode == 0
        ((_stage, dump),) = site.dumps()
        told = json.loads((dump / "dump.json").read_bytes())["victim"]
        assert (told["pid"], told["tid"]) == (crashed.pid, crashed.tid)
        shutil.rmtree(dump)
        assert site.archive(crashed.core, "4194304", "", "0", "0", "11").returncode == 0
    victim = _record(site)["victim"]
    assert (victim["pid"], victim["tid"]) == (4194304, tid)  # type: ignore[index]  # JSON


def test_a_dead_pid_costs_only_the_evidence(site: Site, real_core: Path) -> None:
    assert site.archive(real_core, "4194304", "4194304", "0", "0", "11").returncode == 0
    assert "proc/status" in _record(site)["assets"]["missing"]  # type: ignore[index]  # JSON


def test_a_pidfd_of_an_ended_process_voids_the_evidence(site: Site, real_core: Path) -> None:
    """The pid has been given to another process: what /proc says under it is not the victim's."""
    with subprocess.Popen(["true"]) as ended, subprocess.Popen(["sleep", "60"]) as other:
        pidfd = os.pidfd_open(ended.pid)
        os.set_inheritable(pidfd, True)
        ended.wait()
        arguments = [str(other.pid), str(other.pid), "0", "0", "11", "", "", "1", str(pidfd), "!bin!x"]
        argv = [*ARCHIVE, "--settings", str(site.compiled), *arguments]
        with real_core.open("rb") as source:
            subprocess.run(argv, stdin=source, check=True, pass_fds=[pidfd], capture_output=True)
        os.close(pidfd)
        other.kill()
    document = _record(site)
    assert "proc/status" in document["assets"]["missing"]  # type: ignore[index]  # JSON
    assert document["victim"]["exe"] == "/bin/x"  # type: ignore[index]  # JSON


def test_a_loss_is_not_put_on_record_under_another_process_s_name(tmp_path: Path, site: Site, real_core: Path) -> None:
    with subprocess.Popen(["true"]) as ended, subprocess.Popen(["sleep", "60"]) as other:
        pidfd = os.pidfd_open(ended.pid)
        os.set_inheritable(pidfd, True)
        ended.wait()
        (tmp_path / "settings").write_text(f"coresnap-settings 1\nroot\t{tmp_path}/none\n")
        argv = [*ARCHIVE, "--settings", str(tmp_path / "settings"), str(other.pid)]
        argv += [str(other.pid), "0", "0", "11", "", "", "1", str(pidfd), "!bin!x"]
        done = _with_a_run_of_its_own(argv, real_core, pidfd)
        os.close(pidfd)
        other.kill()
    assert '"exe":"/bin/x"' in done.stdout
    assert "sleep" not in done.stdout


def test_standard_output_and_error_may_be_closed(site: Site, real_core: Path) -> None:
    """So the kernel starts it: 0 is the pipe, 1 and 2 are closed."""
    argv = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *ARCHIVE, "--settings", str(site.compiled)]
    with real_core.open("rb") as source:
        assert subprocess.run(argv, stdin=source, check=False).returncode == 0
    assert_whole(site, real_core.read_bytes())


@pytest.mark.parametrize(
    ("core", "reason", "says"),
    [
        (b"", "empty", "not one byte came"),
        (b"hello, world\n" * 1000, "not-a-core", "not ELF"),
        (b"\x7fELF", "not-a-core", "ELF of no known class"),
        (b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00" + bytes(100), "not-a-core", "not a core"),
    ],
)
def test_what_is_no_core_is_recorded(tmp_path: Path, site: Site, core: bytes, reason: str, says: str) -> None:
    (tmp_path / "input").write_bytes(core)
    done = site.archive(tmp_path / "input", "77", "77", "0", "0", "11")
    assert done.returncode == 65
    assert f"not kept: {reason}: " in _one_line(done)
    assert says in _one_line(done)
    assert site.stages() == []
    (entry,) = site.ledger()
    assert (entry["reason"], entry["pid"]) == (reason, 77)


def _notes(core: Path) -> elf.CoreHeader:
    with core.open("rb") as file:
        return elf.read_core(lambda count, offset: os.pread(file.fileno(), count, offset))


@pytest.mark.parametrize("where", ["header", "program headers", "notes"])
def test_a_core_cut_before_the_end_of_its_notes_is_recorded(
    tmp_path: Path, site: Site, real_core: Path, where: str
) -> None:
    header = _notes(real_core)
    length = {"header": 40, "program headers": 300, "notes": header.notes_end - 1}[where]
    (tmp_path / "input").write_bytes(real_core.read_bytes()[:length])
    done = site.archive(tmp_path / "input")
    assert done.returncode == 65
    assert "cut-short" in _one_line(done)
    assert [entry["reason"] for entry in site.ledger()] == ["cut-short"]
    assert site.stages() == []


def test_a_core_cut_after_its_notes_is_kept_truncated(tmp_path: Path, site: Site, real_core: Path) -> None:
    header = _notes(real_core)
    (tmp_path / "input").write_bytes(real_core.read_bytes()[: header.notes_end + _THREE_PAGES])
    done = site.archive(tmp_path / "input")
    assert done.returncode == 0
    assert "truncated: cut-short" in _one_line(done)
    assert_whole(site, real_core.read_bytes())
    truncated = _record(site)["core"]["truncated"]  # type: ignore[index]  # JSON
    assert truncated == {"reason": "cut-short", "expected_bytes": header.expected_bytes}


def test_a_32_bit_core_is_kept_and_only_its_snapshot_refused(tmp_path: Path, site: Site) -> None:
    notes = struct.pack("<III", 5, 0, 1) + b"CORE\0\0\0\0"
    header = b"\x7fELF\x01\x01\x01" + bytes(9) + struct.pack("<HHIIIIIHHHHHH", 4, 3, 1, 0, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    segment = struct.pack("<IIIIIIII", 4, 84, 0, 0, len(notes), 0, 4, 4)
    (tmp_path / "input").write_bytes(header + segment + notes)
    assert site.archive(tmp_path / "input").returncode == 0
    assert _record(site)["core"]["class"] == 32  # type: ignore[index]  # JSON
    site.once()
    assert site.stages() == ["failed"]
    failure = _record(site)["failure"]
    assert failure["reason"] == "process"  # type: ignore[index]  # JSON
    assert "32-bit" in failure["detail"]  # type: ignore[index]  # JSON


def _with_a_run_of_its_own(argv: list[str], core: Path, *fds: int) -> subprocess.CompletedProcess[str]:
    """Run archive; its status, and the ledger outside the spool, are in what is printed."""
    inner = f'mount -t tmpfs run /run && "$@" < {core}; echo status $?; cat /run/coresnap-capture/ledger'
    unshare = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--user", "--map-root-user"])]
    whole = [*unshare, "sh", "-c", inner, "sh", *argv]
    return subprocess.run(whole, capture_output=True, text=True, check=True, pass_fds=fds)


def test_no_spool_is_recorded_elsewhere(tmp_path: Path, real_core: Path) -> None:
    """Not mounted: the directory is there and is empty. The loss goes to a ledger outside, here in a /run of the test's own."""
    root = tmp_path / "root"
    for made in (False, True):
        if made:
            root.mkdir()
        settings = tmp_path / "settings"
        settings.write_text(f"coresnap-settings 1\nroot\t{root}\n")
        done = _with_a_run_of_its_own([*ARCHIVE, "--settings", str(settings), "77"], real_core)
        assert "status 69" in done.stdout
        assert '"reason":"no-spool"' in done.stdout
        assert '"pid":77' in done.stdout
        assert ("is not a spool" if made else "No such file") in _one_line(done)
        assert "--prepare" in _one_line(done)
    assert list(root.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the first line"),
        ("coresnap-settings 99\n", "the first line"),
        ("coresnap-settings 1\nmode\tx\n", "mode"),
        ("coresnap-settings 1\nroot\trelative\n", "root"),
    ],
)
def test_broken_settings_do_not_stop_a_capture(tmp_path: Path, real_core: Path, text: str, says: str) -> None:
    """Built-in defaults hold; there is no spool at the default place here, which shows which root it went for."""
    settings = tmp_path / "settings"
    settings.write_text(text)
    argv = [*ARCHIVE, "--settings", str(settings)]
    inner = 'mount -t tmpfs run /run && exec "$@"'
    unshare = [
        "unshare",
        "--mount",
        *([] if os.getuid() == 0 else ["--user", "--map-root-user"]),
        "sh",
        "-c",
        inner,
        "sh",
    ]
    with real_core.open("rb") as source:
        done = subprocess.run([*unshare, *argv], stdin=source, capture_output=True, text=True, check=False)
    assert says in done.stderr
    assert "built-in defaults" in done.stderr
    assert "/var/lib/coresnap" in done.stderr


def test_a_disk_that_fills_up_meanwhile_keeps_what_it_can(tmp_path: Path) -> None:
    """Another program takes the space that was free when the capture began: the core is kept as far as it came."""
    mountpoint = tmp_path / "small"
    mountpoint.mkdir()
    core = tmp_path / "core"
    with crash([build("crash"), "segv", "2", "16"]) as crashed:
        core.write_bytes(crashed.core.read_bytes())
    script = Path(__file__).parents[1] / "support" / "full_disk.py"
    inner = f"mount -t tmpfs -o size=32m small {mountpoint} && exec {sys.executable} {script} {mountpoint} {core}"
    unshare = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--user", "--map-root-user"]), "sh", "-c", inner]
    done = subprocess.run(unshare, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["status"] == 0, result
    assert result["stages"] == ["pending"], result
    assert result["truncated"]["reason"] == "disk-full", result
    assert result["truncated"]["expected_bytes"] == core.stat().st_size


@pytest.mark.parametrize(("policy", "kept"), [("ignore", 1), ("honour", 0)])
def test_a_core_limit_of_nothing(tmp_path: Path, real_core: Path, policy: str, kept: int) -> None:
    site = Site(tmp_path / "site", archive__rlimit_core=policy)
    done = site.archive(real_core, "4194304", "4194304", "0", "0", "11", "", "0", "1", "", "!bin!x")
    assert done.returncode == (0 if kept else 69)
    assert len(site.stages()) == kept
    assert [entry["reason"] for entry in site.ledger()] == ["rlimit"] * (1 - kept)
