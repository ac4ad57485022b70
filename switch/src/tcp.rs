//! The companion on TCP: the socket whose descriptor the application holds (duties 10, 11, 24).
//!
//! Thin steps over socket2, each of them nonblocking: the callers wait. Nothing here knows of the
//! SAN. Accepted and connected sockets are handed out in blocking mode, as std does.

use crate::carrier::Buffers;
use crate::wait::is_readable;
use san_base::Deadline;
pub(crate) use san_base::aside;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;

/// A listening socket, as std makes it (SO_REUSEADDR, close-on-exec), but nonblocking.
pub(crate) fn listen(
    address: SocketAddr,
    backlog: u32,
    only_v6: Option<bool>,
    buffers: Buffers,
) -> io::Result<Socket> {
    let socket = socket(address)?;
    set_buffers(&socket, buffers)?;
    socket.set_reuse_address(true)?;
    if let (SocketAddr::V6(_), Some(only)) = (address, only_v6) {
        socket.set_only_v6(only)?;
    }
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Takes a connection that waits on a listening socket; `None` = none does.
pub(crate) fn accept(listener: &Socket) -> io::Result<Option<(Socket, SocketAddr)>> {
    loop {
        match listener.accept() {
            Ok((socket, peer)) => {
                // The accepted socket does not inherit the listener's nonblocking mode on Linux.
                return Ok(Some((socket, ip_address(&peer)?)));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            // The peer was gone before we came, or a network error of its own that accept(2)
            // says to treat as "try again".
            Err(error) if is_about_the_peer(&error) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether another connection waits on a listening socket.
pub(crate) fn has_waiting(listener: &Socket) -> bool {
    is_readable(listener.as_fd())
}

/// A fresh socket of the address's family: the application's descriptor.
pub(crate) fn socket(address: SocketAddr) -> io::Result<Socket> {
    Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )
}

/// Sets IP_TOS or IPV6_TCLASS, by the address's family.
pub(crate) fn set_type_of_service(
    socket: &Socket,
    address: SocketAddr,
    value: u8,
) -> io::Result<()> {
    match address {
        SocketAddr::V4(_) => socket.set_tos_v4(value.into()),
        SocketAddr::V6(_) => socket.set_tclass_v6(value.into()),
    }
}

/// Sets SO_SNDBUF and SO_RCVBUF: before a connect or a listen, since the window's scale is agreed on then.
pub(crate) fn set_buffers(socket: &Socket, buffers: Buffers) -> io::Result<()> {
    if let Some(bytes) = buffers.send {
        socket.set_send_buffer_size(bytes)?;
    }
    if let Some(bytes) = buffers.receive {
        socket.set_recv_buffer_size(bytes)?;
    }
    Ok(())
}

/// Sets the mode, in one call of the system.
pub(crate) fn set_nonblocking(socket: &Socket, on: bool) -> io::Result<()> {
    Ok(rustix::io::ioctl_fionbio(socket, on)?)
}

/// Connects a socket in blocking mode, which has no send timeout yet, and waits for that. `false`: a signal came,
/// and the connect goes on by itself.
///
/// # Errors
/// Those of connect(2), and one of kind `TimedOut` without a number if the deadline is over.
pub(crate) fn connect_within(
    socket: &Socket,
    destination: SocketAddr,
    deadline: Deadline,
) -> io::Result<bool> {
    let left = deadline.left();
    if left.is_some_and(|left| left.is_zero()) {
        return Err(ErrorKind::TimedOut.into());
    }
    // A connect that waits heeds the send timeout, and takes no calls beside this.
    socket.set_write_timeout(left)?;
    let outcome = socket.connect(&destination.into());
    socket.set_write_timeout(None)?;
    match outcome {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::Interrupted => Ok(false),
        Err(error)
            if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) =>
        {
            Err(ErrorKind::TimedOut.into())
        }
        Err(error) => Err(error),
    }
}

/// Starts to connect; `true` = done already.
pub(crate) fn start_connect(socket: &Socket, destination: SocketAddr) -> io::Result<bool> {
    set_nonblocking(socket, true)?;
    match socket.connect(&destination.into()) {
        Ok(()) => Ok(true),
        Err(error)
            if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) =>
        {
            Ok(false)
        }
        Err(error) if error.kind() == ErrorKind::Interrupted => Ok(false),
        Err(error) => Err(error),
    }
}

/// The outcome of a connect whose socket has become writable.
pub(crate) fn finish_connect(socket: &Socket) -> io::Result<()> {
    match socket.take_error()? {
        Some(error) => Err(error),
        None => {
            // Writable without an error and without a peer: the connect is not over yet.
            socket.peer_addr()?;
            Ok(())
        }
    }
}

pub(crate) fn local_addr(socket: &Socket) -> io::Result<SocketAddr> {
    ip_address(&socket.local_addr()?)
}

/// The source address that the kernel would take towards a destination. No packet is sent.
pub(crate) fn preferred_source(destination: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = match destination {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(destination).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

fn ip_address(address: &SockAddr) -> io::Result<SocketAddr> {
    address
        .as_socket()
        .ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "not an IP address"))
}

/// The errors that accept(2) tells to treat like "nothing there, go on".
fn is_about_the_peer(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let Some(code) = error.raw_os_error() else {
        return false;
    };
    [
        Errno::CONNABORTED,
        Errno::INTR,
        Errno::NETDOWN,
        Errno::PROTO,
        Errno::NOPROTOOPT,
        Errno::HOSTDOWN,
        Errno::NONET,
        Errno::HOSTUNREACH,
        Errno::NETUNREACH,
    ]
    .iter()
    .any(|errno| errno.raw_os_error() == code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::wait_readable;
    use std::time::Duration;

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(10))
    }

    fn outcome(client: &Socket) -> io::Result<()> {
        loop {
            match finish_connect(client) {
                Err(error) if error.kind() == ErrorKind::NotConnected => {
                    std::thread::yield_now();
                }
                outcome => return outcome,
            }
        }
    }

    #[test]
    fn connect_and_accept_without_ever_blocking() {
        let listener = listen("127.0.0.1:0".parse().unwrap(), 4, None, Buffers::default()).unwrap();
        assert!(accept(&listener).unwrap().is_none());
        assert!(!has_waiting(&listener));
        let address = local_addr(&listener).unwrap();
        let client = socket(address).unwrap();
        if !start_connect(&client, address).unwrap() {
            outcome(&client).unwrap();
        }
        wait_readable([listener.as_fd()], soon()).unwrap();
        assert!(has_waiting(&listener));
        let (accepted, peer) = accept(&listener).unwrap().unwrap();
        assert_eq!(peer, local_addr(&client).unwrap());
        assert!(!accepted.nonblocking().unwrap());
    }

    #[test]
    fn a_connect_that_waits_ends_at_its_deadline() {
        let listener = listen("127.0.0.1:0".parse().unwrap(), 1, None, Buffers::default()).unwrap();
        let address = local_addr(&listener).unwrap();
        let mut open = Vec::new();
        let mut connect = |deadline| {
            let client = socket(address).unwrap();
            let outcome = connect_within(&client, address, deadline);
            assert_eq!(client.write_timeout().unwrap(), None);
            assert!(!client.nonblocking().unwrap());
            open.push(client);
            outcome
        };
        assert!(connect(soon()).unwrap());
        let passed = connect(Deadline::passed()).unwrap_err();
        assert_eq!(passed.kind(), ErrorKind::TimedOut);
        // Nobody accepts, so one of the next is not answered.
        let short = || Deadline::after(Duration::from_millis(200));
        let late = (0..8).find_map(|_| connect(short()).err()).unwrap();
        assert_eq!(
            (late.kind(), late.raw_os_error()),
            (ErrorKind::TimedOut, None)
        );
        drop(listener);
        let refused = connect(soon()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_refused_connect_says_so() {
        let listener = listen("127.0.0.1:0".parse().unwrap(), 1, None, Buffers::default()).unwrap();
        let address = local_addr(&listener).unwrap();
        drop(listener);
        let client = socket(address).unwrap();
        let refused = match start_connect(&client, address) {
            Err(error) => error,
            Ok(done) => {
                assert!(!done);
                outcome(&client).unwrap_err()
            }
        };
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    }

    #[test]
    fn the_kernel_says_which_source_it_would_take() {
        let source = preferred_source("127.0.0.1:9".parse().unwrap());
        assert_eq!(source, Some("127.0.0.1".parse().unwrap()));
    }
}
