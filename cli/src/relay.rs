//! Joining a connection to standard input and output, as nc does.
//!
//! Bytes from standard input go to the peer; its end becomes the end of our stream. Bytes from
//! the peer go to standard output. It is over when both have ended; at a terminal when the peer's
//! has, since nobody there knows that an end of input is waited for. Two directions, two threads:
//! the one that reads standard input cannot be interrupted, so it may end with the process.

use crate::output::{tell, unwritten};
use crate::problem::Problem;
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
    /// What brings the next one to the SAN.
    pub(crate) remedy: Option<String>,
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
            remedy: None,
        };
        match connection.route() {
            Route::San { provider, device } => {
                report.route = "san";
                report.provider = Some(provider.clone());
                report.device = Some(device.clone());
            }
            Route::Tcp { why: Some(why) } => {
                report.why = Some(why.to_string());
                report.remedy = Some(why.remedy(report.peer));
            }
            Route::Tcp { why: None } => {}
        }
        report
    }

    /// On standard error: one line for the way, and one with what to do where it is TCP.
    pub(crate) fn tell(&self, json: bool) {
        if json {
            if let Ok(line) = serde_json::to_string(self) {
                tell!("{line}");
            }
            return;
        }
        let RouteReport { event, peer, .. } = self;
        let why = self.why.as_ref().map(|why| format!(", since {why}"));
        let remedy = self.remedy.as_ref().map(|text| format!("\n     -> {text}"));
        match (&self.provider, &self.device) {
            (Some(provider), Some(device)) => {
                tell!("san: {event}: {peer} over the SAN ({provider}, {device})");
            }
            _ => tell!(
                "san: {event}: {peer} over TCP{}{}",
                why.unwrap_or_default(),
                remedy.unwrap_or_default()
            ),
        }
    }
}

/// Moves bytes both ways until both streams have ended.
///
/// # Errors
/// Which of the three it was: the connection, standard input or standard output. A standard output that nobody
/// reads any more, as before `head`, is a broken pipe of [`Problem`].
pub(crate) fn join_to_standard_streams(connection: Connection) -> Result<(), Problem> {
    let peer = connection.peer_addr();
    let broken = |error: io::Error| {
        Problem::new(format!("the connection to {peer} broke: {error}"))
            .with_remedy(format!("see the way there: san doctor {}", peer.ip()))
    };
    let connection = Arc::new(connection);
    let outgoing = Arc::clone(&connection);
    let sender = std::thread::Builder::new()
        .name("san-stdin".to_owned())
        .spawn(move || {
            let sent = copy(&mut io::stdin().lock(), &mut outgoing.as_ref());
            // Also where standard input cannot be read, or the peer would wait for its end.
            let ended = outgoing.shutdown_write();
            sent.and_then(|()| ended.map_err(End::To))
        })?;
    copy(&mut connection.as_ref(), &mut io::stdout().lock()).map_err(|end| match end {
        End::From(error) => broken(error),
        End::To(error) => unwritten(error),
    })?;
    if io::stdin().is_terminal() && !sender.is_finished() {
        return connection.finish(None).map_err(broken);
    }
    let sent = sender.join().unwrap_or_else(|panic| resume_unwind(panic));
    sent.map_err(|end| match end {
        End::From(error) => Problem::new(format!("cannot read standard input: {error}")),
        End::To(error) => broken(error),
    })?;
    // This process may end now: on the SAN nobody else would deliver what is under way.
    connection.finish(None).map_err(broken)
}

/// Sends back what comes until the peer's stream ends.
pub(crate) fn echo(connection: &Connection) -> io::Result<()> {
    copy(&mut &*connection, &mut &*connection).map_err(|end| match end {
        End::From(error) | End::To(error) => error,
    })?;
    connection.finish(None)
}

/// Which of two ends failed.
#[derive(Debug)]
enum End {
    From(io::Error),
    To(io::Error),
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> Result<(), End> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return to.flush().map_err(End::To),
            Ok(n) => to
                .write_all(&buffer[..n])
                .and_then(|()| to.flush())
                .map_err(End::To)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(End::From(error)),
        }
    }
}
