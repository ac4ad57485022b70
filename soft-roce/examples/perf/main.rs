//! How fast two endpoints of one process talk over the loopback, beside kernel
//! TCP with the same sizes. `cargo run --release -p soft-roce --example perf [seconds]`

#[path = "../common/mod.rs"]
mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{How, Node, Side};
use soft_roce::endpoint::Config;
use soft_roce::rc::{Completion, Notify, Remote, SendOp};

/// Requests under way.
const DEPTH: usize = 16;
const SLOT: usize = 1 << 20;

fn connect(server: &Node, client: &Node, dst: SocketAddr) -> (Side, Side) {
    std::thread::scope(|scope| {
        let b = scope.spawn(|| server.accept(DEPTH * SLOT, |_| Ok(())).expect("accept"));
        let a = client
            .connect(dst, DEPTH * SLOT, |_| Ok(()))
            .expect("connect");
        (a, b.join().expect("server"))
    })
}

fn receive(side: &Side, slot: usize) {
    side.receive(slot as u64, slot * SLOT, SLOT)
        .expect("receive");
}

fn send(side: &Side, slot: usize, op: SendOp, len: usize, signaled: bool) {
    side.send(slot as u64, op, (slot * SLOT, len), signaled)
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
                receive(b, 0);
                b.next(how).expect("completion");
                return;
            }
            let mut out = [Completion::default(); DEPTH];
            (0..DEPTH).for_each(|slot| receive(b, slot));
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
                    receive(b, done.wr_id as usize);
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
                send(a, sent % DEPTH, op(ended), len, true);
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
        receive(b, 0);
        receive(a, 0);
        scope.spawn(|| {
            loop {
                b.next(how).expect("completion");
                receive(b, 0);
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
            receive(a, 0);
            if last {
                return start.elapsed().as_secs_f64() * 1e6 / f64::from(rounds);
            }
        }
    })
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

fn main() {
    let seconds: f64 = std::env::args()
        .nth(1)
        .and_then(|arg| arg.parse().ok())
        .unwrap_or(1.0);
    let time = Duration::from_secs_f64(seconds);
    let node = || Node::new(Config::default()).expect("endpoint");
    let (server, client) = (node(), node());
    let ip: IpAddr = "127.0.0.1".parse().expect("address");
    let dst = SocketAddr::new(ip, 7_471);
    let _listener = server.listen(dst).expect("listen");
    let (a, b) = connect(&server, &client, dst);
    println!("64 B round trip, us");
    println!("  tcp  spin {:8.2}", tcp_ping_pong(64, time, true));
    println!("  soft spin {:8.2}", ping_pong(&a, &b, 64, time, How::Spin));
    println!("  tcp  wait {:8.2}", tcp_ping_pong(64, time, false));
    println!("  soft wait {:8.2}", ping_pong(&a, &b, 64, time, How::Wait));
    println!(
        "  soft fd   {:8.2}",
        ping_pong(&a, &b, 64, time, How::Descriptor)
    );
    println!("bulk, MB/s");
    for len in [4 << 10, 64 << 10, 1 << 20] {
        println!("  {len:8} tcp        {:8.0}", tcp_bulk(len, time));
        for how in [How::Spin, How::Wait] {
            println!(
                "  {len:8} send  {how:?} {:8.0}",
                bulk(&a, &b, false, len, time, how)
            );
            // Receives that are left over would take the next run's end.
            let (a, b) = connect(&server, &client, dst);
            println!(
                "  {len:8} write {how:?} {:8.0}",
                bulk(&a, &b, true, len, time, how)
            );
        }
    }
    println!("{:?}", client.endpoint.counters());
    println!("{:?}", server.endpoint.counters());
    println!("{:?}", a.qp.counters());
    println!("{:?}", b.qp.counters());
}
