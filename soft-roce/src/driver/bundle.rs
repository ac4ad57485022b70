//! Packets between two endpoints of this crate on one host, many to a datagram.
//!
//! What it does: sends them ([`bundled`](super::bundled) has the form): puts
//! packets of any lengths one behind the other into one datagram, each after its length, without ICRC: they never leave the memory of
//! the host, and the kernel computes no checksum for them either. Where a batch
//! with segmentation offload must end at a packet of another length, a bundle
//! goes on. Only endpoints that have agreed on it in the REQ and REP, on a path
//! that takes datagrams of 64 KiB, use it with each other.
//!
//! What it does not do: leave the host.

use std::net::SocketAddr;

use super::batch::TxBuffer;
use super::bundled::{LENGTH, MARK};
use super::port::Port;
use crate::sink::PacketSink;

/// What a datagram over IPv6 holds on such a path.
const MAX_BUNDLE: usize = PATH_BYTES as usize - 40 - 8;

/// The least size of IP packets that a path must take: what the loopback takes over IPv4.
pub(crate) const PATH_BYTES: u32 = 65_535;

/// Packets for one destination on this host.
pub(crate) struct Bundle<'a> {
    port: &'a Port,
    to: SocketAddr,
    buffer: &'a mut TxBuffer,
    /// Bytes in the buffer.
    len: usize,
    packets: u64,
}

impl<'a> Bundle<'a> {
    pub(crate) fn new(port: &'a Port, to: SocketAddr, buffer: &'a mut TxBuffer) -> Self {
        Self {
            port,
            to,
            buffer,
            len: 0,
            packets: 0,
        }
    }

    fn send(&mut self) {
        if self.len > 0 {
            self.port
                .send_bundle(self.to, &self.buffer.0[..self.len], self.packets);
            (self.len, self.packets) = (0, 0);
        }
    }
}

impl PacketSink for Bundle<'_> {
    fn packet(&mut self, len: usize) -> Option<&mut [u8]> {
        let length = u16::try_from(len).ok()?;
        if self.len + LENGTH + len > MAX_BUNDLE {
            self.send();
        }
        if self.len == 0 {
            self.buffer.0[..MARK.len()].copy_from_slice(&MARK);
            self.len = MARK.len();
        }
        let start = self.len + LENGTH;
        self.buffer.0[self.len..start].copy_from_slice(&length.to_be_bytes());
        self.len = start + len;
        self.packets += 1;
        self.buffer.0.get_mut(start..self.len)
    }
}

impl Drop for Bundle<'_> {
    fn drop(&mut self) {
        self.send();
    }
}
