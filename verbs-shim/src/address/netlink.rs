//! Addresses and their changes, by rtnetlink. Synchronous; the watch never blocks.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::error::{Result, VerbsError};

/// Tells when links or addresses of this network namespace change.
#[derive(Debug)]
pub struct AddressWatch {
    socket: Socket,
}

impl AddressWatch {
    /// Watches from now on.
    ///
    /// # Errors
    /// `EMFILE` and its kin.
    pub fn new() -> Result<Self> {
        Self::open().map_err(|source| VerbsError {
            call: "rtnetlink",
            source,
        })
    }

    fn open() -> io::Result<Self> {
        let groups = libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR;
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, groups as u32))?;
        socket.set_non_blocking(true)?;
        Ok(Self { socket })
    }

    /// Reads all that has come, without blocking; whether anything of it may change the list of
    /// addresses.
    pub fn drain(&self) -> bool {
        let mut changed = false;
        let mut buffer = Vec::with_capacity(BUFFER);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Ok(0) => return changed,
                Ok(_) => changed |= messages(&buffer).any(|m| is_change(&m)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return changed,
                // ENOBUFS: messages were lost, so anything may have changed. It is reported once.
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => changed = true,
                Err(error) => {
                    tracing::warn!(%error, "rtnetlink");
                    return true;
                }
            }
        }
    }
}

impl AsFd for AddressWatch {
    /// Readable when there is something to drain.
    fn as_fd(&self) -> BorrowedFd<'_> {
        borrow(&self.socket)
    }
}

#[allow(unsafe_code)]
fn borrow(socket: &Socket) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as the socket, which the result borrows.
    unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) }
}

/// An address as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) ip: IpAddr,
    pub(super) prefix_len: u8,
    pub(super) ifindex: u32,
}

/// A network interface as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) ifindex: u32,
    pub(super) name: String,
    /// Its hardware address.
    pub(super) hardware: Vec<u8>,
}

/// All addresses of this network namespace.
pub(super) fn addresses() -> Result<Vec<Address>> {
    let get = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let found = dump(get, |message| match message {
        RouteNetlinkMessage::NewAddress(m) => address(&m),
        _ => None,
    });
    found.map_err(|source| VerbsError {
        call: "RTM_GETADDR",
        source,
    })
}

/// All network interfaces of this network namespace, whatever `/sys` shows.
pub(super) fn links() -> Result<Vec<Link>> {
    let get = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let found = dump(get, |message| match message {
        RouteNetlinkMessage::NewLink(m) => link(m),
        _ => None,
    });
    found.map_err(|source| VerbsError {
        call: "RTM_GETLINK",
        source,
    })
}

/// Larger than any message of the kernel's dumps.
const BUFFER: usize = 64 * 1024;

fn dump<T>(
    get: RouteNetlinkMessage,
    pick: impl Fn(RouteNetlinkMessage) -> Option<T>,
) -> io::Result<Vec<T>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut request = NetlinkMessage::new(header, NetlinkPayload::from(get));
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut found = Vec::new();
    let mut buffer = Vec::with_capacity(BUFFER);
    loop {
        buffer.clear();
        match socket.recv(&mut buffer, 0) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        }
        for message in messages(&buffer) {
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(found),
                NetlinkPayload::Error(e) => return Err(e.to_io()),
                NetlinkPayload::InnerMessage(message) => found.extend(pick(message)),
                _ => {}
            }
        }
    }
}

/// The messages of one datagram; what cannot be read ends it.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = NetlinkMessage<RouteNetlinkMessage>> {
    std::iter::from_fn(move || {
        // The length is read here, since a message whose content the crate does not know is
        // skipped, not the end.
        loop {
            let len = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
            let message = bytes.get(..len).filter(|m| m.len() >= 16)?;
            bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
            if let Ok(message) = NetlinkMessage::deserialize(message) {
                return Some(message);
            }
        }
    })
}

fn is_change(message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    matches!(
        message.payload,
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewAddress(_)
                | RouteNetlinkMessage::DelAddress(_)
                | RouteNetlinkMessage::NewLink(_)
                | RouteNetlinkMessage::DelLink(_)
        )
    )
}

fn address(message: &AddressMessage) -> Option<Address> {
    let mut ip = None;
    for attribute in &message.attributes {
        match attribute {
            // Point-to-point links have the peer's in IFA_ADDRESS and their own in IFA_LOCAL.
            AddressAttribute::Local(local) => ip = Some(*local),
            AddressAttribute::Address(address) if ip.is_none() => ip = Some(*address),
            _ => {}
        }
    }
    Some(Address {
        ip: ip?,
        prefix_len: message.header.prefix_len,
        ifindex: message.header.index,
    })
}

fn link(message: LinkMessage) -> Option<Link> {
    let mut name = None;
    let mut hardware = Vec::new();
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text),
            LinkAttribute::Address(bytes) => hardware = bytes,
            _ => {}
        }
    }
    Some(Link {
        ifindex: message.header.index,
        name: name?,
        hardware,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_listed() {
        let all = addresses().unwrap();
        let lo = all
            .iter()
            .find(|a| a.ip == IpAddr::from([127, 0, 0, 1]))
            .unwrap();
        assert_eq!(lo.prefix_len, 8);
        let links = links().unwrap();
        let link = links.iter().find(|l| l.name == "lo").unwrap();
        assert_eq!(
            (link.ifindex, &link.hardware[..]),
            (lo.ifindex, &[0; 6][..])
        );
    }

    #[test]
    fn a_quiet_watch_has_nothing() {
        let watch = AddressWatch::new().unwrap();
        assert!(watch.as_fd().as_raw_fd() >= 0);
        // Whatever the machine does meanwhile, draining ends and a second drain works.
        let _ = watch.drain();
        let _ = watch.drain();
    }

    #[test]
    fn what_cannot_be_read_ends_the_datagram() {
        assert_eq!(messages(&[]).count(), 0);
        assert_eq!(messages(&[0; 64]).count(), 0);
        assert_eq!(messages(&[255; 64]).count(), 0);
        let mut short = [0; 20];
        short[..4].copy_from_slice(&100u32.to_ne_bytes());
        assert_eq!(messages(&short).count(), 0);
    }
}
