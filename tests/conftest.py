# SPDX-License-Identifier: Apache-2.0
"""What tests share: a real core, of a real crash, made once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.crash import build, crash
from tests.support.site import Site


@pytest.fixture(scope="session")
def real_core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The core of a program with three threads that died of SIGSEGV."""
    path = tmp_path_factory.mktemp("core") / "core"
    with crash([build("crash"), "segv", "3"]) as crashed:
        shutil.copyfile(crashed.core, path)
    return path


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A site of this test's own."""
    return Site(tmp_path / "site")
