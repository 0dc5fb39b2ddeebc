// SPDX-License-Identifier: Apache-2.0
// Panics that end a program that was built with panic=abort: errors MODE
use std::hint::black_box;

#[inline(never)]
fn said(n: usize) -> usize {
    if black_box(n) > 1 {
        panic!("no shelf {}\nand no other", n);
    }
    n
}

#[inline(never)]
fn unwrapped(n: usize) -> usize {
    let result: Result<usize, String> = if black_box(n) > 1 { Err("bad luck".into()) } else { Ok(n) };
    result.unwrap()
}

#[inline(never)]
fn beyond(n: usize) -> usize {
    vec![1, 2, 3][black_box(n) + 5]
}

fn main() {
    let n = std::env::args().count();
    let result = match std::env::args().nth(1).unwrap_or_default().as_str() {
        "said" => said(n),
        "unwrapped" => unwrapped(n),
        "beyond" => beyond(n),
        "thread" => std::thread::Builder::new().name("wörk".into()).spawn(move || said(n)).unwrap().join().unwrap(),
        _ => 2,
    };
    std::process::exit(result as i32);
}
