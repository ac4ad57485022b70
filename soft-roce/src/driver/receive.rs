//! Datagrams as they come in.
//!
//! What it does: reads several at a time, takes apart what the kernel has joined
//! (receive offload), checks the ICRC when asked to. Has the kernel join them once a
//! peer sends them so that it can; until then one datagram is read by a shorter call.
//! What it does not do: look into packets.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};

use quinn_udp::{RecvMeta, UdpSocketState};

use super::bundled;
use super::counters::{PortCounters, count};
use super::sockopt::join_datagrams;
use crate::wire::{FlowCrc, ICRC_LEN};

/// Datagrams read at a time. Few, so that what is read is still in the cache
/// when it is looked at: one may hold 64 KiB.
const DATAGRAMS: usize = 4;
/// After so many reads of one short datagram, one asks for more. A long one is bulk, and bulk does not come alone.
const ONES: u32 = 8;
const SHORT: usize = 8 << 10;
const MAX_DATAGRAM: usize = 65_536;

/// Flows whose ICRC prefix is remembered.
const FLOWS: usize = 64;

/// Where datagrams come from.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(super) state: &'a UdpSocketState,
    pub(super) socket: &'a UdpSocket,
    /// Whether a peer sends several of one length at a time.
    pub(super) in_runs: bool,
}

impl Source<'_> {
    /// Reads one datagram that comes as it was sent.
    fn read_one(&self, buffer: &mut [u8], meta: &mut RecvMeta) -> io::Result<usize> {
        let (len, from) = self.socket.recv_from(buffer)?;
        (meta.addr, meta.len, meta.stride) = (from, len, len);
        Ok(1)
    }
}

/// The receiving side of a socket: buffers, and the flows seen lately.
#[derive(Debug)]
pub(crate) struct Receiver {
    local: SocketAddr,
    buffers: Box<[u8]>,
    metas: [RecvMeta; DATAGRAMS],
    count: usize,
    /// How many to ask for. One while one comes at a time: whoever waits for one message is not to wait for the
    /// kernel's look for another. More while all come that are asked for.
    ask: usize,
    /// Reads of a short one in a row. One that is read says nothing of others behind it.
    ones: u32,
    /// Whether the kernel may have joined what comes: only the library's call says how then.
    joined: bool,
    flows: Vec<Option<(SocketAddr, FlowCrc)>>,
}

/// What a read came to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Filled {
    pub(crate) datagrams: usize,
    /// Whether more may be there.
    pub(crate) more: bool,
}

/// A packet as it came, not checked yet.
pub(crate) struct Inbound<'a> {
    /// Who sent it.
    pub(crate) from: SocketAddr,
    /// BTH to pad.
    pub(crate) packet: &'a [u8],
    form: Form<'a>,
}

enum Form<'a> {
    /// Part of a [bundle](super::bundled): no ICRC.
    Bundled,
    Alone {
        /// BTH to ICRC.
        bytes: &'a [u8],
        /// Its place among those that came joined, and with it the
        /// identification that it was probably sent with.
        index: u16,
        flow: &'a FlowCrc,
    },
}

impl Inbound<'_> {
    /// Whether it came without ICRC, in a bundle.
    pub(crate) fn is_bundled(&self) -> bool {
        matches!(self.form, Form::Bundled)
    }

    /// The IPv4 identification it was sent with, if there is an ICRC and it is
    /// right.
    pub(crate) fn check(&self) -> Option<u16> {
        match self.form {
            Form::Bundled => None,
            Form::Alone { bytes, index, flow } => flow.check(index, bytes),
        }
    }
}

impl Receiver {
    pub(crate) fn new(local: SocketAddr) -> Self {
        Self {
            local,
            // Zeroed pages cost nothing until they are used.
            buffers: vec![0; DATAGRAMS * MAX_DATAGRAM].into_boxed_slice(),
            metas: [RecvMeta::default(); DATAGRAMS],
            count: 0,
            ask: 1,
            ones: 0,
            joined: false,
            flows: vec![None; FLOWS],
        }
    }

    /// Reads what is there, at most [`DATAGRAMS`] datagrams. Asks for `least` of them at least: who gets less than
    /// that knows that there is no more, without another call.
    pub(crate) fn fill(&mut self, source: Source<'_>, least: usize) -> Filled {
        if source.in_runs && !self.joined {
            // Before the first of them is read. Slower, not wrong, if it stays off.
            let _ = join_datagrams(source.socket, true);
            self.joined = true;
        }
        let ask = self.ask.clamp(least.min(DATAGRAMS), DATAGRAMS);
        let read = if ask == 1 && !self.joined {
            source.read_one(&mut self.buffers[..MAX_DATAGRAM], &mut self.metas[0])
        } else {
            self.read_several(source, ask)
        };
        self.count = match read {
            Ok(count) => count,
            Err(why) => {
                if why.kind() != io::ErrorKind::WouldBlock {
                    tracing::debug!(%why, "receive");
                }
                0
            }
        };
        let filled = Filled {
            datagrams: self.count,
            more: self.count == ask,
        };
        // Each that is asked for and does not come costs a little.
        let is_one = self.count == 1 && self.metas[0].len <= SHORT;
        self.ones = if is_one { self.ones + 1 } else { 0 };
        self.ask = match (filled.more, ask) {
            (true, 1) if is_one && self.ones < ONES => 1,
            (true, _) => (ask * 2).min(DATAGRAMS),
            (false, _) => self.count.max(1),
        };
        if self.ask > 1 {
            self.ones = 0;
        }
        filled
    }

    fn read_several(&mut self, source: Source<'_>, ask: usize) -> io::Result<usize> {
        let mut slices = self.buffers.chunks_exact_mut(MAX_DATAGRAM);
        let mut slices: [IoSliceMut<'_>; DATAGRAMS] =
            std::array::from_fn(|_| IoSliceMut::new(slices.next().unwrap_or_default()));
        let Source { state, socket, .. } = source;
        state.recv(socket.into(), &mut slices[..ask], &mut self.metas)
    }

    /// Calls `take` with each packet that was read.
    pub(crate) fn packets(&mut self, counters: &PortCounters, mut take: impl FnMut(Inbound<'_>)) {
        let mut total = 0;
        let buffers = self.buffers.chunks(MAX_DATAGRAM);
        for (meta, buffer) in self.metas[..self.count].iter().zip(buffers) {
            let flow = flow(&mut self.flows, self.local, meta.addr);
            let bytes = &buffer[..meta.len.min(MAX_DATAGRAM)];
            for (index, bytes) in bytes.chunks(meta.stride.max(1)).enumerate() {
                let from = meta.addr;
                if let Some(packets) = bundled::packets(bytes) {
                    for packet in packets {
                        total += 1;
                        take(Inbound {
                            from,
                            packet,
                            form: Form::Bundled,
                        });
                    }
                    continue;
                }
                total += 1;
                let packet = &bytes[..bytes.len().saturating_sub(ICRC_LEN)];
                // Segments of one call count up from 0 and come joined in order.
                let index = index as u16;
                take(Inbound {
                    from,
                    packet,
                    form: Form::Alone { bytes, index, flow },
                });
            }
        }
        count(&counters.received_packets, total);
        count(&counters.received_calls, 1);
        self.count = 0;
    }
}

/// The ICRC prefix of a flow, from memory if it is there.
fn flow(
    flows: &mut [Option<(SocketAddr, FlowCrc)>],
    local: SocketAddr,
    from: SocketAddr,
) -> &FlowCrc {
    let place = usize::from(from.port()) % FLOWS;
    let known = flows[place].as_ref().is_some_and(|(addr, _)| *addr == from);
    if !known {
        flows[place] = None;
    }
    &flows[place]
        .get_or_insert_with(|| (from, FlowCrc::new(from, local)))
        .1
}
