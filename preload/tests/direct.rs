//! A program's connections over the SAN: its output is what it is over TCP, and the bytes went over the
//! SAN by the counters.

use std::process::Command;

use crate::support::{Way, program, run, same, same_by};

pub(crate) fn address() -> String {
    std::env::var("SAN_TEST_ADDR_B").expect("SAN_TEST_ADDR_B: run by ci/soft or ci/rxe")
}

fn differs_in_nothing(name: &str, least_bytes: u64) {
    let command = || {
        let mut command = Command::new(program(name));
        command.arg(address());
        command
    };
    same_by(Way::Direct, command, least_bytes);
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

#[test]
#[ignore = "needs a fabric: ci/soft or ci/rxe"]
fn signals_are_what_they_are_over_tcp() {
    differs_in_nothing("signals", 20_000);
}

/// Others are closed, or taken by the program: the bytes go over the SAN all the same. With twenty
/// descriptors there is no room for the SAN, and the program does not notice.
#[test]
#[ignore = "needs a fabric: ci/soft or ci/rxe"]
fn numbers_of_descriptors_are_the_programs() {
    for (mode, least_bytes) in [
        ("closed", Some(50_000)),
        ("taken", Some(75_000)),
        ("few", None),
    ] {
        let command = || {
            let mut command = Command::new(program("numbers"));
            command.args([&address(), mode]);
            command
        };
        same(Way::Direct, command, least_bytes);
    }
}
