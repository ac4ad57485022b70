//! One measurement: connections to a server, bytes on them, and what that took.
//!
//! Nothing waits without a deadline: a server that falls silent is an error after [`PATIENCE`].

use super::protocol::{
    ANSWER_LEN, Kind, RECEIPT_LEN, Request, Status, VERSION, parse_answer, parse_receipt,
};
use crate::problem::Problem;
use hdrhistogram::Histogram;
use san_switch::net::TcpStream;
use san_switch::{ConnectOptions, Route, RouteChoice, Switch};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// How long a connect may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// How long the server may be silent.
const PATIENCE: Duration = Duration::from_secs(10);
/// What is read of a download at a time.
const CHUNK: usize = 256 * 1024;
/// Round trips that are made before they count.
const WARM_UP: u32 = 50;
/// The longest round trip that a histogram tells apart, in nanoseconds.
const LONGEST_NS: u64 = 20_000_000_000;

/// Which way a measurement goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// As the switch decides, which is the SAN where it has a way.
    San,
    /// TCP, whatever the switch would decide.
    Tcp,
}

/// When round trips are enough: whichever comes first, but one is always made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Enough {
    pub(crate) count: u64,
    pub(crate) time: Duration,
}

/// Whom to measure with, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Client<'a> {
    pub(crate) switch: &'a Switch,
    pub(crate) server: SocketAddr,
    pub(crate) way: Way,
}

/// Which way a connection took, and how long the connect took.
#[derive(Debug, Clone)]
pub(crate) struct Connected {
    pub(crate) route: Route,
    pub(crate) took: Duration,
}

/// Bytes in one direction, all connections together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moved {
    pub(crate) bytes: u64,
    pub(crate) took: Duration,
}

impl Client<'_> {
    /// Connects and goes again: which way it is.
    pub(crate) fn look(&self) -> Result<Connected, Problem> {
        let request = Request {
            kind: Kind::RoundTrips,
            size: 1,
            duration: Duration::ZERO,
        };
        let (stream, took) = self.begin(&request)?;
        Ok(Connected {
            route: stream.route().clone(),
            took,
        })
    }

    /// Round trips of messages of that many bytes, one after the other, in nanoseconds. Between two
    /// of them is a pause, and `seen` hears of each.
    pub(crate) fn round_trips(
        &self,
        size: usize,
        enough: Enough,
        pause: Duration,
        mut seen: impl FnMut(u64),
    ) -> Result<Histogram<u64>, Problem> {
        let request = Request {
            kind: Kind::RoundTrips,
            size,
            duration: Duration::ZERO,
        };
        let (mut stream, _) = self.begin(&request)?;
        let message = vec![0xa5; size];
        let mut answer = vec![0; size];
        let mut once = || -> io::Result<Duration> {
            let began = Instant::now();
            stream.write_all(&message)?;
            stream.read_exact(&mut answer)?;
            Ok(began.elapsed())
        };
        // With pauses every round trip is a cold one, and that is what is asked for.
        let warm_up = if pause.is_zero() { WARM_UP } else { 1 };
        let began = Instant::now();
        for _ in 0..warm_up {
            once().map_err(|error| self.broken(&error))?;
            if began.elapsed() > enough.time / 4 {
                break;
            }
        }
        let mut histogram = histogram()?;
        let began = Instant::now();
        let mut count = 0;
        loop {
            if count >= enough.count || count > 0 && began.elapsed() >= enough.time {
                break;
            }
            let took = once().map_err(|error| self.broken(&error))?;
            histogram.saturating_record(nanoseconds(took));
            count += 1;
            seen(count);
            if !pause.is_zero() {
                std::thread::sleep(pause);
            }
        }
        stream
            .shutdown(std::net::Shutdown::Write)
            .map_err(|error| self.broken(&error))?;
        Ok(histogram)
    }

    /// Messages of that many bytes, one way, on so many connections at once.
    pub(crate) fn one_way(
        &self,
        kind: Kind,
        size: usize,
        duration: Duration,
        connections: usize,
    ) -> Result<Moved, Problem> {
        let request = Request {
            kind,
            size,
            duration,
        };
        let mut streams: Vec<TcpStream> = (0..connections)
            .map(|_| self.begin(&request).map(|(stream, _)| stream))
            .collect::<Result<_, _>>()?;
        let start = Barrier::new(connections);
        let began = Instant::now();
        // Closing the streams comes afterwards, and is not measured.
        let moved: Vec<io::Result<(u64, Duration)>> = std::thread::scope(|scope| {
            let threads: Vec<_> = streams
                .iter_mut()
                .map(|stream| {
                    let start = &start;
                    scope.spawn(move || {
                        start.wait();
                        let bytes = match kind {
                            Kind::Down => receive(stream),
                            Kind::Up | Kind::RoundTrips => send(stream, size, duration),
                        };
                        bytes.map(|bytes| (bytes, began.elapsed()))
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| {
                    let ended = thread.join();
                    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect()
        });
        let mut sum = Moved {
            bytes: 0,
            took: Duration::ZERO,
        };
        for one in moved {
            let (bytes, took) = one.map_err(|error| self.broken(&error))?;
            sum.bytes += bytes;
            sum.took = sum.took.max(took);
        }
        Ok(sum)
    }

    /// Connects, sends the request, and reads the answer.
    fn begin(&self, request: &Request) -> Result<(TcpStream, Duration), Problem> {
        // TCP is measured by itself, so the other way has to be the SAN from the first byte on.
        let options = ConnectOptions::default()
            .route(RouteChoice::Direct)
            .timeout(CONNECT_PATIENCE)
            .tcp_only(self.way == Way::Tcp);
        let began = Instant::now();
        let connection = self
            .switch
            .connect(self.server, &options)
            .map_err(|error| Problem::new(error.to_string()).with_remedy(self.start_one()))?;
        let took = began.elapsed();
        let mut stream = TcpStream::from(connection);
        let mut answer = [0; ANSWER_LEN];
        let mut come = 0;
        let asked = ask(&mut stream, request, &mut answer, &mut come);
        match (asked, parse_answer(&answer)) {
            (Ok(()), Ok((Status::Ready, VERSION))) => Ok((stream, took)),
            (Ok(()), Ok((status, version))) => Err(self.refused(status, version)),
            (Ok(()), Err(_)) => Err(self.foreign(&answer[..come])),
            (Err(_), _) if come > 0 => Err(self.foreign(&answer[..come])),
            (Err(error), _) if is_time_out(&error) => {
                let seconds = PATIENCE.as_secs();
                Err(Problem::new(format!(
                    "{} connects, but does not answer as a server of san perf within {seconds} s",
                    self.server
                ))
                .with_remedy(self.start_one()))
            }
            (Err(error), _) => Err(Problem::new(format!(
                "{} connects, but ends without an answer of san perf's: {}",
                self.server,
                in_words(&error)
            ))
            .with_remedy(self.start_one())),
        }
    }

    fn refused(&self, status: Status, version: u16) -> Problem {
        let server = self.server;
        match status {
            Status::Busy => Problem::new(format!("{server} serves as many as it can"))
                .with_remedy("try again in a moment, or with fewer --connections"),
            Status::OutOfBounds => Problem::new(format!(
                "{server} refuses the measurement: its bounds are smaller"
            ))
            .with_remedy("install the same version on both hosts; see it: san --version"),
            // Nobody of this version says so: an echo server has sent the request back.
            Status::OtherVersion if version == VERSION => Problem::new(format!(
                "{server} is not a server of san perf: it sends back what it gets"
            ))
            .with_remedy(self.start_one()),
            _ => Problem::new(format!(
                "{server} speaks version {version} of the measuring protocol, and this is \
                 version {VERSION}"
            ))
            .with_remedy("install the same version on both hosts; see it: san --version"),
        }
    }

    /// Somebody else answers.
    fn foreign(&self, answer: &[u8]) -> Problem {
        let shown: String = String::from_utf8_lossy(answer)
            .chars()
            .map(|c| if c.is_control() { '.' } else { c })
            .collect();
        Problem::new(format!(
            "{} is not a server of san perf: it answers '{shown}'",
            self.server
        ))
        .with_remedy(self.start_one())
    }

    /// It went away in the middle.
    fn broken(&self, error: &io::Error) -> Problem {
        let what = match is_time_out(error) {
            true => format!("has been silent for {} s", PATIENCE.as_secs()),
            false => format!("went away in the middle: {}", in_words(error)),
        };
        Problem::new(format!("{} {what}", self.server))
            .with_remedy("see whether it still runs, on the peer: pgrep -af 'san perf'")
    }

    fn start_one(&self) -> String {
        let port = match self.server.port() {
            super::protocol::PORT => String::new(),
            port => format!(" 0.0.0.0:{port}"),
        };
        format!("start one on the peer: san perf --serve{port}")
    }
}

/// Sends the request, and reads the answer; `come` is how much of it there is when that fails.
fn ask(
    stream: &mut TcpStream,
    request: &Request,
    answer: &mut [u8],
    come: &mut usize,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(&request.emit())?;
    while *come < answer.len() {
        match stream.read(&mut answer[*come..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => *come += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Sends for a time, and waits until the server has it all.
fn send(stream: &mut TcpStream, size: usize, duration: Duration) -> io::Result<u64> {
    let message = vec![0x5a; size];
    let began = Instant::now();
    let mut sent = 0;
    while began.elapsed() < duration {
        stream.write_all(&message)?;
        sent += size as u64;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut receipt = [0; RECEIPT_LEN];
    stream.read_exact(&mut receipt)?;
    let (received, _) = parse_receipt(&receipt);
    if received != sent {
        let text = format!("it says that it has {received} bytes of {sent}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(sent)
}

/// Receives until the server's stream ends.
fn receive(stream: &mut TcpStream) -> io::Result<u64> {
    let mut chunk = vec![0; CHUNK];
    let began = Instant::now();
    let mut received = 0;
    loop {
        match stream.read(&mut chunk)? {
            0 => return Ok(received),
            n => received += n as u64,
        }
        // A server that does not stop is none of ours.
        if began.elapsed() > super::protocol::LONGEST + PATIENCE {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it does not stop sending",
            ));
        }
    }
}

/// A histogram of nanoseconds with three digits.
fn histogram() -> Result<Histogram<u64>, Problem> {
    Histogram::new_with_bounds(1, LONGEST_NS, 3)
        .map_err(|error| Problem::new(format!("cannot make a histogram: {error}")))
}

fn is_time_out(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

fn in_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "it closed the connection".to_owned(),
        _ => error.to_string(),
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
