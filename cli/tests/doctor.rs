//! `san doctor` as an operator has it: on the soft fabric, and on a machine without any device.

mod common;

use san_tests::program::Program;
use serde_json::Value;
use std::net::{TcpListener, UdpSocket};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

const SAN: &str = env!("CARGO_BIN_EXE_san");
const LIMIT: Duration = Duration::from_secs(30);

/// The doctor's environment is the test's own, without settings.
fn doctor(settings: &[(&str, &str)], args: &[&str]) -> Output {
    let mut command = Command::new(SAN);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SAN_") {
            command.env_remove(name);
        }
    }
    command
        .arg("doctor")
        .args(args)
        .envs(settings.iter().copied());
    command.stdin(Stdio::null()).output().unwrap()
}

fn report(settings: &[(&str, &str)], args: &[&str]) -> (Value, bool) {
    let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
    let output = doctor(settings, &args);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["ok"], output.status.success());
    (report, output.status.success())
}

/// The settings of the soft fabric at an address.
fn soft(ip: &str) -> [(&str, &str); 2] {
    [("SAN_FABRIC", "soft"), ("SAN_SOFT_ADDRESSES", ip)]
}

/// The line of that check, with its level; the first if there are several.
fn line<'a>(report: &'a Value, check: &str) -> &'a Value {
    let mut lines = report["lines"].as_array().unwrap().iter();
    lines
        .find(|line| line["check"] == check)
        .unwrap_or_else(|| panic!("no line {check} in {report}"))
}

fn text_of(line: &Value) -> &str {
    line["text"].as_str().unwrap()
}

fn remedy_of(line: &Value) -> &str {
    line["remedy"].as_str().unwrap_or_default()
}

/// A listener at an address, on that fabric.
fn echo(fabric: &str, ip: &str) -> (Program, String) {
    let fabric = format!("SAN_FABRIC={fabric}");
    let addresses = format!("SAN_SOFT_ADDRESSES={ip}");
    let at = format!("{ip}:0");
    let all = [
        &fabric,
        &addresses,
        "SAN_STAT=off",
        SAN,
        "listen",
        "--echo",
        "-k",
        &at,
    ];
    let mut listener = Program::start("env", &all);
    let line = listener.expect("san: listening on ", LIMIT);
    let address = line.split(',').next().unwrap().trim().to_owned();
    (listener, address)
}

#[test]
fn a_peer_on_the_soft_fabric_is_reached_over_the_san() {
    let ip = common::own_address();
    let (_listener, address) = echo("soft", &ip);
    let (report, ok) = report(&soft(&ip), &[&address]);
    assert!(ok, "{report}");
    let route = text_of(line(&report, "route"));
    assert!(route.contains("over the SAN (soft, soft0)"), "{route}");
    assert_eq!(line(&report, "tcp")["level"], "ok");
    assert_eq!(line(&report, "device")["level"], "ok");
    let facts = &report["facts"]["peer"]["addresses"][0];
    assert!(facts["path_mtu"].as_u64().unwrap() > 1000, "{facts}");
}

#[test]
fn a_peer_of_tcp_alone_takes_tcp_with_a_reason() {
    let ip = common::own_address();
    let (_listener, address) = echo("off", &ip);
    let (report, ok) = report(&soft(&ip), &[&address]);
    assert!(!ok, "{report}");
    let route = line(&report, "route");
    assert_eq!(route["level"], "fail");
    assert!(text_of(route).contains("takes TCP"), "{route}");
    assert!(remedy_of(route).contains("on the peer"), "{route}");
    assert_eq!(line(&report, "tcp")["level"], "ok");
}

#[test]
fn a_route_that_says_tcp_is_named_and_hides_nothing_else() {
    let ip = common::own_address();
    let (_listener, address) = echo("soft", &ip);
    let [fabric, addresses] = soft(&ip);
    let (report, ok) = report(&[fabric, addresses, ("SAN_ROUTE", "off")], &[&address]);
    assert!(ok, "{report}");
    let route = line(&report, "route");
    assert_eq!(route["level"], "warn");
    assert!(text_of(route).contains("SAN_ROUTE=off says so"), "{route}");
    assert_eq!(remedy_of(route), "unset SAN_ROUTE");
    // The machine's addresses are on the SAN all the same.
    assert_eq!(line(&report, "addresses")["level"], "ok");
}

#[test]
fn a_full_backlog_is_told_with_its_size() {
    let ip = common::own_address();
    let addresses = format!("SAN_SOFT_ADDRESSES={ip}");
    let common = ["SAN_FABRIC=soft", &addresses, "SAN_STAT=off", SAN];
    let start = |args: &[&str]| Program::start("env", &[&common[..], args].concat());
    // It serves one peer, and goes on to no other.
    let at = format!("{ip}:0");
    let mut listener = start(&["listen", "--backlog", "1", &at]);
    let line = listener.expect("san: listening on ", LIMIT);
    let address = line.split(',').next().unwrap().trim();
    let mut served = start(&["connect", address]);
    served.expect("san: connected", LIMIT);
    listener.expect("san: accepted", LIMIT);
    let mut waiting = start(&["connect", address]);
    waiting.expect("san: connected", LIMIT);
    let (report, ok) = report(&soft(&ip), &[address]);
    assert!(!ok);
    let route = line_of_route(&report);
    assert!(
        text_of(route).contains("the listener's backlog of 1 is full"),
        "{route}"
    );
    assert!(remedy_of(route).contains("SAN_BACKLOG"), "{route}");
}

#[test]
fn a_peer_that_does_not_answer_is_silent_and_has_tcp() {
    let ip = common::own_address();
    let (listener, address) = echo("soft", &ip);
    common::stop(listener.pid());
    let (report, ok) = report(&soft(&ip), &[&address]);
    common::go_on(listener.pid());
    assert!(!ok);
    let route = line_of_route(&report);
    assert!(
        text_of(route).contains("takes TCP: no answer over RDMA"),
        "{route}"
    );
    assert!(
        remedy_of(route).contains("tcpdump -ni any udp port 4791"),
        "{route}"
    );
    assert_eq!(line(&report, "tcp")["level"], "ok", "{report}");
}

fn line_of_route(report: &Value) -> &Value {
    let route = line(report, "route");
    assert_eq!(route["level"], "fail", "{route}");
    route
}

#[test]
fn nobody_there_is_told_for_both_ways() {
    let ip = common::own_address();
    let free = TcpListener::bind((ip.as_str(), 0)).unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let (report, ok) = report(&soft(&ip), &[&address]);
    assert!(!ok);
    assert_eq!(line(&report, "route")["level"], "fail");
    let tcp = line(&report, "tcp");
    assert!(remedy_of(tcp).contains("ss -ltnp"), "{tcp}");
}

#[test]
fn a_host_alone_is_asked_for_its_rdma() {
    let ip = common::own_address();
    let (report, ok) = report(&soft(&ip), &[&ip]);
    assert!(ok, "{report}");
    let route = text_of(line(&report, "route"));
    assert!(route.contains(&format!("RDMA answers at {ip}")), "{route}");
}

#[test]
fn a_name_that_nobody_has_is_told() {
    let (report, ok) = report(&[("SAN_FABRIC", "soft")], &["no-such-host.invalid:1"]);
    assert!(!ok);
    let peer = line(&report, "peer");
    assert!(
        remedy_of(peer).contains("getent hosts no-such-host.invalid"),
        "{peer}"
    );
}

#[test]
fn without_a_device_it_says_what_is_missing() {
    if std::path::Path::new("/sys/class/infiniband").exists() {
        return;
    }
    for fabric in ["auto", "rdma"] {
        let (report, ok) = report(&[("SAN_FABRIC", fabric)], &[]);
        assert!(!ok);
        let kernel = line(&report, "kernel");
        assert_eq!(kernel["level"], "fail");
        assert!(
            remedy_of(kernel).contains("modprobe -a ib_core"),
            "{kernel}"
        );
        let library = line(&report, "library");
        assert_eq!(library["level"], "fail");
        assert!(!remedy_of(library).is_empty(), "{library}");
    }
    // The peer is looked at all the same.
    let (_listener, address) = echo("off", &common::own_address());
    let (report, _) = report(&[], &[&address]);
    assert!(
        text_of(line(&report, "route")).contains("takes TCP"),
        "{report}"
    );
    assert_eq!(line(&report, "tcp")["level"], "ok");
}

#[test]
fn without_root_every_line_is_there_and_can_be_acted_upon() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    if san_tests::program::output_of("id", &["-u"]).as_deref() != Some("0\n") {
        // Then all other tests are without root, too.
        return;
    }
    // Where the other user can reach it.
    let copy = std::env::temp_dir().join(format!("san-doctor-{}", std::process::id()));
    std::fs::copy(SAN, &copy).unwrap();
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)).unwrap();
    let own = common::own_address();
    let asked = Command::new(&copy)
        .args(["doctor", "--json"])
        .env_clear()
        .envs(soft(&own))
        .uid(65_534)
        .gid(65_534)
        .output();
    std::fs::remove_file(&copy).unwrap();
    // The root of a container may have no other users.
    let Ok(output) = asked else {
        return;
    };
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    for line in report["lines"].as_array().unwrap() {
        let is_ok = line["level"] == "ok";
        assert_eq!(is_ok, remedy_of(line).is_empty(), "{line}");
    }
    assert_eq!(line(&report, "device")["level"], "ok", "{report}");
}

#[test]
fn every_bad_setting_is_named() {
    let settings = [
        ("SAN_FABRIC", "soft"),
        ("SAN_BACKLOG", "0"),
        ("SAN_STRICT", "yes"),
        ("SAN_CONFIG", "/no/such/file"),
        ("SAN_FABRC", "soft"),
    ];
    let (report, ok) = report(&settings, &[]);
    assert!(!ok);
    let lines = report["lines"].as_array().unwrap();
    for (name, level) in [
        ("SAN_BACKLOG is '0'", "fail"),
        ("SAN_STRICT is 'yes'", "fail"),
        ("SAN_CONFIG names a file", "fail"),
        ("SAN_FABRC is not a setting", "warn"),
    ] {
        let mut of_settings = lines.iter().filter(|line| line["check"] == "settings");
        let line = of_settings.find(|line| text_of(line).contains(name));
        assert_eq!(
            line.unwrap_or(&Value::Null)["level"],
            level,
            "{name}: {report}"
        );
    }
    // Those that are good count.
    assert_eq!(report["facts"]["settings"]["fabric"], "soft");
}

#[test]
fn an_address_of_somebody_else_is_told() {
    let settings = [
        ("SAN_FABRIC", "soft"),
        ("SAN_SOFT_ADDRESSES", "198.51.100.77"),
    ];
    let (report, ok) = report(&settings, &[]);
    assert!(!ok);
    let device = line(&report, "device");
    assert!(text_of(device).contains("198.51.100.77"), "{device}");
    assert!(remedy_of(device).contains("SAN_SOFT_ADDRESSES"), "{device}");
}

#[test]
fn few_descriptors_are_told_and_end_nothing() {
    let script = "ulimit -n 40; exec \"$0\" doctor --json";
    let output = Command::new("sh")
        .args(["-c", script, SAN])
        .env("SAN_FABRIC", "soft")
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let line = line(&report, "descriptors");
    assert_eq!(line["level"], "fail", "{line}");
    // The shell's command sets the hard limit, too, so that the shell cannot raise it again.
    assert!(remedy_of(line).contains("prlimit --nofile="), "{line}");
}

#[test]
fn output_without_a_terminal_has_no_colours_and_fits_the_columns() {
    let settings = [("SAN_FABRIC", "soft"), ("COLUMNS", "20")];
    let output = doctor(&settings, &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.contains('\x1b'), "{text}");
    for line in text.lines() {
        assert!(line.chars().count() <= 20, "{line}");
    }
}

#[test]
fn a_terminal_has_colours_unless_somebody_wants_none() {
    if san_tests::program::output_of("script", &["--version"]).is_none() {
        eprintln!("not run: script (util-linux) is not installed");
        return;
    }
    let command = format!("{SAN} doctor");
    let on_a_terminal = |settings: &[(&str, &str)]| {
        let output = Command::new("script")
            .args(["-qec", &command, "/dev/null"])
            .envs(soft(&common::own_address()))
            .env("TERM", "xterm")
            .env_remove("NO_COLOR")
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let coloured = on_a_terminal(&[]);
    assert!(coloured.contains("\x1b["), "{coloured}");
    let plain = on_a_terminal(&[("NO_COLOR", "1")]);
    assert!(
        !plain.contains('\x1b') && plain.contains("fabric"),
        "{plain}"
    );
}

#[test]
fn a_full_disk_is_an_error_and_a_reader_that_leaves_is_none() {
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let output = Command::new(SAN)
        .args(["doctor", "--json"])
        .stdout(full)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("cannot write the output: No space left"),
        "{said}"
    );

    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(SAN)
        .args(["doctor", "--json"])
        .stdout(writer)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

#[test]
fn who_has_the_soft_fabrics_port_is_found_without_taking_it() {
    // A program that is none of San Direct's has it.
    let ip = common::own_address();
    let foreign = UdpSocket::bind((ip.as_str(), 4791)).unwrap();
    let (taken, _) = report(&soft(&ip), &[]);
    let port = line(&taken, "port 4791");
    assert_eq!(port["level"], "fail", "{port}");
    assert!(remedy_of(port).contains("ss -uanp"), "{port}");
    drop(foreign);
    let (free, _) = report(&soft(&ip), &[]);
    assert!(text_of(line(&free, "port 4791")).contains("is free"));
    let (_listener, _) = echo("soft", &ip);
    let (shared, _) = report(&soft(&ip), &[]);
    assert!(
        text_of(line(&shared, "port 4791")).contains("share"),
        "{shared}"
    );
}

/// A network namespace with an address of a subnet, in which one host may not be spoken to.
const PROHIBITED: &str = "ip link set lo up && ip link add v0 type veth peer name v1 && \
    ip addr add 10.0.7.1/24 dev v0 && ip link set v0 up && ip link set v1 up && \
    ip route add prohibit 10.0.7.9/32 && exec \"$0\" doctor 10.0.7.9:7000 --json";

#[test]
fn a_firewall_on_the_way_is_told() {
    let inside = |way: &str| {
        let output = Command::new("unshare")
            .args([way, "sh", "-c", PROHIBITED, SAN])
            .env("SAN_FABRIC", "soft")
            .env_remove("SAN_SOFT_ADDRESSES")
            .stdin(Stdio::null())
            .output();
        output.ok().filter(|output| !output.stdout.is_empty())
    };
    let Some(output) = inside("-n").or_else(|| inside("-rn")) else {
        eprintln!("not run: no network namespace can be made here");
        return;
    };
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["ok"], false);
    let firewall = line(&report, "firewall");
    assert_eq!(firewall["level"], "fail", "{firewall}");
    assert!(
        text_of(firewall).contains("Permission denied"),
        "{firewall}"
    );
    assert!(remedy_of(firewall).contains("nft"), "{firewall}");
    assert_eq!(line(&report, "route")["level"], "fail");
}
