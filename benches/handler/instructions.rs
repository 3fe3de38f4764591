//! Instructions of one admission, by valgrind: unlike time they are the same on a busy machine. HTTP in memory, without
//! TLS and sockets, of which both handlers have the same.

use std::path::Path;

use crate::support::exchange::{Exchange, instructions_of_a_child};
use crate::{KILOBYTES, bare};

pub const COMMAND: &str = "exchange";
/// Two runs of different lengths: what they differ by has no start in it.
const COUNTS: [u32; 2] = [50, 250];

/// In the process of its own: so many admissions of a Pod of this size.
pub fn run(arguments: &[&str]) {
    let [handler, kilobytes, count] = arguments else {
        panic!("expected the answer of the bare handler or nothing, a size and a count");
    };
    crate::support::crypto();
    let pod_bytes = kilobytes.parse::<usize>().unwrap() * 1024;
    let mut exchange = if handler.is_empty() {
        Exchange::with_webhook(pod_bytes)
    } else {
        let answer = std::fs::read(handler).unwrap();
        Exchange::with_server(|stream| bare::serve_in_memory(stream, answer), pod_bytes)
    };
    for _ in 0..count.parse().unwrap() {
        exchange.once();
    }
}

/// Prints the instructions of both handlers. `answer` is a file with the answer of the bare one.
pub fn print(answer: &Path) {
    println!("\nInstructions per request, in memory      bare      ours");
    for kilobytes in KILOBYTES {
        let each = |handler: &str| {
            let [few, many] = COUNTS.map(|count| {
                let (kilobytes, count) = (kilobytes.to_string(), count.to_string());
                instructions_of_a_child(&[COMMAND, handler, &kilobytes, &count], &[])
            });
            (many - few) / f64::from(COUNTS[1] - COUNTS[0])
        };
        let (bare, ours) = (each(answer.to_str().unwrap()), each(""));
        println!("{kilobytes:>3} KB  {bare:>38.0}  {ours:>8.0}");
    }
}
