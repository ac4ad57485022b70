//! A peer that breaks the protocol on a stream that moves: it is a TCP socket and a bare provider, which upgrade as
//! they should and then do not. The stream ends alone, counted under a name, or stays on TCP.
//!
//! The key that both have spares the proofs on TCP.

#[path = "support.rs"]
#[allow(dead_code, reason = "each test program uses some of it")]
mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

use hmac::{Hmac, KeyInit, Mac};
use san_provider::wire::Session;
use san_provider::{
    ConnectFailure, ConnectOptions, DataPath, ProviderConfig, Socket, TransferError,
};
use san_switch::{Connection, DeploymentKey, RouteChoice, Switch, SwitchStats};
use san_tests::net::{addr_a, addr_b};
use san_tests::san::{Connector, San};
use san_tests::time::{STEP, bounded, eventually, within};

use support::*;

const KEY: &[u8] = b"the key of both";
/// More than a stream has to carry that moves.
const BEGINNING: usize = 5000;

const PREPARE: u8 = 16;
const READY: u8 = 17;
const GO: u8 = 19;
const NO: u8 = 20;
const RING: u8 = 32;
const OFFER: u8 = 33;
const DONE: u8 = 34;

/// A stream that has carried enough, and its hostile end, which accepted it.
struct Ends {
    client: Connection,
    tcp: TcpStream,
    listener: TcpListener,
    switch: Switch,
    san: San,
}

fn ends() -> Ends {
    let config = config()
        .route(RouteChoice::Upgrade)
        .upgrade_bytes(4096)
        .key(DeploymentKey::new(KEY));
    let switch = Switch::new(config).unwrap();
    let listener = TcpListener::bind((addr_b(), 0)).unwrap();
    let to = listener.local_addr().unwrap();
    let client = switch.connect(to, &from(addr_a())).unwrap();
    let (mut tcp, _) = listener.accept().unwrap();
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    (&client).write_all(&[7; BEGINNING]).unwrap();
    tcp.read_exact(&mut [0; BEGINNING]).unwrap();
    let san = San::start_with(ProviderConfig {
        layer_features: 1,
        ..ProviderConfig::default()
    });
    Ends {
        client,
        tcp,
        listener,
        switch,
        san,
    }
}

impl Ends {
    /// The session of a request, as the protocol has it.
    fn session(&self) -> Session {
        const KEYED: u8 = 2;
        let (nonce, generation) = (77_u64, 1_u16);
        let mut code = Hmac::<sha2::Sha256>::new_from_slice(KEY).unwrap();
        code.update(b"session");
        code.update(&[2, KEYED]);
        code.update(&generation.to_be_bytes());
        code.update(&nonce.to_be_bytes());
        code.update(&[0; 8]);
        for end in [self.client.local_addr(), self.tcp.local_addr().unwrap()] {
            let ip = match end.ip() {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            code.update(&ip.octets());
            code.update(&end.port().to_be_bytes());
        }
        let code = code.finalize().into_bytes();
        Session::with_id(nonce)
            .secret(std::array::from_fn(|at| code[at]))
            .purpose(1)
            .flags(KEYED)
            .tcp_port(self.tcp.local_addr().unwrap().port())
            .generation(generation)
    }

    /// Dials the stream's other end once.
    fn dial(&self, session: Session) -> Result<Socket, ConnectFailure> {
        let connector = Connector::new(self.san.bound(SocketAddr::new(addr_b(), 0)));
        let options = ConnectOptions {
            deadline: Some(PATIENCE),
            session,
            ..ConnectOptions::default()
        };
        let to = self.client.local_addr();
        let started = connector.socket.connect(to, options).unwrap_err();
        assert!(started.is_in_progress(), "{started}");
        match connector.result() {
            Ok(()) => Ok(connector.socket),
            Err(error) => Err(error.failure()),
        }
    }

    /// The queue pair, of which nothing is said yet.
    fn connected(&self) -> (DataPath, Socket) {
        let mut socket = None;
        eventually("it listens", PATIENCE, || {
            match self.dial(self.session()) {
                Ok(connected) => socket = Some(connected),
                Err(ConnectFailure::NobodyListens { .. }) => {}
                Err(failure) => panic!("{failure:?}"),
            }
            socket.is_some()
        });
        let socket = socket.unwrap();
        (socket.data_path().unwrap(), socket)
    }

    /// The queue pair, which carries.
    fn moved(&self) -> (DataPath, Socket) {
        let (data, socket) = self.connected();
        send(&data, PREPARE, &place(0));
        assert_eq!(next(&data).0, READY);
        assert_eq!(next(&data), (PREPARE, place(BEGINNING as u64)));
        send(&data, READY, &place(BEGINNING as u64));
        assert_eq!(next(&data).0, GO);
        eventually("it has moved", PATIENCE, || self.client.is_san());
        send(&data, 0, b"over the SAN");
        assert_eq!(self.client.receive(&mut [0; 100]).unwrap(), 12);
        (data, socket)
    }

    /// The stream is on TCP, and stays there.
    fn goes_on_over_tcp(&mut self) {
        (&self.client).write_all(b"still here").unwrap();
        let mut bytes = [0; 10];
        self.tcp.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"still here");
        self.tcp.write_all(b"and here").unwrap();
        let mut bytes = [0; 8];
        (&self.client).read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"and here");
        assert!(!self.client.is_san());
    }

    /// Another stream of the switch's goes on.
    fn others_go_on(&self) {
        let to = self.listener.local_addr().unwrap();
        let other = self.switch.connect(to, &from(addr_a())).unwrap();
        let (mut tcp, _) = self.listener.accept().unwrap();
        (&other).write_all(b"other").unwrap();
        tcp.read_exact(&mut [0; 5]).unwrap();
    }
}

/// 'Cut', and a number.
fn place(position: u64) -> Vec<u8> {
    [&[2][..], &position.to_be_bytes()].concat()
}

fn send(data: &DataPath, kind: u8, bytes: &[u8]) {
    eventually("a message may go out", STEP, || {
        data.try_send(bytes, kind).is_ok()
    });
}

fn next(data: &DataPath) -> (u8, Vec<u8>) {
    let message = data.receive_within(PATIENCE).expect("a message");
    (message.kind(), message.to_vec())
}

fn ring(length: u64) -> Vec<u8> {
    let mut ring = vec![b'S', b'A', b'N', b'D', 1, 4, 0, 40, 0, 0, 0, 1, 0, 0, 0, 9];
    ring.extend(4096_u64.to_be_bytes());
    ring.extend(length.to_be_bytes());
    ring.extend([0; 8]);
    ring
}

fn offer(position: u64, length: u32) -> Vec<u8> {
    [&position.to_be_bytes()[..], &length.to_be_bytes()].concat()
}

/// These messages, on a stream that has moved, reset it alone, counted under a name.
fn is_reset(messages: &[(u8, &[u8])], name: &str, count: fn(&SwitchStats) -> u64) {
    let ends = ends();
    let (data, _socket) = ends.moved();
    for (kind, bytes) in messages {
        // The stream may be over before the last.
        let _ = data.try_send(bytes, *kind);
    }
    let begun = Instant::now();
    let error = ends.client.receive(&mut [0; 100]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{name}");
    assert!(begun.elapsed() < PATIENCE / 2, "{name}");
    eventually(name, PATIENCE, || count(&ends.switch.stats()) == 1);
    let mut rest = Vec::new();
    let outcome = (&ends.tcp).read_to_end(&mut rest);
    assert!(outcome.is_err() && rest.is_empty(), "{name}: {outcome:?}");
    ends.others_go_on();
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn bulk_that_cannot_be_resets_the_stream() {
    let count: fn(&SwitchStats) -> u64 = |stats| stats.violations_bulk;
    bounded(move || {
        // Twelve bytes came before.
        let far = offer(12, (1 << 18) + 1);
        let beyond: [(u8, &[u8]); 2] = [(RING, &ring(1 << 18)), (OFFER, &far)];
        is_reset(&beyond, "beyond the ring", count);
        let behind: [(u8, &[u8]); 2] = [(RING, &ring(1 << 18)), (OFFER, &offer(3, 40_000))];
        is_reset(&behind, "behind what came", count);
        let done = 40_000_u32.to_be_bytes();
        is_reset(&[(DONE, &done)], "done for nothing", count);
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn places_out_of_turn_reset_the_stream() {
    let count: fn(&SwitchStats) -> u64 = |stats| stats.violations_message;
    bounded(move || {
        is_reset(&[(PREPARE, &place(0))], "a second cut", count);
        is_reset(&[(READY, &place(9))], "ready for nothing", count);
        is_reset(&[(200, b"?")], "an unknown kind", count);
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn what_comes_after_the_end_is_not_read() {
    bounded(|| {
        let ends = ends();
        let (data, _socket) = ends.moved();
        send(&data, 1, b"");
        assert_eq!(ends.client.receive(&mut [0; 100]).unwrap(), 0);
        send(&data, RING, &ring(1 << 18));
        send(&data, OFFER, &offer(12, 40_000));
        eventually("it is counted", PATIENCE, || {
            if let Some(lane) = ends.client.lane() {
                lane.poll();
            }
            let _ = ends.client.receive(&mut [0; 100]);
            ends.switch.stats().violations_after_end == 1
        });
        ends.others_go_on();
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_place_that_is_past_leaves_the_stream_on_tcp() {
    bounded(|| {
        let mut ends = ends();
        let (data, _socket) = ends.connected();
        ends.tcp.write_all(&[9; 100]).unwrap();
        (&ends.client).read_exact(&mut [0; 100]).unwrap();
        send(&data, PREPARE, &place(50));
        assert_eq!(next(&data), (NO, vec![1]));
        ends.goes_on_over_tcp();
        assert_eq!(ends.switch.stats().violations_message, 0);
    });
}

/// Before the cut is confirmed a peer costs the queue pair, never the stream.
#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_count_that_cannot_be_leaves_the_stream_on_tcp() {
    bounded(|| {
        let mut ends = ends();
        let (data, _socket) = ends.connected();
        send(&data, PREPARE, &place(0));
        assert_eq!((next(&data).0, next(&data).0), (READY, PREPARE));
        send(&data, READY, &place(1 << 40));
        assert_eq!(next(&data), (NO, vec![4]));
        ends.goes_on_over_tcp();
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_wrong_proof_leaves_the_stream_on_tcp() {
    bounded(|| {
        let mut ends = ends();
        let forged = ends.session().secret([1; 16]);
        eventually("it is turned down", PATIENCE, || match ends.dial(forged) {
            Ok(_) => panic!("it was believed"),
            Err(failure) => failure == ConnectFailure::NoSuchConnection,
        });
        assert!(ends.switch.stats().moves_unproven >= 1);
        ends.goes_on_over_tcp();
    });
}

/// What stands on TCP while the SAN carries has to be the word that the peer goes back.
#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn bytes_on_tcp_at_a_place_of_none_reset_the_stream() {
    bounded(|| {
        let mut ends = ends();
        let (_data, _socket) = ends.moved();
        ends.tcp.write_all(&[1; 32]).unwrap();
        let error = ends.client.receive(&mut [0; 100]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert_eq!(ends.switch.stats().violations_message, 1);
        ends.others_go_on();
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn memory_that_is_not_open_ends_the_queue_pair() {
    bounded(|| {
        let ends = ends();
        let (data, _socket) = ends.moved();
        send(&data, RING, &ring(1 << 18));
        send(&data, OFFER, &offer(12, 40_000));
        // The read of it fails, and with that the queue pair.
        ends.client.set_nonblocking(true).unwrap();
        eventually("it is on its way to TCP", PATIENCE, || {
            let read = ends.client.receive(&mut [0; 100]);
            assert!(read.is_err(), "{read:?}");
            !ends.client.is_san()
        });
        ends.others_go_on();
    });
}

/// A peer that has connected and says nothing more costs the queue pair, and the writes that it held go out.
#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_peer_that_stops_before_the_stream_has_moved_leaves_it_on_tcp() {
    let is_gone = |data: &DataPath| {
        eventually("the queue pair is given up", PATIENCE, || {
            !matches!(data.try_receive(), Ok(_) | Err(TransferError::WouldBlock))
        });
    };
    bounded(move || {
        let mut silent = ends();
        let (data, _socket) = silent.connected();
        silent.goes_on_over_tcp();
        is_gone(&data);
        silent.goes_on_over_tcp();

        let mut stops = ends();
        let (data, _socket) = stops.connected();
        send(&data, PREPARE, &place(0));
        assert_eq!((next(&data).0, next(&data).0), (READY, PREPARE));
        // Held from here on.
        (&stops.client).write_all(&[3; 1000]).unwrap();
        let begun = Instant::now();
        let mut held = [0; 1000];
        stops.tcp.read_exact(&mut held).unwrap();
        assert_eq!(held, [3; 1000]);
        assert!(begun.elapsed() > STEP / 10, "it was not held");
        is_gone(&data);
        stops.goes_on_over_tcp();
        assert_eq!(stops.switch.stats().violations_message, 0);
    });
}

/// A peer that never comes back to TCP costs half a minute.
#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_peer_that_does_not_come_back_to_tcp_costs_a_timeout() {
    within(PATIENCE * 5, || {
        let ends = ends();
        let (data, socket) = ends.moved();
        (&ends.client).write_all(b"over the SAN").unwrap();
        assert_eq!(next(&data), (0, b"over the SAN".to_vec()));
        let begun = Instant::now();
        // The queue pair ends, and nobody says on TCP how far it was read.
        drop((data, socket));
        eventually("it is over", PATIENCE * 4, || {
            let read = ends.client.receive(&mut [0; 100]);
            let kind = read.expect_err("nothing comes").kind();
            let is_over = kind == ErrorKind::TimedOut;
            assert!(is_over || kind == ErrorKind::WouldBlock, "{kind:?}");
            is_over
        });
        let time = begun.elapsed().as_secs();
        assert!((28..55).contains(&time), "{time} seconds");
        assert_eq!(ends.client.receive(&mut [0; 100]).unwrap(), 0);
        ends.others_go_on();
    });
}
