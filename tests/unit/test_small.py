# SPDX-License-Identifier: Apache-2.0
"""The small report: what it keeps, and that what is no report is left alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from coresnap.store import small
from tests.crash import build, crash
from tests.support.site import Site
from tests.unit.test_snapshot import VALIDATOR


def _make(directory: Path, data: bytes, number: int = 11) -> bytes | None:
    (directory / "report").write_bytes(data)
    fd = os.open(directory / "report", os.O_RDONLY)
    try:
        return small.make(fd, len(data), number)
    finally:
        os.close(fd)


def test_of_a_real_report(tmp_path: Path) -> None:
    site = Site(tmp_path / "site")
    with crash([build("crash"), "segv", "3"]) as crashed:
        site.archive(crashed.core, *crashed.core_pattern()).check_returncode()
    site.run("process", "--once").check_returncode()
    ((_stage, path),) = site.dumps()
    data = (path / "snapshot").read_bytes()
    whole = json.loads(data)
    made = _make(tmp_path, data)
    assert made is not None
    assert made == _make(tmp_path, data), "the same bytes each time"
    report: dict[str, Any] = json.loads(made)
    assert len(made) < len(data) / 2
    for key in ("uuid", "fingerprint", "timestamp", "classifiers", "mainThread", "arch"):
        assert report[key] == whole[key]
    assert list(report["threads"]) == [whole["mainThread"]]
    assert report["threads"][whole["mainThread"]]["fault"] is True
    assert report["attributes"].pop("coresnap.small") is True
    assert report["attributes"].pop("coresnap.small.number") == 11
    assert report["attributes"] == whole["attributes"]
    # The rest is as in a whole report: with what it leaves out put back, it is one.
    VALIDATOR.validate({**report, "annotations": whole["annotations"], "modules": [], "memory": [], "sourceCode": {}})


def test_no_frame_refers_to_code_that_is_left_out(tmp_path: Path) -> None:
    frames = [{"funcName": "f", "sourceCode": "1", "line": 3}, "odd"]
    data = json.dumps({"uuid": "u", "mainThread": "1", "threads": {"1": {"stack": frames}}, "sourceCode": {"1": {}}})
    made = _make(tmp_path, data.encode())
    assert made is not None
    assert json.loads(made)["threads"]["1"]["stack"] == [{"funcName": "f", "line": 3}, "odd"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00btt",
        b"[]",
        b"1",
        b"{}",
        b'{"threads": 1}',
        b"[" * 100_000,
        b'{"threads":{}}' + b" " * small.READ_MAX_BYTES,
    ],
    ids=lambda data: repr(data[:20]),
)
def test_what_is_no_report_that_can_be_read_is_left_alone(tmp_path: Path, data: bytes) -> None:
    assert _make(tmp_path, data) is None


@pytest.mark.parametrize("thread", [None, 1, [], {}, {"stack": 1}, {"stack": [1]}])
def test_a_hostile_report_breaks_nothing(tmp_path: Path, thread: Any) -> None:
    data = json.dumps({"threads": {"1": thread}, "mainThread": 1, "attributes": [1]}).encode()
    made = _make(tmp_path, data)
    assert made is not None
    json.loads(made)
