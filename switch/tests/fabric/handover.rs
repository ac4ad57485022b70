//! Handing connections and listeners to other processes (duties 53 to 59).
//!
//! The peer, and the process that has a connection first, are in this process; it goes to children, which
//! are this program again (`child`), and say what they do.

#[path = "support.rs"]
#[allow(dead_code, reason = "each test program uses some of it")]
mod support;

use std::io::{BufRead, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use san_switch::{
    AcceptError, Connection, Duplicate, Events, Listener, RouteChoice, Switch, SwitchConfig,
};
use san_tests::net::{self, addr_a, addr_b};
use san_tests::program::Program;
use san_tests::time::{eventually, within};

use support::*;

/// Longer than anything a child does.
const LONG: Duration = Duration::from_secs(60);
/// The longest a test takes: processes start, and peers are given up.
const LIMIT: Duration = Duration::from_secs(150);
/// Set for a program that is a child.
const CHILD: &str = "SAN_TEST_CHILD";

fn byte(at: u64) -> u8 {
    (at.wrapping_mul(7) + at / 251) as u8
}

fn bytes(from: u64, length: usize) -> Vec<u8> {
    (from..from + length as u64).map(byte).collect()
}

/// Reads so many bytes of the stream, which are those from a position on.
fn read_exactly(connection: &Connection, from: u64, length: usize) {
    let mut got = vec![0; length];
    (&mut &*connection).read_exact(&mut got).unwrap();
    assert!(got == bytes(from, length), "other bytes from {from} on");
}

fn write_all(connection: &Connection, from: u64, length: usize) {
    (&mut &*connection).write_all(&bytes(from, length)).unwrap();
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let pair = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(pair).collect()
}

/// Another process.
struct Child(Program);

impl Child {
    fn start() -> Self {
        let program = std::env::current_exe().unwrap();
        let program = program.to_str().unwrap();
        let marked = format!("{CHILD}=1");
        let args = [
            &*marked,
            program,
            "--exact",
            "child",
            "--ignored",
            "--nocapture",
        ];
        let mut child = Program::start("/usr/bin/env", &args);
        child.expect(">ready", LONG);
        Self(child)
    }

    fn begins(&mut self, line: &str) {
        self.0.tell(line);
    }

    fn says(&mut self) -> String {
        self.0.expect(">", LONG)
    }

    fn does(&mut self, line: &str, answer: &str) {
        self.begins(line);
        assert_eq!(self.says(), answer, "to '{line}'");
    }

    /// What it says when it is offered something.
    fn take(&mut self, duplicate: &Duplicate) -> String {
        self.begins(&format!("take {}", hex(duplicate.as_bytes())));
        self.says()
    }

    fn offers(&mut self, target: u32) -> Duplicate {
        self.begins(&format!("offer {target}"));
        Duplicate::from_bytes(&unhex(&self.says())).unwrap()
    }
}

/// A child: it does what it is told, a line a command, and answers each with a line.
#[test]
#[ignore = "is run by the others"]
fn child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let switch = switch();
    let mut connection: Option<Arc<Connection>> = None;
    let mut listener: Option<Arc<Listener>> = None;
    println!("\n>ready");
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words[at].parse::<u64>().unwrap();
        let own = || connection.clone().expect("a connection");
        let answer = match words[0] {
            "take" => {
                let duplicate = Duplicate::from_bytes(&unhex(words[1])).unwrap();
                match switch.connection_from(&duplicate) {
                    Ok(taken) => {
                        let is_san = taken.is_san();
                        let names = format!("{} {}", taken.local_addr(), taken.peer_addr());
                        connection = Some(Arc::new(taken));
                        format!("{} {names}", if is_san { "san" } else { "tcp" })
                    }
                    Err(error) => format!("error {}", error.raw_os_error().unwrap_or(0)),
                }
            }
            "listener" => {
                let duplicate = Duplicate::from_bytes(&unhex(words[1])).unwrap();
                match switch.listener_from(&duplicate, None) {
                    Ok(taken) => {
                        let companions = taken.san_status().len();
                        listener = Some(Arc::new(taken));
                        format!("listens {companions}")
                    }
                    Err(error) => format!("error {}", error.raw_os_error().unwrap_or(0)),
                }
            }
            "accept" => {
                let taken = listener.as_ref().unwrap().accept_timeout(PATIENCE).unwrap();
                let is_san = taken.is_san();
                connection = Some(Arc::new(taken));
                format!("accepted {is_san}")
            }
            "read" => {
                read_exactly(&own(), number(1), number(2) as usize);
                "read".to_owned()
            }
            "write" => {
                write_all(&own(), number(1), number(2) as usize);
                "written".to_owned()
            }
            "urgent" => {
                let own = own();
                let byte = own.receive_urgent().unwrap();
                format!("urgent {byte}")
            }
            "end" => {
                own().finish(Some(PATIENCE)).unwrap();
                "ended".to_owned()
            }
            "eof" => {
                assert_eq!(own().receive(&mut [0; 10]).unwrap(), 0);
                "eof".to_owned()
            }
            "options" => {
                let own = own();
                format!(
                    "{:?} {:?} {:?} {} {}",
                    own.receive_timeout().unwrap(),
                    own.send_timeout().unwrap(),
                    own.linger().unwrap(),
                    own.send_buffer_size().unwrap(),
                    own.receive_buffer_size().unwrap(),
                )
            }
            "offer" => {
                let duplicate = own().duplicate(number(1) as u32).unwrap();
                hex(duplicate.as_bytes())
            }
            "drop" => {
                connection = None;
                "dropped".to_owned()
            }
            other => panic!("what is {other}?"),
        };
        println!("\n>{answer}");
    }
}

/// A connection over the SAN or TCP, both ends here: what moves, and its peer.
fn pair(switch: &Switch, listener: &Listener, is_san: bool) -> (Arc<Connection>, Connection) {
    let options = from(addr_a()).tcp_only(!is_san);
    let moves = switch.connect(at(addr_b(), listener), &options).unwrap();
    assert_eq!(moves.is_san(), is_san, "{}", moves.route());
    (Arc::new(moves), accept(listener))
}

fn begin() -> (Switch, Listener) {
    let switch = switch();
    let listener = switch.listen(any(), backlog(8)).unwrap();
    (switch, listener)
}

fn errno(error: &std::io::Error) -> Option<Errno> {
    Errno::from_io_error(error)
}

fn error(errno: Errno) -> String {
    format!("error {}", errno.raw_os_error())
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_053_one_process_at_a_time_and_requests_in_their_order() {
    within(LIMIT, || {
        let (switch, listener) = begin();
        let (mut one, mut other) = (Child::start(), Child::start());
        for is_san in [true, false] {
            let (moves, peer) = pair(&switch, &listener, is_san);
            let offers = [&one, &other].map(|child| moves.duplicate(child.0.pid()).unwrap());
            // Control moves between operations: a receive that waits has it wait.
            let (about_to, told) = std::sync::mpsc::channel();
            let reader = std::thread::spawn({
                let moves = Arc::clone(&moves);
                move || {
                    let mut got = [0; 10];
                    about_to.send(()).unwrap();
                    moves.receive(&mut got).map(|came| got[..came].to_vec())
                }
            });
            told.recv().unwrap();
            std::thread::sleep(Duration::from_millis(500));
            one.begins(&format!("take {}", hex(offers[0].as_bytes())));
            std::thread::sleep(Duration::from_millis(300));
            assert!(!reader.is_finished());
            write_all(&peer, 0, 10);
            assert_eq!(reader.join().unwrap().unwrap(), bytes(0, 10));
            let names = format!("{} {}", moves.local_addr(), moves.peer_addr());
            let kind = if is_san { "san" } else { "tcp" };
            assert_eq!(one.says(), format!("{kind} {names}"));
            // Who comes second finds it gone, as does who had it.
            assert_eq!(other.take(&offers[1]), error(Errno::NOTCONN));
            let gone = moves.send(b"x").unwrap_err();
            assert_eq!(errno(&gone), Some(Errno::NOTCONN));
            let gone = moves.receive(&mut [0; 1]).unwrap_err();
            assert_eq!(errno(&gone), Some(Errno::NOTCONN));
            let gone = moves.duplicate(one.0.pid()).unwrap_err();
            assert_eq!(errno(&gone), Some(Errno::NOTCONN));
            // An offer is good once, and for the process that it names.
            assert_eq!(one.take(&offers[0]), error(Errno::NOTCONN));
            let to_other = one.offers(other.0.pid());
            let refused = switch.connection_from(&to_other).unwrap_err();
            assert_eq!(errno(&refused), Some(Errno::INVAL));
            // On to the other, and back here.
            assert!(other.take(&to_other).starts_with(kind));
            write_all(&peer, 10, 100_000);
            other.does("read 10 100000", "read");
            let back = other.offers(std::process::id());
            let back = switch.connection_from(&back).unwrap();
            echo(&back, &peer, 300_000);
        }
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_054_nothing_moves_before_the_duplicate_is_used() {
    within(LIMIT, || {
        let (switch, listener) = begin();
        let mut child = Child::start();
        let duplicated = || {
            let counters = switch.provider_counters();
            counters[0].1.sockets_duplicated
        };
        for is_san in [true, false] {
            let (moves, peer) = pair(&switch, &listener, is_san);
            let before = duplicated();
            let duplicate = moves.duplicate(child.0.pid()).unwrap();
            write_all(&moves, 0, 100_000);
            read_exactly(&peer, 0, 100_000);
            write_all(&peer, 0, 100_000);
            read_exactly(&moves, 0, 100_000);
            assert_eq!(duplicated(), before);
            // It stays open though nobody has it here.
            drop(moves);
            std::thread::sleep(Duration::from_millis(300));
            let still = peer.events();
            assert!(!still.contains(Events::READ_CLOSED), "{still:?}");
            assert!(!child.take(&duplicate).starts_with("error"));
            assert_eq!(duplicated(), before + u64::from(is_san));
            child.does("write 100000 50000", "written");
            read_exactly(&peer, 100_000, 50_000);
            child.does("end", "ended");
            assert_eq!(peer.receive(&mut [0; 10]).unwrap(), 0);
            child.does("drop", "dropped");
        }
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_055_only_what_is_connected_or_listens_is_offered() {
    within(LIMIT, || {
        let (switch, listener) = begin();
        let this = std::process::id();
        for is_san in [true, false] {
            let (moves, peer) = pair(&switch, &listener, is_san);
            let nobody = moves.duplicate(u32::MAX).unwrap_err();
            assert_eq!(errno(&nobody), Some(Errno::SRCH));
            if is_san {
                peer.set_linger(Some(Duration::ZERO)).unwrap();
                drop(peer);
                eventually("the end is seen", PATIENCE, || {
                    moves.lane().expect("of the SAN").poll();
                    moves.events().contains(Events::HANG_UP)
                });
                let over = moves.duplicate(this).unwrap_err();
                assert_eq!(errno(&over), Some(Errno::NOTCONN));
            }
        }
        let closed = Arc::new(switch.listen(any(), backlog(1)).unwrap());
        let before = closed.duplicate(this).unwrap();
        closed.close();
        let refused = closed.duplicate(this).unwrap_err();
        assert_eq!(errno(&refused), Some(Errno::NOTCONN));
        let refused = switch.listener_from(&before, None).unwrap_err();
        assert_eq!(errno(&refused), Some(Errno::NOTCONN));
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_056_bulk_under_way_both_ways_goes_on_in_the_other_process() {
    within(LIMIT, || {
        const LENGTH: usize = 1_500_000;
        let (switch, listener) = begin();
        let mut child = Child::start();
        for is_san in [true, false] {
            let (moves, peer) = pair(&switch, &listener, is_san);
            let first = moves.duplicate(child.0.pid()).unwrap();
            std::thread::scope(|scope| {
                // The peer writes and reads all the time, in two threads that wait.
                scope.spawn(|| write_all(&peer, 0, LENGTH));
                let reader = scope.spawn(|| read_exactly(&peer, 0, LENGTH));
                read_exactly(&moves, 0, 123_457);
                let mut kept = [0; 5000];
                let peeked = moves.peek(&mut kept).unwrap();
                assert!(kept[..peeked] == bytes(123_457, peeked));
                moves.set_nonblocking(true).unwrap();
                // As much as is taken: it is staged here, and on its way.
                let mut written = 0;
                let all = bytes(0, 700_000);
                while let Ok(taken) = moves.send(&all[written..]) {
                    written += taken;
                    if written == all.len() {
                        break;
                    }
                }
                moves.set_nonblocking(false).unwrap();
                assert!(!child.take(&first).starts_with("error"));
                child.does("read 123457 300000", "read");
                child.does(&format!("write {written} 200001"), "written");
                let at = written as u64 + 200_001;
                let back = child.offers(std::process::id());
                let back = switch.connection_from(&back).unwrap();
                scope.spawn(move || {
                    write_all(&back, at, LENGTH - at as usize);
                    read_exactly(&back, 423_457, LENGTH - 423_457);
                    back.shutdown_write().unwrap();
                    assert_eq!(back.receive(&mut [0; 10]).unwrap(), 0);
                });
                reader.join().unwrap();
                peer.shutdown_write().unwrap();
                assert_eq!(peer.receive(&mut [0; 10]).unwrap(), 0);
            });
        }
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_056_ends_urgent_bytes_and_options_go_along() {
    within(LIMIT, || {
        let (switch, listener) = begin();
        let mut child = Child::start();
        let (moves, peer) = pair(&switch, &listener, true);
        // Our end has ended, the peer's has not been read to its end.
        write_all(&moves, 0, 30_000);
        moves.shutdown_write().unwrap();
        write_all(&peer, 0, 30_000);
        peer.shutdown_write().unwrap();
        moves
            .set_receive_timeout(Some(Duration::from_secs(7)))
            .unwrap();
        moves
            .set_send_timeout(Some(Duration::from_secs(8)))
            .unwrap();
        moves.set_linger(Some(Duration::from_secs(3))).unwrap();
        moves.set_send_buffer_size(64 << 10).unwrap();
        moves.set_receive_buffer_size(32 << 10).unwrap();
        let duplicate = moves.duplicate(child.0.pid()).unwrap();
        assert!(child.take(&duplicate).starts_with("san"));
        child.does("options", "Some(7s) Some(8s) Some(3s) 65536 32768");
        child.does("read 0 30000", "read");
        child.does("eof", "eof");
        child.does("drop", "dropped");
        read_exactly(&peer, 0, 30_000);
        assert_eq!(peer.receive(&mut [0; 10]).unwrap(), 0);

        // An urgent byte that was told of, behind bytes that nobody has read.
        let (moves, peer) = pair(&switch, &listener, true);
        write_all(&peer, 0, 5000);
        peer.send_urgent(b'!').unwrap();
        write_all(&peer, 5000, 5000);
        eventually("the byte is told of", PATIENCE, || {
            moves.lane().expect("of the SAN").poll();
            moves.events().contains(Events::PRIORITY)
        });
        let duplicate = moves.duplicate(child.0.pid()).unwrap();
        assert!(child.take(&duplicate).starts_with("san"));
        child.does("urgent", "urgent 33");
        child.does("read 0 5000", "read");
        child.does("read 5000 5000", "read");
        // And ours, while both ends write.
        child.does("drop", "dropped");
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_056_a_peer_that_moves_too_has_one_of_them_wait() {
    within(LIMIT, || {
        let (switch, listener) = begin();
        let mut child = Child::start();
        let this = std::process::id();
        let (moves, peer) = pair(&switch, &listener, true);
        let peer = Arc::new(peer);
        let mut ends = [moves, peer];
        let mut crossed = 0;
        // An emulated machine takes its time.
        let rounds: u64 = if net::is_soft() { 20 } else { 5 };
        for round in 0..rounds {
            let offers = [0, 1].map(|at: usize| ends[at].duplicate(this).unwrap());
            let taken = std::thread::scope(|scope| {
                let threads = offers
                    .each_ref()
                    .map(|offer| scope.spawn(|| switch.connection_from(offer)));
                threads.map(|thread| thread.join().unwrap())
            });
            for (end, taken) in ends.iter_mut().zip(taken) {
                match taken {
                    Ok(taken) => *end = Arc::new(taken),
                    Err(busy) => {
                        assert_eq!(errno(&busy), Some(Errno::BUSY), "{busy}");
                        crossed += 1;
                    }
                }
            }
            for (from, to) in [(0, 1), (1, 0)] {
                write_all(&ends[from], round * 50_000, 50_000);
                read_exactly(&ends[to], round * 50_000, 50_000);
            }
        }
        eprintln!("{crossed} of {} had to stay", 2 * rounds);
        let duplicate = ends[0].duplicate(child.0.pid()).unwrap();
        assert!(child.take(&duplicate).starts_with("san"));
    });
}

/// Asks for what is offered as a process does that then does nothing with it.
fn ask(duplicate: &Duplicate) -> UnixStream {
    let text = String::from_utf8(duplicate.as_bytes().to_vec()).unwrap();
    let after = |name: &str| text.split_once(name).expect("a field").1;
    let (path, _) = after("\"path\":\"").split_once('"').unwrap();
    let (token, _) = after("\"token\":[").split_once(']').unwrap();
    let token: Vec<u8> = token.split(',').map(|byte| byte.parse().unwrap()).collect();
    let mut stream = UnixStream::connect(path).unwrap();
    stream.write_all(&token).unwrap();
    stream
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_057_meanwhile_sends_are_buffered_and_receives_wait() {
    within(LIMIT, || {
        let (switch, listener) = begin();
        let (moves, peer) = pair(&switch, &listener, true);
        write_all(&moves, 0, 1000);
        let duplicate = moves.duplicate(std::process::id()).unwrap();
        let mut package = Vec::new();
        let mut stream = ask(&duplicate);
        stream.read_to_end(&mut package).unwrap();
        assert_eq!(&package[..4], b"SANH");
        assert_eq!(package[5], 0, "a package");
        // The connection is nowhere now. What had come can be read.
        read_exactly(&peer, 0, 1000);
        peer.set_nonblocking(true).unwrap();
        let nothing = peer.receive(&mut [0; 10]).unwrap_err();
        assert_eq!(nothing.kind(), ErrorKind::WouldBlock);
        let mut sent = 0;
        let full = loop {
            match peer.send(&bytes(sent, 10_000)) {
                Ok(taken) => sent += taken as u64,
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), ErrorKind::WouldBlock);
        assert_eq!(sent, peer.send_buffer_size().unwrap() as u64);
        peer.set_nonblocking(false).unwrap();
        // Duty 59: the peer gives up after a time. Its calls wait until then.
        peer.set_receive_timeout(Some(Duration::from_secs(1)))
            .unwrap();
        let waits = peer.receive(&mut [0; 10]).unwrap_err();
        assert_eq!(waits.kind(), ErrorKind::WouldBlock);
        peer.set_receive_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let begun = Instant::now();
        let given_up = peer.receive(&mut [0; 10]).unwrap_err();
        assert_eq!(given_up.kind(), ErrorKind::ConnectionReset);
        let waited = begun.elapsed();
        assert!((20..40).contains(&waited.as_secs()), "{waited:?}");
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_058_a_listener_goes_when_no_accept_waits() {
    within(LIMIT, || {
        let switch = switch();
        let listener = Arc::new(switch.listen(any(), backlog(8)).unwrap());
        let companions = listener.san_status().len();
        let port = listener.local_addr().port();
        let mut child = Child::start();
        let duplicate = listener.duplicate(child.0.pid()).unwrap();
        let waits = std::thread::spawn({
            let listener = Arc::clone(&listener);
            move || listener.accept_timeout(PATIENCE).unwrap()
        });
        std::thread::sleep(Duration::from_millis(500));
        child.begins(&format!("listener {}", hex(duplicate.as_bytes())));
        std::thread::sleep(Duration::from_millis(300));
        let first = san_client(&switch, &listener);
        let server = waits.join().unwrap();
        assert_eq!(child.says(), format!("listens {companions}"));
        echo(&first, &server, 1000);
        let gone = listener.accept_timeout(PATIENCE).unwrap_err();
        assert!(matches!(gone, AcceptError::Closed), "{gone}");
        // It serves both sides at the same port; here nothing of it is left.
        let there = SocketAddr::new(addr_b(), port);
        for is_san in [true, false] {
            let options = from(addr_a()).tcp_only(!is_san);
            let client = switch.connect(there, &options).unwrap();
            assert_eq!(client.is_san(), is_san, "{}", client.route());
            child.does("accept", &format!("accepted {is_san}"));
            write_all(&client, 0, 70_000);
            child.does("read 0 70000", "read");
            child.does("write 0 70000", "written");
            read_exactly(&client, 0, 70_000);
        }
        drop(listener);
        let client = switch.connect(there, &from(addr_a())).unwrap();
        assert!(client.is_san(), "{}", client.route());
        child.does("accept", "accepted true");
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn wsd_059_a_hand_over_that_dies_ends_the_connection() {
    within(LIMIT, || {
        let (switch, listener) = begin();
        // The process dies that has it, with an offer open.
        let mut source = Child::start();
        for is_san in [true, false] {
            let (moves, peer) = pair(&switch, &listener, is_san);
            let to_source = moves.duplicate(source.0.pid()).unwrap();
            assert!(!source.take(&to_source).starts_with("error"));
            drop(moves);
            let offer = source.offers(std::process::id());
            source.0.kill();
            let gone = switch.connection_from(&offer).unwrap_err();
            assert_eq!(errno(&gone), Some(Errno::NOTCONN));
            match peer.receive(&mut [0; 10]) {
                Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
                Ok(came) => assert!(!is_san && came == 0, "{came} bytes"),
            }
            source = Child::start();
        }
        // The one dies that takes it up, having taken it.
        let (moves, peer) = pair(&switch, &listener, true);
        let to_source = moves.duplicate(source.0.pid()).unwrap();
        assert!(source.take(&to_source).starts_with("san"));
        source.0.kill();
        let error = peer.receive(&mut [0; 10]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert!(moves.send(b"x").is_err());
    });
}

/// A connection that may move goes to TCP first, also from the SAN.
#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_connection_that_may_move_is_handed_over_on_tcp() {
    within(LIMIT, || {
        let config: SwitchConfig = config().route(RouteChoice::Upgrade);
        let switch = Switch::new(config).unwrap();
        let listener = switch.listen(any(), backlog(4)).unwrap();
        let mut child = Child::start();
        let there = at(addr_b(), &listener);
        let moves = Arc::new(switch.connect(there, &from(addr_a())).unwrap());
        let peer = accept(&listener);
        let mut at = 0;
        eventually("the SAN carries it", PATIENCE, || {
            write_all(&moves, at, 10_000);
            read_exactly(&peer, at, 10_000);
            write_all(&peer, at, 10_000);
            read_exactly(&moves, at, 10_000);
            at += 10_000;
            moves.is_san()
        });
        // Bytes of both directions are under way on the queue pair.
        write_all(&moves, at, 50_000);
        write_all(&peer, at, 50_000);
        let duplicate = moves.duplicate(child.0.pid()).unwrap();
        // The peer takes in what was sent, meanwhile or later.
        let reader = std::thread::spawn(move || {
            read_exactly(&peer, at, 50_000);
            peer
        });
        let taken = child.take(&duplicate);
        assert!(taken.starts_with("tcp"), "{taken}");
        child.does(&format!("read {at} 50000"), "read");
        let peer = reader.join().unwrap();
        let at = at + 50_000;
        child.does(&format!("write {at} 50000"), "written");
        read_exactly(&peer, at, 50_000);
        write_all(&peer, at, 50_000);
        child.does(&format!("read {at} 50000"), "read");
        peer.shutdown(Shutdown::Write).unwrap();
        child.does("eof", "eof");
        assert!(moves.receive(&mut [0; 1]).is_err());
    });
}
