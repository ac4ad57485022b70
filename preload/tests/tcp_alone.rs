//! With the library and its route off a program does what it did without.

use std::process::Command;

use crate::support::{Way, program, run};

fn differs_in_nothing(name: &str, arguments: &[&str]) {
    let without = run(Command::new(program(name)).args(arguments), Way::Without);
    let with = run(Command::new(program(name)).args(arguments), Way::Off);
    assert!(without.text.ends_with("done\n"), "{}", without.text);
    assert_eq!(without.text, with.text);
    assert!(with.bytes_received.is_empty(), "no switch was made");
}

#[test]
fn calls_are_what_they_were() {
    differs_in_nothing("calls", &[]);
}

#[test]
fn processes_are_what_they_were() {
    differs_in_nothing("processes", &[]);
}

#[test]
fn numbers_of_descriptors_are_what_they_were() {
    for mode in ["closed", "few", "taken"] {
        differs_in_nothing("numbers", &["127.0.0.1", mode]);
    }
}

#[test]
fn signals_are_what_they_were() {
    differs_in_nothing("signals", &[]);
}

/// Interpreters with hooks in every thread, signals, and children that close all they inherit.
#[test]
fn a_shell_pipeline_is_what_it_was() {
    let script =
        "seq 1 20000 | sort -r | head -n 5; (exec 5>&1; echo five >&5); echo $(echo inner)";
    let shell = || {
        let mut shell = Command::new("sh");
        shell.args(["-c", script]);
        shell
    };
    let without = run(&mut shell(), Way::Without);
    let with = run(&mut shell(), Way::Off);
    assert_eq!(without.text, with.text);
}

#[test]
fn a_setting_that_cannot_be_is_said_once_and_the_program_runs() {
    let mut echo = Command::new("sh");
    echo.args(["-c", "echo here"])
        .env("LD_PRELOAD", crate::support::library());
    echo.env("SAN_ROUTE", "sideways");
    let output = echo.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "here\n");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(
        said,
        "libsan.so: SAN_ROUTE is 'sideways', but must be direct, upgrade or off; the program goes over TCP\n"
    );
}
