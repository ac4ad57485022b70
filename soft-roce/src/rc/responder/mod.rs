//! The responder: the half of a queue pair that carries the peer's requests out.
//!
//! What it does: takes requests strictly in the order of their PSNs, each packet
//! once; places SENDs in posted receives and RDMA WRITEs in registered memory,
//! answers RDMA READs, and acknowledges what asks for it, once for many. A
//! missing packet is told of once a gap; a duplicate is answered with where the
//! connection stands. A request that breaks a rule gets the NAK that
//! IBTA table 61 names for it, and ends the connection.
//!
//! From a peer of our kind, packets behind a missing one are kept, bounded, and
//! told of (see `sack`).
//!
//! What it does not do: atomics, which it refuses as invalid requests.

mod execute;
mod out;
mod reorder;
#[cfg(test)]
mod tests;

use self::execute::Current;
use self::out::{Answer, OutQueue, ReadJob};
use self::reorder::Reorder;
use super::attr::RtrAttr;
use super::core::{Core, Failure};
use super::cq::{Completion, Overrun, Status, WorkKind};
use super::mr::{Access, Span};
use super::psn::{self, Seq};
use super::requester::Sent;
use super::srq::{Receive, ReceiveQueue};
use super::wr::MAX_MESSAGE;
use crate::sink::PacketSink;
use crate::time::Time;
use crate::wire::{NakCode, Operation, Packet, Syndrome, aeth};

/// Repeated RDMA READs that wait for their response at the same time.
const MAX_REPEATED_READS: usize = 32;

/// Behind a gap, one packet in so many is answered with what is kept.
const TELL_EVERY: u32 = 8;

/// The responder of one queue pair.
#[derive(Debug)]
pub(crate) struct Responder {
    receives: ReceiveQueue,
    active: Option<Active>,
}

/// What there is from RTR on.
#[derive(Debug)]
struct Active {
    /// The next PSN to be carried out.
    expected: Seq,
    /// Messages carried out.
    msn: u32,
    /// RDMA READs that the peer may have under way.
    resources: usize,
    rnr_timer: u8,
    current: Current,
    missing: Missing,
    /// Packets behind the gap since the peer was last told.
    untold: u32,
    reorder: Reorder,
    out: OutQueue,
    /// The NAK that ended the connection.
    ended: Option<Answer>,
}

/// What the peer was told about the packet expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missing {
    /// Nothing.
    No,
    /// That it is missing.
    Packet,
    /// That no receive is posted for it. Until then it comes not again, and
    /// those behind it are no gap.
    Receive(Time),
}

impl Responder {
    pub(crate) fn new(recv_wr: usize, recv_sge: usize) -> Self {
        Self {
            receives: ReceiveQueue::new(recv_wr, recv_sge),
            active: None,
        }
    }

    pub(crate) fn receives_mut(&mut self) -> &mut ReceiveQueue {
        &mut self.receives
    }

    /// Receives posted to the queue pair's own queue.
    pub(crate) fn posted(&self) -> usize {
        self.receives.len()
    }

    /// Ready to receive.
    pub(crate) fn start(&mut self, core: &Core, attr: &RtrAttr) {
        self.active = Some(Active {
            expected: psn::start(attr.rq_psn),
            msn: 0,
            resources: attr.responder_resources.into(),
            rnr_timer: attr.min_rnr_timer,
            current: Current::None,
            missing: Missing::No,
            untold: 0,
            reorder: Reorder::new(core.links.reorder.clone()),
            out: OutQueue::default(),
            ended: None,
        });
    }

    /// Takes a packet of a request.
    pub(crate) fn handle_request(
        &mut self,
        core: &mut Core,
        now: Time,
        packet: &Packet<'_>,
    ) -> Result<(), Failure> {
        let Some(active) = &mut self.active else {
            core.counters.wrong_state += 1;
            return Ok(());
        };
        let seq = psn::extend(packet.bth.psn, active.expected);
        if seq < active.expected {
            core.counters.duplicates += 1;
            active.repeat(core, seq, packet);
            return Ok(());
        }
        if seq > active.expected {
            active.ahead(core, now, seq, packet);
            return Ok(());
        }
        if !self.execute(core, now, packet)? {
            return Ok(());
        }
        self.catch_up(core, now)
    }

    /// Takes a packet in state Error. The peer that has not heard why the
    /// connection ended is told again.
    pub(crate) fn handle_late(&mut self, packet: &Packet<'_>) {
        let Some(active) = &mut self.active else {
            return;
        };
        if let Some(answer) = active.ended
            && psn::extend(packet.bth.psn, active.expected) >= answer.seq
        {
            active.out.answer(answer);
        }
    }

    /// Whether there is something to send, and that is acknowledgements.
    pub(crate) fn owes_only_acks(&self) -> bool {
        self.active
            .as_ref()
            .is_some_and(|active| active.out.has_only_acks())
    }

    /// Sends one packet.
    pub(crate) fn transmit(
        &mut self,
        core: &mut Core,
        sink: &mut impl PacketSink,
    ) -> Result<Sent, Failure> {
        match &mut self.active {
            Some(active) => active.transmit(core, sink),
            None => Ok(Sent::Nothing),
        }
    }

    /// Completes all receives as flushed. Answers stay if they end the
    /// connection.
    pub(crate) fn flush(&mut self, core: &Core) -> Result<(), Overrun> {
        let mut result = Ok(());
        if let Some(active) = &mut self.active {
            if let Current::Send { receive, .. } = std::mem::take(&mut active.current) {
                result = result.and(complete_failed(core, &receive, Status::WrFlush));
            }
            active.reorder.clear();
            if active.ended.is_none() {
                active.out.clear();
            }
        }
        while let Some(receive) = self.receives.take() {
            result = result.and(complete_failed(core, &receive, Status::WrFlush));
        }
        result
    }

    /// Forgets everything.
    pub(crate) fn reset(&mut self) {
        self.receives.clear();
        self.active = None;
    }

    /// After a packet was carried out: carries out those that waited for it.
    fn catch_up(&mut self, core: &mut Core, now: Time) -> Result<(), Failure> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        active.missing = Missing::No;
        if active.reorder.is_empty() {
            return Ok(());
        }
        loop {
            let Some(active) = &mut self.active else {
                return Ok(());
            };
            let Some(waiting) = active.reorder.take(active.expected) else {
                // Say at once how far it is: the peer's window stands still.
                active.tell(core);
                return Ok(());
            };
            if !self.execute(core, now, &waiting.packet())? {
                return Ok(());
            }
        }
    }
}

impl Active {
    /// A packet that was carried out before.
    fn repeat(&mut self, core: &Core, seq: Seq, packet: &Packet<'_>) {
        if packet.bth.opcode.operation() != Operation::ReadRequest {
            self.tell(core);
            return;
        }
        let Some(reth) = packet.reth else {
            return;
        };
        let packets = psn::packets(reth.len, core.peer.mtu);
        // It must lie in what was asked for before. If it opens no memory any
        // more it is a late copy of a READ long complete: no reason to break off.
        if reth.len > MAX_MESSAGE
            || seq + u64::from(packets) > self.expected
            || !core.access.allows(Access::REMOTE_READ)
        {
            return;
        }
        let Ok(span) = read_span(core, reth.va, reth.rkey, reth.len) else {
            return;
        };
        if !core.peer.ours {
            // It goes back to here and asks for all that follows again; what
            // was to come is of no use to it (IBTA 9.7.5.1.5).
            self.out.cut(seq);
        }
        let job = ReadJob::new(span, seq, reth.len, packets, self.msn, false);
        self.out
            .repeat_read(job, MAX_REPEATED_READS, core.peer.ours);
    }

    /// A packet ahead of the one expected.
    fn ahead(&mut self, core: &mut Core, now: Time, seq: Seq, packet: &Packet<'_>) {
        let kept = core.peer.ours && {
            let takes = match (packet.bth.opcode.operation(), packet.reth) {
                (Operation::ReadRequest, Some(reth)) => psn::packets(reth.len, core.peer.mtu),
                _ => 1,
            };
            self.reorder.keep(self.expected, seq, takes, packet)
        };
        if kept {
            core.counters.reordered += 1;
        } else {
            core.counters.out_of_order += 1;
        }
        if let Missing::Receive(until) = self.missing
            && now < until
        {
            return;
        }
        let first = self.missing != Missing::Packet;
        self.missing = Missing::Packet;
        self.untold += 1;
        if first || core.peer.ours && (packet.bth.ack_req || self.untold >= TELL_EVERY) {
            core.counters.sequence_naks_sent += 1;
            self.untold = 0;
            self.out.answer(self.gap());
        }
    }

    /// Answers with where the connection stands.
    fn tell(&mut self, core: &Core) {
        let answer = if core.peer.ours && !self.reorder.is_empty() {
            self.missing = Missing::Packet;
            self.gap()
        } else {
            Answer {
                seq: self.expected - 1,
                msn: self.msn,
                syndrome: Syndrome::Ack(Syndrome::NO_CREDITS),
            }
        };
        self.out.answer(answer);
    }

    fn gap(&self) -> Answer {
        Answer {
            seq: self.expected,
            msn: self.msn,
            syndrome: Syndrome::Nak(NakCode::SequenceError),
        }
    }
}

fn read_span(core: &Core, va: u64, rkey: u32, len: u32) -> Result<Option<Span>, ()> {
    // No bytes, no key (IBTA 9.7.4.1.1).
    if len == 0 {
        return Ok(None);
    }
    let (table, config) = (&core.links.regions, &core.config);
    table
        .remote(
            rkey,
            config.pd,
            config.qpn,
            (va, len.into()),
            Access::REMOTE_READ,
        )
        .map(Some)
        .map_err(|_| ())
}

fn complete_failed(core: &Core, receive: &Receive, status: Status) -> Result<(), Overrun> {
    let completion = Completion {
        wr_id: receive.wr_id,
        status,
        kind: WorkKind::Receive,
        ..Completion::default()
    };
    core.complete_receive(completion, true)
}

/// How long the peer stays away when told that no receive is posted.
fn away(code: u8, now: Time) -> Time {
    now.plus_nanos(aeth::rnr_nanos(code))
}
