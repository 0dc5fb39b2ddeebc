# SPDX-License-Identifier: Apache-2.0
"""The files that derive from tables are what the tables give: `make generate` writes them."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from coresnap.ground import settings
from coresnap.ground.settings import render
from coresnap.ground.settings.table import TABLE

if TYPE_CHECKING:
    from pathlib import Path


def test_sample_and_manual_are_up_to_date() -> None:
    assert render.SAMPLE.read_text(encoding="utf-8") == render.sample(), "run `make generate`"
    assert render.MANUAL.read_text(encoding="utf-8") == render.manual(), "run `make generate`"


def test_the_generator_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "SAMPLE", tmp_path / "sample")
    monkeypatch.setattr(render, "MANUAL", tmp_path / "man" / "manual")
    render.main()
    assert (tmp_path / "sample").read_text(encoding="utf-8") == render.sample()
    assert (tmp_path / "man" / "manual").read_text(encoding="utf-8") == render.manual()


def test_the_sample_sets_nothing_and_has_everything(tmp_path: Path) -> None:
    (tmp_path / "coresnap.conf").write_text(render.sample(), encoding="utf-8")
    assert settings.load(tmp_path / "coresnap.conf").origins == {}
    for setting in TABLE.values():
        assert f"\n# {setting.name} = {setting.default}".rstrip() + "\n" in render.sample()


def test_the_sample_uncommented_is_the_defaults(tmp_path: Path) -> None:
    names = {setting.name for setting in TABLE.values()} - {"dump.user", "dump.group"}  # they may not exist here
    lines = [
        line[2:] if line.startswith("# ") and line[2:].partition(" =")[0] in names else line
        for line in render.sample().splitlines()
    ]
    path = tmp_path / "coresnap.conf"
    path.write_text("\n".join(lines), encoding="utf-8")
    loaded = settings.load(path)
    assert loaded.document() == settings.Settings().document()
    assert len(loaded.origins) == len(names) - 1
    assert loaded.formats[-1].origin.startswith(f"{path}:")


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_the_manual_has_no_warnings_and_every_setting() -> None:
    command = ["groff", "-man", "-Tascii", "-P-cbou", "-ww", str(render.MANUAL)]
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert result.stderr == ""
    shown = [line.strip() for line in result.stdout.splitlines()]
    for setting in TABLE.values():
        assert setting.name in shown
