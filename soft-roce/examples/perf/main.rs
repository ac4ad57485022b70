//! How fast two endpoints of one process talk over the loopback, beside kernel
//! TCP with the same sizes and the same memory in use.
//!
//! `cargo run --release -p soft-roce --example perf [seconds [filter [plain]]]`: the filter
//! is a part of a line's name, like `latency`, `write` or `65536`; `plain`: without bundles, as
//! between hosts.

#[path = "../common/mod.rs"]
mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{How, Node, Side};
use rustix::time::{ClockId, clock_gettime};
use soft_roce::endpoint::Config;
use soft_roce::rc::{Completion, Notify, Remote, SendOp};

/// Receives posted; a few less requests are under way.
const DEPTH: usize = 16;
/// Memory of each side. Messages go round in it; TCP's buffer is as large as one
/// message, so for small ones all fits the cache on both.
const MEMORY: usize = 4 << 20;

fn connect(server: &Node, client: &Node, dst: SocketAddr, memory: usize) -> (Side, Side) {
    std::thread::scope(|scope| {
        let b = scope.spawn(|| server.accept(memory, |_| Ok(())).expect("accept"));
        let a = client.connect(dst, memory, |_| Ok(())).expect("connect");
        (a, b.join().expect("server"))
    })
}

/// Where message `n` is.
fn place(n: usize, len: usize) -> (usize, usize) {
    let slots = ((256 << 10) / len.max(1))
        .clamp(2, DEPTH)
        .min(MEMORY / len.max(1));
    (n % slots * len, len)
}

fn receive(side: &Side, n: usize, len: usize) {
    side.receive(n as u64, place(n, len).0, len)
        .expect("receive");
}

fn send(side: &Side, n: usize, op: SendOp, len: usize, signaled: bool) {
    side.send(n as u64, op, place(n, len), signaled)
        .expect("send");
}

/// MB/s.
fn bulk(a: &Side, b: &Side, write: bool, len: usize, time: Duration, how: How) -> f64 {
    let stop = AtomicBool::new(false);
    let remote = Remote {
        va: b.mr.va(),
        rkey: b.mr.rkey(),
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            if write {
                // The last WRITE of a run carries immediate data and ends it.
                receive(b, 0, 0);
                b.next(how).expect("completion");
                return;
            }
            let mut out = [Completion::default(); DEPTH];
            (0..DEPTH).for_each(|slot| receive(b, slot, len));
            loop {
                let mut count = b.poll(&mut out).expect("poll");
                if count == 0 {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    if how != How::Spin {
                        b.cq.request_notify(Notify::Next);
                        count = b.poll(&mut out).expect("poll");
                        if count == 0 {
                            b.channel
                                .wait(None, Duration::from_millis(20))
                                .expect("wait");
                        }
                    }
                }
                for done in &out[..count] {
                    receive(b, done.wr_id as usize, len);
                }
            }
        });
        let op = |last: bool| match (write, last) {
            (false, _) => SendOp::Send,
            (true, false) => SendOp::Write(remote),
            (true, true) => SendOp::WriteImm(remote, 1),
        };
        let start = Instant::now();
        let (mut sent, mut done) = (0usize, 0usize);
        let mut out = [Completion::default(); DEPTH];
        // A few less than there are receives: no RNR.
        let depth = DEPTH * 3 / 4;
        let mut ended = false;
        while !ended || done < sent {
            while !ended && sent < done + depth {
                ended = start.elapsed() > time;
                send(a, sent, op(ended), len, true);
                sent += 1;
            }
            let mut count = a.poll(&mut out).expect("poll");
            if count == 0 && how != How::Spin {
                a.cq.request_notify(Notify::Next);
                count = a.poll(&mut out).expect("poll");
                if count == 0 {
                    a.channel
                        .wait(None, Duration::from_millis(20))
                        .expect("wait");
                }
            }
            done += count;
        }
        let elapsed = start.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        (done * len) as f64 / elapsed / 1e6
    })
}

/// Microseconds a round trip.
fn ping_pong(a: &Side, b: &Side, len: usize, time: Duration, how: How) -> f64 {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        receive(b, 0, len);
        receive(a, 0, len);
        scope.spawn(|| {
            loop {
                b.next(how).expect("completion");
                receive(b, 0, len);
                let last = stop.load(Ordering::Acquire);
                send(b, 1, SendOp::Send, len, false);
                if last {
                    return;
                }
            }
        });
        let start = Instant::now();
        let mut rounds = 0u32;
        loop {
            let last = start.elapsed() > time;
            stop.store(last, Ordering::Release);
            send(a, 1, SendOp::Send, len, false);
            a.next(how).expect("completion");
            rounds += 1;
            receive(a, 0, len);
            if last {
                return start.elapsed().as_secs_f64() * 1e6 / f64::from(rounds);
            }
        }
    })
}

/// The same with one thread at both ends, which never waits: what the work itself takes, whoever else is on the
/// machine. Each end looks once in vain before the message is sent, as ends that spin do.
fn ping_pong_alone(a: &Side, b: &Side, len: usize, time: Duration) -> f64 {
    let start = Instant::now();
    let mut rounds = 0u32;
    receive(a, 0, len);
    receive(b, 0, len);
    while start.elapsed() < time {
        for (from, to) in [(a, b), (b, a)] {
            assert_eq!(to.poll(&mut [Completion::default()]).expect("poll"), 0);
            send(from, 1, SendOp::Send, len, false);
            to.next(How::Spin).expect("completion");
            receive(to, 0, len);
        }
        rounds += 1;
    }
    start.elapsed().as_secs_f64() * 1e6 / f64::from(rounds)
}

fn tcp_ping_pong_alone(len: usize, time: Duration) -> f64 {
    let (a, b) = tcp();
    a.set_nonblocking(true).expect("mode");
    b.set_nonblocking(true).expect("mode");
    let mut buffer = vec![1; len];
    let start = Instant::now();
    let mut rounds = 0u32;
    while start.elapsed() < time {
        for (mut from, mut to) in [(&a, &b), (&b, &a)] {
            to.read(&mut buffer).expect_err("nothing is there");
            from.write_all(&buffer).expect("write");
            to.read_exact(&mut buffer).expect("read");
        }
        rounds += 1;
    }
    start.elapsed().as_secs_f64() * 1e6 / f64::from(rounds)
}

fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let a = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
    let b = listener.accept().expect("accept").0;
    a.set_nodelay(true).expect("nodelay");
    b.set_nodelay(true).expect("nodelay");
    (a, b)
}

fn tcp_bulk(len: usize, time: Duration) -> f64 {
    let (mut a, mut b) = tcp();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut buffer = vec![0; len];
            while b.read(&mut buffer).expect("read") > 0 {}
        });
        let buffer = vec![1; len];
        let start = Instant::now();
        let mut total = 0;
        while start.elapsed() < time {
            a.write_all(&buffer).expect("write");
            total += len;
        }
        let speed = total as f64 / start.elapsed().as_secs_f64() / 1e6;
        drop(a);
        speed
    })
}

fn tcp_ping_pong(len: usize, time: Duration, spin: bool) -> f64 {
    let (a, b) = tcp();
    a.set_nonblocking(spin).expect("mode");
    b.set_nonblocking(spin).expect("mode");
    let exchange = |mut s: &TcpStream, buffer: &mut [u8]| {
        let mut at = 0;
        while at < buffer.len() {
            match s.read(&mut buffer[at..]) {
                Ok(0) => return false,
                Ok(n) => at += n,
                Err(_) => std::hint::spin_loop(),
            }
        }
        true
    };
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut buffer = vec![0; len];
            while exchange(&b, &mut buffer) {
                (&b).write_all(&buffer).expect("write");
            }
        });
        let mut buffer = vec![1; len];
        let start = Instant::now();
        let mut rounds = 0u32;
        while start.elapsed() < time {
            (&a).write_all(&buffer).expect("write");
            exchange(&a, &mut buffer);
            rounds += 1;
        }
        let result = start.elapsed().as_secs_f64() * 1e6 / f64::from(rounds);
        drop(a);
        result
    })
}

/// Connections made and closed, one after the other, a second.
fn connects(server: &Node, client: &Node, dst: SocketAddr, time: Duration) -> f64 {
    per_second(
        time,
        || client.connect(dst, 4096, |_| Ok(())).expect("connect"),
        || server.accept(4096, |_| Ok(())).expect("accept"),
    )
}

fn tcp_connects(time: Duration) -> f64 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let dst = listener.local_addr().expect("address");
    per_second(
        time,
        || TcpStream::connect(dst).expect("connect"),
        || listener.accept().expect("accept").0,
    )
}

/// Pairs that `connect` and, in a thread of its own, `accept` make a second. Both ends are closed before the next.
fn per_second<A, B: Send>(
    time: Duration,
    connect: impl Fn() -> A,
    accept: impl Fn() -> B + Send,
) -> f64 {
    let stop = AtomicBool::new(false);
    let (give, accepted) = std::sync::mpsc::sync_channel(1);
    std::thread::scope(|scope| {
        let stop = &stop;
        scope.spawn(move || {
            let mut last = false;
            while !last {
                let there = accept();
                last = stop.load(Ordering::Acquire);
                give.send(there).expect("somebody takes it");
            }
        });
        let once = || {
            let here = connect();
            let there = accepted.recv().expect("the other end");
            drop(here);
            drop(there);
        };
        let start = Instant::now();
        let mut count = 0u32;
        while start.elapsed() < time {
            once();
            count += 1;
        }
        let rate = f64::from(count) / start.elapsed().as_secs_f64();
        // One more ends the other thread, which waits for it.
        stop.store(true, Ordering::Release);
        once();
        rate
    })
}

/// Processor time of this process, both ends and all threads; what the kernel does for it counts.
fn processor_time() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// What a figure is, and so what is better.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Microseconds a round trip.
    RoundTrip,
    /// MB/s; the processor time is that of a byte.
    Bulk,
    /// Connections a second.
    Rate,
}

/// Prints a line a figure, beside the last one of TCP.
struct Table {
    filter: String,
    time: Duration,
    tcp: Option<(f64, f64)>,
}

impl Table {
    fn line(&mut self, kind: Kind, name: &str, run: impl FnOnce(Duration) -> f64) {
        if !name.contains(&self.filter) {
            return;
        }
        let (start, before) = (Instant::now(), processor_time());
        let figure = run(self.time);
        let busy = (processor_time() - before).as_secs_f64();
        let took = start.elapsed().as_secs_f64();
        let (unit, cost, cost_unit) = match kind {
            Kind::RoundTrip => ("us", busy / took * figure, "us each"),
            Kind::Bulk => ("MB/s", busy / took * 1e3 / figure, "ns a byte"),
            Kind::Rate => ("1/s", busy / took * 1e6 / figure, "us each"),
        };
        let is_tcp = name.contains("tcp");
        if is_tcp {
            self.tcp = Some((figure, cost));
        }
        let ratio = match self.tcp {
            Some((tcp, tcp_cost)) if !is_tcp => {
                format!("{:8.2} {:8.2}", figure / tcp, cost / tcp_cost)
            }
            _ => String::new(),
        };
        println!("{name:26} {figure:10.2} {unit:5} {cost:9.3} {cost_unit:9} {ratio}");
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let seconds: f64 = args.next().and_then(|arg| arg.parse().ok()).unwrap_or(1.0);
    let mut table = Table {
        filter: args.next().unwrap_or_default(),
        time: Duration::from_secs_f64(seconds),
        tcp: None,
    };
    let config = Config {
        bundles: args.next().as_deref() != Some("plain"),
        ..Config::default()
    };
    let node = || Node::new(config.clone()).expect("endpoint");
    let (server, client) = (node(), node());
    let ip: IpAddr = "127.0.0.1".parse().expect("address");
    let dst = SocketAddr::new(ip, 7_471);
    let _listener = server.listen(dst).expect("listen");
    // Receives that are left over would take the next run's messages.
    let pair = || connect(&server, &client, dst, MEMORY);
    println!("figures, processor time of both ends; then both as ratios to TCP's");
    for (tcp, hows) in [
        (true, &[How::Spin][..]),
        (false, &[How::Wait, How::Descriptor]),
    ] {
        let way = if tcp { "spin" } else { "sleep" };
        table.line(Kind::RoundTrip, &format!("latency 64 tcp {way}"), |time| {
            tcp_ping_pong(64, time, tcp)
        });
        for &how in hows {
            let (a, b) = pair();
            table.line(
                Kind::RoundTrip,
                &format!("latency 64 soft {how:?}"),
                |time| ping_pong(&a, &b, 64, time, how),
            );
        }
    }
    table.line(Kind::RoundTrip, "latency 64 tcp alone", |time| {
        tcp_ping_pong_alone(64, time)
    });
    let (a, b) = pair();
    table.line(Kind::RoundTrip, "latency 64 soft alone", |time| {
        ping_pong_alone(&a, &b, 64, time)
    });
    for len in [4 << 10, 64 << 10, 1 << 20] {
        table.line(Kind::Bulk, &format!("bulk {len} tcp"), |time| {
            tcp_bulk(len, time)
        });
        for (how, write) in [
            (How::Spin, false),
            (How::Spin, true),
            (How::Wait, false),
            (How::Wait, true),
        ] {
            let op = if write { "write" } else { "send" };
            let (a, b) = pair();
            table.line(Kind::Bulk, &format!("bulk {len} {op} {how:?}"), |time| {
                bulk(&a, &b, write, len, time, how)
            });
        }
    }
    table.line(Kind::Rate, "connects tcp", tcp_connects);
    table.line(Kind::Rate, "connects soft", |time| {
        connects(&server, &client, dst, time)
    });
    println!("client {:?}", client.endpoint.counters());
    println!("server {:?}", server.endpoint.counters());
}
