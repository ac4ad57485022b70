//! Socket addresses in and out of C.

use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// A socket address as C takes it.
pub(super) struct CAddr(libc::sockaddr_storage);

impl CAddr {
    pub(super) fn as_mut_ptr(&mut self) -> *mut libc::sockaddr {
        (&raw mut self.0).cast()
    }
}

impl From<SocketAddr> for CAddr {
    fn from(addr: SocketAddr) -> Self {
        // SAFETY: a socket address of zeros is a valid value: family unspecified.
        let mut storage: libc::sockaddr_storage = unsafe { MaybeUninit::zeroed().assume_init() };
        match addr {
            SocketAddr::V4(v4) => {
                let sin = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr {
                        s_addr: u32::from_ne_bytes(v4.ip().octets()),
                    },
                    sin_zero: [0; 8],
                };
                // SAFETY: the storage is larger than, and aligned for, every socket address.
                unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(sin) };
            }
            SocketAddr::V6(v6) => {
                let sin6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr {
                        s6_addr: v6.ip().octets(),
                    },
                    sin6_scope_id: v6.scope_id(),
                };
                // SAFETY: the storage is larger than, and aligned for, every socket address.
                unsafe { (&raw mut storage).cast::<libc::sockaddr_in6>().write(sin6) };
            }
        }
        Self(storage)
    }
}

/// `None`: no IP address (not bound, or native InfiniBand).
pub(super) fn from_c(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let ptr = std::ptr::from_ref(storage);
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says so, and every bit pattern is a valid address.
            let sin = unsafe { ptr.cast::<libc::sockaddr_in>().read() };
            let ip = Ipv4Addr::from(sin.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddrV4::new(ip, u16::from_be(sin.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: the family says so, and every bit pattern is a valid address.
            let sin6 = unsafe { ptr.cast::<libc::sockaddr_in6>().read() };
            let ip = Ipv6Addr::from(sin6.sin6_addr.s6_addr);
            let port = u16::from_be(sin6.sin6_port);
            Some(SocketAddrV6::new(ip, port, sin6.sin6_flowinfo, sin6.sin6_scope_id).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive() {
        for text in [
            "10.0.7.1:7471",
            "[2001:db8::1]:1",
            "[fe80::1%3]:65535",
            "0.0.0.0:0",
        ] {
            let addr: SocketAddr = text.parse().unwrap();
            assert_eq!(from_c(&CAddr::from(addr).0), Some(addr), "{text}");
        }
    }

    #[test]
    fn the_bytes_are_in_network_order() {
        let c = CAddr::from("10.0.7.1:4660".parse::<SocketAddr>().unwrap());
        // SAFETY: the storage is 128 initialised bytes.
        let bytes = unsafe { std::slice::from_raw_parts((&raw const c.0).cast::<u8>(), 8) };
        assert_eq!(bytes[2..8], [0x12, 0x34, 10, 0, 7, 1]);
    }

    #[test]
    fn no_family_is_none() {
        // SAFETY: as in CAddr::from.
        let mut zero: libc::sockaddr_storage = unsafe { MaybeUninit::zeroed().assume_init() };
        assert_eq!(from_c(&zero), None);
        zero.ss_family = 27;
        assert_eq!(from_c(&zero), None);
    }
}
