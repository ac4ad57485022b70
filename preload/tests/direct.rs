//! A program's connections over the SAN: its output is what it is over TCP, and the bytes went over the
//! SAN by the counters.

use std::process::Command;

use crate::support::{Way, program, run};

pub(crate) fn address() -> String {
    std::env::var("SAN_TEST_ADDR_B").expect("SAN_TEST_ADDR_B: run by ci/soft or ci/rxe")
}

fn differs_in_nothing(name: &str, least_bytes: u64) {
    let without = run(Command::new(program(name)).arg(address()), Way::Without);
    let with = run(Command::new(program(name)).arg(address()), Way::Direct);
    assert!(without.text.ends_with("done\n"), "{}", without.text);
    assert_eq!(without.text, with.text);
    let bytes: u64 = with.bytes_received.iter().sum();
    assert!(bytes > least_bytes, "{:?}", with.bytes_received);
}

#[test]
#[ignore = "needs a fabric: ci/soft or ci/rxe"]
fn calls_are_what_they_are_over_tcp() {
    differs_in_nothing("calls", 6_000_000);
}

/// docs/run.md names this difference.
#[test]
#[ignore = "needs a fabric: ci/soft or ci/rxe"]
fn a_forked_child_has_inert_streams_and_its_parent_keeps_them() {
    let mut command = Command::new(program("processes"));
    let run = run(command.args([&address(), "inert"]), Way::Direct);
    let lines = run.text.lines();
    let results: Vec<_> = lines
        .filter_map(|line| line.rsplit(')').next().map(str::trim))
        .collect();

    let inert = "-1 ENOTCONN";
    let child = [inert, inert, inert, inert, "0", "0"];
    assert_eq!(results, [&child[..], &["0", "4", "4", "4", "4"]].concat());
    assert_eq!(run.bytes_received, [8], "of the parent alone");
}

#[test]
#[ignore = "needs a fabric: ci/soft or ci/rxe"]
fn processes_are_what_they_are_over_tcp() {
    differs_in_nothing("processes", 1_000_000);
}
