//! On the loopback: what goes out comes in with its ICRC right; the directory.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::batch::{Batch, TxBuffer};
use super::bundle::Bundle;
use super::bundled;
use super::port::Port;
use super::receive::Receiver;
use super::rendezvous::{Entry, Rendezvous};
use super::route::{Route, check_local, is_local};
use super::wake::Wake;
use crate::rc::PathMtu;
use crate::sink::PacketSink;
use crate::wire::{Bth, FlowCrc, Opcode, Packet};
use proptest::prelude::*;

const V4: &str = "127.0.0.1";
const V6: &str = "::1";

fn port(ip: &str) -> Port {
    Port::open(ip.parse().unwrap(), None).unwrap()
}

/// Whether somebody changed it: a bundle is as long as the MTU of the loopback allows.
fn loopback_has_its_usual_mtu() -> bool {
    std::fs::read_to_string("/sys/class/net/lo/mtu")
        .unwrap()
        .trim()
        == "65536"
}

/// Waits for datagrams, within five seconds.
fn fill(receiver: &mut Receiver, port: &Port) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while receiver.fill(port.source(), 1).datagrams == 0 {
        assert!(Instant::now() < deadline, "no datagram came");
    }
}

/// A packet with `len` bytes of payload.
fn put(batch: &mut Batch<'_>, psn: u32, len: usize) {
    let packet = Packet::new(Bth::new(Opcode::SendOnly, 5, psn));
    let out = batch.packet(packet.wire_len(len)).unwrap();
    packet.emit_headers(out, len).fill(psn as u8);
}

/// (PSN, payload length, identification) of what comes whole, until `count` have,
/// and how many came corrupt.
fn receive(port: &Port, count: usize) -> (Vec<(u32, usize, u16)>, usize) {
    let (mut got, mut bad) = (Vec::new(), 0);
    let mut receiver = port.receiver.lock().unwrap();
    for _ in 0..1000 {
        receiver.fill(port.source(), 1);
        receiver.packets(&port.counters, |inbound| {
            let Some(ident) = inbound.check() else {
                bad += 1;
                return;
            };
            let packet = Packet::parse(inbound.packet).unwrap();
            assert!(packet.payload.iter().all(|b| *b == packet.bth.psn as u8));
            got.push((packet.bth.psn, packet.payload.len(), ident));
        });
        if got.len() >= count {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    (got, bad)
}

/// Through the kernel and back: the ICRC of each packet, alone or as a segment,
/// is what the receiver computes from what the receiver sees, joined or not.
#[test]
fn every_icrc_is_right() {
    for (ip, joined) in [(V4, true), (V6, true), (V4, false), (V6, false)] {
        let (a, b) = (port(ip), port(ip));
        if joined {
            b.expect_runs();
            // Before what comes: the kernel joins it as it comes in.
            assert_eq!(b.receiver.lock().unwrap().fill(b.source(), 1).datagrams, 0);
        }
        let crc = FlowCrc::new(a.local(), b.local());
        let mut buffer = TxBuffer::default();
        let mut batch = Batch::new(&a, b.local(), &crc, &mut buffer);
        // Alone; a full call and one more; a shorter one at the end; a longer one.
        let lens: Vec<usize> = [&[64][..], &[4096; 16], &[100], &[4096], &[4112, 1]].concat();
        for (psn, len) in lens.iter().enumerate() {
            put(&mut batch, psn as u32, *len);
        }
        drop(batch);
        let (got, bad) = receive(&b, lens.len());
        let want: Vec<_> = lens
            .iter()
            .enumerate()
            .map(|(i, len)| (i as u32, *len))
            .collect();
        assert_eq!(got.iter().map(|g| (g.0, g.1)).collect::<Vec<_>>(), want);
        assert_eq!(bad, 0);
        let calls = a.counters.sent_calls.load(Ordering::Relaxed);
        assert_eq!(calls, 5, "64 | 15 x 4096 | 4096, 100 | 4096 | 4112, 1");
        let idents: Vec<u16> = got.iter().map(|g| g.2).collect();
        assert_eq!(idents[..2], [0, 0]);
        // Over IPv6 it is no part of the ICRC: there it is the place among those that came joined.
        let counted = if joined || ip == V4 { 14 } else { 0 };
        assert_eq!(idents[15], counted, "{ip}, joined: {joined}");
    }
}

/// Taken apart by the kernel (no receive offload at the receiver) the segments
/// carry the identifications that their ICRCs were computed with.
#[test]
fn segments_on_the_wire_count_up() {
    let a = port(V4);
    let b = std::net::UdpSocket::bind((V4, 0)).unwrap();
    let to = b.local_addr().unwrap();
    let crc = FlowCrc::new(a.local(), to);
    let mut buffer = TxBuffer::default();
    let mut batch = Batch::new(&a, to, &crc, &mut buffer);
    for psn in 0..4 {
        put(&mut batch, psn, 1000);
    }
    drop(batch);
    let mut datagram = [0; 2000];
    for ident in 0..4 {
        let len = b.recv(&mut datagram).unwrap();
        assert_eq!(crc.check(0, &datagram[..len]), Some(ident));
    }
    assert_eq!(a.counters.sent_calls.load(Ordering::Relaxed), 1);
}

#[test]
fn corruption_is_noticed() {
    let (a, b) = (port(V6), port(V6));
    let sender = std::net::UdpSocket::bind((V6, 0)).unwrap();
    sender.send_to(&[0x55; 64], b.local()).unwrap();
    sender.send_to(&[1], b.local()).unwrap();
    let crc = FlowCrc::new(a.local(), b.local());
    let mut buffer = TxBuffer::default();
    put(&mut Batch::new(&a, b.local(), &crc, &mut buffer), 1, 8);
    let (got, bad) = receive(&b, 1);
    assert_eq!((got.len(), bad), (1, 2));
}

#[test]
fn one_owner_an_address_and_port() {
    let a = port("127.0.0.1");
    let taken = Port::open(a.local().ip(), Some(a.local().port()));
    assert_eq!(taken.unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
    Port::open("127.0.0.2".parse().unwrap(), Some(a.local().port())).unwrap();
    assert!(a.window() > 16, "window {}", a.window());
}

#[test]
fn routes_on_the_loopback() {
    let dst: SocketAddr = "127.0.0.9:1".parse().unwrap();
    let route = Route::to(dst, None).unwrap();
    let source: IpAddr = V4.parse().unwrap();
    assert_eq!(
        route,
        Route {
            source,
            mtu: PathMtu::B4096,
            is_local: true,
            takes_bundles: loopback_has_its_usual_mtu(),
        }
    );
    let from: IpAddr = "127.0.0.7".parse().unwrap();
    assert_eq!(Route::to(dst, Some(from)).unwrap().source, from);
    assert!(!is_local("192.0.2.1".parse().unwrap()));
    let why = check_local("192.0.2.1".parse().unwrap()).unwrap_err();
    assert_eq!(why.kind(), std::io::ErrorKind::AddrNotAvailable);
    assert!(Route::to(dst, Some("192.0.2.1".parse().unwrap())).is_err());
}

struct TempDir(PathBuf);

impl TempDir {
    fn new(name: &str) -> Self {
        let name = format!("soft-roce-test-{}-{name}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn services_are_found_while_their_listener_lives() {
    let dir = TempDir::new("rendezvous");
    let ours = Rendezvous::at(dir.0.clone()).unwrap();
    let theirs = Rendezvous::at(dir.0.clone()).unwrap();
    let service = Entry::Service("127.0.0.1:7471".parse().unwrap());
    assert_eq!(theirs.find(service), None);
    let registration = ours.register(service, 40_000).unwrap();
    assert_eq!(theirs.find(service), Some(40_000));
    let again = theirs.register(service, 5).unwrap_err();
    assert_eq!(again.kind(), std::io::ErrorKind::AddrInUse);
    assert_eq!(
        theirs.find(Entry::Public("127.0.0.1".parse().unwrap())),
        None
    );
    drop(registration);
    assert_eq!(theirs.find(service), None);
    // Left behind by a process that was killed: a file that nobody locks.
    std::fs::write(dir.0.join("127.0.0.1-7471"), "1").unwrap();
    assert_eq!(theirs.find(service), None);
    let _second = theirs.register(service, 40_001).unwrap();
    assert_eq!(ours.find(service), Some(40_001));
}

/// Who looks for an entry holds it for a moment; that keeps nobody from taking it.
#[test]
fn who_looks_for_an_entry_does_not_take_it() {
    let dir = TempDir::new("looked-for");
    let public = Entry::Public("127.0.0.1".parse().unwrap());
    let ours = Rendezvous::at(dir.0.clone()).unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let theirs = Rendezvous::at(dir.0.clone()).unwrap();
            let is_over = &is_over;
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    assert!(matches!(theirs.find(public), None | Some(7)));
                }
            });
        }
        for round in 0..2000 {
            let registered = ours.register(public, 7);
            if registered.is_err() {
                is_over.store(true, Ordering::Relaxed);
            }
            drop(registered.unwrap_or_else(|why| panic!("round {round}: {why}")));
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_directory_that_is_open_to_others_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let dir = TempDir::new("foreign");
    std::fs::create_dir(&dir.0).unwrap();
    for mode in [0o777, 0o755, 0o701] {
        std::fs::set_permissions(&dir.0, std::fs::Permissions::from_mode(mode)).unwrap();
        let why = Rendezvous::at(dir.0.clone()).unwrap_err();
        assert_eq!(why.kind(), std::io::ErrorKind::PermissionDenied, "{mode:o}");
    }
}

#[test]
fn wakes_count() {
    let wake = Wake::new().unwrap();
    assert_eq!(wake.drain(), 0);
    wake.signal();
    wake.signal();
    assert_eq!(wake.drain(), 2);
    assert_eq!(wake.drain(), 0);
}

/// An acknowledgement that the engine sends before a longer packet shares a call
/// with it, as the shorter last segment.
#[test]
fn an_acknowledgement_rides_along() {
    let (a, b) = (port(V4), port(V4));
    let crc = FlowCrc::new(a.local(), b.local());
    let mut buffer = TxBuffer::default();
    let ack = |batch: &mut Batch<'_>, psn| {
        let packet = Packet::new(Bth::new(Opcode::Ack, 5, psn));
        let out = batch.packet(packet.wire_len(0)).unwrap();
        packet.emit_headers(out, 0);
    };
    let mut batch = Batch::new(&a, b.local(), &crc, &mut buffer);
    ack(&mut batch, 1);
    put(&mut batch, 2, 64);
    put(&mut batch, 3, 64);
    drop(batch);
    let mut batch = Batch::new(&a, b.local(), &crc, &mut buffer);
    ack(&mut batch, 4);
    drop(batch);
    let mut batch = Batch::new(&a, b.local(), &crc, &mut buffer);
    ack(&mut batch, 5);
    put(&mut batch, 6, 64);
    put(&mut batch, 7, 8);
    drop(batch);
    let (got, bad) = receive(&b, 7);
    let psns: Vec<u32> = got.iter().map(|g| g.0).collect();
    assert_eq!((psns, bad), (vec![2, 3, 1, 4, 6, 7, 5], 0));
    assert_eq!(a.counters.sent_calls.load(Ordering::Relaxed), 4);
}

#[test]
fn a_bundle_holds_packets_of_any_length() {
    if !loopback_has_its_usual_mtu() {
        eprintln!("left out: the loopback's MTU is not 65536, so that no route takes bundles");
        return;
    }
    for ip in [V4, V6] {
        let (a, b) = (port(ip), port(ip));
        let mut buffer = TxBuffer::default();
        let lens = [&[8, 4096, 0, 64, 4000][..], &[4096; 16]].concat();
        let mut bundle = Bundle::new(&a, b.local(), &mut buffer);
        for (psn, len) in lens.iter().enumerate() {
            let packet = Packet::new(Bth::new(Opcode::SendOnly, 5, psn as u32));
            let out = bundle.packet(packet.wire_len(*len)).unwrap();
            packet.emit_headers(out, *len).fill(psn as u8);
        }
        drop(bundle);
        assert_eq!(a.counters.sent_calls.load(Ordering::Relaxed), 2);
        let mut receiver = b.receiver.lock().unwrap();
        let mut got = Vec::new();
        for _ in 0..2 {
            fill(&mut receiver, &b);
            receiver.packets(&b.counters, |inbound| {
                assert!(inbound.is_bundled() && inbound.check().is_none());
                let packet = Packet::parse(inbound.packet).unwrap();
                assert!(packet.payload.iter().all(|b| *b == packet.bth.psn as u8));
                got.push((packet.bth.psn as usize, packet.payload.len()));
            });
            if got.len() == lens.len() {
                break;
            }
        }
        assert_eq!(got, lens.into_iter().enumerate().collect::<Vec<_>>());
    }
}

proptest! {
    #[test]
    fn no_bytes_of_a_bundle_panic(mut bytes: Vec<u8>, marked: bool) {
        if marked {
            bytes.splice(..0, [0xfe, b'S', b'D', 1]);
        }
        let total: usize = bundled::packets(&bytes).into_iter().flatten().map(|p| p.len() + 2).sum();
        prop_assert!(total <= bytes.len().saturating_sub(4));
    }
}
