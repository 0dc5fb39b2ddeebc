# SPDX-License-Identifier: Apache-2.0
"""Secrets in command lines, environments and messages, and what is none."""

from __future__ import annotations

import time

import pytest

from coresnap.ground.redact import Redaction
from coresnap.ground.settings import Settings

_DEFAULTS = Redaction(Settings().redact_names, Settings().redact_values)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mysql --password=S -u x", "mysql --password=*** -u x"),
        ("tool --api-key S --verbose", "tool --api-key *** --verbose"),
        ("tool -Ddb.password=S x", "tool -Ddb.password=*** x"),
        ("tool --token --verbose", "tool --token --verbose"),
        ('curl -H "Authorization: Bearer S" x', 'curl -H "Authorization: Bearer ***" x'),
        ("Bearer S", "Bearer ***"),
        ("https://user:S@host:1/x?token=S&page=2", "https://user:***@host:1/x?token=***&page=2"),
        ("ssh://git@host/x postgres://u:S:S@h", "ssh://git@host/x postgres://u:***@h"),
        ('export PGPASSWORD="S S"; run', 'export PGPASSWORD="***"; run'),
        ('{"secret": "S S", "user": "z"}', '{"secret": "***", "user": "z"}'),
        ("host=h password='S S' user=u", "host=h password='***' user=u"),
        ("password=S,S|S(S) x", "password=*** x"),
        ("password=S;x=1", "password=***;x=1"),
        ("key AKIASSSSSSSSSSSSSSSS x", "key *** x"),
        ("https://ghp_SSSSSSSSSSSSSSSSSSSS@host/x", "https://***@host/x"),
        ("passwd: is what it says, a=b", "passwd: *** what it says, a=b"),
        ("PATH=/opt/tokens/bin:/usr/bin", "PATH=/opt/tokens/bin:/usr/bin"),
        ("compile -o x.o x.c key=value sk-short", "compile -o x.o x.c key=value sk-short"),
        ("", ""),
    ],
)
def test_text(text: str, expected: str) -> None:
    assert _DEFAULTS.text(text) == expected


def test_words_and_variables_are_whole_whatever_is_in_them() -> None:
    argv = b'mysql\0--password\0S S;S\0-u\0root\0API_KEY=S "S\0Cookie: a=S; b=S\0sh\0-c\0X_TOKEN=S run\0\xff\0'
    assert _DEFAULTS.argv(argv) == (
        b"mysql\0--password\0***\0-u\0root\0API_KEY=***\0Cookie: ***\0sh\0-c\0X_TOKEN=***\0\xff\0"
    )
    environ = (
        b"PATH=/bin\0DATABASE_URL=pg://u:S@h/d\0AWS_SECRET_ACCESS_KEY=S S\0PWD=/x\0OLDPWD=/y\0DB_PWD=S\0EMPTY_TOKEN=\0"
    )
    assert _DEFAULTS.environ(environ) == (
        b"PATH=/bin\0DATABASE_URL=pg://u:***@h/d\0AWS_SECRET_ACCESS_KEY=***\0PWD=/x\0OLDPWD=/y\0DB_PWD=***\0EMPTY_TOKEN=\0"
    )


def test_the_patterns_are_the_settings() -> None:
    mine = Redaction(["colour", "*-x"], ["AA*"])
    assert mine.text("--colour=S --password=S --Y.X=S") == "--colour=*** --password=S --Y.X=***"
    assert mine.text("AABBCCDDEEFFGGHHII AKIASSSSSSSSSSSSSSSS") == "*** AKIASSSSSSSSSSSSSSSS"
    assert Redaction().text("--password=S https://u:S@h") == "--password=S https://u:***@h"


def _seconds(data: bytes) -> float:
    started = time.process_time()
    _DEFAULTS.argv(data)
    _DEFAULTS.environ(data)
    return time.process_time() - started


@pytest.mark.parametrize(
    "piece",
    [
        b"a=",
        b"-pass ",
        b"=:",
        b"://u:p@",
        b'"',
        b"x",
        b"A" * 250 + b"=",
        b"-p=\0",
        b"password ",
        b"'password=",
        b"eyJ.",
    ],
)
def test_no_text_is_slow(piece: bytes) -> None:
    """Twice the text takes twice the time, not four times; by the processor's clock, with room for noise."""
    data = piece * ((16 << 10) // len(piece))
    short = min(_seconds(data) for _try in range(3))
    long = min(_seconds(data * 4) for _try in range(2))
    assert long < max(10 * short, 0.2)
