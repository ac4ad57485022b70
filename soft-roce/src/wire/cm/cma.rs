//! What the RDMA IP CM service puts in front of a REQ's private data (IBTA annex
//! A11): the IP addresses and the source port; and its service ids.
//!
//! What it does: the 36-byte header and the ids of RDMA_PS_TCP.
//! What it does not do: other port spaces, and the header's absence.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::wire::ParseError;

/// Port space of connected services, as a service id without its port.
pub const RDMA_PS_TCP: u64 = 0x0106_0000;

/// The service id of a port of RDMA_PS_TCP.
#[must_use]
pub fn service_of_port(port: u16) -> u64 {
    RDMA_PS_TCP | u64::from(port)
}

/// The port of a service id in RDMA_PS_TCP; `None` for other services.
#[must_use]
pub fn port_of_service(service_id: u64) -> Option<u16> {
    let port = service_id ^ RDMA_PS_TCP;
    u16::try_from(port).ok()
}

const IPV4: u8 = 4;
const IPV6: u8 = 6;

/// Both ends of a connection as the requester names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CmaHeader {
    /// Address and port of the requester.
    pub src: SocketAddr,
    /// Address that the requester connects to. Its port is in the service id.
    pub dst: IpAddr,
}

impl CmaHeader {
    /// Length on the wire.
    pub const LEN: usize = 36;

    /// Reads the header.
    ///
    /// # Errors
    /// [`ParseError::Field`] for another version than 0 and for another IP
    /// version than 4 and 6.
    pub fn parse(b: &[u8; Self::LEN]) -> Result<Self, ParseError> {
        let refuse = |field, value: u8| {
            Err(ParseError::Field {
                what: "CMA header",
                field,
                value: u64::from(value),
            })
        };
        // Linux takes every version below 16 (the low nibble is the minor one).
        if b[0] >> 4 != 0 {
            return refuse("version", b[0]);
        }
        let (src, dst) = match b[1] >> 4 {
            IPV4 => (v4(b, 16), v4(b, 32)),
            IPV6 => (v6(b, 4), v6(b, 20)),
            other => return refuse("IP version", other),
        };
        let port = u16::from_be_bytes([b[2], b[3]]);
        Ok(Self {
            src: SocketAddr::new(src, port),
            dst,
        })
    }

    /// Writes the header.
    #[must_use]
    pub fn emit(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[2..4].copy_from_slice(&self.src.port().to_be_bytes());
        match (self.src.ip().to_canonical(), self.dst.to_canonical()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                out[1] = IPV4 << 4;
                out[16..20].copy_from_slice(&src.octets());
                out[32..].copy_from_slice(&dst.octets());
            }
            (src, dst) => {
                out[1] = IPV6 << 4;
                out[4..20].copy_from_slice(&to_v6(src).octets());
                out[20..].copy_from_slice(&to_v6(dst).octets());
            }
        }
        out
    }
}

/// An address as a GID: IPv4 in its mapped form (annex A17.4.1).
#[must_use]
pub(crate) fn to_v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

fn v4(b: &[u8; CmaHeader::LEN], at: usize) -> IpAddr {
    Ipv4Addr::new(b[at], b[at + 1], b[at + 2], b[at + 3]).into()
}

fn v6(b: &[u8; CmaHeader::LEN], at: usize) -> IpAddr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&b[at..at + 16]);
    Ipv6Addr::from(octets).into()
}
