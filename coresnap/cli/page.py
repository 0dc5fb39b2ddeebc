# SPDX-License-Identifier: Apache-2.0
"""A report as one page of HTML that needs nothing else: no script, no other file, no network; light or dark as its reader has it.

Whatever stands in a report may have been chosen by the process that crashed: every text is escaped, here and nowhere else.
"""

from __future__ import annotations

import base64
import binascii
import html
from typing import TYPE_CHECKING

from coresnap.cli import stacks
from coresnap.ground.text import printable
from coresnap.snapshot.classify import MEANINGS
from coresnap.snapshot.fingerprint import is_of_a_runtime

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from coresnap.cli.reports import Frame, Report, Stack

_TEXT_MOST = 2000
_STACKS_MOST, _FRAMES_MOST, _MODULES_MOST, _MEMORY_MOST = 500, 300, 2000, 1024
_ROW_BYTES = 16
_STYLE = """
:root { color-scheme: light dark; --back: #fbfbfa; --card: #fff; --text: #1d2129; --dim: #667080; --line: #e1e4e8;
  --bad: #b3261e; --bad-back: #fdf1f0; --link: #1f5fbf; }
@media (prefers-color-scheme: dark) { :root { --back: #14161a; --card: #1c1f25; --text: #e3e6eb; --dim: #97a0ae;
  --line: #31363f; --bad: #ff8a80; --bad-back: #2c1e1f; --link: #8ab4f8; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.55rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 2rem 0 .6rem; }
p { margin: .2rem 0; } .dim { color: var(--dim); }
code, pre, .mono { font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
.error { background: var(--bad-back); border-left: 4px solid var(--bad); border-radius: 4px; padding: .7rem 1rem;
  margin: 1rem 0; }
.error pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 14px; }
.chip { display: inline-block; border: 1px solid var(--line); background: var(--card); border-radius: 99px;
  padding: .05rem .65rem; margin: .15rem .3rem .15rem 0; font-size: 13px; }
.chip.bad { color: var(--bad); border-color: var(--bad); font-weight: 600; }
details, .card { background: var(--card); border: 1px solid var(--line); border-radius: 6px; margin: .5rem 0; }
summary { cursor: pointer; padding: .5rem .9rem; font-weight: 600; overflow-wrap: anywhere; }
details > div { border-top: 1px solid var(--line); overflow-x: auto; } .card { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .22rem .9rem; border-top: 1px solid var(--line); }
tr:first-child > td, tr:first-child > th { border-top: 0; } th { font-weight: 500; color: var(--dim); white-space: nowrap; }
td.fit { width: 1%; white-space: nowrap; } td.wrap { overflow-wrap: anywhere; min-width: 16rem; }
.name { font-weight: 600; } .at { color: var(--link); }
.registers { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 0 1.5rem; padding: .6rem .9rem; }
.registers span { display: flex; justify-content: space-between; } pre.memory { margin: 0; padding: .6rem .9rem; }
ul { margin: .4rem 0; padding-left: 1.4rem; }
""".strip()


def page(title: str, facts: Iterable[tuple[str, str]], report: Report) -> str:
    """Return the page. `title` is who crashed; `facts` are names and values that are on record of the dump."""
    body = [
        f"<h1>{_text(title)}</h1>",
        *_what(report),
        "<h2>Stack of the thread that crashed</h2>" if report.stacks and report.stacks[0].fault else "",
        *_first(report),
        *_others(report.stacks[1:]),
        "<h2>The crash</h2>",
        _table(facts),
        *_rest(report),
    ]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="referrer" content="no-referrer">',
            f"<title>{_text(title)}</title>",
            f"<style>\n{_STYLE}\n</style></head>",
            "<body><main>",
            *filter(None, body),
            "</main></body></html>\n",
        ]
    )


def _text(text: str, most: int = _TEXT_MOST) -> str:
    return html.escape(printable(text, most))


def _what(report: Report) -> Iterator[str]:
    """What it died of."""
    chips = []
    for name in report.classifiers:
        meaning = MEANINGS.get(name)
        kind = "chip" if meaning else "chip bad"
        chips.append(
            f'<span class="{kind}" title="{_text(meaning or "the signal")}">{_text(name.replace("-", " "))}</span>'
        )
    if chips:
        yield f"<p>{''.join(chips)}</p>"
    if report.message:
        shown = "\n".join(_text(line) for line in report.message.split("\n"))
        yield f'<div class="error"><pre>{shown}</pre></div>'
    meanings = [MEANINGS[name] for name in report.classifiers if name in MEANINGS]
    if meanings:
        yield f'<p class="dim">{_text("; ".join(meanings))}</p>'


def _first(report: Report) -> Iterator[str]:
    if not report.stacks:
        yield '<p class="dim">The report has no stacks.</p>'
        return
    stack = report.stacks[0]
    yield f'<p class="dim">{_text(stacks.title(stack))}</p>'
    yield f'<div class="card">{_frames(stack)}</div>'
    if stack.registers:
        cells = "".join(f"<span><b>{_text(name)}</b> {value:#018x}</span>" for name, value in stack.registers.items())
        yield f'<details><summary>Registers</summary><div class="registers mono">{cells}</div></details>'
    memory = _memory(*report.memory)
    if memory:
        yield f'<details><summary>Memory at its stack pointer</summary><div><pre class="memory">{memory}</pre></div></details>'


def _others(others: Sequence[Stack]) -> Iterator[str]:
    if not others:
        return
    threads = sum(len(stack.threads) for stack in others)
    yield f"<h2>{threads} other threads, {len(others)} stacks</h2>"
    for stack in others[:_STACKS_MOST]:
        yield f"<details><summary>{_text(stacks.title(stack))}</summary><div>{_frames(stack)}</div></details>"
    if len(others) > _STACKS_MOST:
        yield f'<p class="dim">{len(others) - _STACKS_MOST} stacks more are not shown.</p>'


def _frames(stack: Stack) -> str:
    shown = list(stacks.rows(stack))
    cells = [_note(what) if isinstance(what, str) else _frame(number, what) for number, what in shown[:_FRAMES_MOST]]
    if len(shown) > _FRAMES_MOST:
        cells.append(_note(f"{len(shown) - _FRAMES_MOST} lines more are not shown"))
    cells += [_frame_of_python(frame) for frame in stack.python[:_FRAMES_MOST]]
    return f"<table>{''.join(cells)}</table>"


def _frame_of_python(frame: Frame) -> str:
    return (
        '<tr><td class="fit dim mono">py</td>'
        f'<td class="wrap" colspan="3"><span class="name">{_text(frame.function)}</span>'
        f'<br><span class="at mono">{_text(frame.place)}</span></td></tr>'
    )


def _note(text: str) -> str:
    return f'<tr><td></td><td class="dim" colspan="3">… {_text(text)}</td></tr>'


def _frame(number: int, frame: Frame) -> str:
    kind = "runtime" if is_of_a_runtime(frame.library) else "name"
    name = f'<span class="{kind}">{_text(frame.function)}</span>' if frame.function else '<span class="dim">?</span>'
    marks = " (guessed)" if frame.guessed else " (inlined)" if frame.found == "inlined" else ""
    place = f'<br><span class="at mono">{_text(frame.place)}</span>' if frame.place else ""
    where = f"{frame.file} + {frame.offset:#x}" if frame.offset else frame.file
    return (
        f'<tr><td class="fit dim mono">#{number}</td>'
        f'<td class="wrap">{name}<span class="dim">{marks}</span>{place}</td>'
        f'<td class="fit dim mono" title="{_text(frame.library)}">{_text(where, 80)}</td>'
        f'<td class="fit dim mono">{frame.address:#018x}</td></tr>'
    )


def _memory(start: int, data: str) -> str:
    """Return a dump of memory: address, bytes, characters."""
    try:
        content = base64.b64decode(data, validate=True)[:_MEMORY_MOST]
    except (binascii.Error, ValueError):
        return ""
    rows = []
    for at in range(0, len(content), _ROW_BYTES):
        row = content[at : at + _ROW_BYTES]
        characters = "".join(chr(byte) if 32 <= byte < 127 else "·" for byte in row)
        rows.append(f"{start + at:016x}  {row.hex(' '):<{3 * _ROW_BYTES}} {html.escape(characters)}")
    return "\n".join(rows)


def _table(rows: Iterable[tuple[str, str]]) -> str:
    cells = (f'<tr><th>{_text(name)}</th><td class="wrap">{_text(value)}</td></tr>' for name, value in rows if value)
    return f'<div class="card"><table>{"".join(cells)}</table></div>'


def _rest(report: Report) -> Iterator[str]:
    """What is looked up rather than read."""
    if report.missing:
        yield "<h2>What is missing in the report</h2>"
        yield f"<ul>{''.join(f'<li>{_text(line)}</li>' for line in report.missing)}</ul>"
    yield "<h2>More</h2>"
    if report.made_of:
        rows = [("Fingerprint", report.fingerprint), *(("made of", text) for text in report.made_of)]
        yield f"<details><summary>Fingerprint</summary><div>{_table(rows)}</div></details>"
    parts = (("Attributes", report.attributes), ("Environment", report.environment))
    for name, values in parts:
        if values:
            yield f"<details><summary>{name} ({len(values)})</summary><div>{_table(sorted(values.items()))}</div></details>"
    if report.modules:
        cells = "".join(
            f'<tr><td class="fit dim mono">{module.start:#018x}</td><td class="wrap">{_text(module.path)}'
            f'<br><span class="dim mono">{_text(module.build_id or "no build-id")}</span></td><td>{_text(module.package)}</td></tr>'
            for module in report.modules[:_MODULES_MOST]
        )
        yield f"<details><summary>Modules ({len(report.modules)})</summary><div><table>{cells}</table></div></details>"
