//! The demo's stream that survives its SAN: it begins on TCP, moves to the SAN, loses it, and goes on.

use super::report::DemoReport;
use super::{Demo, PATIENCE};
use crate::problem::Problem;
use san_switch::{Connection, ListenOptions, RouteChoice};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// What is asked and answered at a time.
const TURN: usize = 1000;
/// What is moved each way on the SAN, and again while it is left.
const BULK: usize = 1_000_000;

impl Demo {
    /// One stream: TCP, the SAN, one end leaves the SAN in the middle of a megabyte, TCP. All bytes of
    /// both directions are compared.
    pub(super) fn a_stream_moves(&mut self) -> Result<(), Problem> {
        self.report
            .step("a connection begins on TCP and may move (SAN_ROUTE=upgrade)");
        let options = ListenOptions::default().route(RouteChoice::Upgrade);
        let listener = self
            .switch
            .listen(SocketAddr::new(self.pair.server, 0), options)?;
        let client = self.switch.connect(
            listener.local_addr(),
            &self.client_options().route(RouteChoice::Upgrade),
        )?;
        let server = listener
            .accept_timeout(PATIENCE)
            .map_err(|error| Problem::new(format!("the demo's accept: {error}")))?;
        let mut stream = Stream {
            client,
            server,
            at: 0,
        };
        let moved = stream.run(&mut self.report);
        if let Err(error) = &moved {
            self.report.line(format!("the stream broke: {error}"));
        }
        let stats = self.switch.stats();
        self.report.promise(
            "a stream moves to the SAN and back to TCP, and every byte arrives once and in order",
            moved.is_ok() && stats.streams_up >= 2 && stats.streams_down >= 2,
        );
        Ok(())
    }
}

struct Stream {
    client: Connection,
    server: Connection,
    /// Bytes that each end has sent.
    at: usize,
}

impl Stream {
    fn run(&mut self, report: &mut DemoReport) -> io::Result<()> {
        report.line(format!("begins: {}", self.client.route()));
        let begin = Instant::now();
        while !(self.client.is_san() && self.server.is_san()) {
            if begin.elapsed() > PATIENCE {
                return Err(io::Error::other("it did not move"));
            }
            self.talk(TURN)?;
            // Who asks all the time leaves the other processor to the thread that connects.
            std::thread::sleep(Duration::from_millis(1));
        }
        report.line(format!(
            "after {} bytes each way: {}",
            self.at,
            self.client.route()
        ));
        self.talk(BULK)?;
        report.line(format!("{BULK} bytes each way on the SAN are right"));
        let leaving = &self.server;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(2));
                leaving.move_to_tcp(true);
            });
            exchange(&self.client, &self.server, self.at, BULK)
        })?;
        self.at += BULK;
        report.line(format!(
            "the server's end left the SAN in the middle of the next {BULK}, and they are right: {}",
            self.client.route()
        ));
        self.talk(TURN)?;
        Ok(())
    }

    fn talk(&mut self, length: usize) -> io::Result<()> {
        exchange(&self.client, &self.server, self.at, length)?;
        self.at += length;
        Ok(())
    }
}

/// Both ends send `length` bytes from their position `from` on, and read and compare the other's.
fn exchange(
    client: &Connection,
    server: &Connection,
    from: usize,
    length: usize,
) -> io::Result<()> {
    std::thread::scope(|scope| {
        let ends = [(client, 1), (server, 2)];
        let threads: Vec<_> = ends
            .into_iter()
            .flat_map(|(end, seed)| {
                let sends = scope.spawn(move || send(end, from, length, seed));
                let reads = scope.spawn(move || read(end, from, length, 3 - seed));
                [sends, reads]
            })
            .collect();
        let mut outcomes = threads
            .into_iter()
            .map(|thread| thread.join().expect("neither panics"));
        outcomes.try_for_each(|outcome| outcome)
    })
}

fn byte(at: usize, seed: usize) -> u8 {
    (at.wrapping_mul(2_654_435_761) >> 13 ^ seed) as u8
}

fn send(mut end: &Connection, from: usize, length: usize, seed: usize) -> io::Result<()> {
    let bytes: Vec<u8> = (from..from + length).map(|at| byte(at, seed)).collect();
    end.write_all(&bytes)
}

fn read(mut end: &Connection, from: usize, length: usize, seed: usize) -> io::Result<()> {
    let mut bytes = vec![0; length];
    end.read_exact(&mut bytes)?;
    let wrong = (from..)
        .zip(&bytes)
        .find(|(at, got)| **got != byte(*at, seed));
    match wrong {
        None => Ok(()),
        Some((at, got)) => Err(io::Error::other(format!("byte {at} is {got}"))),
    }
}
