//! The types with the standard library's names beside the standard library's own: the same calls on
//! a stream of ours over the SAN and on one of the kernel's give the same results.
//!
//! SAN_TEST_SEED=N runs the one sequence of that seed.

#[path = "support.rs"]
#[allow(dead_code, reason = "each test program uses some of it")]
mod support;

use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use san_switch::Events;
use san_switch::net::{TcpListener, TcpStream};
use san_tests::time::{bounded, eventually, within};

use support::*;

const SEQUENCES: u64 = 2000;
const CALLS: usize = 60;
/// Time for sequences: an emulated machine does fewer.
const TIME: Duration = Duration::from_secs(if cfg!(debug_assertions) { 100 } else { 25 });
/// Sent and not read, each way: what no side's buffers refuse.
const UNDER_WAY: usize = 30_000;

/// A pseudo-random sequence that its seed fixes (splitmix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % limit as u64) as usize
    }
}

/// What both kinds of stream can do.
trait Stream: Sized {
    fn both(&self) -> (impl Read, impl Write);
    fn look(&self, bytes: &mut [u8]) -> std::io::Result<usize>;
    fn end(&self, how: Shutdown) -> std::io::Result<()>;
    fn nonblocking(&self, on: bool);
    fn wait_at_most(&self, time: Option<Duration>);
    /// What it is ready for now.
    fn ready(&self) -> Events;
    /// Closes it with a linger time of zero.
    fn abort(self);
}

macro_rules! stream {
    ($type:ty, $ready:expr, $lingers_not:expr) => {
        impl Stream for $type {
            fn both(&self) -> (impl Read, impl Write) {
                (self, self)
            }
            fn look(&self, bytes: &mut [u8]) -> std::io::Result<usize> {
                self.peek(bytes)
            }
            fn end(&self, how: Shutdown) -> std::io::Result<()> {
                self.shutdown(how)
            }
            fn nonblocking(&self, on: bool) {
                self.set_nonblocking(on).unwrap();
            }
            fn wait_at_most(&self, time: Option<Duration>) {
                self.set_read_timeout(time).unwrap();
            }
            fn ready(&self) -> Events {
                $ready(self)
            }
            fn abort(self) {
                $lingers_not(&self);
            }
        }
    };
}
stream!(
    TcpStream,
    |stream: &TcpStream| {
        stream.connection().lane().unwrap().poll();
        stream.connection().events()
    },
    |stream: &TcpStream| stream
        .connection()
        .set_linger(Some(Duration::ZERO))
        .unwrap()
);
stream!(
    std::net::TcpStream,
    |stream: &std::net::TcpStream| {
        let pairs = [
            (PollFlags::IN, Events::READABLE),
            (PollFlags::OUT, Events::WRITABLE),
            (PollFlags::RDHUP, Events::READ_CLOSED),
            (PollFlags::HUP, Events::HANG_UP),
            (PollFlags::ERR, Events::ERROR),
        ];
        let asked = pairs.iter().map(|(flag, _)| *flag).collect();
        let mut fds = [PollFd::new(stream, asked)];
        let now = san_base::timespec(Duration::ZERO);
        rustix::event::poll(&mut fds, Some(&now)).unwrap();
        let holds = |(flag, _): &&(PollFlags, Events)| fds[0].revents().contains(*flag);
        pairs
            .iter()
            .filter(holds)
            .map(|(_, event)| *event)
            .collect()
    },
    |stream: &std::net::TcpStream| socket2::SockRef::from(stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap()
);

/// What an end is ready for, once what the other end has done shows.
fn settled<S: Stream>(end: &S, readable: bool, closed: bool) -> Events {
    let begun = Instant::now();
    loop {
        let ready = end.ready();
        let is_so = ready.contains(Events::READABLE) == readable
            && ready.contains(Events::READ_CLOSED) == closed;
        if is_so || begun.elapsed() > PATIENCE {
            return ready;
        }
        std::thread::yield_now();
    }
}

/// Whether a pair is all here is known by the model, so that no call waits for ever.
#[derive(Default, Clone)]
struct Way {
    sent: usize,
    read: usize,
    has_ended: bool,
}

fn byte(at: usize) -> u8 {
    (at * 29 + at / 241) as u8
}

/// Runs the sequence of a seed and gives what each call said.
fn run<S: Stream>(ends: [S; 2], seed: u64) -> Vec<String> {
    let mut dice = Dice(seed);
    let mut ways = [Way::default(), Way::default()];
    let mut said = Vec::new();
    for _ in 0..CALLS {
        let from = dice.below(2);
        let (here, there) = (&ends[from], &ends[1 - from]);
        let left = ways[from].sent - ways[from].read;
        let size = 1 + dice.below(6000);
        let (mut reader, _) = there.both();
        let (_, mut writer) = here.both();
        match dice.below(14) {
            0..=3 => {
                let size = size.min(UNDER_WAY - left.min(UNDER_WAY));
                let start = ways[from].sent;
                let bytes: Vec<u8> = (start..start + size).map(byte).collect();
                let outcome = if size.is_multiple_of(3) {
                    let (first, second) = bytes.split_at(size / 2);
                    writer.write_vectored(&[IoSlice::new(first), IoSlice::new(second)])
                } else {
                    writer.write(&bytes)
                };
                let outcome = outcome.map_err(|error| error.kind());
                if let Ok(sent) = outcome {
                    ways[from].sent += sent;
                }
                said.push(format!("{from} write {size}: {outcome:?}"));
            }
            4..=6 if left > 0 => {
                let size = size.min(left);
                let mut bytes = vec![0; size];
                reader.read_exact(&mut bytes).unwrap();
                let start = ways[from].read;
                let right = bytes.iter().zip(start..).all(|(got, at)| *got == byte(at));
                ways[from].read += size;
                said.push(format!("{from} read {size}: {right}"));
            }
            7 if left > 0 => {
                // At least one byte, and the right ones.
                let mut bytes = vec![0; size.min(left)];
                let half = bytes.len() / 2;
                let (first, second) = bytes.split_at_mut(half);
                let mut buffers = [IoSliceMut::new(first), IoSliceMut::new(second)];
                let came = reader.read_vectored(&mut buffers).unwrap();
                let start = ways[from].read;
                let right = bytes[..came]
                    .iter()
                    .zip(start..)
                    .all(|(got, at)| *got == byte(at));
                ways[from].read += came;
                said.push(format!("{from} read in parts: {} {right}", came > 0));
                // From here on both have read the same.
                let mut rest = vec![0; size.min(left) - came];
                reader.read_exact(&mut rest).unwrap();
                ways[from].read += rest.len();
            }
            8 if left > 0 => {
                let mut bytes = vec![0; size.min(left)];
                let seen = there.look(&mut bytes).unwrap();
                let start = ways[from].read;
                let right = bytes[..seen]
                    .iter()
                    .zip(start..)
                    .all(|(got, at)| *got == byte(at));
                said.push(format!("{from} peek: {} {right}", seen > 0));
            }
            9 if left == 0 && !ways[from].has_ended => {
                there.nonblocking(true);
                let outcome = reader.read(&mut [0; 10]).map_err(|error| error.kind());
                let seen = there.look(&mut [0; 10]).map_err(|error| error.kind());
                there.nonblocking(false);
                said.push(format!(
                    "{from} read and peek of nothing: {outcome:?} {seen:?}"
                ));
            }
            9 if left == 0 => {
                let outcome = reader.read(&mut [0; 10]).map_err(|error| error.kind());
                let seen = there.look(&mut [0; 10]).map_err(|error| error.kind());
                said.push(format!("{from} read of the end: {outcome:?} {seen:?}"));
            }
            // docs/semantics.md: without a byte here, the kernel's read of none waits.
            10 if left > 0 => {
                let read = reader.read(&mut []).map_err(|error| error.kind());
                let written = writer.write(&[]).map_err(|error| error.kind());
                said.push(format!("{from} of no bytes: {read:?} {written:?}"));
            }
            // docs/semantics.md: ending twice.
            11 if !ways[from].has_ended && dice.below(8) == 0 => {
                let outcome = here.end(Shutdown::Write).map_err(|error| error.kind());
                ways[from].has_ended = true;
                said.push(format!("{from} end: {outcome:?}"));
            }
            12 => {
                let (readable, closed) = (left > 0 || ways[from].has_ended, ways[from].has_ended);
                let ready = settled(there, readable, closed);
                said.push(format!("{from} is ready: {ready:?}"));
            }
            _ => {}
        }
    }
    // The last call is an abort, where nothing is under way that it might undo.
    let from = dice.below(2);
    if ways[from].sent > ways[from].read || ways[from].has_ended {
        return said;
    }
    let [first, second] = ends;
    let (gone, left) = if from == 0 {
        (first, second)
    } else {
        (second, first)
    };
    gone.abort();
    said.push(format!("reset: {:?}", settled(&left, true, true)));
    let (mut reader, mut writer) = left.both();
    for _ in 0..2 {
        let read = reader.read(&mut [0; 10]).map_err(|error| error.kind());
        let written = writer.write(b"late").map_err(|error| error.kind());
        said.push(format!("after a reset: {read:?} {written:?}"));
    }
    said.push(format!("after that: {:?}", left.ready()));
    said
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn the_same_calls_give_the_same_results() {
    within(2 * TIME + PATIENCE, || {
        let switch = switch();
        let ours = TcpListener::from(switch.listen(any(), backlog(4)).unwrap());
        let kernels = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let seed = std::env::var("SAN_TEST_SEED").ok();
        let seeds = match seed.map(|seed| seed.parse().expect("a number")) {
            Some(seed) => seed..seed + 1,
            None => 0..SEQUENCES,
        };
        let begun = Instant::now();
        for seed in seeds.take_while(|_| begun.elapsed() < TIME) {
            let client = TcpStream::from(san_client(&switch, ours.listener()));
            let (server, peer) = ours.accept().unwrap();
            assert_eq!(peer, client.local_addr().unwrap());
            let there = std::net::TcpStream::connect(kernels.local_addr().unwrap()).unwrap();
            let here = kernels.accept().unwrap().0;
            let over_san = run([client, server], seed);
            let over_tcp = run([there, here], seed);
            for (at, (san, tcp)) in over_san.iter().zip(&over_tcp).enumerate() {
                assert_eq!(san, tcp, "SAN_TEST_SEED={seed}, call {at}");
            }
            assert_eq!(over_san.len(), over_tcp.len());
        }
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_read_waits_as_long_as_it_was_told() {
    bounded(|| {
        let switch = switch();
        let listener = TcpListener::from(switch.listen(any(), backlog(4)).unwrap());
        let mut client = TcpStream::from(san_client(&switch, listener.listener()));
        let (mut server, _) = listener.accept().unwrap();
        let wait = Duration::from_millis(150);
        client.wait_at_most(Some(wait));
        assert_eq!(client.read_timeout().unwrap(), Some(wait));
        let begun = Instant::now();
        let error = client.read(&mut [0; 4]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        assert!(begun.elapsed() >= wait);
        // Nonblocking mode does not forget it.
        client.set_nonblocking(true).unwrap();
        client.wait_at_most(Some(Duration::from_secs(20)));
        assert_eq!(
            client.read(&mut [0; 4]).unwrap_err().kind(),
            ErrorKind::WouldBlock
        );
        client.set_nonblocking(false).unwrap();
        server.write_all(b"late").unwrap();
        let mut bytes = [0; 4];
        client.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"late");
        let zero = client.set_read_timeout(Some(Duration::ZERO)).unwrap_err();
        assert_eq!(zero.kind(), ErrorKind::InvalidInput);
        // The reading half closed: the end, but for what is here.
        client.shutdown(Shutdown::Read).unwrap();
        assert_eq!(client.read(&mut bytes).unwrap(), 0);
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_listener_that_does_not_wait_says_so() {
    bounded(|| {
        let switch = switch();
        let listener = TcpListener::from(switch.listen(any(), backlog(4)).unwrap());
        listener.set_nonblocking(true).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
        let client = TcpStream::from(san_client(&switch, listener.listener()));
        let mut accepted = None;
        eventually("it is accepted", PATIENCE, || {
            accepted = listener.accept().ok();
            accepted.is_some()
        });
        let (server, _) = accepted.unwrap();
        let again = server.try_clone().unwrap();
        drop(server);
        (&again).write_all(b"through the clone").unwrap();
        drop(again);
        let mut text = String::new();
        (&client).read_to_string(&mut text).unwrap();
        assert_eq!(text, "through the clone");
    });
}
