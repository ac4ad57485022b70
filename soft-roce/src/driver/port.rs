//! One UDP socket.
//!
//! What it does: opens it with everything the ICRC and the speed need: DF with
//! identification 0 (path MTU probing), segmentation offload, receive offload,
//! buffers as large as the system grants.
//! What it does not do: choose addresses; the endpoint does.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quinn_udp::{Transmit, UdpSocketState};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::sockopt;
use san_base::timespec;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::counters::{PortCounters, count};
use super::receive::{Receiver, Source};
use super::rendezvous::Registration;
use super::sockopt::{accept_no_checksum, join_datagrams, receive_bare};
use crate::wire::ROCE_PORT;

/// Buffers asked for; the system grants `net.core.rmem_max` unless privileged.
const BUFFER: usize = 8 << 20;

/// Memory that the kernel accounts for an unread packet of 4,096 bytes.
const PACKET_COST: usize = 8704;

/// How long a full socket is waited for before packets are dropped.
const FULL_WAIT: Duration = Duration::from_millis(2);

/// A UDP socket of this endpoint.
#[derive(Debug)]
pub(crate) struct Port {
    socket: UdpSocket,
    state: UdpSocketState,
    local: SocketAddr,
    /// Packets of 4,096 bytes that the receive buffer holds unread.
    window: u16,
    pub(crate) receiver: Mutex<Receiver>,
    /// Whether a peer sends packets with segmentation offload.
    in_runs: AtomicBool,
    pub(crate) counters: PortCounters,
    /// Says that port 4791 of the address is here.
    pub(crate) registration: Option<Registration>,
}

impl Port {
    /// Opens a socket on an address; `None` is a port of the system's choice.
    pub(crate) fn open(ip: IpAddr, port: Option<u16>) -> io::Result<Self> {
        let address = SocketAddr::new(ip, port.unwrap_or(0));
        let kind = Type::DGRAM.cloexec().nonblocking();
        let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::UDP))?;
        if ip.is_ipv6() {
            socket.set_only_v6(true)?;
            accept_no_checksum(&socket)?;
        }
        grow(&socket);
        socket.bind(&address.into())?;
        let granted = socket.recv_buffer_size()?;
        let socket: UdpSocket = socket.into();
        let state = UdpSocketState::new((&socket).into())?;
        receive_bare(&socket, ip.is_ipv6());
        join_datagrams(&socket, false)?;
        let local = socket.local_addr()?;
        Ok(Self {
            receiver: Mutex::new(Receiver::new(local)),
            window: u16::try_from(granted / PACKET_COST).unwrap_or(u16::MAX),
            in_runs: AtomicBool::new(false),
            socket,
            state,
            local,
            counters: PortCounters::default(),
            registration: None,
        })
    }

    pub(crate) fn local(&self) -> SocketAddr {
        self.local
    }

    /// Whether it is the port that the world sends to.
    pub(crate) fn is_public(&self) -> bool {
        self.local.port() == ROCE_PORT
    }

    pub(crate) fn window(&self) -> u16 {
        self.window
    }

    /// Packets that one call can send.
    pub(crate) fn max_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    /// Where packets come from.
    pub(crate) fn source(&self) -> Source<'_> {
        Source {
            state: &self.state,
            socket: &self.socket,
            in_runs: self.in_runs.load(Ordering::Relaxed),
        }
    }

    /// A peer will send packets one by one, not in bundles: from the next read on the kernel joins them.
    pub(crate) fn expect_runs(&self) {
        self.in_runs.store(true, Ordering::Relaxed);
    }

    /// Sends packets of `segment` bytes each (the last may be shorter). False:
    /// they are lost, which the engines mend as any loss.
    pub(crate) fn send(&self, to: SocketAddr, packets: &[u8], segment: usize) -> bool {
        let transmit = Transmit {
            destination: to,
            ecn: None,
            contents: packets,
            segment_size: Some(segment),
            src_ip: None,
        };
        let send = || self.state.try_send((&self.socket).into(), &transmit);
        self.send_by(send, to, packets.len().div_ceil(segment) as u64)
    }

    /// Sends one datagram of several packets. False as for [`Port::send`].
    pub(crate) fn send_bundle(&self, to: SocketAddr, bytes: &[u8], packets: u64) -> bool {
        let send = || self.socket.send_to(bytes, to).map(drop);
        self.send_by(send, to, packets)
    }

    fn send_by(&self, send: impl Fn() -> io::Result<()>, to: SocketAddr, packets: u64) -> bool {
        let mut result = send();
        if result
            .as_ref()
            .is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)
        {
            // A full send buffer is the device's pace. Waiting a little keeps
            // it; waiting long would hold up the caller.
            let mut fds = [PollFd::new(&self.socket, PollFlags::OUT)];
            let _ = poll(&mut fds, Some(&timespec(FULL_WAIT)));
            result = send();
        }
        count(&self.counters.sent_calls, 1);
        match result {
            Ok(()) => {
                count(&self.counters.sent_packets, packets);
                true
            }
            Err(why) => {
                tracing::debug!(%why, %to, packets, "packets not sent");
                count(&self.counters.send_dropped, packets);
                false
            }
        }
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Asks for large buffers, past the system's limit if allowed to.
fn grow(socket: &Socket) {
    let fd = SockRef::from(socket);
    if sockopt::set_socket_recv_buffer_size_force(fd.as_fd(), BUFFER).is_err() {
        // The system grants what it will.
        let _ = socket.set_recv_buffer_size(BUFFER);
    }
    if sockopt::set_socket_send_buffer_size_force(fd.as_fd(), BUFFER).is_err() {
        let _ = socket.set_send_buffer_size(BUFFER);
    }
}
