//! Connections that begin on TCP and move: a program's output is what it is over TCP, and the counters say
//! which way the bytes went.

use std::process::Command;

use crate::direct::address;
use crate::support::{Way, program, same, same_by};

fn differs_in_nothing(name: &str, mode: &[&str], least_bytes: u64) {
    let command = || {
        let mut command = Command::new(program(name));
        command.arg(address()).args(mode).env("CHECK_WARM", "250");
        command
    };
    same_by(Way::Upgrade, command, least_bytes);
}

#[test]
#[ignore = "needs a fabric: ci/soft or ci/rxe"]
fn calls_are_what_they_are_over_tcp() {
    differs_in_nothing("calls", &[], 20_000);
}

#[test]
#[ignore = "needs a fabric: ci/soft or ci/rxe"]
fn processes_are_what_they_are_over_tcp() {
    differs_in_nothing("processes", &[], 1_000);
}

#[test]
#[ignore = "needs a fabric: ci/soft or ci/rxe"]
fn signals_are_what_they_are_over_tcp() {
    differs_in_nothing("signals", &[], 20_000);
}

#[test]
#[ignore = "needs a fabric: ci/soft or ci/rxe"]
fn another_process_goes_on_with_a_connection() {
    differs_in_nothing("processes", &["handed"], 20_000);
}

#[test]
#[ignore = "needs a fabric: ci/soft or ci/rxe"]
fn numbers_of_descriptors_are_the_programs() {
    for (mode, least_bytes) in [
        ("closed", Some(20_000)),
        ("taken", Some(20_000)),
        ("few", None),
    ] {
        let command = || {
            let mut command = Command::new(program("numbers"));
            command.args([&address(), mode]).env("CHECK_WARM", "250");
            command
        };
        same(Way::Upgrade, command, least_bytes);
    }
}

#[test]
#[ignore = "needs a fabric: ci/soft or ci/rxe"]
fn closed_numbers_tell_nothing() {
    let command = || {
        let mut command = Command::new(program("numbers"));
        command.args([&address(), "stale"]).env("CHECK_WARM", "250");
        command
    };
    same_by(Way::Upgrade, command, 20_000);
}
