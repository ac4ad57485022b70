//! `san perf` and `san ping` as an operator has them, on the soft fabric and on TCP alone; and what
//! they say of a server that is none, that is not there, or that goes away.

mod common;

use san_tests::program::Program;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const SAN: &str = env!("CARGO_BIN_EXE_san");
const LIMIT: Duration = Duration::from_secs(60);

fn san(fabric: &str, args: &[&str]) -> Command {
    let mut command = Command::new(SAN);
    command.args(args).env("SAN_FABRIC", fabric);
    command.env("SAN_STAT", "off").env_remove("COLUMNS");
    // The soft fabric is to serve the address that the test's server is at.
    let mut addresses = args.iter().filter_map(|arg| arg.parse::<SocketAddr>().ok());
    if let Some(address) = addresses.next() {
        command.env("SAN_SOFT_ADDRESSES", address.ip().to_string());
    }
    command.stdin(Stdio::null());
    command
}

fn run(fabric: &str, args: &[&str]) -> Output {
    san(fabric, args).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A server, and where it is.
fn serve(fabric: &str) -> (Program, String) {
    let ip = common::own_address();
    let fabric = format!("SAN_FABRIC={fabric}");
    let addresses = format!("SAN_SOFT_ADDRESSES={ip}");
    let at = format!("{ip}:0");
    let args = [
        &fabric,
        &addresses,
        "SAN_STAT=off",
        SAN,
        "perf",
        "--serve",
        &at,
    ];
    let mut server = Program::start("env", &args);
    let line = server.expect("san: listening on ", LIMIT);
    let address = line.split(',').next().unwrap().trim().to_owned();
    (server, address)
}

/// A file of the test's own, gone with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Scratch(std::env::temp_dir().join(format!("san-perf-{}-{name}", std::process::id())))
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.0).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A server of another kind: it accepts one peer after the other and does this with each. It ends
/// with the test.
fn stranger(serve: impl Fn(TcpStream) + Send + 'static) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let thread = std::thread::spawn(move || {
        for peer in listener.incoming().take(64) {
            let Ok(peer) = peer else { return };
            serve(peer);
        }
    });
    (address, thread)
}

#[test]
fn both_carriers_are_measured_in_one_run_and_compared_with_a_saved_one() {
    let (_server, address) = serve("soft");
    let (json, svg) = (Scratch::new("run.json"), Scratch::new("run.svg"));
    let quick = ["--seconds", "0.05", "--sizes", "64,64k"];
    let mut args = vec!["perf", &address, "--json", json.path(), "--svg", svg.path()];
    args.extend(quick);
    let output = run("soft", &args);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(said(&output), "", "no progress without a terminal");

    let run_of: Value = serde_json::from_str(&json.text()).unwrap();
    let carriers = run_of["carriers"].as_array().unwrap();
    let names: Vec<&Value> = carriers.iter().map(|one| &one["name"]).collect();
    assert_eq!(names, ["san", "tcp"]);
    for carrier in carriers {
        let latency = carrier["latency"].as_array().unwrap();
        assert_eq!(latency.len(), 2);
        for one in latency {
            assert!(one["count"].as_u64().unwrap() > 0, "{one}");
            let at = |name: &str| one[name].as_u64().unwrap();
            assert!(
                at("min_ns") <= at("p50_ns") && at("p50_ns") <= at("max_ns"),
                "{one}"
            );
        }
        let throughput = carrier["throughput"].as_array().unwrap();
        assert_eq!(throughput.len(), 4);
        for one in throughput {
            assert!(one["bytes_per_second"].as_f64().unwrap() > 0.0, "{one}");
            assert!(one["bytes"].as_u64().unwrap() > 0, "{one}");
        }
    }
    assert!(svg.text().starts_with("<svg "));
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("SAN/TCP"), "{table}");

    let mut args = vec!["perf", &address, "-n", "3", "--compare", json.path()];
    args.extend(quick);
    let output = run("soft", &args);
    assert!(output.status.success(), "{}", said(&output));
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(
        table.contains("TCP P50/BEFORE") && table.contains("3 connections"),
        "{table}"
    );
}

#[test]
fn a_ping_has_a_histogram_for_each_carrier() {
    let (_server, address) = serve("soft");
    let output = run("soft", &["ping", &address, "-c", "200"]);
    assert!(output.status.success(), "{}", said(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    for name in [
        "SAN: 200 round trips",
        "TCP: 200 round trips",
        "over SAN (soft",
        "over TCP, to compare, connected in",
    ] {
        assert!(text.contains(name), "{text}");
    }
    let output = run(
        "soft",
        &["ping", &address, "-c", "3", "-i", "1", "--json", "-"],
    );
    let run_of: Value = serde_json::from_slice(&output.stdout).unwrap();
    for carrier in run_of["carriers"].as_array().unwrap() {
        assert_eq!(carrier["latency"][0]["count"], 3);
    }
}

#[test]
fn without_a_way_over_the_san_tcp_is_measured_and_the_reason_told() {
    let (_server, address) = serve("off");
    let output = run("soft", &["ping", &address, "-c", "10"]);
    assert!(output.status.success(), "{}", said(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("not over the SAN, since RDMA answers there but no program listens on that port over RDMA"),
        "{text}"
    );
    assert!(text.contains(&format!("san doctor {address}")), "{text}");
    assert!(text.contains("TCP: 10 round trips"), "{text}");
}

#[test]
fn a_server_that_is_not_there_is_one_clear_line() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    for command in ["ping", "perf"] {
        let output = run("off", &[command, &address]);
        assert_eq!(output.status.code(), Some(1));
        let said = said(&output);
        assert!(said.contains("Connection refused"), "{said}");
        assert!(said.contains("san perf --serve 0.0.0.0:"), "{said}");
        assert_eq!(said.lines().count(), 2, "{said}");
    }
}

#[test]
fn a_web_server_is_told_from_one_of_ours() {
    let (address, _) = stranger(|mut peer| {
        // It reads to the empty line, as web servers do.
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"\r\n\r\n") && peer.read(&mut byte).is_ok_and(|n| n == 1) {
            request.push(byte[0]);
        }
        let _ = peer.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    for command in ["ping", "perf"] {
        let began = Instant::now();
        let output = run("off", &[command, &address]);
        assert!(!output.status.success());
        let said = said(&output);
        assert!(said.contains("is not a server of san perf"), "{said}");
        assert!(said.contains("HTTP/1.1 400"), "{said}");
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "it was waited for"
        );
    }
}

#[test]
fn servers_that_say_odd_things_are_told() {
    let answering = |bytes: &'static [u8]| {
        let (address, _) = stranger(move |mut peer| {
            let mut request = [0; 32];
            let _ = peer.read_exact(&mut request);
            let _ = peer.write_all(bytes);
        });
        let output = run("off", &["ping", &address]);
        assert!(!output.status.success());
        said(&output)
    };
    for (bytes, wanted) in [
        (&b""[..], "ends without an answer"),
        (b"SANPRF", "is not a server of san perf"),
        (b"\x1b[2J and more text", "is not a server of san perf"),
        (
            b"SANPRF\x00\x02\x01\x00\x00\x00\x00\x00\x00\x00",
            "version 2 of the measuring protocol",
        ),
        (
            b"SANPRF\x00\x01\x03\x00\x00\x00\x00\x00\x00\x00",
            "as many as it can",
        ),
        (
            b"SANPRF\x00\x01\x02\x00\x00\x00\x00\x00\x00\x00",
            "bounds are smaller",
        ),
        (
            b"SANPRF\x00\x01\x63\x00\x00\x00\x00\x00\x00\x00",
            "version 1 of the measuring protocol",
        ),
        (
            // An echo of the request.
            b"SANPRF\x00\x01\x01\x00\x00\x00\x00\x00\x00\x00",
            "sends back what it gets",
        ),
        // It is ready, and goes.
        (
            b"SANPRF\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00",
            "went away in the middle",
        ),
    ] {
        let said = answering(bytes);
        assert!(said.contains(wanted), "{wanted}: {said}");
        assert!(!said.contains('\x1b'), "{said:?}");
    }
}

#[test]
fn a_server_that_takes_a_connection_and_says_nothing_is_not_waited_for_long() {
    let kept = std::sync::Mutex::new(Vec::new());
    let (address, _) = stranger(move |peer| kept.lock().unwrap().push(peer));
    let began = Instant::now();
    let output = run("off", &["ping", &address]);
    let said = said(&output);
    assert!(
        said.contains("does not answer as a server of san perf"),
        "{said}"
    );
    assert!(began.elapsed() < Duration::from_secs(30));
}

/// What a process has had of the processors.
fn processor_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before the parenthesis may have spaces in it.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks = fields.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    // Linux tells them in hundredths of a second, whatever its own clock does.
    Duration::from_millis(10 * ticks)
}

#[test]
fn a_server_that_goes_away_in_the_middle_is_told() {
    for fabric in ["off", "soft"] {
        let (mut server, address) = serve(fabric);
        let args = ["ping", &address, "-c", "1000000000", "--seconds", "30"];
        let child = san(fabric, &args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Connecting costs far less than this: it is in the middle by then.
        let began = Instant::now();
        while processor_time(child.id()) < Duration::from_millis(500) {
            assert!(began.elapsed() < LIMIT, "it does not measure");
            std::thread::sleep(Duration::from_millis(20));
        }
        server.kill();
        let began = Instant::now();
        let output = child.wait_with_output().unwrap();
        assert!(!output.status.success(), "{fabric}");
        let said = said(&output);
        let is_told = said.contains("went away in the middle") || said.contains("has been silent");
        assert!(is_told, "{fabric}: {said}");
        assert!(said.contains("pgrep"), "{fabric}: {said}");
        assert!(began.elapsed() < Duration::from_secs(25), "{fabric}");
    }
}

/// What the server says to these bytes, until it closes.
fn answer_to(address: &str, bytes: &[u8]) -> Vec<u8> {
    let mut peer = TcpStream::connect(address).unwrap();
    peer.set_read_timeout(Some(LIMIT)).unwrap();
    peer.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    let _ = peer.read_to_end(&mut answer);
    answer
}

#[test]
fn a_server_is_not_troubled_by_what_peers_send() {
    let (_server, address) = serve("off");
    let ours = |version: u8, kind: u8, size: [u8; 4], time: [u8; 4]| {
        let mut request = b"SANPRF\x00".to_vec();
        request.extend([version, kind, 0, 0, 0]);
        request.extend(size);
        request.extend(time);
        request.extend([0; 8]);
        request.extend(b"\r\n\r\n");
        request
    };
    let web = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    assert_eq!(answer_to(&address, web)[..9], *b"SANPRF\x00\x01\x02");
    assert_eq!(answer_to(&address, &ours(9, 1, [0, 0, 0, 1], [0; 4]))[8], 1);
    assert_eq!(answer_to(&address, &ours(1, 9, [0, 0, 0, 1], [0; 4]))[8], 2);
    assert_eq!(answer_to(&address, &ours(1, 1, [0xff; 4], [0; 4]))[8], 2);
    assert_eq!(
        answer_to(&address, &ours(1, 3, [0, 0, 0, 1], [0xff; 4]))[8],
        2
    );
    // A good request, and then nobody who reads.
    let mut deaf = TcpStream::connect(&address).unwrap();
    deaf.write_all(&ours(1, 3, [0, 1, 0, 0], [0, 0, 0, 100]))
        .unwrap();
    drop(deaf);
    let output = run("off", &["ping", &address, "-c", "10"]);
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn peers_past_the_limit_are_told_that_it_is_busy() {
    let (_server, address) = serve("off");
    let connect = || TcpStream::connect(&address).unwrap();
    let held: Vec<TcpStream> = (0..256).map(|_| connect()).collect();
    let mut last = connect();
    last.set_read_timeout(Some(LIMIT)).unwrap();
    let mut answer = [0; 16];
    last.read_exact(&mut answer).unwrap();
    assert_eq!(answer[..9], *b"SANPRF\x00\x01\x03");
    drop(held);
    let began = Instant::now();
    while !run("off", &["ping", &address, "-c", "1"]).status.success() {
        assert!(began.elapsed() < LIMIT, "no place was given back");
    }
}

#[test]
fn a_full_disk_is_told_after_the_figures() {
    let (_server, address) = serve("off");
    for option in ["--json", "--svg"] {
        let args = [
            "perf",
            &address,
            "--seconds",
            "0.02",
            "--sizes",
            "64",
            option,
            "/dev/full",
        ];
        let output = run("off", &args);
        assert!(!output.status.success());
        let said = said(&output);
        assert!(
            said.contains("cannot write /dev/full: No space left") && said.contains("df -h /dev"),
            "{said}"
        );
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("TCP P50"), "{text}");
    }
    // What cannot be written at all is told before anything is measured.
    let args = ["perf", &address, "--json", "/no/such/directory/run.json"];
    let began = Instant::now();
    let output = run("off", &args);
    assert!(said(&output).contains("cannot write /no/such/directory/run.json"));
    assert_eq!(output.stdout, b"");
    assert!(began.elapsed() < Duration::from_secs(2));
    // Nor is a run that cannot be compared with.
    let output = run("off", &["perf", &address, "--compare", "/dev/null"]);
    assert!(
        said(&output).contains("/dev/null is not a saved run"),
        "{}",
        said(&output)
    );
}

#[test]
fn progress_is_shown_on_a_terminal_alone() {
    if san_tests::program::output_of("script", &["--version"]).is_none() {
        eprintln!("not run: script (util-linux) is not installed");
        return;
    }
    let (_server, address) = serve("off");
    let command = format!("{SAN} perf {address} --seconds 0.3 --sizes 64,4k");
    let on_a_terminal = |settings: &[(&str, &str)]| {
        let output = Command::new("script")
            .args(["-qec", &command, "/dev/null"])
            .env("SAN_FABRIC", "off")
            .env("TERM", "xterm")
            .env_remove("NO_COLOR")
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let shown = on_a_terminal(&[]);
    assert!(shown.contains("left; TCP, 64 B: "), "{shown}");
    assert!(shown.contains("MB/s"), "{shown}");
    let plain = on_a_terminal(&[("NO_COLOR", "1")]);
    assert!(
        !plain.contains("left") && plain.contains("TCP P50"),
        "{plain}"
    );
}
