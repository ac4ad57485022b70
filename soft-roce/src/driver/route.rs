//! What the host's routing says.
//!
//! What it does: the source address and the path MTU towards an address, whether
//! an address is the host's own. Remembers ways for a second.
//! What it does not do: watch for changes.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt;
use san_base::lock;

use super::bundle::PATH_BYTES;
use crate::rc::PathMtu;
use crate::wire::ROCE_PORT;

/// IP, UDP, BTH, the longest extension headers (RETH and immediate data), ICRC.
fn overhead(ip: IpAddr) -> u32 {
    let ip = if ip.is_ipv6() { 40 } else { 20 };
    ip + 8 + 12 + 16 + 4 + 4
}

/// The way to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// The host's address on that way.
    pub(crate) source: IpAddr,
    /// The largest packets that fit.
    pub(crate) mtu: PathMtu,
    /// Whether it ends on this host.
    pub(crate) is_local: bool,
    /// Whether it ends on this host and takes [bundles](super::bundle).
    pub(crate) takes_bundles: bool,
}

impl Route {
    /// Asks the kernel.
    ///
    /// # Errors
    /// What connecting a UDP socket says: no route, or no such source address.
    pub(crate) fn to(dst: SocketAddr, source: Option<IpAddr>) -> io::Result<Self> {
        let any: IpAddr = match dst {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((source.unwrap_or(any), 0))?;
        let mut probe = dst;
        probe.set_port(ROCE_PORT);
        socket.connect(probe)?;
        let ip_mtu = match dst {
            SocketAddr::V4(_) => sockopt::ip_mtu(&socket)?,
            SocketAddr::V6(_) => sockopt::ipv6_mtu(&socket)?,
        };
        // There is a way to it, and loopback addresses are nobody else's.
        let is_local = dst.ip().is_loopback() || is_local(dst.ip());
        let room = ip_mtu.saturating_sub(overhead(dst.ip()));
        let fits = PathMtu::ALL
            .into_iter()
            .rev()
            .find(|mtu| mtu.bytes() <= room);
        Ok(Self {
            source: socket.local_addr()?.ip(),
            mtu: fits.unwrap_or(PathMtu::B256),
            is_local,
            takes_bundles: is_local && ip_mtu >= PATH_BYTES,
        })
    }
}

/// For so long a way is taken for what it was.
const REMEMBERED: Duration = Duration::from_secs(1);
/// Ways that are remembered at a time.
const MOST_REMEMBERED: usize = 256;

/// Where to, and from which address if that is fixed.
type Key = (SocketAddr, Option<IpAddr>);

/// Ways that were asked for lately. To ask takes six calls of the system.
#[derive(Debug, Default)]
pub(crate) struct Routes(Mutex<HashMap<Key, (Route, Instant)>>);

impl Routes {
    /// As [`Route::to`], by memory where that was asked a moment ago.
    pub(crate) fn to(&self, mut dst: SocketAddr, source: Option<IpAddr>) -> io::Result<Route> {
        dst.set_port(0);
        let now = Instant::now();
        let is_fresh = |asked: Instant| now.saturating_duration_since(asked) < REMEMBERED;
        if let Some((route, asked)) = lock(&self.0).get(&(dst, source))
            && is_fresh(*asked)
        {
            return Ok(*route);
        }
        let route = Route::to(dst, source)?;
        let mut known = lock(&self.0);
        if known.len() >= MOST_REMEMBERED {
            known.retain(|_, (_, asked)| is_fresh(*asked));
            if known.len() >= MOST_REMEMBERED {
                known.clear();
            }
        }
        known.insert((dst, source), (route, now));
        Ok(route)
    }

    /// The host's addresses have changed.
    pub(crate) fn forget(&self) {
        lock(&self.0).clear();
    }
}

/// Whether no socket has an address of this host, as far as the host tells: it
/// answers an empty datagram, which an endpoint takes for nothing, with a refusal.
pub(crate) fn is_nobody_at(addr: SocketAddr) -> bool {
    let any: IpAddr = match addr {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let asked = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect(addr)?;
        socket.send(&[])?;
        socket.take_error()
    });
    let refused = |why: &io::Error| why.kind() == io::ErrorKind::ConnectionRefused;
    match asked {
        Ok(answer) => answer.as_ref().is_some_and(refused),
        Err(why) => refused(&why),
    }
}

/// Whether an address belongs to this host.
pub(crate) fn is_local(ip: IpAddr) -> bool {
    check_local(ip).is_ok()
}

/// The same, and what the system lacks for an answer: descriptors or memory.
///
/// # Errors
/// `EADDRNOTAVAIL`: it is no address of this host; `EMFILE`, `ENFILE`, `ENOBUFS`, `ENOMEM`.
pub(crate) fn check_local(ip: IpAddr) -> io::Result<()> {
    let Err(why) = UdpSocket::bind((ip, 0)) else {
        return Ok(());
    };
    let shortages = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Err(match Errno::from_io_error(&why) {
        Some(errno) if shortages.contains(&errno) => why,
        _ => Errno::ADDRNOTAVAIL.into(),
    })
}
