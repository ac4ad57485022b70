//! Packets on their way into one system call.
//!
//! What it does: gathers packets for one destination in one buffer, gives each
//! its ICRC while it is still in the cache, and sends them with segmentation
//! offload: all of one length, the last maybe shorter. The kernel numbers the
//! segments of a call from 0 in the IPv4 identification, which the ICRC covers.
//! What it does not do: wait, or keep what the socket does not take.

use std::net::SocketAddr;

use super::port::Port;
use crate::sink::PacketSink;
use crate::wire::{FlowCrc, ICRC_LEN};

/// The longest UDP payload over IPv4 without options.
const MAX_DATAGRAM: usize = 65_507;

/// Memory of a batch, to be used again.
#[derive(Debug)]
pub(crate) struct TxBuffer(Box<[u8]>);

impl Default for TxBuffer {
    fn default() -> Self {
        Self(vec![0; MAX_DATAGRAM].into_boxed_slice())
    }
}

/// Packets for one destination.
pub(crate) struct Batch<'a> {
    port: &'a Port,
    to: SocketAddr,
    crc: &'a FlowCrc,
    buffer: &'a mut TxBuffer,
    /// Bytes in the buffer, ICRCs included.
    len: usize,
    /// Length of each packet.
    segment: usize,
    packets: usize,
    /// Where the last packet begins, if its ICRC is still to come.
    open: Option<usize>,
}

impl<'a> Batch<'a> {
    pub(crate) fn new(
        port: &'a Port,
        to: SocketAddr,
        crc: &'a FlowCrc,
        buffer: &'a mut TxBuffer,
    ) -> Self {
        Self {
            port,
            to,
            crc,
            buffer,
            len: 0,
            segment: 0,
            packets: 0,
            open: None,
        }
    }

    /// Sends what is there.
    pub(crate) fn flush(&mut self) {
        self.close();
        if self.len > 0 {
            self.port
                .send(self.to, &self.buffer.0[..self.len], self.segment);
            (self.len, self.packets) = (0, 0);
        }
    }

    fn close(&mut self) {
        if let Some(start) = self.open.take() {
            // At most 64 segments a call: the number fits.
            let ident = (self.packets - 1) as u16;
            self.crc.seal(ident, &mut self.buffer.0[start..self.len]);
        }
    }

    /// Whether a packet of `len` bytes can join the others.
    fn fits(&self, len: usize) -> bool {
        let last_was_full = self.packets * self.segment == self.len;
        len <= self.segment
            && last_was_full
            && self.len + len <= MAX_DATAGRAM
            && self.packets < self.port.max_segments()
    }
}

impl PacketSink for Batch<'_> {
    fn packet(&mut self, len: usize) -> Option<&mut [u8]> {
        let len = len + ICRC_LEN;
        if self.packets > 0 && !self.fits(len) {
            self.flush();
        }
        self.close();
        if self.packets == 0 {
            self.segment = len;
        }
        let start = self.len;
        let place = self.buffer.0.get_mut(start..start + len)?;
        self.len += len;
        self.packets += 1;
        self.open = Some(start);
        Some(&mut place[..len - ICRC_LEN])
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.flush();
    }
}
