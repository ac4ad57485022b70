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
use crate::wire::{FlowCrc, ICRC_LEN, Opcode};

/// The longest UDP payload over IPv4 without options.
pub(super) const MAX_DATAGRAM: usize = 65_507;

/// Memory of a batch, to be used again.
#[derive(Debug)]
pub(crate) struct TxBuffer(pub(super) Box<[u8]>);

impl Default for TxBuffer {
    fn default() -> Self {
        Self(vec![0; MAX_DATAGRAM].into_boxed_slice())
    }
}

/// Packets up to this length may be an acknowledgement that is held back.
const SHORT: usize = 64;

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
    /// An acknowledgement that came before something longer. Sent behind that,
    /// as the shorter last packet, it costs no call of its own.
    held: ([u8; SHORT], usize),
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
            held: ([0; SHORT], 0),
        }
    }

    /// Sends what is there.
    pub(crate) fn flush(&mut self) {
        let (bytes, len) = self.held;
        if len > 0 {
            if !self.fits(len) {
                self.send();
            }
            self.held.1 = 0;
            if let Some(place) = self.append(len) {
                place.copy_from_slice(&bytes[..len]);
            }
        }
        self.send();
    }

    fn send(&mut self) {
        self.close();
        if self.len > 0 {
            self.port
                .send(self.to, &self.buffer.0[..self.len], self.segment);
            (self.len, self.packets) = (0, 0);
        }
    }

    /// Gives the last packet its ICRC.
    fn close(&mut self) {
        let Some(start) = self.open.take() else {
            return;
        };
        // At most 64 segments a call: the number fits.
        let ident = (self.packets - 1) as u16;
        self.crc.seal(ident, &mut self.buffer.0[start..self.len]);
    }

    /// Whether a packet of `len` bytes can join the others.
    fn fits(&self, len: usize) -> bool {
        let last_was_full = self.packets * self.segment == self.len;
        len <= self.segment
            && last_was_full
            && self.len + len <= MAX_DATAGRAM
            && self.packets < self.port.max_segments()
    }

    /// Room for a packet of `len` bytes, ICRC included, that fits.
    fn append(&mut self, len: usize) -> Option<&mut [u8]> {
        self.close();
        if self.packets == 0 {
            self.segment = len;
        }
        let start = self.len;
        let place = self.buffer.0.get_mut(start..start + len)?;
        self.len += len;
        self.packets += 1;
        self.open = Some(start);
        Some(place)
    }

    /// Holds back a lone acknowledgement in front of a packet of `len` bytes.
    fn hold(&mut self, len: usize) {
        let lone = self.packets == 1 && self.held.1 == 0 && self.len <= SHORT && self.len < len;
        if lone && self.buffer.0[0] == Opcode::Ack as u8 {
            self.held.0[..self.len].copy_from_slice(&self.buffer.0[..self.len]);
            self.held.1 = self.len;
            (self.len, self.packets, self.open) = (0, 0, None);
        }
    }
}

impl PacketSink for Batch<'_> {
    fn packet(&mut self, len: usize) -> Option<&mut [u8]> {
        let len = len + ICRC_LEN;
        self.hold(len);
        if self.packets > 0 && !self.fits(len) {
            self.send();
        }
        self.append(len).map(|place| &mut place[..len - ICRC_LEN])
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.flush();
    }
}
