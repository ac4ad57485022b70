//! Datagrams as they come in.
//!
//! What it does: reads several at a time, takes apart what the kernel has joined
//! (receive offload), checks the ICRC when asked to.
//! What it does not do: look into packets.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};

use quinn_udp::{RecvMeta, UdpSocketState};

use super::bundled;
use super::counters::{PortCounters, count};
use crate::wire::{FlowCrc, ICRC_LEN};

/// Datagrams read at a time. Few, so that what is read is still in the cache
/// when it is looked at: one may hold 64 KiB.
const DATAGRAMS: usize = 4;
const LEAST_ASK: usize = 2;
const MAX_DATAGRAM: usize = 65_536;

/// Flows whose ICRC prefix is remembered.
const FLOWS: usize = 64;

/// The receiving side of a socket: buffers, and the flows seen lately.
#[derive(Debug)]
pub(crate) struct Receiver {
    local: SocketAddr,
    buffers: Box<[u8]>,
    metas: [RecvMeta; DATAGRAMS],
    count: usize,
    /// How many to ask for. More than have come lately: who gets less than that
    /// knows that there is no more, without another call.
    ask: usize,
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
            ask: LEAST_ASK,
            flows: vec![None; FLOWS],
        }
    }

    /// Reads what is there, at most [`DATAGRAMS`] datagrams.
    pub(crate) fn fill(&mut self, (state, socket): (&UdpSocketState, &UdpSocket)) -> Filled {
        let mut slices = self.buffers.chunks_exact_mut(MAX_DATAGRAM);
        let mut slices: [IoSliceMut<'_>; DATAGRAMS] =
            std::array::from_fn(|_| IoSliceMut::new(slices.next().unwrap_or_default()));
        let slices = &mut slices[..self.ask];
        self.count = match state.recv(socket.into(), slices, &mut self.metas) {
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
            more: self.count == self.ask,
        };
        // Each that is asked for and does not come costs a little.
        self.ask = if filled.more {
            (self.ask * 2).min(DATAGRAMS)
        } else {
            self.count.max(LEAST_ASK)
        };
        filled
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
