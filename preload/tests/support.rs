//! Runs the C programs of `tests/programs` with the library and without.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

/// `libsan.so`, beside the test's own directory.
pub(crate) fn library() -> PathBuf {
    let test = std::env::current_exe().expect("a test has a file");
    let target = test.ancestors().nth(2).expect("target/debug/deps/test");
    let library = target.join("libsan.so");
    let built = library.metadata().and_then(|of| of.modified());
    let built = built.unwrap_or_else(|error| panic!("{}: {error}", library.display()));
    // `cargo test` builds the tests of a cdylib, and not the library.
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    for source in [here.join("src"), here.join("../switch/src")] {
        let is_old = changed_since(&source, built);
        assert!(
            !is_old,
            "libsan.so is older than its sources: cargo build -p san-preload"
        );
    }
    library
}

fn changed_since(folder: &Path, time: SystemTime) -> bool {
    let entries = std::fs::read_dir(folder).expect("a folder of sources");
    entries.map(Result::unwrap).any(|entry| match entry.path() {
        path if path.is_dir() => changed_since(&path, time),
        path => path.metadata().unwrap().modified().unwrap() > time,
    })
}

/// A built program of `tests/programs`.
pub(crate) fn program(name: &str) -> PathBuf {
    Path::new(env!("OUT_DIR")).join(name)
}

/// How a program is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Without,
    /// With the library, all over TCP.
    Off,
    /// With the library, the SAN first.
    Direct,
    /// With the library, TCP first.
    Upgrade,
}

/// What a program's run came to.
pub(crate) struct Run {
    pub(crate) text: String,
    /// Of each process with a switch: bytes that came over the SAN.
    pub(crate) bytes_received: Vec<u64>,
}

/// Runs a program; it has to end well.
pub(crate) fn run(command: &mut Command, way: Way) -> Run {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("san-preload-{}-{number}.json", std::process::id());
    let report = std::env::temp_dir().join(name);
    command.env_remove("SAN_ROUTE").env("SAN_REPORT", &report);
    if way != Way::Without {
        command.env("LD_PRELOAD", library());
    }
    let route = match way {
        Way::Without | Way::Off => None,
        Way::Direct => Some("direct"),
        Way::Upgrade => Some("upgrade"),
    };
    if way == Way::Upgrade {
        command.env("SAN_UPGRADE_BYTES", "4096");
    }
    if let Some(route) = route {
        command.env("SAN_ROUTE", route).env("SAN_STAT", "off");
    }
    let output = command.output().expect("the program starts");
    let text = said(&output);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{text}",
        output.status
    );
    let reports = std::fs::read_to_string(&report).unwrap_or_default();
    let _ = std::fs::remove_file(&report);
    let bytes_received = reports.lines().map(bytes_received).collect();
    Run {
        text,
        bytes_received,
    }
}

/// A program prints what it prints without the library, and more bytes than that come over the SAN.
pub(crate) fn same_by(way: Way, command: impl Fn() -> Command, least_bytes: u64) {
    same(way, command, Some(least_bytes));
}

/// The same; `None`: whichever way the bytes went.
pub(crate) fn same(way: Way, command: impl Fn() -> Command, least_bytes: Option<u64>) {
    let without = run(&mut command(), Way::Without);
    let with = run(&mut command(), way);
    assert!(without.text.ends_with("done\n"), "{}", without.text);
    assert_eq!(without.text, with.text);
    let bytes: u64 = with.bytes_received.iter().sum();
    let enough = least_bytes.is_none_or(|least| bytes > least);
    assert!(enough, "{:?}", with.bytes_received);
}

fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text + &String::from_utf8_lossy(&output.stderr)
}

fn bytes_received(report: &str) -> u64 {
    let report: serde_json::Value = serde_json::from_str(report).expect("a report is JSON");
    let providers = report["providers"].as_array().expect("a list of providers");
    // By messages, and by RDMA.
    let bytes = |one: &serde_json::Value| {
        let count = |name: &str| one["counters"][name].as_u64();
        Some(count("bytes_received")? + count("rdma_bytes_read")?)
    };
    providers.iter().filter_map(bytes).sum()
}
