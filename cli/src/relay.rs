//! Joining a connection to standard input and output, as nc does.
//!
//! Bytes from standard input go to the peer; its end becomes the end of our stream. Bytes from
//! the peer go to standard output. It is over when both have ended; at a terminal when the peer's
//! has, since nobody there knows that an end of input is waited for. Two directions, two threads:
//! the one that reads standard input cannot be interrupted, so it may end with the process.

use san_switch::{Connection, Route};
use serde::Serialize;
use std::io::{self, IsTerminal, Read, Write};
use std::net::SocketAddr;
use std::panic::resume_unwind;
use std::sync::Arc;

/// A chunk that both sides move well.
const CHUNK: usize = 64 * 1024;

/// What is told about a connection, as a line for people or as JSON.
#[derive(Debug, Serialize)]
pub(crate) struct RouteReport {
    /// `connected` or `accepted`.
    pub(crate) event: &'static str,
    pub(crate) local: SocketAddr,
    pub(crate) peer: SocketAddr,
    /// `san` or `tcp`.
    pub(crate) route: &'static str,
    /// The provider, on the SAN.
    pub(crate) provider: Option<String>,
    /// The RDMA device, on the SAN.
    pub(crate) device: Option<String>,
    /// Why TCP, on a connection that this end made.
    pub(crate) why: Option<String>,
}

impl RouteReport {
    pub(crate) fn new(event: &'static str, connection: &Connection) -> Self {
        let mut report = RouteReport {
            event,
            local: connection.local_addr(),
            peer: connection.peer_addr(),
            route: "tcp",
            provider: None,
            device: None,
            why: None,
        };
        match connection.route() {
            Route::San { provider, device } => {
                report.route = "san";
                report.provider = Some(provider.clone());
                report.device = Some(device.clone());
            }
            Route::Tcp { why } => report.why = why.as_ref().map(ToString::to_string),
        }
        report
    }

    /// One line on standard error.
    pub(crate) fn tell(&self, json: bool) {
        if json {
            if let Ok(line) = serde_json::to_string(self) {
                eprintln!("{line}");
            }
            return;
        }
        let RouteReport { event, peer, .. } = self;
        match (&self.provider, &self.device) {
            (Some(provider), Some(device)) => {
                eprintln!("san: {event}: {peer} over the SAN ({provider}, {device})");
            }
            _ => match &self.why {
                Some(why) => eprintln!("san: {event}: {peer} over TCP, since {why}"),
                None => eprintln!("san: {event}: {peer} over TCP"),
            },
        }
    }
}

/// Moves bytes both ways until both streams have ended.
pub(crate) fn join_to_standard_streams(connection: Connection) -> io::Result<()> {
    let connection = Arc::new(connection);
    let outgoing = Arc::clone(&connection);
    let sender = std::thread::Builder::new()
        .name("san-stdin".to_owned())
        .spawn(move || {
            let sent = copy(&mut io::stdin().lock(), &mut outgoing.as_ref());
            sent.and_then(|()| outgoing.shutdown_write())
        })?;
    copy(&mut connection.as_ref(), &mut io::stdout().lock())?;
    if io::stdin().is_terminal() && !sender.is_finished() {
        return connection.finish(None);
    }
    sender.join().unwrap_or_else(|panic| resume_unwind(panic))?;
    // This process may end now: on the SAN nobody else would deliver what is under way.
    connection.finish(None)
}

/// Sends back what comes until the peer's stream ends.
pub(crate) fn echo(connection: &Connection) -> io::Result<()> {
    copy(&mut &*connection, &mut &*connection)?;
    connection.finish(None)
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return to.flush(),
            Ok(n) => {
                to.write_all(&buffer[..n])?;
                to.flush()?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
