//! What another process has offered is taken up here.

use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use san_stream::Role;
use socket2::Socket;

use super::package::{self, Package, What};
use super::ticket::Duplicate;
use crate::carrier::san::moves::{Record, RecordBytes};
use crate::carrier::san::{Parts, SanCarrier};
use crate::carrier::tcp::TcpCarrier;
use crate::carrier::{Buffers, MemoryKeeper};
use crate::companion::condition::Condition;
use crate::config::RouteChoice;
use crate::net::connection::{Carried, Connection};
use crate::net::listener::Listener;
use crate::net::registry::Counted;
use crate::net::rooms::Lease;
use crate::route::fallback::Route;
use crate::san::socket::ProviderSocket;
use crate::tcp;

/// How long the other process may take, with those that have asked it before.
const PATIENCE: Duration = Duration::from_secs(30);

fn bad(what: &str) -> io::Error {
    io::Error::new(
        ErrorKind::InvalidData,
        format!("the {what} of a duplicate is wrong"),
    )
}

/// Asks the process that has it.
fn ask(duplicate: &Duplicate) -> io::Result<Package> {
    let ticket = &duplicate.ticket;
    if ticket.target != std::process::id() {
        return Err(Errno::INVAL.into());
    }
    let mut stream = match UnixStream::connect(&ticket.path) {
        Ok(stream) => stream,
        // The process is gone, or the offer.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::ConnectionRefused
            ) =>
        {
            return Err(Errno::NOTCONN.into());
        }
        Err(error) => return Err(error),
    };
    let other = rustix::net::sockopt::socket_peercred(&stream)?;
    let is_source = u32::try_from(other.pid.as_raw_pid()) == Ok(ticket.source);
    let uid = rustix::process::geteuid();
    if !is_source || (other.uid != uid && !other.uid.is_root()) {
        return Err(Errno::ACCESS.into());
    }
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // A process that goes at this moment may answer still.
    let _ = stream.write_all(&ticket.token);
    package::receive(&stream).map_err(|error| match error.kind() {
        ErrorKind::WouldBlock => Errno::TIMEDOUT.into(),
        // It has died meanwhile.
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => Errno::CONNRESET.into(),
        _ => error,
    })
}

impl Connection {
    /// The connection that another process has offered.
    pub(crate) fn arrive(lease: Lease, duplicate: &Duplicate) -> io::Result<Self> {
        if lease.is_closed() {
            return Err(Errno::SHUTDOWN.into());
        }
        let package = ask(duplicate)?;
        let (local, fd) = (package.head.local, package.fd);
        match package.head.what {
            What::San {
                peer,
                provider,
                device,
                closes_in_background,
                record,
            } => {
                let route = Route::San { provider, device };
                let san = San {
                    local,
                    peer,
                    route,
                    companion: Socket::from(fd),
                };
                let connection = arrive_over_san(lease, san, *record, &package.bytes)?;
                connection.set_close_in_background(closes_in_background);
                Ok(connection)
            }
            What::Tcp {
                peer,
                has_ended,
                waits,
            } => {
                let connection =
                    arrive_over_tcp(lease, (local, peer), fd, has_ended, &package.bytes.peeked)?;
                if let Some(waits) = waits {
                    connection.set_nonblocking(waits.is_nonblocking)?;
                    connection.set_receive_timeout(waits.receive)?;
                    connection.set_send_timeout(waits.send)?;
                }
                Ok(connection)
            }
            What::Listener { .. } => Err(bad("kind")),
        }
    }
}

struct San {
    local: SocketAddr,
    peer: SocketAddr,
    route: Route,
    companion: Socket,
}

fn arrive_over_san(
    lease: Lease,
    san: San,
    record: Record,
    bytes: &RecordBytes,
) -> io::Result<Connection> {
    let Route::San { provider, .. } = &san.route else {
        return Err(bad("route"));
    };
    let duplicate = SanCarrier::duplicate_of(&bytes.duplicate)?;
    let providers = lease.providers.all();
    let started = providers.iter().find(|one| one.name == *provider);
    // Without the fabric there is no way to it.
    let started = started.ok_or(Errno::NETDOWN)?;
    let socket = started.provider.socket_from(&duplicate).map_err(|error| {
        tracing::debug!(%error, "a connection of another process is not taken up");
        io::Error::from_raw_os_error(error.errno())
    })?;
    let counted = Counted::San(socket.clone());
    let parts = Parts {
        socket: ProviderSocket::taken_up(socket),
        companion: san.companion,
        peer: san.peer,
        counters: Arc::clone(&lease.counters),
        keeper: Arc::clone(&lease.closing) as Arc<dyn MemoryKeeper>,
    };
    let carrier = SanCarrier::take_up(parts, record, bytes)?;
    let info = lease
        .connections
        .add(san.local, san.peer, san.route, counted);
    Ok(Connection::assemble(Carried::San(carrier), info, lease))
}

fn arrive_over_tcp(
    lease: Lease,
    (local, peer): (SocketAddr, SocketAddr),
    fd: OwnedFd,
    has_ended: bool,
    ahead: &[u8],
) -> io::Result<Connection> {
    let socket = Socket::from(fd);
    if tcp::local_addr(&socket)? != local || !socket.is_listener().is_ok_and(|listens| !listens) {
        return Err(bad("descriptor"));
    }
    if !ahead.is_empty() {
        let moving = Connection::open_moving(
            lease,
            socket,
            (local, peer),
            Role::Connector,
            Route::Tcp { why: None },
        );
        if let Carried::Moving(stream) = &moving.carrier {
            stream.taken_up(ahead, has_ended);
        }
        return Ok(moving);
    }
    let carrier = TcpCarrier::taken_up(socket, has_ended);
    let counted = Counted::Tcp(Arc::clone(carrier.counters()));
    let route = Route::Tcp { why: None };
    let info = lease.connections.add(local, peer, route, counted);
    Ok(Connection::assemble(Carried::Tcp(carrier), info, lease))
}

impl Listener {
    /// The listener that another process has offered. `condition`: asked for each request from now on.
    pub(crate) fn arrive(
        lease: Lease,
        duplicate: &Duplicate,
        condition: Option<Condition>,
    ) -> io::Result<Self> {
        if lease.is_closed() {
            return Err(Errno::SHUTDOWN.into());
        }
        let package = ask(duplicate)?;
        let What::Listener {
            backlog,
            route,
            send_buffer,
            receive_buffer,
        } = package.head.what
        else {
            return Err(bad("kind"));
        };
        let route = RouteChoice::named(&route).ok_or_else(|| bad("route"))?;
        let socket = Socket::from(package.fd);
        if !socket.is_listener()? || tcp::local_addr(&socket)? != package.head.local {
            return Err(bad("descriptor"));
        }
        let buffers = Buffers {
            send: send_buffer,
            receive: receive_buffer,
        };
        Self::take_up(lease, socket, backlog, condition, route, buffers)
    }
}
