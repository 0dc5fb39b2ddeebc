# SPDX-License-Identifier: Apache-2.0
"""Names of C++ and Rust, held against c++filt; and symbols made to exhaust whoever demangles them."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coresnap.snapshot import demangle as module
from coresnap.snapshot import rust
from coresnap.snapshot.demangle import demangle, demangle_type
from tests.support.site import REPOSITORY

#: What libstdc++, as gdb's own way of old, does not spell out.
_SPELT = (
    ("std::basic_string<char, std::char_traits<char>, std::allocator<char> >", "std::string"),
    *(
        (f"std::basic_{kind}<char, std::char_traits<char> >", f"std::{kind}")
        for kind in ("istream", "ostream", "iostream")
    ),
)
_CONSTANT = re.compile(r"(\b-?(?:\d+|true|false)|'[^']*'): (?:[iu](?:8|16|32|64|128|size)|bool|char)\b")


def _filt(symbols: list[str]) -> list[str]:
    done = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def _short(name: str) -> str:
    for long, short in _SPELT:
        name = re.sub(re.escape(long) + r"(?!::~?basic_)", short, name)
    return name.replace(" >", ">")


def _symbols_of(path: str | Path, *options: str) -> list[str]:
    listed = subprocess.run(["nm", *options, path], capture_output=True, text=True, check=True).stdout
    return sorted({line.split()[-1].split("@")[0] for line in listed.splitlines()})


def test_names_of_cxx_are_binutils() -> None:
    ctypes.CDLL("libstdc++.so.6")
    mapped = re.search(r"(/\S+/libstdc\+\+\.so\.6\S*)", Path("/proc/self/maps").read_text())
    assert mapped
    symbols = [symbol for symbol in _symbols_of(mapped[1], "-D") if symbol.startswith("_Z")]
    assert len(symbols) > 3000
    missing: list[str] = []
    names = demangle(symbols, missing)
    assert not missing
    theirs = {symbol: _short(name) for symbol, name in zip(symbols, _filt(symbols), strict=True)}
    differ = [
        (symbol, theirs[symbol], names.get(symbol, symbol))
        for symbol in symbols
        if _short(names.get(symbol, symbol)) != theirs[symbol]
    ]
    assert len(differ) <= len(symbols) // 500, differ[:5]


def test_what_is_no_mangled_name_stays() -> None:
    symbols = [
        "main",
        "i",
        "Pc",
        "_Z",
        "_Znope",
        "_R",
        "_Rx",
        "_ZN3foo",
        "_Z3foov@@V1",
        "_Z\udcff",
        "_Z" + "1a" * 10000,
    ]
    missing: list[str] = []
    assert demangle(symbols, missing) == {}
    assert not missing
    assert demangle(["_Z3foov", "_Z3fooi.cold", "_ZN1a1bEv.constprop.0.isra.0"], missing) == {
        "_Z3foov": "foo()",
        "_Z3fooi.cold": "foo(int) [clone .cold]",
        "_ZN1a1bEv.constprop.0.isra.0": "a::b() [clone .constprop.0] [clone .isra.0]",
    }


def test_types() -> None:
    assert demangle_type("St13runtime_error") == "std::runtime_error"
    assert demangle_type("N4shop4BillIiEE") == "shop::Bill<int>"
    assert demangle_type("PKc") == "char const*"
    assert demangle_type("no type") == "no type"


def _doubling(times: int) -> str:
    """A type of two of a type of two …: its name is twice as long with each."""
    text = "_Z1f1AIiiE"
    for number in range(times):
        reference = "S" + "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"[number] + "_"
        text += f"S_I{reference}{reference}E"
    return text


def test_a_symbol_that_takes_too_long_costs_its_own_name_only() -> None:
    missing: list[str] = []
    started = time.process_time()
    symbols = ["_Z1av", _doubling(30), "_Z1zv", "_Z" + "N" * 10000, "_Z1f" + "P" * 16000 + "i"]
    names = demangle(symbols, missing)
    assert {symbol: name for symbol, name in names.items() if len(symbol) < 20} == {"_Z1av": "a()", "_Z1zv": "z()"}
    assert _doubling(30) not in names
    assert missing == ["names of C++: 1 took too long or too much to be demangled"]
    assert time.process_time() - started < 5


def test_many_of_them_are_given_up() -> None:
    missing: list[str] = []
    symbols = [_doubling(30) + "i" * number for number in range(20)]
    assert demangle(symbols, missing) == {}
    assert len(missing) == 2
    assert missing[1].endswith("were not tried any more")


def test_rust_has_an_end_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RUST_SECONDS", -1.0)
    missing: list[str] = []
    assert demangle(["_RNvC1a3foo", "_Z1av"], missing) == {"_Z1av": "a()"}
    assert missing == ["names of Rust: 2 symbols were not tried any more"]


def test_the_childs_crash_costs_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a demangler overflows its stack."""
    real = module._work

    def dying(symbols: list[str], fd: int) -> int:
        for symbol in symbols:
            if symbol == "_Z1mv":
                os.kill(os.getpid(), 9)
            real([symbol], fd)
        return 0

    monkeypatch.setattr(module, "_work", dying)
    missing: list[str] = []
    assert demangle(["_Z1av", "_Z1mv", "_Z1zv"], missing) == {"_Z1av": "a()", "_Z1zv": "z()"}
    assert missing == ["names of C++: 1 took too long or too much to be demangled"]


def test_without_the_library_names_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LIBRARY", "libnothere.so.1")
    missing: list[str] = []
    assert demangle(["_Z1av"], missing) == {}
    assert missing == ["names of C++ stay mangled: libnothere.so.1 is not there"]


def test_it_needs_no_memory_that_is_written_and_executed() -> None:
    """As under MemoryDenyWriteExecute=: prctl(2), PR_SET_MDWE."""
    program = (
        "import ctypes, os, sys; sys.path.insert(0, sys.argv[1]); from coresnap.snapshot.demangle import demangle;"
        "failed = ctypes.CDLL(None, use_errno=True).prctl(65, 1, 0, 0, 0); print(failed, demangle(['_Z1av'], []))"
    )
    argv = [sys.executable, "-IS", "-c", program, str(REPOSITORY)]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
    if said.startswith("-1"):
        pytest.skip("the kernel is older than 6.3")
    assert said == "0 {'_Z1av': 'a()'}"


_RUST = {
    # The examples follow the grammar of RFC 2603.
    "_RNvCs1234_7mycrate3foo": "mycrate::foo",
    "_RNCNCNgCs6DXkGYLi8lr_2cc5spawn00B5_": "cc::spawn::{closure#0}::{closure#0}",
    "_RINbNbCskIICzLVDPPb_5alloc5alloc8box_freeDINbNiB4_5boxed5FnBoxuEp6OutputuEL_ECs1iopQbuBiw2_3std": (
        "alloc::alloc::box_free::<dyn alloc::boxed::FnBox<(), Output = ()>>"
    ),
    "_RNvMC0INtC8arrayvec8ArrayVechKj7b_E3new": "<arrayvec::ArrayVec<u8, 123>>::new",
    "_RMC0INtC8arrayvec8ArrayVechKj7b_E": "<arrayvec::ArrayVec<u8, 123>>",
    "_RNqCs4fqI2P2rA04_11utf8_identsu30____7hkackfecea1cbdathfdh9hlq6y": "utf8_idents::საჭმელად_გემრიელი_სადილი",
    "_RNvC1a3foo.llvm.1234": "a::foo",
    "_ZN4core3fmt5Write9write_fmt17h0123456789abcdefE": "core::fmt::Write::write_fmt",
    "_ZN71_$LT$Test$u20$$u2b$$u20$$u27$static$u20$as$u20$foo..Bar$LT$Test$GT$$GT$3bar17h930b740aa94f1d3aE": (
        "<Test + 'static as foo::Bar<Test>>::bar"
    ),
    "_ZN4core3fmt5Write9write_fmt17h0123456789abcdefE.llvm.77": "core::fmt::Write::write_fmt",
}


def test_names_of_rust() -> None:
    assert {symbol: rust.demangle(symbol) for symbol in _RUST} == _RUST
    assert demangle(_RUST, []) == _RUST


_RUST_SOURCE = """
trait Shape { fn area(&self) -> f64; }
struct Square<const N: usize>([f64; N]);
impl<const N: usize> Shape for Square<N> { #[inline(never)] fn area(&self) -> f64 { panic!("area {}", self.0[0]) } }
#[inline(never)] fn apply<F: Fn(&dyn Shape) -> f64>(f: F, s: &dyn Shape) -> f64 { f(s) }
fn main() { println!("{}", apply(|x| x.area(), &Square::<3>([1.0, 2.0, 3.0]))); }
"""


@pytest.mark.parametrize("mangling", ["v0", "legacy"])
def test_names_of_a_rust_program_are_binutils(tmp_path: Path, mangling: str) -> None:
    compiler = shutil.which("rustc") or shutil.which("rustc", path=os.path.expanduser("~/.cargo/bin"))
    if not compiler:
        pytest.skip("rustc is not installed")
    (tmp_path / "it.rs").write_text(_RUST_SOURCE)
    argv = [compiler, "-C", f"symbol-mangling-version={mangling}", "-Z", "unstable-options", "it.rs", "-o", "it"]
    done = subprocess.run(
        argv, cwd=tmp_path, env=os.environ | {"RUSTC_BOOTSTRAP": "1"}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    symbols = [
        one for one in _symbols_of(tmp_path / "it") if re.match(r"_R|_ZN.*17h[0-9a-f]{16}E$", one) and "." not in one
    ]
    assert len(symbols) > (20 if mangling == "legacy" else 200)
    theirs = [re.sub(r"\[[0-9a-f]{1,16}\]|::h[0-9a-f]{16}$", "", _CONSTANT.sub(r"\1", name)) for name in _filt(symbols)]
    assert [rust.demangle(symbol) for symbol in symbols] == theirs


@pytest.mark.parametrize(
    "symbol",
    [
        "_R" + "NvC1a" * 5000,
        "_RNvC1a" + "I" * 5000,
        "_R" + "B_" * 10,
        "_RINvC1a1fB_E",
        "_RINvC1a1f" + "TB6_B6_E" * 100 + "E",
        "_RINvC1a1fTTTTTTTTTiiEB8_B8_EB7_B7_E" + "E" * 10,
        "_RINvC1a1fFGzzzzzzzzzzz_EuE",
        "_RNvC1a99999b",
        "_RNvC1au3___",
        "_ZN99999999999a17h0123456789abcdefE",
        "_ZN17h0123456789abcdefE",
        "_ZN1a17h0123456789abcdefE\n",
        "_ZN7$u110000$17h0123456789abcdefE",
    ],
)
def test_symbols_of_rust_that_are_damaged_end_soon(symbol: str) -> None:
    started = time.process_time()
    name = rust.demangle(symbol)
    assert name is None or len(name) <= 16 << 10
    assert time.process_time() - started < 5


def test_a_back_reference_cannot_double_without_end() -> None:
    symbol = "_RINvC1a1fTiiE"
    at = symbol.index("T") - 2
    for _ in range(40):
        digit = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
        number = at - 1
        place = digit[number] if number < 62 else digit[number // 62] + digit[number % 62]
        at = len(symbol) - 2
        symbol += f"TB{place}_B{place}_E"
    started = time.process_time()
    assert rust.demangle(symbol + "E") is None
    assert time.process_time() - started < 5
