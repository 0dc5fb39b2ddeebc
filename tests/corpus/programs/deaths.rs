// SPDX-License-Identifier: Apache-2.0
// Ways of Rust to die: deaths null|panic|overflow|thread|abort|bounds. Built with panic=abort.
use std::env;
use std::hint::black_box;
use std::io::Write;

fn say(functions: &str) {
    println!("{{\"functions\": [{}]}}", functions);
    std::io::stdout().flush().unwrap();
}

struct Shelf<T> {
    items: Vec<T>,
}

impl<T: Copy + Into<u64>> Shelf<T> {
    #[inline(never)]
    fn sum(&self, last: usize) -> u64 {
        self.items[..=last].iter().map(|item| (*item).into()).sum::<u64>() + black_box(1)
    }
}

trait Work {
    fn work(&self, n: u64) -> u64;
}

struct Null;

impl Work for Null {
    #[inline(never)]
    fn work(&self, n: u64) -> u64 {
        unsafe { black_box(8 as *mut u64).write_volatile(n) };
        black_box(n)
    }
}

#[inline(never)]
fn middle(depth: u64, leaf: &dyn Fn(u64) -> u64) -> u64 {
    let result = if depth > 1 { middle(depth - 1, leaf) } else { leaf(depth) };
    result + black_box(1)
}

#[inline(never)]
fn endless(n: u64) -> u64 {
    let room = black_box([n; 64]);
    endless(room[5] + 1) + room[7]
}

fn main() {
    let mode = env::args().nth(1).unwrap_or_default();
    let work: Box<dyn Work + Send> = Box::new(Null);
    let result = match mode.as_str() {
        "null" => {
            say("\"work\", \"middle\", \"middle\", \"middle\", \"main\"");
            middle(3, &|n| work.work(n) + black_box(1))
        }
        "panic" => {
            say("\"middle\", \"middle\", \"middle\", \"main\"");
            middle(3, &|n| if black_box(n) > 0 { panic!("out of {}", n) } else { n })
        }
        "bounds" => {
            say("\"sum\", \"middle\", \"middle\", \"middle\", \"main\"");
            let shelf = Shelf { items: vec![1u32, 2, 3] };
            middle(3, &|n| shelf.sum(n as usize + 10))
        }
        "abort" => {
            say("\"middle\", \"middle\", \"middle\", \"main\"");
            middle(3, &|_| std::process::abort())
        }
        "thread" => {
            say("\"work\", \"middle\", \"middle\", \"middle\"");
            std::thread::spawn(move || middle(3, &|n| work.work(n) + black_box(1))).join().unwrap()
        }
        "overflow" => {
            say("\"endless\", \"endless\", \"endless\"");
            std::thread::Builder::new().stack_size(64 << 10).spawn(|| endless(black_box(1))).unwrap().join().unwrap()
        }
        _ => 2,
    };
    std::process::exit(result as i32);
}
