//! `san listen` as an operator has it, on plain TCP, and beside a companion that cannot be.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use san_tests::program::Program;

const SAN: &str = env!("CARGO_BIN_EXE_san");
const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn peers_past_the_limit_of_descriptors_wait_and_are_served() {
    let script =
        "ulimit -n 48; SAN_FABRIC=off SAN_STAT=off exec \"$0\" listen --echo -k 127.0.0.1:0";
    let mut listener = Program::start("sh", &["-c", script, SAN]);
    let line = listener.expect("san: listening on ", LIMIT);
    let address: SocketAddr = line.split(',').next().unwrap().trim().parse().unwrap();
    let mut peers: Vec<TcpStream> = (0..80)
        .map(|_| TcpStream::connect_timeout(&address, LIMIT).unwrap())
        .collect();
    for peer in &mut peers {
        peer.set_read_timeout(Some(LIMIT)).unwrap();
        peer.write_all(b"x").unwrap();
    }
    // Accepted in the order in which they came; each that has its answer makes room.
    for (number, mut peer) in peers.into_iter().enumerate() {
        let mut answer = [0];
        let outcome = peer.read_exact(&mut answer);
        assert!(outcome.is_ok(), "peer {number}: {outcome:?}");
    }
}

#[test]
fn a_setting_that_keeps_the_san_away_is_named() {
    for (setting, why) in [
        ("SAN_FABRIC=off", "SAN_FABRIC=off says so"),
        ("SAN_FABRIC=soft SAN_ROUTE=off", "SAN_ROUTE=off says so"),
    ] {
        let script = format!("{setting} SAN_STAT=off exec \"$0\" listen --echo 127.0.0.1:0");
        let mut listener = Program::start("sh", &["-c", &script, SAN]);
        listener.expect("san: listening on ", LIMIT);
        assert_eq!(listener.expect("san:   TCP only: ", LIMIT).trim(), why);
    }
}

#[test]
fn a_companion_that_cannot_listen_is_said_with_what_tells_more() {
    let ip = common::own_address();
    let _taken = UdpSocket::bind((ip.as_str(), 4791)).unwrap();
    let script = format!(
        "SAN_FABRIC=soft SAN_SOFT_ADDRESSES={ip} SAN_STAT=off exec \"$0\" listen --echo {ip}:0"
    );
    let mut listener = Program::start("sh", &["-c", &script, SAN]);
    listener.expect("san: listening on ", LIMIT);
    let why = listener.expect("san:   soft: ", LIMIT);
    assert!(why.contains("UDP port 4791"), "{why}");
    listener.expect(
        "     TCP goes on without it; see what is in the way: san doctor",
        LIMIT,
    );
}
