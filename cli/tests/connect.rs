//! `san connect` as an operator has it: what it says of the way, of a mistyped address or setting, and of standard
//! streams that cannot be used.

mod common;

use std::fs::File;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use san_tests::program::Program;

const SAN: &str = env!("CARGO_BIN_EXE_san");
const LIMIT: Duration = Duration::from_secs(30);

/// An echo server on TCP alone; it lives as long as the first value.
fn echo() -> (Program, String) {
    let script = "SAN_FABRIC=off SAN_STAT=off exec \"$0\" listen --echo 127.0.0.1:0";
    let mut server = Program::start("sh", &["-c", script, SAN]);
    let line = server.expect("san: listening on ", LIMIT);
    let address = line.split(',').next().unwrap().trim().to_owned();
    (server, address)
}

fn connect(args: &[&str]) -> Command {
    let mut command = Command::new(SAN);
    command.arg("connect").args(args).stdin(Stdio::null());
    command.env("SAN_FABRIC", "off").env("SAN_STAT", "off");
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_reason_for_tcp_comes_with_what_to_do_about_it() {
    let (_server, address) = echo();
    let output = connect(&[&address]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let wanted = format!(
        "san: connected: {address} over TCP, since SAN_FABRIC=off says so\n     \
         -> unset SAN_FABRIC, and start the program again\n"
    );
    assert_eq!(said(&output), wanted);
    // Who asked for TCP is told nothing to do.
    let output = connect(&["--tcp", &address]).output().unwrap();
    assert!(!said(&output).contains("->"), "{}", said(&output));
    let output = connect(&["--json", &address]).output().unwrap();
    let report: serde_json::Value = serde_json::from_str(&said(&output)).unwrap();
    let remedy = report["remedy"].as_str().unwrap();
    assert!(remedy.contains("unset SAN_FABRIC"), "{report}");
}

#[test]
fn what_is_mistyped_is_said_with_what_was_meant() {
    let (_server, address) = echo();
    let url = format!("http://{address}/file");
    let output = connect(&[&url]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let wanted = format!("give HOST:PORT and no URL: {address}");
    assert!(said(&output).contains(&wanted), "{}", said(&output));

    let mut command = connect(&[&address]);
    command.env("SAN_FABRIK", "soft").env("SAN_LOG", "degub");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    for words in [
        "san: SAN_FABRIK is not a setting, and nothing reads it; did you mean SAN_FABRIC?\n",
        "san: SAN_LOG has 'degub', but must be error, warn, info, debug",
    ] {
        assert!(said(&output).contains(words), "{}", said(&output));
    }
    // Programs that read JSON lines are told by `san config`.
    let mut command = connect(&["--json", &address]);
    let output = command.env("SAN_FABRIK", "soft").output().unwrap();
    assert_eq!(said(&output).lines().count(), 1, "{}", said(&output));
}

#[test]
fn standard_streams_that_cannot_be_used_are_not_taken_for_a_broken_connection() {
    let (_server, address) = echo();
    let file = || File::open("/etc/passwd").unwrap();
    let full = || File::options().write(true).open("/dev/full").unwrap();

    let mut command = connect(&[&address]);
    let output = command.stdin(file()).stdout(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = said(&output);
    assert!(
        text.contains("san: cannot write the output: No space"),
        "{text}"
    );

    // Nobody reads any more: as with `head`, not a word.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = connect(&[&address]);
    let output = command.stdin(file()).stdout(writer).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(!said(&output).contains("broke"), "{}", said(&output));

    // A directory cannot be read.
    let mut command = connect(&[&address]);
    let output = command.stdin(File::open("/").unwrap()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = said(&output);
    assert!(text.contains("san: cannot read standard input: "), "{text}");

    // What cannot be said ends nothing.
    let mut command = connect(&[&address]);
    let output = command.stdin(file()).stderr(full()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, std::fs::read("/etc/passwd").unwrap());
}

#[test]
fn too_few_descriptors_are_said_with_what_raises_them() {
    let (_server, address) = echo();
    let ip = common::own_address();
    let settings = format!("SAN_FABRIC=soft SAN_SOFT_ADDRESSES=127.0.0.1,{ip} SAN_STAT=off");
    // A listener that listens is ended; what it said before that counts.
    let commands = [
        format!("timeout 20 \"$0\" connect {address}"),
        format!("timeout 0.3 \"$0\" listen {ip}:0"),
    ];
    for descriptors in 10..32 {
        for command in &commands {
            let script = format!("ulimit -n {descriptors}; {settings} exec {command} </dev/null");
            let mut shell = Command::new("bash");
            let text = said(&shell.args(["-c", &script, SAN]).output().unwrap());
            let is_false = text.contains("panicked") || text.contains("not one of this provider's");
            let has_remedy = text.contains("ulimit -n") || text.contains("san doctor");
            let has_failed = text.starts_with("san: cannot");
            assert!(
                !is_false && (has_remedy || !has_failed),
                "{descriptors}: {command}: {text}"
            );
        }
    }
}
