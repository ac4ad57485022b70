//! Many streams at a time while links fall, peers are killed and carriers change: no stream loses a byte,
//! and none ends without saying so.
//!
//! The clients are in this process, a thread each. The servers are children, which are this program again
//! (`server`): they send back what comes. Each client knows which byte comes next. There are 60 of them, and
//! the link is away for moments; SAN_TEST_SOAK=N has N, more time, and a link that stays away until the
//! transport of the SAN gives up.

#[path = "support.rs"]
#[allow(dead_code, reason = "each test program uses some of it")]
mod support;

use std::io::{BufRead, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use san_switch::{ConnectOptions, Connection, ListenOptions, RouteChoice, Switch, SwitchConfig};
use san_tests::net::{self, addr_a, addr_b};
use san_tests::program::Program;
use san_tests::time::within;
use san_tests::wire::{OUR_OWN, Wire};

use support::*;

const LONG: Duration = Duration::from_secs(60);
/// Set for a program that is a server.
const SERVER: &str = "SAN_TEST_SERVER";
const SERVERS: usize = 4;
/// Streams, where nobody says another number.
const STREAMS: usize = 60;
/// The same on an emulated machine.
const FEW: usize = 12;
/// How long they talk.
const TIME: Duration = Duration::from_secs(25);
const STACK: usize = 256 << 10;

fn soak_config() -> SwitchConfig {
    config()
        .upgrade_bytes(64 << 10)
        .io_timeout(Some(Duration::from_secs(60)))
}

fn small_thread() -> std::thread::Builder {
    std::thread::Builder::new().stack_size(STACK)
}

/// Sends back what comes, until the end.
fn send_back(connection: &Connection) -> std::io::Result<()> {
    let mut buffer = vec![0; 32 << 10];
    loop {
        match connection.receive(&mut buffer)? {
            0 => return connection.finish(Some(LONG)),
            came => (&mut &*connection).write_all(&buffer[..came])?,
        }
    }
}

/// A server: it says where it listens for each route, and serves until its input ends.
#[test]
#[ignore = "is run by the other"]
fn server() {
    if std::env::var_os(SERVER).is_none() {
        return;
    }
    let switch = Switch::new(soak_config()).unwrap();
    let ports = ROUTES.map(|route| {
        let options = ListenOptions::default().backlog(1000).route(route);
        let listener = switch.listen(any(), options).unwrap();
        let port = listener.local_addr().port();
        std::thread::spawn(move || {
            while let Ok(connection) = listener.accept() {
                let serve = move || {
                    // A client that goes has its own reasons, and says so if it has none.
                    let _ = send_back(&connection);
                };
                small_thread().spawn(serve).unwrap();
            }
        });
        port
    });
    println!("\n>{} {} {}", ports[0], ports[1], ports[2]);
    // Until it is told to end.
    for _ in std::io::stdin().lock().lines() {}
}

/// Of every ten streams five may move, three are on the SAN, and two on TCP.
const ROUTES: [RouteChoice; 3] = [RouteChoice::Upgrade, RouteChoice::Direct, RouteChoice::Off];

fn route_of(stream: usize) -> usize {
    match stream % 10 {
        0..=4 => 0,
        5..=7 => 1,
        _ => 2,
    }
}

struct Server {
    program: Mutex<Program>,
    ports: [u16; 3],
    is_killed: AtomicBool,
}

impl Server {
    fn start() -> Self {
        let program = std::env::current_exe().unwrap();
        let marked = format!("{SERVER}=1");
        let args = [
            &*marked,
            program.to_str().unwrap(),
            "--exact",
            "server",
            "--ignored",
            "--nocapture",
        ];
        let mut program = Program::start("/usr/bin/env", &args);
        let said = program.expect(">", LONG);
        let mut ports = said.split(' ').map(|port| port.parse().unwrap());
        Self {
            ports: [(); 3].map(|()| ports.next().unwrap()),
            program: Mutex::new(program),
            is_killed: AtomicBool::new(false),
        }
    }
}

/// What was seen, all told.
#[derive(Default)]
struct Seen {
    streams: AtomicU64,
    bytes: AtomicU64,
    ups: AtomicU64,
    downs: AtomicU64,
    /// Streams on the SAN alone that a link has broken.
    broken: AtomicU64,
    /// Streams whose server was killed.
    killed: AtomicU64,
    wrong: Mutex<Vec<String>>,
    /// Everything that is to be done to the streams is done: they end. A slow machine takes longer for it.
    is_over: AtomicBool,
}

/// Ends the streams when it goes, also by a panic.
struct Story<'a>(&'a Seen);

impl Drop for Story<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::SeqCst);
    }
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

fn byte(stream: usize, at: u64) -> u8 {
    (at.wrapping_mul(31) ^ (at >> 11) ^ stream as u64) as u8
}

/// How a stream ended before its end.
enum End {
    /// A call said so.
    Error(std::io::Error),
    /// The peer's end came.
    Early,
}

/// Writes bytes and reads them again, until it is time; then ends the stream.
fn talk(connection: &Connection, stream: usize, seen: &Seen) -> Result<(), End> {
    let mut dice = Dice(stream as u64);
    let (mut written, mut read) = (0_u64, 0_u64);
    let mut buffer = vec![0; 16 << 10];
    while !seen.is_over.load(Ordering::SeqCst) {
        let length = match dice.below(8) {
            // One that may move has time to invite its peer before that dials.
            _ if written < 300_000 => 1 + dice.below(3000),
            0 => 1 + dice.below(64 << 10),
            1..=3 => 1 + dice.below(4096),
            _ => 1 + dice.below(300),
        };
        let bytes: Vec<u8> = (written..written + length)
            .map(|at| byte(stream, at))
            .collect();
        (&mut &*connection).write_all(&bytes).map_err(End::Error)?;
        written += length;
        // Some of what was written stays under way.
        let rest = dice.below(20_000).min(written);
        while read < written - rest {
            read += take(connection, stream, read, &mut buffer)?;
        }
        seen.bytes.fetch_add(length, Ordering::Relaxed);
        // Where it is not on the SAN yet, that would only take an invitation back.
        if dice.below(40) == 0 && connection.is_san() {
            connection.move_to_tcp(false);
        }
        if dice.below(4) == 0 {
            std::thread::sleep(Duration::from_millis(dice.below(20)));
        }
    }
    connection.shutdown(Shutdown::Write).map_err(End::Error)?;
    while read < written {
        read += take(connection, stream, read, &mut buffer)?;
    }
    match connection.receive(&mut buffer).map_err(End::Error)? {
        0 => Ok(()),
        more => {
            let what = format!("stream {stream}: {more} bytes too many");
            seen.wrong.lock().push(what);
            Ok(())
        }
    }
}

/// Reads what is here, and looks whether it is what comes next.
fn take(connection: &Connection, stream: usize, from: u64, buffer: &mut [u8]) -> Result<u64, End> {
    let came = connection.receive(buffer).map_err(End::Error)?;
    if came == 0 {
        return Err(End::Early);
    }
    for (at, got) in (from..).zip(&buffer[..came]) {
        assert_eq!(*got, byte(stream, at), "stream {stream}, byte {at}");
    }
    Ok(came as u64)
}

fn connect(switch: &Switch, stream: usize, server: &Server) -> std::io::Result<Connection> {
    let which = route_of(stream);
    let there = SocketAddr::new(addr_b(), server.ports[which]);
    let options = ConnectOptions::default()
        .local(SocketAddr::new(addr_a(), 0))
        .route(ROUTES[which])
        .tcp_only(ROUTES[which] == RouteChoice::Off);
    Ok(switch.connect(there, &options)?)
}

fn one_stream(switch: &Switch, stream: usize, server: &Server, seen: &Seen) {
    let connection = match connect(switch, stream, server) {
        Ok(connection) => connection,
        Err(_) if server.is_killed.load(Ordering::SeqCst) => return,
        Err(error) => {
            let what = format!("stream {stream} does not connect: {error}");
            return seen.wrong.lock().push(what);
        }
    };
    seen.streams.fetch_add(1, Ordering::Relaxed);
    let was_san = connection.is_san();
    let outcome = talk(&connection, stream, seen);
    let (ups, downs) = connection.info().changes;
    seen.ups.fetch_add(ups, Ordering::Relaxed);
    seen.downs.fetch_add(downs, Ordering::Relaxed);
    let Err(end) = outcome else {
        return;
    };
    if server.is_killed.load(Ordering::SeqCst) {
        seen.killed.fetch_add(1, Ordering::Relaxed);
        return;
    }
    let is_direct = ROUTES[route_of(stream)] == RouteChoice::Direct && was_san;
    let what = match end {
        // Where the SAN alone carries it, a link that stays away for long is its end, and so is a host that has
        // no time for it. It says so.
        End::Error(_) if is_direct => {
            seen.broken.fetch_add(1, Ordering::Relaxed);
            return;
        }
        End::Error(error) => error.to_string(),
        End::Early => "the end came early".to_owned(),
    };
    let route = ROUTES[route_of(stream)];
    let what = format!("stream {stream} ({route}, SAN {was_san}): {what}");
    seen.wrong.lock().push(what);
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn many_streams_lose_nothing_while_links_fall_and_peers_are_killed() {
    let asked = std::env::var("SAN_TEST_SOAK").ok();
    let usual = if net::is_soft() { STREAMS } else { FEW };
    let is_long = asked.is_some();
    let streams = asked.map_or(usual, |number| number.parse().expect("a number"));
    let time = TIME * (streams.div_ceil(200) as u32);
    within(time * 4 + LONG, move || {
        let wire = Wire::here().expect(OUR_OWN);
        let switch = Switch::new(soak_config()).unwrap();
        let servers: Vec<_> = (0..SERVERS).map(|_| Arc::new(Server::start())).collect();
        let seen = Seen::default();
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let _story = Story(&seen);
            for stream in 0..streams {
                let server = &servers[stream % SERVERS];
                let (switch, seen) = (&switch, &seen);
                let client = move || one_stream(switch, stream, server, seen);
                small_thread().spawn_scoped(scope, client).unwrap();
                // A flood is not what is tried here.
                std::thread::sleep(time / 5 / streams as u32);
            }
            let pause = |part: u32| std::thread::sleep(time * part / 25);
            let gone_for = |milliseconds| {
                wire.lose();
                std::thread::sleep(Duration::from_millis(milliseconds));
                wire.mend();
            };
            let kill = |server: &Server| {
                server.is_killed.store(true, Ordering::SeqCst);
                server.program.lock().kill();
            };
            pause(9);
            gone_for(100);
            pause(1);
            kill(&servers[0]);
            pause(2);
            // Longer than the transport of the SAN repeats anything.
            gone_for(if is_long { 4000 } else { 200 });
            pause(2);
            kill(&servers[1]);
            pause(1);
            gone_for(300);
            pause(4);
        });
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        eprintln!(
            "{} streams, {} MB there and back, {} moves up, {} down, {} broken by a link, {} whose server was \
             killed, in {:?}",
            count(&seen.streams),
            count(&seen.bytes) / 1_000_000,
            count(&seen.ups),
            count(&seen.downs),
            count(&seen.broken),
            count(&seen.killed),
            begun.elapsed(),
        );
        let wrong = seen.wrong.into_inner();
        assert!(wrong.is_empty(), "{} streams: {wrong:#?}", wrong.len());
        // Else it was something else that was tried.
        assert!(count(&seen.ups) > streams as u64 / 20, "they hardly moved");
        assert!(count(&seen.killed) > streams as u64 / 10, "nobody noticed");
    });
}
