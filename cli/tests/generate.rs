//! Manual pages, completions and help, and output that cannot be written.

mod common;

use std::fs::OpenOptions;
use std::process::{Command, Output, Stdio};

const COMMANDS: [&str; 13] = [
    "demo",
    "run",
    "devices",
    "doctor",
    "config",
    "ping",
    "perf",
    "listen",
    "connect",
    "stat",
    "top",
    "man",
    "completions",
];

fn san(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_san"))
        .args(args)
        .output()
        .unwrap()
}

#[test]
fn every_command_has_a_manual_page_and_an_example() {
    let directory = std::env::temp_dir().join(format!("san-man-{}", std::process::id()));
    let output = san(&["man", directory.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    for command in COMMANDS {
        let page = directory.join(format!("san-{command}.1"));
        let page = std::fs::read_to_string(&page).unwrap_or_else(|e| panic!("{page:?}: {e}"));
        assert!(page.contains("Example: "), "{command}");
        let help = String::from_utf8(san(&[command, "--help"]).stdout).unwrap();
        assert!(help.contains("Example: "), "{help}");
    }
    assert!(directory.join("san.1").exists());
    std::fs::remove_dir_all(&directory).unwrap();
    let output = san(&["man", "/proc/no/such"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("cannot write the manual pages into /proc/no/such"),
        "{said}"
    );
}

#[test]
fn every_shell_is_completed_with_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = san(&["completions", shell]);
        assert!(output.status.success(), "{shell}");
        let text = String::from_utf8(output.stdout).unwrap();
        for command in COMMANDS {
            assert!(text.contains(command), "{shell}: {command}");
        }
    }
}

#[test]
fn a_full_disk_is_one_line_and_a_failure_for_every_report() {
    for args in [
        &["doctor"][..],
        &["doctor", "--json"],
        &["config"],
        &["config", "--json"],
        &["stat"],
        &["stat", "--json"],
        &["stat", "--openmetrics"],
        &["devices"],
        &["devices", "--json"],
        &["completions", "bash"],
        &["demo"],
        &["demo", "--json"],
    ] {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_san"))
            .args(args)
            .env("SAN_FABRIC", "soft")
            .env("SAN_SOFT_ADDRESSES", common::own_address())
            .stdout(full)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        let lines: Vec<_> = said.lines().collect();
        assert!(!said.contains("panicked"), "{said}");
        assert!(
            lines.ends_with(&[
                "san: cannot write the output: No space left on device (os error 28)",
                "     make room where the output goes, or send it elsewhere: df -h",
            ]),
            "{args:?}: {said}"
        );
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    for args in [
        &["doctor", "--json"][..],
        &["config"],
        &["devices"],
        &["completions", "zsh"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Command::new(env!("CARGO_BIN_EXE_san"))
            .args(args)
            .env("SAN_FABRIC", "soft")
            .stdout(writer)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "{args:?}");
    }
}

/// As the README says: `cargo run --release -- demo`. Several packages have programs, and one is the default.
#[test]
fn cargo_run_at_the_top_runs_san() {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("a list");
    let defaults: Vec<_> = packages
        .iter()
        .filter_map(|package| package["default_run"].as_str())
        .collect();
    assert_eq!(defaults, ["san"]);
}
