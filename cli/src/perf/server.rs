//! `san perf --serve`: the other end of a measurement.
//!
//! Each peer has a thread and one measurement. Peers are not trusted: there are at most
//! [`MOST_PEERS`] at a time, each has a buffer of the size it asked for within the protocol's bounds,
//! and one that says nothing for [`PATIENCE`] is let go.

use super::protocol::{
    self, BadRequest, Kind, REQUEST_LEN, Request, Status, emit_answer, emit_receipt,
};
use crate::listen;
use crate::problem::Problem;
use san_switch::net::TcpStream;
use san_switch::{Connection, ListenOptions, Listener, Switch};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Peers that are served at once.
const MOST_PEERS: usize = 256;
/// How long a peer may be silent.
const PATIENCE: Duration = Duration::from_secs(10);
/// What is read of an upload at a time.
const CHUNK: usize = 256 * 1024;
/// Connections that may wait: a client makes all of its own at once.
const BACKLOG: u32 = 512;

/// Serves until it is killed.
pub(super) fn run(
    switch: &Switch,
    address: Option<SocketAddr>,
    json: bool,
) -> Result<ExitCode, Problem> {
    let listener = listen(switch, address)?;
    listen::tell(switch, &listener, json);
    let peers = Arc::new(AtomicUsize::new(0));
    loop {
        let connection = listen::accept(&listener)?;
        // Past all places it is closed without a word.
        let Some(admission) = Admission::take(&peers) else {
            continue;
        };
        let thread = std::thread::Builder::new().name("san-perf".to_owned());
        let started = thread.spawn(move || attend(connection, admission));
        // The connection is closed by that, and the others go on.
        if let Err(error) = started {
            tracing::warn!(%error, "no thread for a peer");
        }
    }
}

/// One peer, which has the admission as long.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the admission is given back here"
)]
fn attend(connection: Connection, admission: Admission) {
    let peer = connection.peer_addr();
    let served = match admission.is_served {
        true => serve(connection),
        false => refuse(&connection, Status::Busy),
    };
    if let Err(error) = served {
        tracing::debug!(%peer, %error, "a measurement ended early");
    }
}

/// At the address, or at every address of this host.
fn listen(switch: &Switch, address: Option<SocketAddr>) -> Result<Listener, Problem> {
    let options = ListenOptions::default().backlog(BACKLOG);
    if let Some(address) = address {
        return Ok(switch.listen(address, options)?);
    }
    let every = SocketAddr::from((Ipv6Addr::UNSPECIFIED, protocol::PORT));
    let of_ipv4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, protocol::PORT));
    // A host without IPv6 has the other alone.
    switch
        .listen(every, options.clone())
        .or_else(|_| switch.listen(of_ipv4, options))
        .map_err(Problem::from)
}

/// One of the places for peers; given back when dropped.
struct Admission {
    peers: Arc<AtomicUsize>,
    /// Else the peer is told that there are too many.
    is_served: bool,
}

impl Admission {
    /// As many again as are served have an admission to be refused in.
    fn take(peers: &Arc<AtomicUsize>) -> Option<Self> {
        let before = peers.fetch_add(1, Ordering::Relaxed);
        let admission = Admission {
            peers: Arc::clone(peers),
            is_served: before < MOST_PEERS,
        };
        (before < 2 * MOST_PEERS).then_some(admission)
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.peers.fetch_sub(1, Ordering::Relaxed);
    }
}

fn refuse(connection: &Connection, status: Status) -> io::Result<()> {
    connection.set_send_timeout(Some(PATIENCE))?;
    let mut to = connection;
    to.write_all(&emit_answer(status))?;
    connection.finish(Some(PATIENCE))
}

fn serve(connection: Connection) -> io::Result<()> {
    connection.set_receive_timeout(Some(PATIENCE))?;
    connection.set_send_timeout(Some(PATIENCE))?;
    let mut bytes = [0; REQUEST_LEN];
    (&connection).read_exact(&mut bytes)?;
    let request = match Request::parse(&bytes) {
        Ok(request) => request,
        Err(BadRequest::Version(_)) => return refuse(&connection, Status::OtherVersion),
        // Programs of another kind get an answer as well: it tells whom they have met.
        Err(BadRequest::OutOfBounds | BadRequest::Foreign) => {
            return refuse(&connection, Status::OutOfBounds);
        }
    };
    let mut stream = TcpStream::from(connection);
    stream.set_nodelay(true)?;
    stream.write_all(&emit_answer(Status::Ready))?;
    match request.kind {
        Kind::RoundTrips => send_back(&mut stream, request.size)?,
        Kind::Up => {
            let (bytes, took) = receive(&mut stream)?;
            stream.write_all(&emit_receipt(bytes, took))?;
        }
        Kind::Down => send(&mut stream, request.size, request.duration)?,
    }
    stream.connection().finish(Some(PATIENCE))
}

/// Sends back each message until the peer's stream ends.
fn send_back(stream: &mut TcpStream, size: usize) -> io::Result<()> {
    let mut message = vec![0; size];
    loop {
        match stream.read(&mut message)? {
            0 => return Ok(()),
            n => stream.read_exact(&mut message[n..])?,
        }
        stream.write_all(&message)?;
    }
}

/// Receives until the peer's stream ends.
fn receive(stream: &mut TcpStream) -> io::Result<(u64, Duration)> {
    let mut chunk = vec![0; CHUNK];
    let mut began = None;
    let mut bytes = 0;
    loop {
        let n = stream.read(&mut chunk)?;
        let began = *began.get_or_insert_with(Instant::now);
        match n {
            0 => return Ok((bytes, began.elapsed())),
            n => bytes += n as u64,
        }
    }
}

fn send(stream: &mut TcpStream, size: usize, duration: Duration) -> io::Result<()> {
    let message = vec![0x5a; size];
    let began = Instant::now();
    while began.elapsed() < duration {
        stream.write_all(&message)?;
    }
    Ok(())
}
