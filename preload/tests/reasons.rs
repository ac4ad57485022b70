//! Why a program's connections are on TCP: `san stat` tells it of each, though the kernel has them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;

use san_switch::stat::ConnectionReport;
use san_switch::{NotMoved, NotTried, Report};

use crate::support::{library, program};

/// An address of the loopback that nobody else uses.
fn own_address(net: u8) -> Ipv4Addr {
    let pid = std::process::id();
    let part = |by: u32| u8::try_from(pid / by % 250).expect("below 250");
    Ipv4Addr::new(127, net, part(250), 1 + part(1))
}

/// A peer that knows nothing of the SAN: it sends back what it gets.
fn echo(listener: &TcpListener) {
    while let Ok((stream, _)) = listener.accept() {
        thread::spawn(move || echo_one(stream));
    }
}

fn echo_one(mut stream: TcpStream) {
    let mut bytes = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut bytes) {
        if stream.write_all(&bytes[..length]).is_err() {
            return;
        }
    }
}

/// The program ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the program with this route; its lines until it is ready.
fn start(route: &str, own: Ipv4Addr) -> (Running, Vec<String>) {
    let listener = TcpListener::bind((own, 0)).expect("a listener");
    let port = listener.local_addr().expect("its address").port();
    thread::spawn(move || echo(&listener));
    let mut command = Command::new(program("reasons"));
    command
        .args([own.to_string(), own.to_string(), port.to_string()])
        .env("LD_PRELOAD", library())
        .envs([("SAN_ROUTE", route), ("SAN_FABRIC", "soft")])
        .envs([("SAN_UPGRADE_BYTES", "4096"), ("SAN_STAT", "on")])
        .env("SAN_SOFT_ADDRESSES", own.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut running = Running(command.spawn().expect("it starts"));
    let said = running.0.stdout.take().expect("a pipe");
    let said = BufReader::new(said).lines().map(|line| line.expect("text"));
    let said = said.take_while(|line| line != "ready").collect();
    (running, said)
}

#[test]
fn with_the_direct_route_the_last_connects_that_were_left_to_tcp_are_told() {
    let (running, said) = start("direct", own_address(98));
    let reports = Report::of_process(running.0.id()).expect("it answers");
    let left = &reports[0].left_to_tcp;
    assert_eq!(left.len(), said.len());
    for one in left {
        assert!(
            one.why.contains("no program listens on that port"),
            "{one:?}"
        );
        assert!(one.remedy.contains("san stat"), "{one:?}");
    }
}

#[test]
fn a_program_says_why_its_connections_have_not_moved() {
    let (running, said) = start("upgrade", own_address(99));
    let reports = Report::of_process(running.0.id()).expect("it answers");
    let told = |name: &str| -> ConnectionReport {
        let line = said.iter().find(|line| line.starts_with(name));
        let port = line.and_then(|line| line.rsplit(' ').next());
        let port: u16 = port.and_then(|port| port.parse().ok()).expect("a port");
        let mut all = reports.iter().flat_map(|report| &report.connections);
        let one = all.find(|one| one.local.port() == port);
        one.unwrap_or_else(|| panic!("{name} is not listed: {reports:?}"))
            .clone()
    };
    for (name, why) in [
        ("shared", NotMoved::Shared),
        ("short", NotMoved::Short),
        ("uncounted", NotMoved::Uncounted),
        ("needs tcp", NotMoved::NeedsTcp),
        ("unanswered", NotMoved::Unanswered),
    ] {
        let one = told(name);
        assert_eq!(one.route, "tcp", "{name}");
        let words = NotTried::NotMoved(why).to_string();
        assert_eq!(one.not_tried, Some(words), "{name}");
        assert!(one.remedy.is_some_and(|remedy| !remedy.is_empty()));
    }
    let sent = told("shared").counters["bytes_sent"];
    assert_eq!(sent, 64 * 512, "what this process has written");
}

#[test]
fn a_forked_child_reports_the_connection_that_it_has_inherited_and_no_other() {
    let own = own_address(97).to_string();
    let output = Command::new(program("forked"))
        .arg(&own)
        .env("LD_PRELOAD", library())
        .envs([("SAN_ROUTE", "upgrade"), ("SAN_FABRIC", "soft")])
        .envs([("SAN_STAT", "off"), ("SAN_REPORT", "-")])
        .env("SAN_SOFT_ADDRESSES", &own)
        .output()
        .expect("it starts");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let told = |count: &str| text.lines().filter(|line| line.contains(count)).count();
    assert_eq!(told("1 over TCP (1 accepted)"), 1, "the child: {text}");
    assert_eq!(told("8 over TCP (4 accepted)"), 1, "the parent: {text}");
    assert_eq!(told("why on TCP: 1 "), 1, "the child: {text}");
}
