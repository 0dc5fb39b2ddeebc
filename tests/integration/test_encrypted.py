# SPDX-License-Identifier: Apache-2.0
"""Cores and assets to public keys: what this machine keeps it cannot read, and until it is so nothing is lost, or goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from coresnap.spool import record
from tests.crash import build, crash
from tests.support.site import Site

_HEADER = b"age-encryption.org/v1\n"


class _Keys:
    """A private key and the file or the text of the public one, as the setting takes it."""

    def __init__(self, directory: Path, kind: str) -> None:
        directory.mkdir()
        self.private = directory / "key"
        if kind == "age":
            made = subprocess.run(["age-keygen", "-o", self.private], capture_output=True, text=True, check=True)
            self.word = self.fingerprint = made.stderr.split()[-1]
            return
        subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "a comment", "-f", self.private], check=True)
        public = directory / "key.pub"
        public.chmod(0o644)
        self.word = str(public)
        told = subprocess.run(["ssh-keygen", "-l", "-f", public], capture_output=True, text=True, check=True)
        self.fingerprint = told.stdout.split()[1]

    def decrypted(self, path: Path) -> bytes:
        """Return what is in a file, by age itself, and by zstd itself."""
        plain = subprocess.run(["age", "-d", "-i", self.private, path], capture_output=True, check=True).stdout
        if path.name == "core.zst.age":
            plain = subprocess.run(["zstd", "-dcq"], input=plain, capture_output=True, check=True).stdout
        return plain


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> _Keys:
    return _Keys(tmp_path_factory.mktemp("keys") / "age", "age")


def _site(directory: Path, word: str, **settings: str) -> Site:
    return Site(directory, **{"encrypt.recipients": word, **settings})


def _crash(site: Site) -> bytes:
    with crash([build("crash"), "segv", "3"]) as crashed:
        assert site.archive(crashed.core, *crashed.core_pattern()).returncode == 0
        return crashed.core.read_bytes()


def _only(site: Site) -> tuple[str, Path, dict[str, Any]]:
    ((stage, dump),) = site.dumps()
    return stage, dump, record.parse((dump / "dump.json").read_bytes())


def _names(dump: Path) -> set[str]:
    return {path.name for path in dump.iterdir()}


@pytest.mark.parametrize("kind", ["age", "ed25519", "rsa"])
@pytest.mark.parametrize("compress", ["zstd", "none"])
def test_after_the_snapshot_there_is_nothing_plain_and_the_key_opens_all(
    tmp_path: Path, kind: str, compress: str
) -> None:
    mine = _Keys(tmp_path / "keys", kind)
    site = _site(tmp_path / "site", mine.word, **{"core.compress": compress})
    core = _crash(site)
    assert site.run("process", "--once").returncode == 0
    stage, dump, document = _only(site)
    name = "core.zst.age" if compress == "zstd" else "core.age"
    assert (stage, _names(dump)) == ("sending", {name, "assets.tar.age", "dump.json", "snapshot"})
    assert [path.name for path in (site.root / "by-uuid").iterdir()] == [f"{dump.name}.{name}"]
    assert mine.decrypted(dump / name) == core
    (tmp_path / "assets.tar").write_bytes(mine.decrypted(dump / "assets.tar.age"))
    with tarfile.open(tmp_path / "assets.tar") as asset:
        assert "proc/maps" in asset.getnames()
    assert document["encrypted"] == {"tool": "age", "recipients": [mine.fingerprint]}
    assert document["core"]["disk_bytes"] == (dump / name).stat().st_blocks * 512
    assert json.loads((dump / "snapshot").read_text())["threads"], "the report was made of the plain core before"


def test_any_of_several_keys_opens_it(tmp_path: Path, keys: _Keys) -> None:
    other = _Keys(tmp_path / "keys", "ed25519")
    site = _site(tmp_path / "site", f"{keys.word} {other.word}")
    core = _crash(site)
    assert site.run("process", "--once").returncode == 0
    _stage, dump, document = _only(site)
    assert keys.decrypted(dump / "core.zst.age") == other.decrypted(dump / "core.zst.age") == core
    assert document["encrypted"]["recipients"] == [keys.fingerprint, other.fingerprint]


def test_the_command_line_writes_it_as_it_is_and_decrypts_it_with_the_key(tmp_path: Path, keys: _Keys) -> None:
    site = _site(tmp_path / "site", keys.word)
    core = _crash(site)
    assert site.run("process", "--once").returncode == 0
    _stage, dump, _document = _only(site)
    beginning = dump.name[:8]
    done = site.run("cli", "dump", beginning, "-o", str(tmp_path / "sealed"))
    assert done.returncode == 0
    assert "age -d -i KEY | zstd -d" in done.stderr
    assert (tmp_path / "sealed").read_bytes() == (dump / "core.zst.age").read_bytes()
    identity = ["--identity", str(keys.private)]
    assert site.run("cli", "dump", beginning, *identity, "-o", str(tmp_path / "core")).returncode == 0
    assert (tmp_path / "core").read_bytes() == core
    assert (tmp_path / "core").stat().st_blocks <= len(core) // 512
    assert site.run("cli", "dump", beginning, "--asset", *identity, "-o", str(tmp_path / "tar")).returncode == 0
    assert tarfile.is_tarfile(tmp_path / "tar")
    wrong = _Keys(tmp_path / "wrong", "age")
    done = site.run("cli", "dump", beginning, "--identity", str(wrong.private), "-o", str(tmp_path / "none"))
    assert done.returncode == 65, done.stderr
    assert "cannot be decrypted: age: error: no identity matched" in done.stderr
    assert "`coresnap info` says to which" in done.stderr
    done = site.run("cli", "dump", beginning, "--identity", "/nonexistent", "-o", str(tmp_path / "none"))
    assert done.returncode == 65
    assert "no such file" in done.stderr
    assert not (tmp_path / "none").exists()
    told = site.run("cli", "info", beginning).stdout
    assert f"core and asset, by age, to {keys.fingerprint}" in told
    assert "MISSING" not in told
    assert site.run("cli", "list").stdout.split()[1] == "csa"
    assert "is encrypted" in site.run("cli", "debug", beginning).stderr
    assert f"`coresnap debug {beginning} --identity KEY` opens" in site.run("cli", "why", dump.name).stdout
    debugged = site.run("cli", "debug", beginning, *identity, "--", "-batch", "-ex", "bt")
    assert "store_here" in debugged.stdout or " in store" in debugged.stdout or "die" in debugged.stdout, debugged


def test_what_goes_to_a_store_beside_the_snapshot_is_encrypted(tmp_path: Path, keys: _Keys) -> None:
    site = _site(tmp_path / "site", keys.word, **{"send.core": "yes"})
    core = _crash(site)
    done = site.once()
    assert done.returncode == 0, done.stderr
    stage, dump, _document = _only(site)
    assert stage == "committed"
    stored = {path.name.removeprefix(dump.name): path for path in site.store.rglob(f"{dump.name}*")}
    assert {path.read_bytes() for path in (dump / "core.zst.age", dump / "assets.tar.age")} <= {
        path.read_bytes() for path in stored.values() if path.is_file()
    }
    assert not any(b"proc/maps" in path.read_bytes() for path in stored.values() if path.is_file())
    assert keys.decrypted(dump / "core.zst.age") == core


@pytest.mark.parametrize("how", ["missing", "failing", "writes nothing", "writes a part"])
def test_where_age_fails_the_dump_waits_with_its_core_and_goes_on_when_it_works(
    tmp_path: Path, keys: _Keys, how: str
) -> None:
    """In a mount namespace of its own, in which age is something else."""
    site = _site(tmp_path / "site", keys.word, **{"snapshot.attempts": "2"})
    core = _crash(site)
    scripts = {
        "missing": "",
        "failing": "#!/bin/sh\necho no such luck >&2; exit 1\n",
        "writes nothing": "#!/bin/sh\nexit 0\n",
        "writes a part": "#!/bin/sh\nprintf 'age-encryption.org/v1\\n'; exit 0\n",
    }
    (tmp_path / "age").write_text(scripts[how])
    (tmp_path / "age").chmod(0o755 if scripts[how] else 0o644)
    inner = f"mount --bind {tmp_path / 'age'} $(command -v age) && exec {sys.executable} -m coresnap.process --once"
    apart = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--user", "--map-root-user"])]
    argv = [*apart, "sh", "-c", f"{inner} --settings {site.settings}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120, cwd=Path(__file__).parents[2])
    stage, dump, document = _only(site)
    assert stage == "pending", done.stderr
    assert "core.zst is not encrypted: age" in document["history"][-1]["detail"]
    assert document["encrypted"] is document["snapshot"] is None
    assert (dump / "core").read_bytes() == core
    site.run("cli", "retry", dump.name)
    for _attempt in range(2):
        subprocess.run(argv, capture_output=True, check=False, timeout=120, cwd=Path(__file__).parents[2])
        if _only(site)[0] == "pending":
            document = _only(site)[2]
            (_only(site)[1] / "dump.json").write_text(json.dumps(document | {"next_try_usec": None}))
    stage, dump, document = _only(site)
    assert stage == "failed"
    assert (
        "core is not encrypted" in document["failure"]["detail"] or "core.zst is not" in document["failure"]["detail"]
    )
    assert (dump / "core").read_bytes() == core, "never lost"
    assert site.run("cli", "retry", dump.name).returncode == 0
    assert site.run("process", "--once").returncode == 0
    stage, dump, _document = _only(site)
    assert stage == "sending"
    assert keys.decrypted(next(path for path in dump.iterdir() if path.name.startswith("core"))) == core
    assert not {"core", "core.zst", "assets.tar"} & _names(dump)
    plain = [path for path in (site.root / "by-uuid").iterdir() if not path.name.endswith(".age")]
    assert plain == [], "nor is it under the name that the journal had of it"


def test_what_gets_no_snapshot_is_encrypted_all_the_same(tmp_path: Path, keys: _Keys) -> None:
    site = _site(tmp_path / "site", keys.word, **{"snapshot.command": "sh -c 'exit 65'"})
    core = _crash(site)
    assert site.run("process", "--once").returncode == 0
    stage, dump, document = _only(site)
    assert (stage, _names(dump) - {"snapshot"}) == ("failed", {"core.age", "assets.tar.age", "dump.json"})
    assert keys.decrypted(dump / "core.age") == core
    assert document["failure"]["detail"].startswith("snapshot.command")
    site.run("cli", "retry", dump.name)
    site.run("process", "--once")
    stage, dump, document = _only(site)
    assert stage == "failed"
    assert keys.decrypted(dump / "core.age") == core


def test_a_key_file_that_others_can_write_is_not_believed_and_nothing_goes_on(tmp_path: Path) -> None:
    mine = _Keys(tmp_path / "keys", "ed25519")
    site = _site(tmp_path / "site", mine.word)
    core = _crash(site)
    for mode, text in (
        (0o666, None),
        (0o644, "ssh-ed25519 AAAA\n"),
        (0o644, "# nothing\n"),
        (0o644, "-----BEGIN OPENSSH PRIVATE KEY-----\n"),
    ):
        path = Path(mine.word)
        before = path.read_text()
        path.write_text(before if text is None else text)
        path.chmod(mode)
        assert "encrypt.recipients: " in site.run("cli", "config", "--check", str(site.settings), settings=False).stderr
        done = site.run("process", "--once")
        assert "encrypt.recipients: " in done.stderr
        stage, dump, _document = _only(site)
        assert stage == "pending"
        assert (dump / "core").read_bytes() == core
        path.write_text(before)
        path.chmod(0o644)
    assert site.run("process", "--once").returncode == 0
    assert _only(site)[0] == "sending"


@pytest.mark.walk
@pytest.mark.parametrize("action", ["kill", "ENOSPC"])
def test_whatever_happens_in_between_the_core_is_there_plain_or_encrypted(
    tmp_path: Path, keys: _Keys, action: str
) -> None:
    prepared = _site(tmp_path / "prepared", keys.word)
    core = _crash(prepared)
    trace = tmp_path / "trace"

    def copy(name: str) -> Site:
        site = _site(tmp_path / name, keys.word)
        for stage, path in prepared.dumps():
            shutil.copytree(path, site.root / stage / path.name)
        return site

    assert copy("counted").run("process", "--once", faulty=("trace:0", str(trace))).returncode == 0
    steps = trace.read_text().splitlines()
    assert sum(step.startswith("unlink") for step in steps) >= 3
    for number, step in enumerate(steps):
        site = copy(f"{number}")
        site.run("process", "--once", faulty=(f"{action}:{number}", str(tmp_path / "t")))
        _stage, dump, document = _only(site)
        if document["encrypted"] is None:
            assert (dump / "core").read_bytes() == core, step
        else:
            assert keys.decrypted(dump / "core.zst.age") == core, step
        for path in (dump.parent / dump.name).iterdir():
            assert path.name != "core.zst.age" or document["encrypted"] is None or path.read_bytes().startswith(_HEADER)
        done = site.once()
        assert done.returncode == 0, (step, done.stderr)
        if _only(site)[0] == "pending":  # its next attempt is due later
            assert site.run("cli", "retry", dump.name).returncode == 0
            assert site.once().returncode == 0
        stage, dump, document = _only(site)
        assert stage == "committed", (step, document)
        assert _names(dump) >= {"core.zst.age", "assets.tar.age"}, step
        assert not {"core", "core.zst", "assets.tar"} & _names(dump), step
        assert keys.decrypted(dump / "core.zst.age") == core, step
        links = list((site.root / "by-uuid").iterdir())
        assert all(link.name == f"{dump.name}.core.zst.age" for link in links), step
        shutil.rmtree(tmp_path / f"{number}")


def test_a_core_whose_holes_would_fill_the_disk_is_not_begun(tmp_path: Path, keys: _Keys) -> None:
    """On a small file system: there is room for the sparse core, and for a copy of its data, not for its length."""
    small = tmp_path / "small"
    small.mkdir()
    script = (
        "import sys; from pathlib import Path; from tests.support.site import Site\n"
        f"site = Site(Path({str(small / 'site')!r}), **{{'encrypt.recipients': {keys.word!r}, 'core.compress': 'none'}})\n"
        "sys.stdout.reconfigure(line_buffering=True)\n"
        "assert site.archive(Path(sys.argv[1])).returncode == 0\n"
        "print(site.run('process', '--once').stderr)\n"
        "((stage, dump),) = site.dumps()\n"
        "print(stage, sum(path.stat().st_blocks for path in dump.iterdir()) // 2048)\n"
    )
    sparse = tmp_path / "core"
    with crash([build("crash"), "segv", "2", "64", "10"]) as crashed:
        subprocess.run(["cp", "--sparse=always", crashed.core, sparse], check=True)
    assert sparse.stat().st_size > 64 << 20
    mount = f"mount -t tmpfs -o size=48m small {small}"
    apart = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--user", "--map-root-user"])]
    argv = [*apart, "sh", "-c", f'{mount} && exec {sys.executable} -c "$1" "$2"', "-", script, str(sparse)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2], timeout=120)
    assert done.returncode == 0, done.stderr
    assert "the disk has no room for " in done.stdout
    assert "holes and all" in done.stdout
    stage, mebibytes = done.stdout.split()[-2:]
    assert stage == "pending"
    assert int(mebibytes) < 40, "nothing is left of the attempt"
