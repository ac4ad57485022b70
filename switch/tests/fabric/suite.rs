//! Random sequences of calls on a stream of ours and on a TCP socket of the kernel's, whose results are
//! compared. docs/semantics.md names what differs, and the sequences leave it out.
//!
//! SAN_TEST_SEED=N runs the one sequence of that seed.

use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::net::{RecvFlags, SendFlags};
use san_switch::net::{TcpListener, TcpStream};
use san_switch::{Connection, Events, RouteChoice, Switch};
use san_tests::net::{self, addr_a, addr_b};

use super::support::*;

/// Sequences over the SAN, and over streams that move.
pub(crate) const SEQUENCES: u64 = 2000;
/// Sequences over our TCP: it is the kernel's.
pub(crate) const FEW: u64 = 300;
const CALLS: usize = 60;
/// The most time for the sequences over one carrier.
pub(crate) const TIME: Duration = Duration::from_secs(90);

/// Time for them here: an emulated machine does fewer.
fn time() -> Duration {
    if net::is_soft() {
        TIME
    } else {
        Duration::from_secs(25)
    }
}

/// Sequences that run at a time.
const WORKERS: u64 = 3;
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

type KindResult<T> = Result<T, ErrorKind>;

fn kind<T>(outcome: std::io::Result<T>) -> KindResult<T> {
    outcome.map_err(|error| error.kind())
}

/// What both kinds of stream can do.
trait Stream {
    fn both(&self) -> (Box<dyn Read + '_>, Box<dyn Write + '_>);
    fn look(&self, bytes: &mut [u8]) -> std::io::Result<usize>;
    fn end(&self, how: Shutdown) -> std::io::Result<()>;
    fn nonblocking(&self, on: bool);
    fn wait_at_most(&self, time: Option<Duration>);
    fn urgent(&self, byte: u8) -> std::io::Result<()>;
    fn take_urgent(&self) -> std::io::Result<u8>;
    fn error(&self) -> Option<ErrorKind>;
    /// What it is ready for now.
    fn ready(&self) -> Events;
    /// Has a close reset the peer.
    fn linger_not(&self);
    /// Changes the carrier, where there is another.
    fn change_carrier(&self) {}
}

impl Stream for TcpStream {
    fn both(&self) -> (Box<dyn Read + '_>, Box<dyn Write + '_>) {
        (Box::new(self), Box::new(self))
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
        self.set_read_timeout(time.or(Some(PATIENCE))).unwrap();
    }
    fn urgent(&self, byte: u8) -> std::io::Result<()> {
        self.connection().send_urgent(byte)
    }
    fn take_urgent(&self) -> std::io::Result<u8> {
        self.connection().receive_urgent()
    }
    fn error(&self) -> Option<ErrorKind> {
        self.take_error().unwrap().map(|error| error.kind())
    }
    fn ready(&self) -> Events {
        if let Some(lane) = self.connection().lane() {
            lane.poll();
        }
        self.connection().events()
    }
    fn linger_not(&self) {
        self.connection().set_linger(Some(Duration::ZERO)).unwrap();
    }
    fn change_carrier(&self) {
        self.connection().move_to_tcp(false);
    }
}

impl Stream for std::net::TcpStream {
    fn both(&self) -> (Box<dyn Read + '_>, Box<dyn Write + '_>) {
        (Box::new(self), Box::new(self))
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
        self.set_read_timeout(time.or(Some(PATIENCE))).unwrap();
    }
    fn urgent(&self, byte: u8) -> std::io::Result<()> {
        let flags = SendFlags::OOB | SendFlags::NOSIGNAL;
        Ok(rustix::net::send(self, &[byte], flags).map(drop)?)
    }
    fn take_urgent(&self) -> std::io::Result<u8> {
        let mut byte = [0];
        rustix::net::recv(self, &mut byte, RecvFlags::OOB)?;
        Ok(byte[0])
    }
    fn error(&self) -> Option<ErrorKind> {
        self.take_error().unwrap().map(|error| error.kind())
    }
    fn ready(&self) -> Events {
        let pairs = [
            (PollFlags::IN, Events::READABLE),
            (PollFlags::OUT, Events::WRITABLE),
            (PollFlags::RDHUP, Events::READ_CLOSED),
            (PollFlags::HUP, Events::HANG_UP),
            (PollFlags::ERR, Events::ERROR),
            (PollFlags::PRI, Events::PRIORITY),
        ];
        let asked = pairs.iter().map(|(flag, _)| *flag).collect();
        let mut fds = [PollFd::new(self, asked)];
        let now = san_base::timespec(Duration::ZERO);
        rustix::event::poll(&mut fds, Some(&now)).unwrap();
        let holds = |(flag, _): &&(PollFlags, Events)| fds[0].revents().contains(*flag);
        pairs
            .iter()
            .filter(holds)
            .map(|(_, event)| *event)
            .collect()
    }
    fn linger_not(&self) {
        socket2::SockRef::from(self)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    }
}

/// What an end is ready for, once it is what it will be.
fn settled(end: &dyn Stream, expected: Events) -> Events {
    let begun = Instant::now();
    // What the model does not know: an error, and that both ways are closed.
    let known = Events::READABLE | Events::READ_CLOSED | Events::WRITABLE | Events::PRIORITY;
    loop {
        let ready = end.ready();
        if ready & known == expected || begun.elapsed() > PATIENCE {
            return ready;
        }
        std::thread::yield_now();
    }
}

/// One direction. It knows what is here, so that no call waits for ever.
#[derive(Default, Clone)]
struct Way {
    sent: usize,
    read: usize,
    has_ended: bool,
    /// Its reader reads no more.
    is_shut: bool,
}

impl Way {
    fn left(&self) -> usize {
        self.sent - self.read
    }
}

fn byte(at: usize) -> u8 {
    (at * 29 + at / 241) as u8
}

/// A sequence of calls on a pair of streams, and what each said.
struct Sequence<'a> {
    ends: [&'a dyn Stream; 2],
    dice: Dice,
    ways: [Way; 2],
    said: Vec<String>,
    is_moving: bool,
}

impl<'a> Sequence<'a> {
    /// Runs the sequence of a seed. Whether the pair can be used for another one.
    fn run(ends: [&'a dyn Stream; 2], seed: u64, is_moving: bool) -> (Vec<String>, bool) {
        let mut sequence = Self {
            ends,
            dice: Dice(seed),
            ways: Default::default(),
            said: Vec::new(),
            is_moving,
        };
        for _ in 0..CALLS {
            sequence.step();
        }
        let is_open = sequence.finish();
        (sequence.said, is_open)
    }

    fn say(&mut self, from: usize, what: &str, outcome: impl std::fmt::Debug) {
        self.said.push(format!("{from} {what}: {outcome:?}"));
    }

    /// What the end that reads this way is ready for.
    fn expected(&self, from: usize) -> Events {
        let way = &self.ways[from];
        let is_closed = way.has_ended || way.is_shut;
        let mut events = Events::WRITABLE;
        events.set(Events::READABLE, way.left() > 0 || is_closed);
        events.set(Events::READ_CLOSED, is_closed);
        events
    }

    fn right(&self, from: usize, bytes: &[u8]) -> bool {
        let start = self.ways[from].read;
        bytes.iter().zip(start..).all(|(got, at)| *got == byte(at))
    }

    fn read_exactly(&mut self, from: usize, size: usize) -> bool {
        let mut bytes = vec![0; size];
        let (mut reader, _) = self.ends[1 - from].both();
        reader.read_exact(&mut bytes).unwrap();
        let right = self.right(from, &bytes);
        self.ways[from].read += size;
        right
    }

    fn write(&mut self, from: usize, size: usize) {
        let start = self.ways[from].sent;
        let bytes: Vec<u8> = (start..start + size).map(byte).collect();
        let (_, mut writer) = self.ends[from].both();
        let outcome = if size.is_multiple_of(3) {
            let (first, second) = bytes.split_at(size / 2);
            writer.write_vectored(&[IoSlice::new(first), IoSlice::new(second)])
        } else {
            writer.write(&bytes)
        };
        let outcome = kind(outcome);
        if let Ok(sent) = outcome {
            self.ways[from].sent += sent;
        }
        self.say(from, &format!("write {size}"), outcome);
    }

    fn step(&mut self) {
        let from = self.dice.below(2);
        let (here, there) = (self.ends[from], self.ends[1 - from]);
        let way = self.ways[from].clone();
        let left = way.left();
        let size = 1 + self.dice.below(6000);
        let (mut reader, _) = there.both();
        match self.dice.below(18) {
            0..=3 if !way.is_shut => {
                self.write(from, size.min(UNDER_WAY - left.min(UNDER_WAY)));
            }
            4..=6 if left > 0 => {
                let size = size.min(left);
                let right = self.read_exactly(from, size);
                self.say(from, &format!("read {size}"), right);
            }
            7 if left > 0 => {
                // At least one byte, and the right ones.
                let mut bytes = vec![0; size.min(left)];
                let half = bytes.len() / 2;
                let (first, second) = bytes.split_at_mut(half);
                let mut buffers = [IoSliceMut::new(first), IoSliceMut::new(second)];
                let came = reader.read_vectored(&mut buffers).unwrap();
                let right = self.right(from, &bytes[..came]);
                self.ways[from].read += came;
                self.say(from, "read in parts", (came > 0, right));
                // From here on both have read the same.
                let right = self.read_exactly(from, bytes.len() - came);
                self.say(from, "read the rest", right);
            }
            8 if left > 0 => {
                let mut bytes = vec![0; size.min(left)];
                let seen = there.look(&mut bytes).unwrap();
                let right = self.right(from, &bytes[..seen]);
                self.say(from, "peek", (seen > 0, right));
            }
            9 if left == 0 && !way.has_ended && !way.is_shut => {
                there.nonblocking(true);
                let read = kind(reader.read(&mut [0; 10]));
                let seen = kind(there.look(&mut [0; 10]));
                there.nonblocking(false);
                self.say(from, "read and peek of nothing", (read, seen));
            }
            10 if left == 0 && !way.has_ended && !way.is_shut && self.dice.below(4) == 0 => {
                there.wait_at_most(Some(Duration::from_millis(1)));
                let read = kind(reader.read(&mut [0; 10]));
                let seen = kind(there.look(&mut [0; 10]));
                there.wait_at_most(None);
                self.say(from, "read and peek in vain", (read, seen));
            }
            9 | 10 if left == 0 && (way.has_ended || way.is_shut) => {
                let read = kind(reader.read(&mut [0; 10]));
                let seen = kind(there.look(&mut [0; 10]));
                self.say(from, "read of the end", (read, seen));
            }
            // docs/semantics.md: without a byte here, the kernel's read of none waits.
            11 if left > 0 => {
                let (_, mut writer) = here.both();
                let read = kind(reader.read(&mut []));
                let written = kind(writer.write(&[]));
                self.say(from, "of no bytes", (read, written));
            }
            // docs/semantics.md: ending twice.
            12 if !way.has_ended && self.dice.below(8) == 0 => {
                // Both directions of one end, where the other one has ended. docs/semantics.md: a reader
                // that reads no more with bytes under way.
                let other = &self.ways[1 - from];
                let is_through = other.has_ended && other.left() == 0;
                let how = if is_through && size.is_multiple_of(2) {
                    self.ways[1 - from].is_shut = true;
                    Shutdown::Both
                } else {
                    Shutdown::Write
                };
                let outcome = kind(here.end(how));
                self.ways[from].has_ended = true;
                self.say(from, "end", outcome);
            }
            13 => {
                let ready = settled(there, self.expected(from));
                self.say(from, "is ready", ready);
            }
            14 => {
                let error = there.error();
                self.say(from, "error", error);
            }
            15 if left == 0 && !way.has_ended && !way.is_shut && !self.is_moving => {
                self.urgent(from, size);
            }
            // The reader reads no more: what was here is read, and the end follows.
            16 if left == 0 && !way.has_ended && self.dice.below(12) == 0 => {
                let outcome = kind(there.end(Shutdown::Read));
                self.ways[from].is_shut = true;
                self.say(from, "reads no more", outcome);
            }
            17 => here.change_carrier(),
            _ => {}
        }
    }

    /// A byte that is urgent, with others behind it, for a reader that has read everything.
    fn urgent(&mut self, from: usize, size: usize) {
        let (here, there) = (self.ends[from], self.ends[1 - from]);
        let sent = kind(here.urgent(size as u8));
        self.say(from, "urgent", sent);
        let ready = settled(there, Events::WRITABLE | Events::PRIORITY);
        self.say(from, "is ready", ready);
        if size.is_multiple_of(2) {
            let taken = kind(there.take_urgent());
            let again = kind(there.take_urgent());
            self.say(from, "takes", (taken, again));
            let ready = settled(there, Events::WRITABLE);
            self.say(from, "is ready", ready);
        }
        self.write(from, size);
        let right = self.read_exactly(from, size);
        self.say(from, "read past it", right);
        let late = kind(there.take_urgent());
        self.say(from, "takes", late);
    }

    /// Reads what is left; perhaps the last call is an abort. Whether both directions are open still.
    fn finish(&mut self) -> bool {
        for from in 0..2 {
            let left = self.ways[from].left();
            let right = self.read_exactly(from, left);
            self.say(from, "read all", right);
        }
        if self.ways.iter().any(|way| way.has_ended || way.is_shut) {
            return false;
        }
        self.dice.below(3) != 0
    }
}

/// One end closes with a linger time of zero, or with bytes unread: what the other one hears, which may have bytes to
/// read, too.
fn aborted(gone: impl Stream, left: &dyn Stream, seed: u64, is_moving: bool) -> Vec<String> {
    let mut dice = Dice(!seed);
    let (mut reader, mut writer) = left.both();
    // One message. docs/semantics.md: in the middle of a move it may be lost.
    let before = match is_moving {
        true => 0,
        false => dice.below(2) * dice.below(1000),
    };
    if before > 0 {
        gone.both().1.write_all(&vec![5; before]).unwrap();
        settled(left, Events::WRITABLE | Events::READABLE);
    }
    if dice.below(2) == 0 {
        gone.linger_not();
    } else {
        writer.write_all(&[6; 10]).unwrap();
        settled(&gone, Events::WRITABLE | Events::READABLE);
    }
    drop(gone);
    let all = Events::WRITABLE | Events::READABLE | Events::READ_CLOSED;
    let mut said = vec![format!("reset: {:?}", settled(left, all))];
    let mut bytes = vec![0; before];
    let read = kind(reader.read_exact(&mut bytes));
    said.push(format!("{before} bytes before it: {read:?}"));
    for _ in 0..2 {
        let read = kind(reader.read(&mut [0; 10]));
        let written = kind(writer.write(b"late"));
        said.push(format!("after a reset: {read:?} {written:?}"));
    }
    said.push(format!("after that: {:?}", left.ready()));
    said
}

fn compare(ours: &[String], kernels: &[String], seed: u64) {
    for (at, (ours, kernels)) in ours.iter().zip(kernels).enumerate() {
        assert_eq!(ours, kernels, "SAN_TEST_SEED={seed}, call {at}");
    }
    assert_eq!(ours.len(), kernels.len(), "SAN_TEST_SEED={seed}");
}

/// One pair of ours and one of the kernel's.
type Pairs = ([TcpStream; 2], [std::net::TcpStream; 2]);

fn kernels(listener: &std::net::TcpListener) -> [std::net::TcpStream; 2] {
    let there = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let here = listener.accept().unwrap().0;
    for end in [&there, &here] {
        end.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    [there, here]
}

/// Compares the sequences of the seeds that are left, on pairs that `connect` makes.
fn work(connect: &dyn Fn() -> [TcpStream; 2], seeds: &AtomicU64, last: u64, is_moving: bool) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let begun = Instant::now();
    let mut pairs: Option<Pairs> = None;
    while begun.elapsed() < time() {
        let seed = seeds.fetch_add(1, Ordering::Relaxed);
        if seed >= last {
            return;
        }
        let (ours, theirs) = pairs
            .take()
            .unwrap_or_else(|| (connect(), kernels(&listener)));
        let (said, is_open) = Sequence::run([&ours[0], &ours[1]], seed, is_moving);
        let (wanted, _) = Sequence::run([&theirs[0], &theirs[1]], seed, is_moving);
        compare(&said, &wanted, seed);
        if is_open {
            pairs = Some((ours, theirs));
            continue;
        }
        let has_ended = |line: &String| line.contains(" end: ") || line.contains("reads no more");
        if !said.iter().any(has_ended) {
            let ([first, second], [third, fourth]) = (ours, theirs);
            let said = aborted(first, &second, seed, is_moving);
            compare(&said, &aborted(third, &fourth, seed, is_moving), seed);
        }
    }
}

/// Compares as many sequences, as fit in the time.
pub(crate) fn same_results(switch: &Switch, tcp_only: bool, sequences: u64) {
    let is_moving = switch.config().route == RouteChoice::Upgrade;
    let seed = std::env::var("SAN_TEST_SEED").ok();
    let (first, last) = match seed.map(|seed| seed.parse().expect("a number")) {
        Some(seed) => (seed, seed + 1),
        None => (0, sequences),
    };
    let seeds = AtomicU64::new(first);
    std::thread::scope(|scope| {
        let workers = (0..WORKERS).map(|_| {
            scope.spawn(|| {
                let listener = switch.listen(any(), backlog(4)).unwrap();
                let listener = TcpListener::from(listener);
                let connect = || {
                    let to = at(addr_b(), listener.listener());
                    let options = from(addr_a()).tcp_only(tcp_only);
                    let client: Connection = switch.connect(to, &options).unwrap();
                    assert_eq!(client.is_san(), !tcp_only && !is_moving);
                    let server = listener.accept().unwrap().0;
                    [client.into(), server]
                };
                work(&connect, &seeds, last, is_moving);
            })
        });
        // What one of them found is told, and not only that it panicked.
        for worker in workers.collect::<Vec<_>>() {
            worker.join().unwrap();
        }
    });
    let done = seeds.load(Ordering::Relaxed).min(last) - first;
    eprintln!("{done} sequences");
    assert!(done > 0);
}
