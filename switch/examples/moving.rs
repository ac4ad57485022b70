//! What a connection costs that begins on TCP and moves to the SAN, beside one that begins there and beside
//! the kernel's TCP: its speed once it has moved, connect and first byte, the moves themselves, memory.
//!
//! ```console
//! $ ci/soft cargo run --release -p san-switch --example moving [speed|connect|moves|memory]...
//! ```
//!
//! `moving one-way|bulk direct|moved BYTES` takes one figure alone, for a look by strace(1), and
//! `moving memory tcp|direct|moved STREAMS` the memory of so many streams of one kind.
//!
//! Two threads, each with a switch of its own, at SAN_TEST_ADDR_A and SAN_TEST_ADDR_B. What is compared takes
//! turns in one run; the figure is the median.

use std::error::Error;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use san_switch::{
    ConnectOptions, Connection, ListenOptions, Listener, RouteChoice, Switch, SwitchConfig,
};
use socket2::{Domain, Socket, Type};

const TIME: Duration = Duration::from_millis(400);
const TURNS: usize = 7;
const PATIENCE: Duration = Duration::from_secs(10);

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

fn address(name: &str, otherwise: &str) -> Result<IpAddr> {
    let text = std::env::var(name).unwrap_or_else(|_| otherwise.to_owned());
    Ok(text.parse()?)
}

/// Two switches and a listener of the second.
struct Setup {
    switches: [Switch; 2],
    listener: Listener,
    here: SocketAddr,
}

impl Setup {
    fn new(route: RouteChoice, bytes: u64) -> Result<Self> {
        let config = SwitchConfig::from_env()?.route(route).upgrade_bytes(bytes);
        let switches = [Switch::new(config.clone())?, Switch::new(config)?];
        let here = SocketAddr::new(address("SAN_TEST_ADDR_A", "127.0.0.1")?, 0);
        let there = SocketAddr::new(address("SAN_TEST_ADDR_B", "127.0.0.2")?, 0);
        let listener = switches[1].listen(there, ListenOptions::default().backlog(64))?;
        Ok(Self {
            switches,
            listener,
            here,
        })
    }

    fn connect(&self) -> Result<(Connection, Connection)> {
        let options = ConnectOptions::default().local(self.here);
        let client = self.switches[0].connect(self.listener.local_addr(), &options)?;
        Ok((client, self.listener.accept()?))
    }

    /// A connection over the SAN, however it came there.
    fn over_san(&self) -> Result<(Connection, Connection)> {
        let (client, server) = self.connect()?;
        talk_until(&client, &server, || client.is_san() && server.is_san())?;
        Ok((client, server))
    }
}

/// Asks and answers until this holds.
fn talk_until(client: &Connection, server: &Connection, what: impl Fn() -> bool) -> Result<()> {
    let begun = Instant::now();
    while !what() {
        if begun.elapsed() > PATIENCE {
            return Err(format!("the connection goes over {}", client.route()).into());
        }
        for (from, to) in [(client, server), (server, client)] {
            send_all(from, &[7; 512])?;
            receive_all(to, &mut [0; 512])?;
        }
    }
    Ok(())
}

fn send_all(connection: &Connection, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        bytes = &bytes[connection.send(bytes)?..];
    }
    Ok(())
}

fn receive_all(connection: &Connection, bytes: &mut [u8]) -> Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match connection.receive(&mut bytes[done..])? {
            0 => return Err("the end".into()),
            n => done += n,
        }
    }
    Ok(())
}

/// MB/s of writes of one size.
fn bulk(setup: &Setup, size: usize) -> Result<f64> {
    let (client, server) = setup.over_san()?;
    let reader = std::thread::spawn(move || -> Result<(u64, Duration)> {
        let mut buffer = vec![0; 1 << 20];
        let mut total = server.receive(&mut buffer)? as u64;
        let begun = Instant::now();
        loop {
            match server.receive(&mut buffer)? {
                0 => return Ok((total, begun.elapsed())),
                n => total += n as u64,
            }
        }
    });
    let bytes = vec![7; size];
    let begun = Instant::now();
    while begun.elapsed() < TIME {
        send_all(&client, &bytes)?;
    }
    client.shutdown_write()?;
    let (total, time) = reader.join().map_err(|_| "the reader panicked")??;
    Ok(total as f64 / 1e6 / time.as_secs_f64())
}

/// Microseconds of a message one way.
fn one_way(setup: &Setup, size: usize) -> Result<f64> {
    const ROUNDS: u32 = 4000;
    let (client, server) = setup.over_san()?;
    let echo = std::thread::spawn(move || -> Result<()> {
        let mut buffer = vec![0; size];
        while receive_all(&server, &mut buffer).is_ok() {
            send_all(&server, &buffer)?;
        }
        Ok(())
    });
    let mut buffer = vec![7; size];
    let mut round = || -> Result<()> {
        send_all(&client, &buffer)?;
        receive_all(&client, &mut buffer)
    };
    for _ in 0..ROUNDS / 10 {
        round()?;
    }
    let begun = Instant::now();
    for _ in 0..ROUNDS {
        round()?;
    }
    let time = begun.elapsed() / ROUNDS / 2;
    client.shutdown_write()?;
    echo.join().map_err(|_| "the echo panicked")??;
    Ok(time.as_secs_f64() * 1e6)
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The medians of two things that take turns.
fn compare(
    mut one: impl FnMut() -> Result<f64>,
    mut other: impl FnMut() -> Result<f64>,
) -> Result<(f64, f64)> {
    let (mut ones, mut others) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        ones.push(one()?);
        others.push(other()?);
    }
    Ok((median(ones), median(others)))
}

fn speed() -> Result<()> {
    let direct = Setup::new(RouteChoice::Direct, 1)?;
    let moved = Setup::new(RouteChoice::Upgrade, 1024)?;
    println!("| stream | direct | moved | moved / direct |\n|---|---|---|---|");
    for size in [64, 4096, 65_536, 1 << 20] {
        let (one, other) = compare(|| bulk(&direct, size), || bulk(&moved, size))?;
        println!(
            "| writes of {size} B, MB/s | {one:.0} | {other:.0} | {:.2} |",
            other / one
        );
    }
    for size in [64, 4096, 65_536] {
        let (one, other) = compare(|| one_way(&direct, size), || one_way(&moved, size))?;
        println!(
            "| {size} B one way, us | {one:.1} | {other:.1} | {:.2} |",
            other / one
        );
    }
    Ok(())
}

/// Microseconds from connect to the first byte at the other end.
fn connect() -> Result<()> {
    const ROUNDS: u32 = 300;
    let moved = Setup::new(RouteChoice::Upgrade, 32 * 1024)?;
    let there = SocketAddr::new(address("SAN_TEST_ADDR_B", "127.0.0.2")?, 0);
    let listener = TcpListener::bind(there)?;
    let kernel = || -> Result<f64> {
        let begun = Instant::now();
        for _ in 0..ROUNDS {
            // From the same address as ours.
            let client = Socket::new(Domain::for_address(there), Type::STREAM, None)?;
            client.bind(&moved.here.into())?;
            client.connect(&listener.local_addr()?.into())?;
            let mut client = TcpStream::from(client);
            let (mut server, _) = listener.accept()?;
            client.write_all(&[7])?;
            server.read_exact(&mut [0])?;
        }
        Ok(begun.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS))
    };
    let ours = || -> Result<f64> {
        let begun = Instant::now();
        for _ in 0..ROUNDS {
            let (client, server) = moved.connect()?;
            send_all(&client, &[7])?;
            receive_all(&server, &mut [0])?;
        }
        Ok(begun.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS))
    };
    let (tcp, upgrade) = compare(kernel, ours)?;
    println!("| connect and first byte, us | kernel TCP | upgrade | ratio |\n|---|---|---|---|");
    println!("| | {tcp:.1} | {upgrade:.1} | {:.2} |", upgrade / tcp);
    Ok(())
}

/// Milliseconds of each move.
fn moves() -> Result<()> {
    let setup = Setup::new(RouteChoice::Upgrade, 1024)?;
    let (mut ups, mut downs) = (Vec::new(), Vec::new());
    for _ in 0..60 {
        let (client, server) = setup.connect()?;
        let begun = Instant::now();
        talk_until(&client, &server, || client.is_san() && server.is_san())?;
        ups.push(begun.elapsed().as_secs_f64() * 1e3);
        let begun = Instant::now();
        client.move_to_tcp(false);
        talk_until(&client, &server, || !client.is_san() && !server.is_san())?;
        downs.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    println!("| move of a stream that asks and answers, ms | median | worst |\n|---|---|---|");
    for (name, times) in [("to the SAN, dial included", ups), ("back to TCP", downs)] {
        let worst = times.iter().copied().fold(0.0, f64::max);
        println!("| {name} | {:.2} | {worst:.2} |", median(times));
    }
    Ok(())
}

/// KiB of memory that the process has of its own, without the pages of programs and files.
fn resident() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    kilobytes.ok_or_else(|| "no RssAnon".into())
}

/// Streams whose memory is told, by their part of it, again and again.
struct Measured {
    streams: Vec<(Connection, Connection)>,
    empty: f64,
}

impl Measured {
    fn new(
        count: usize,
        mut stream: impl FnMut() -> Result<(Connection, Connection)>,
    ) -> Result<Self> {
        // What is there once for all.
        let _first = stream()?;
        let empty = resident()?;
        let streams = (0..count).map(|_| stream()).collect::<Result<_>>()?;
        Ok(Self { streams, empty })
    }

    fn report(&self, what: &str) -> Result<()> {
        let each = (resident()? - self.empty) / self.streams.len() as f64 / 2.0;
        println!("| {what} | {each:.1} |");
        Ok(())
    }

    /// One way. By two threads and small pieces: what the program itself has freed would count as theirs.
    fn carry(&self, bytes: usize) -> Result<()> {
        const PIECE: usize = 64 * 1024;
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| -> Result<()> {
                let mut piece = vec![0; PIECE];
                for (_, server) in &self.streams {
                    for _ in 0..bytes / PIECE {
                        receive_all(server, &mut piece)?;
                    }
                }
                Ok(())
            });
            let piece = vec![7; PIECE];
            for (client, _) in &self.streams {
                for _ in 0..bytes / PIECE {
                    send_all(client, &piece)?;
                }
            }
            reader.join().map_err(|_| "the reader panicked")?
        })
    }
}

/// Of each kind in a process of its own: what one has freed would be there for the next.
fn memory() -> Result<()> {
    println!("| memory of an end, KiB | |\n|---|---|");
    for kind in ["tcp", "direct", "moved"] {
        let exe = std::env::current_exe()?;
        let status = Command::new(exe).args(["memory", kind, "500"]).status()?;
        if !status.success() {
            return Err(format!("{kind}: {status}").into());
        }
    }
    Ok(())
}

fn memory_of(kind: &str, streams: usize) -> Result<()> {
    let pause = |seconds| std::thread::sleep(Duration::from_secs(seconds));
    let setup = match kind {
        "direct" => Setup::new(RouteChoice::Direct, 1)?,
        "moved" => Setup::new(RouteChoice::Upgrade, 1024)?,
        _ => {
            let setup = Setup::new(RouteChoice::Upgrade, 1 << 40)?;
            let measured = Measured::new(streams, || setup.connect())?;
            measured.carry(1 << 20)?;
            return measured.report("on TCP, never moved, after 1 MiB one way");
        }
    };
    let measured = Measured::new(streams, || setup.over_san())?;
    measured.report(&format!("{kind}, after 512 bytes each way"))?;
    measured.carry(1 << 20)?;
    measured.report(&format!("{kind}, after 1 MiB one way"))?;
    pause(25);
    measured.report(&format!("{kind}, idle for 25 seconds"))?;
    if kind == "moved" {
        // They go back to TCP after 30 seconds; after ten, and 20 at most, the provider lets go of what
        // they had.
        pause(35);
        measured.report("back on TCP, idle for a minute")?;
    }
    Ok(())
}

fn main() -> Result<()> {
    let mut wanted: Vec<String> = std::env::args().skip(1).collect();
    if let [what, route, size] = wanted.as_slice()
        && let Ok(size) = size.parse()
    {
        if what == "memory" {
            return memory_of(route, size);
        }
        // One figure alone, for a look by strace(1) or perf(1).
        let setup = match route.as_str() {
            "direct" => Setup::new(RouteChoice::Direct, 1)?,
            _ => Setup::new(RouteChoice::Upgrade, 1024)?,
        };
        let figure = match what.as_str() {
            "bulk" => bulk(&setup, size)?,
            _ => one_way(&setup, size)?,
        };
        println!("{figure:.1}");
        return Ok(());
    }
    if wanted.is_empty() {
        wanted = ["speed", "connect", "moves", "memory"]
            .map(str::to_owned)
            .into();
    }
    for one in &wanted {
        match one.as_str() {
            "speed" => speed()?,
            "connect" => connect()?,
            "moves" => moves()?,
            "memory" => memory()?,
            other => return Err(format!("{other}: speed, connect, moves or memory").into()),
        }
        println!();
    }
    Ok(())
}
