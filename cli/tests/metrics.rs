//! `san stat --openmetrics` and the exporter, as Prometheus has them: processes beside it on the soft
//! fabric and on TCP.

mod common;

use prometheus_parse::{Scrape, Value};
use san_tests::program::Program;
use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

const SAN: &str = env!("CARGO_BIN_EXE_san");
const LIMIT: Duration = Duration::from_secs(30);
const DASHBOARD: &str = include_str!("../dashboard/san-direct.json");

/// A runtime directory and an address of the test's own.
struct Sandbox(PathBuf, String);

impl Sandbox {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("san-metrics-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Sandbox(path, common::own_address())
    }

    fn start(&self, fabric: &str, args: &[&str]) -> Program {
        let runtime = format!("XDG_RUNTIME_DIR={}", self.0.display());
        let fabric = format!("SAN_FABRIC={fabric}");
        let addresses = format!("SAN_SOFT_ADDRESSES={}", self.1);
        let mut all = vec![runtime.as_str(), &fabric, &addresses, SAN];
        all.extend_from_slice(args);
        Program::start("env", &all)
    }

    fn listener(&self, fabric: &str) -> (Program, String) {
        let mut listener = self.start(
            fabric,
            &["listen", "--echo", "-k", &format!("{}:0", self.1)],
        );
        let line = listener.expect("san: listening on ", LIMIT);
        (listener, line.split(',').next().unwrap().trim().to_owned())
    }

    /// A connection that has sent a line and got it back.
    fn client(&self, fabric: &str, address: &str) -> Program {
        let mut client = self.start(fabric, &["connect", address]);
        client.tell("hello");
        client.expect("hello", LIMIT);
        client
    }

    fn stat(&self, args: &[&str]) -> Output {
        let mut command = Command::new(SAN);
        command.arg("stat").args(args);
        command.env("XDG_RUNTIME_DIR", &self.0);
        command.output().unwrap()
    }

    fn text(&self) -> String {
        let output = self.stat(&["--openmetrics"]);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// The metrics, once they are so.
    fn once(&self, are_so: impl Fn(&Scrape) -> bool) -> Scrape {
        let began = Instant::now();
        loop {
            let text = self.text();
            let scrape = parsed(&text);
            if are_so(&scrape) {
                return scrape;
            }
            assert!(began.elapsed() < LIMIT, "{text}");
        }
    }

    /// An exporter at a port of the system's choice, and that port.
    fn exporter(&self) -> (Program, String) {
        let mut exporter = self.start("off", &["stat", "--serve", "127.0.0.1:0"]);
        let line = exporter.expect("san: metrics at http://", LIMIT);
        (exporter, line.trim_end_matches("/metrics").to_owned())
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The value of the one sample with that name and these labels.
fn value(scrape: &Scrape, name: &str, labels: &[(&str, &str)]) -> f64 {
    let fits = |sample: &&prometheus_parse::Sample| {
        sample.metric == name
            && labels
                .iter()
                .all(|(name, value)| sample.labels.get(name) == Some(value))
    };
    let mut found = scrape.samples.iter().filter(fits);
    let sample = found
        .next()
        .unwrap_or_else(|| panic!("no {name} with {labels:?}"));
    assert!(found.next().is_none(), "several of {name} with {labels:?}");
    match sample.value {
        Value::Counter(n) | Value::Gauge(n) | Value::Untyped(n) => n,
        ref other => panic!("{name} is {other:?}"),
    }
}

fn parsed(text: &str) -> Scrape {
    Scrape::parse(text.lines().map(|line| Ok::<_, io::Error>(line.to_owned()))).unwrap()
}

fn http(mut stream: impl Read + Write, request: &str) -> (String, String) {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

fn get(address: &str, path: &str) -> (String, String) {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    http(
        stream,
        &format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n"),
    )
}

#[test]
fn what_a_connection_over_the_san_did_is_in_the_metrics() {
    let place = Sandbox::new("san");
    let (listener, address) = place.listener("soft");
    let client = place.client("soft", &address);
    let pids = [&listener, &client].map(|one| one.pid().to_string());
    let received = "san_provider_received_bytes_total";
    // The server counts the message when the client has its answer already.
    let scrape = place.once(|scrape| value(scrape, received, &[("pid", &pids[0])]) == 6.0);
    let of = |pid: &str, name: &str| value(&scrape, name, &[("pid", pid)]);
    assert_eq!(of(&pids[1], "san_switch_connected_san_total"), 1.0);
    assert_eq!(of(&pids[1], "san_provider_sent_bytes_total"), 6.0);
    assert_eq!(of(&pids[0], "san_listener_san_accepted_total"), 1.0);
    assert_eq!(of(&pids[0], "san_companion_accepted_total"), 1.0);
    assert_eq!(of(&pids[0], "san_listener_backlog"), 128.0);
    for pid in &pids {
        let route = |route| {
            value(
                &scrape,
                "san_connections",
                &[("pid", pid), ("route", route)],
            )
        };
        assert_eq!((route("san"), route("tcp")), (1.0, 0.0));
    }
    assert_eq!(
        value(&scrape, "san_exporter_unanswered_processes", &[]),
        0.0
    );
}

#[test]
fn the_reason_for_tcp_is_a_label() {
    let place = Sandbox::new("tcp");
    let (_listener, address) = place.listener("off");
    let client = place.client("soft", &address);
    let scrape = parsed(&place.text());
    let pid = client.pid().to_string();
    let reason = (
        "reason",
        "RDMA answers there but no program listens on that port over RDMA",
    );
    let count = value(
        &scrape,
        "san_fallback_connections",
        &[("pid", &pid), reason],
    );
    assert_eq!(count, 1.0);
    assert_eq!(
        value(&scrape, "san_switch_fallbacks_total", &[("pid", &pid)]),
        1.0
    );
}

#[test]
fn the_text_keeps_the_rules_of_openmetrics() {
    let place = Sandbox::new("rules");
    let (_listener, address) = place.listener("soft");
    let _client = place.client("soft", &address);
    let text = place.text();
    let (body, end) = text.split_at(text.len() - 6);
    assert_eq!(end, "# EOF\n");
    let mut families = BTreeSet::new();
    let mut family = ("", "");
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            family = rest.split_once(' ').unwrap();
            assert!(families.insert(family.0), "{} is there twice", family.0);
        } else if let Some(rest) = line.strip_prefix("# UNIT ") {
            let (name, unit) = rest.split_once(' ').unwrap();
            assert_eq!(name, family.0);
            assert!(name.ends_with(&format!("_{unit}")), "{line}");
        } else if let Some(rest) = line.strip_prefix("# HELP ") {
            assert_eq!(rest.split_once(' ').unwrap().0, family.0);
        } else {
            let name = line.split(['{', ' ']).next().unwrap();
            let suffix = match family.1 {
                "counter" => "_total",
                "info" => "_info",
                "gauge" => "",
                other => panic!("{other}"),
            };
            assert_eq!(name, format!("{}{suffix}", family.0));
        }
    }
}

#[test]
fn the_exporter_answers_scrapers_and_tells_others_where_to_ask() {
    let place = Sandbox::new("exporter");
    let (listener, _) = place.listener("off");
    let (_exporter, address) = place.exporter();
    let (head, body) = get(&address, "/metrics");
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    assert!(
        head.contains("application/openmetrics-text; version=1.0.0"),
        "{head}"
    );
    assert!(
        head.contains(&format!("Content-Length: {}", body.len())),
        "{head}"
    );
    let pid = listener.pid().to_string();
    assert_eq!(
        value(&parsed(&body), "san_listener_backlog", &[("pid", &pid)]),
        128.0
    );

    let (head, body) = get(&address, "/");
    assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
    assert!(body.contains("/metrics"), "{body}");
    let of = |request: &str| http(TcpStream::connect(&address).unwrap(), request).0;
    assert!(of("POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405 "));
    assert!(of("\x01\x02\x03\r\n\r\n").starts_with("HTTP/1.1 400 "));
    let long = format!("GET /metrics HTTP/1.1\r\nA: {}", "x".repeat(9000));
    assert!(of(&long).starts_with("HTTP/1.1 431 "));
}

#[test]
fn a_client_that_does_not_ask_holds_the_others_up_for_a_moment_only() {
    let place = Sandbox::new("silent");
    let (_exporter, address) = place.exporter();
    let silent: Vec<TcpStream> = (0..2)
        .map(|_| TcpStream::connect(&address).unwrap())
        .collect();
    let began = Instant::now();
    let (head, _) = get(&address, "/metrics");
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
    drop(silent);
}

#[test]
fn two_exporters_at_one_place_are_told() {
    let place = Sandbox::new("two");
    let (_exporter, address) = place.exporter();
    let output = place.stat(&["--serve", &address]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("Address already in use") && said.contains("ss -ltnp"),
        "{said}"
    );

    let path = place.0.join("metrics.sock");
    let path = path.to_str().unwrap();
    let mut first = place.start("off", &["stat", "--serve", path]);
    first.expect("san: metrics at ", LIMIT);
    let output = place.stat(&["--serve", path]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && said.contains("another exporter"),
        "{said}"
    );

    // This user alone may ask; and what a killed one leaves is taken over.
    let mode = std::fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let request = "GET /metrics HTTP/1.1\r\n\r\n";
    let (head, _) = http(UnixStream::connect(path).unwrap(), request);
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    first.kill();
    let mut second = place.start("off", &["stat", "--serve", path]);
    second.expect("san: metrics at ", LIMIT);
    let (head, _) = http(UnixStream::connect(path).unwrap(), request);
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    // A file of another kind is left alone.
    let file = place.0.join("file");
    std::fs::write(&file, "mine").unwrap();
    let output = place.stat(&["--serve", file.to_str().unwrap()]);
    assert!(!output.status.success());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");

    // A directory that is not there.
    let nowhere = place.0.join("nowhere/metrics.sock");
    let output = place.stat(&["--serve", nowhere.to_str().unwrap()]);
    let said = String::from_utf8(output.stderr).unwrap();
    let told = said.contains("cannot serve metrics at") && said.contains("ls -ld");
    assert!(!output.status.success() && told, "{said}");
}

#[test]
fn a_process_that_is_stopped_is_counted_and_hides_no_other() {
    let place = Sandbox::new("stopped");
    let (stopped, _) = place.listener("off");
    let (other, _) = place.listener("off");
    common::stop(stopped.pid());
    let text = place.text();
    common::go_on(stopped.pid());
    let scrape = parsed(&text);
    assert_eq!(
        value(&scrape, "san_exporter_unanswered_processes", &[]),
        1.0
    );
    let pid = other.pid().to_string();
    assert_eq!(
        value(&scrape, "san_listener_waiting", &[("pid", &pid)]),
        0.0
    );
}

/// The names of metrics in an expression.
fn names(expression: &str) -> Vec<&str> {
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = expression.split(|c| !is_of_name(c));
    words.filter(|word| word.starts_with("san_")).collect()
}

#[test]
fn the_dashboard_asks_for_metrics_that_there_are() {
    let place = Sandbox::new("dashboard");
    let (_listener, address) = place.listener("soft");
    let (_plain, plain_address) = place.listener("off");
    let _client = place.client("soft", &address);
    let _fallen_back = place.client("soft", &plain_address);
    let scrape = parsed(&place.text());
    let known: BTreeSet<&str> = scrape.samples.iter().map(|s| s.metric.as_str()).collect();
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap());
    let mut asked: Vec<&str> = targets
        .flat_map(|t| names(t["expr"].as_str().unwrap()))
        .collect();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    asked.extend(
        variables
            .iter()
            .flat_map(|one| names(one["query"].as_str().unwrap())),
    );
    assert!(asked.len() > 20, "{asked:?}");
    for name in asked {
        assert!(known.contains(name), "{name} is not among {known:#?}");
    }
    let mut ids: Vec<_> = panels
        .iter()
        .map(|panel| panel["id"].as_u64().unwrap())
        .collect();
    let count = ids.len();
    ids.dedup();
    assert_eq!(ids.len(), count);
}
