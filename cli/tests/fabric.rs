//! The doctor and the measurements on a fabric with two addresses: the soft one in its namespace, and
//! the kernel's soft-RoCE (`ci/soft`, `ci/rxe`).

use san_tests::net;
use san_tests::program::Program;
use san_tests::time::bounded;
use serde_json::Value;
use std::process::{Command, Stdio};
use std::time::Duration;

const SAN: &str = env!("CARGO_BIN_EXE_san");
const LIMIT: Duration = Duration::from_secs(60);

fn json(args: &[&str]) -> (Value, bool) {
    let output = Command::new(SAN).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_slice(&output.stdout);
    let report = report.unwrap_or_else(|error| panic!("{args:?}: {error}: {said}"));
    (report, output.status.success())
}

#[test]
#[ignore = "needs a fabric"]
fn the_doctor_finds_the_device_and_the_way_to_a_peer() {
    bounded(|| {
        let at = format!("{}:0", net::addr_b());
        let mut listener = Program::start(SAN, &["listen", "--echo", "-k", &at]);
        let line = listener.expect("san: listening on ", LIMIT);
        let peer = line.split(',').next().unwrap().trim();
        let (report, ok) = json(&["doctor", peer, "--json"]);
        assert!(ok, "{report:#}");
        let lines = report["lines"].as_array().unwrap();
        let line = |check: &str| {
            let found = lines.iter().find(|line| line["check"] == check);
            found.unwrap_or_else(|| panic!("no {check}: {report:#}"))
        };
        for check in [
            "device",
            "addresses",
            "path mtu",
            "route",
            "tcp",
            "descriptors",
        ] {
            assert_eq!(line(check)["level"], "ok", "{check}: {report:#}");
        }
        let route = line("route")["text"].as_str().unwrap();
        assert!(route.contains("goes over the SAN"), "{route}");
        // A port on which nobody listens: RDMA answers, and says so.
        let alone = net::addr_b().to_string();
        let (report, ok) = json(&["doctor", &alone, "--json"]);
        assert!(ok, "{report:#}");
    });
}

#[test]
#[ignore = "needs a fabric"]
fn both_carriers_are_measured_between_two_addresses() {
    bounded(|| {
        let at = format!("{}:0", net::addr_b());
        let mut server = Program::start(SAN, &["perf", "--serve", &at]);
        let line = server.expect("san: listening on ", LIMIT);
        let peer = line.split(',').next().unwrap().trim();
        let args = [
            "perf",
            peer,
            "--seconds",
            "0.2",
            "--sizes",
            "64,16k",
            "-n",
            "2",
            "--json",
            "-",
        ];
        let (run, ok) = json(&args);
        assert!(ok, "{run:#}");
        let carriers = run["carriers"].as_array().unwrap();
        assert_eq!(carriers.len(), 2, "{run:#}");
        for carrier in carriers {
            for one in carrier["throughput"].as_array().unwrap() {
                assert!(one["bytes"].as_u64().unwrap() > 0, "{carrier:#}");
            }
            for one in carrier["latency"].as_array().unwrap() {
                assert!(one["count"].as_u64().unwrap() > 0, "{carrier:#}");
            }
        }
    });
}

/// `SAN_LOG=debug` shows what belongs to which connect, and to which request.
#[test]
#[ignore = "needs a fabric"]
fn the_log_names_the_connect_and_the_accept() {
    bounded(|| {
        let at = format!("{}:0", net::addr_b());
        let script = "SAN_LOG=debug exec \"$0\" listen --echo -k \"$1\"";
        let mut listener = Program::start("sh", &["-c", script, SAN, &at]);
        let line = listener.expect("san: listening on ", LIMIT);
        let peer = line.split(',').next().unwrap().trim();
        let mut connect = Command::new(SAN);
        connect.args(["connect", peer]).env("SAN_LOG", "debug");
        let output = connect.stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let is_in = |said: &str, span: &str, event: &str| {
            let mut lines = said.lines();
            lines.any(|line| line.contains(span) && line.contains(event))
        };
        assert!(output.status.success(), "{said}");
        let span = format!("connect{{destination={peer}}}");
        assert!(is_in(&said, &span, "connected route=SAN"), "{said}");
        listener.expect("san: accepted: ", LIMIT);
        listener.kill();
        let (_, said) = listener.finish(LIMIT);
        let span = format!("accept{{listener={peer} peer=");
        let waits = "a connection over the SAN waits for accept";
        assert!(is_in(&said, &span, waits), "{said}");
    });
}
