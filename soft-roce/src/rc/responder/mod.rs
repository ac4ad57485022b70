//! The responder: the half of a queue pair that carries the peer's requests out.
//!
//! What it does: takes requests strictly in the order of their PSNs, each packet
//! once; places SENDs in posted receives and RDMA WRITEs in registered memory,
//! answers RDMA READs, and acknowledges what asks for it, once for many. A
//! missing packet is told of once a gap. A request that breaks a rule gets the
//! NAK that IBTA table 61 names for it, and ends the connection.
//!
//! Duplicates (IBTA 9.7.5.1): a SEND or an RDMA WRITE is acknowledged again,
//! together with those that follow it up to the next RDMA READ; an RDMA READ, or
//! a part of it, is answered again; anything else is dropped.
//!
//! From a peer of our kind, packets behind a missing one are kept, bounded, and
//! told of (see `sack`).
//!
//! What it does not do: atomics, which it refuses as invalid requests.

mod execute;
mod out;
mod reads;
mod reorder;
#[cfg(test)]
mod tests;

use self::execute::Current;
use self::out::{Answer, OutQueue, ReadJob};
use self::reads::Reads;
use self::reorder::Reorder;
use super::attr::RtrAttr;
use super::context::{Failure, QpContext};
use super::cq::{Completion, Overrun, Status, WorkKind};
use super::mr::{Access, Span};
use super::psn::{self, Seq};
use super::requester::Sent;
use super::srq::{Receive, ReceiveQueue};
use crate::sink::PacketSink;
use crate::time::Time;
use crate::wire::{NakCode, Packet, PacketKind, Syndrome, aeth};

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
    reads: Reads,
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
    pub(crate) fn start(&mut self, context: &QpContext, attr: &RtrAttr) {
        let expected = psn::start(attr.rq_psn);
        let resources = granted(attr.responder_resources);
        self.active = Some(Active {
            expected,
            msn: 0,
            resources,
            reads: Reads::new(resources, expected),
            rnr_timer: attr.min_rnr_timer,
            current: Current::None,
            missing: Missing::No,
            untold: 0,
            reorder: Reorder::new(context.links.reorder.clone()),
            out: OutQueue::default(),
            ended: None,
        });
    }

    /// Takes a packet of a request.
    pub(crate) fn handle_request(
        &mut self,
        context: &mut QpContext,
        now: Time,
        packet: &Packet<'_>,
    ) -> Result<(), Failure> {
        let Some(active) = &mut self.active else {
            context.counters.wrong_state += 1;
            return Ok(());
        };
        let seq = psn::extend(packet.bth.psn, active.expected);
        if seq < active.expected {
            context.counters.duplicates += 1;
            active.repeat(context, seq, packet);
            return Ok(());
        }
        if seq > active.expected {
            active.ahead(context, now, seq, packet);
            return Ok(());
        }
        if !self.execute(context, now, packet)? {
            return Ok(());
        }
        self.catch_up(context, now)
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

    /// Whether nothing but acknowledgements is to be sent, or nothing at all.
    pub(crate) fn owes_no_more_than_acks(&self) -> bool {
        let waits = |active: &Active| active.out.is_empty() || active.out.has_only_acks();
        self.active.as_ref().is_none_or(waits)
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
        context: &mut QpContext,
        sink: &mut impl PacketSink,
    ) -> Result<Sent, Failure> {
        match &mut self.active {
            Some(active) => active.transmit(context, sink),
            None => Ok(Sent::Nothing),
        }
    }

    /// Completes all receives as flushed. Answers stay if they end the
    /// connection.
    pub(crate) fn flush(&mut self, context: &QpContext) -> Result<(), Overrun> {
        let mut result = Ok(());
        if let Some(active) = &mut self.active {
            if let Current::Send { receive, .. } = std::mem::take(&mut active.current) {
                result = result.and(complete_failed(context, &receive, Status::WrFlush));
            }
            active.reorder.clear();
            if active.ended.is_none() {
                active.out.clear();
            }
        }
        while let Some(receive) = self.receives.take() {
            result = result.and(complete_failed(context, &receive, Status::WrFlush));
        }
        result
    }

    /// Forgets everything.
    pub(crate) fn reset(&mut self) {
        self.receives.clear();
        self.active = None;
    }

    /// After a packet was carried out: carries out those that waited for it.
    fn catch_up(&mut self, context: &mut QpContext, now: Time) -> Result<(), Failure> {
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
                active.tell(context);
                return Ok(());
            };
            if !self.execute(context, now, &waiting.packet())? {
                return Ok(());
            }
        }
    }
}

impl Active {
    /// A packet that was carried out before.
    fn repeat(&mut self, context: &QpContext, seq: Seq, packet: &Packet<'_>) {
        match packet.bth.opcode.packet_kind() {
            PacketKind::ReadRequest => self.repeat_read(context, seq, packet),
            PacketKind::Send | PacketKind::Write if self.keeps_some(context) => self.tell(context),
            PacketKind::Send | PacketKind::Write => {
                if let Some(end) = self.reads.run_end(seq, self.expected) {
                    self.acknowledge(end);
                }
            }
            // No atomic was ever carried out.
            _ => {}
        }
    }

    fn repeat_read(&mut self, context: &QpContext, seq: Seq, packet: &Packet<'_>) {
        let Some(reth) = packet.reth else {
            return;
        };
        let packets = psn::packets(reth.len, context.peer.mtu);
        // If it opens no memory any more it is a late copy of a READ long
        // complete: no reason to break off.
        if !self.reads.repeats((seq, packets), reth, context.peer.mtu)
            || !context.access.allows(Access::REMOTE_READ)
        {
            return;
        }
        let Ok(span) = read_span(context, reth.va, reth.rkey, reth.len) else {
            return;
        };
        let job = ReadJob::new(span, seq, reth.len, packets, self.msn, false);
        if context.peer.ours {
            self.out.repeat_read(job, MAX_REPEATED_READS, true);
            return;
        }
        // It goes back to here and asks for all that follows again; what was to
        // come is of no use to it (IBTA 9.7.5.1.5).
        let told = self.out.cut(seq);
        self.out.repeat_read(job, MAX_REPEATED_READS, false);
        // Unless the request was doubled on the way: then nobody asks again for
        // the answers that were to come.
        let Some(told) = told else {
            return;
        };
        if self.missing == Missing::Packet {
            self.missing = Missing::No;
        }
        let behind = seq + u64::from(packets);
        if told >= behind
            && let Some(end) = self.reads.run_end(behind, self.expected)
        {
            self.acknowledge(end.min(told));
        }
    }

    /// A packet ahead of the one expected.
    fn ahead(&mut self, context: &mut QpContext, now: Time, seq: Seq, packet: &Packet<'_>) {
        let kept = context.peer.ours && {
            let takes = match (packet.bth.opcode.packet_kind(), packet.reth) {
                (PacketKind::ReadRequest, Some(reth)) => psn::packets(reth.len, context.peer.mtu),
                _ => 1,
            };
            self.reorder.keep(self.expected, seq, takes, packet)
        };
        if kept {
            context.counters.reordered += 1;
        } else {
            context.counters.out_of_order += 1;
        }
        if let Missing::Receive(until) = self.missing
            && now < until
        {
            return;
        }
        let first = self.missing != Missing::Packet;
        self.missing = Missing::Packet;
        self.untold += 1;
        if first || context.peer.ours && (packet.bth.ack_req || self.untold >= TELL_EVERY) {
            context.counters.sequence_naks_sent += 1;
            self.untold = 0;
            self.out.answer(self.gap());
        }
    }

    /// Answers with where the connection stands.
    fn tell(&mut self, context: &QpContext) {
        if self.keeps_some(context) {
            self.missing = Missing::Packet;
            self.out.answer(self.gap());
        } else if self.reads.last_before(self.expected) == Some(self.expected - 1) {
            self.acknowledge(self.expected - 1);
        }
        // An RDMA READ is answered by its response.
    }

    /// Acknowledges all up to `seq`, which is no RDMA READ's.
    fn acknowledge(&mut self, seq: Seq) {
        self.out.answer(Answer {
            seq,
            msn: self.msn,
            syndrome: Syndrome::Ack(Syndrome::NO_CREDITS),
        });
    }

    /// Whether packets wait for a missing one, of which a peer of our kind is to
    /// be told.
    fn keeps_some(&self, context: &QpContext) -> bool {
        context.peer.ours && !self.reorder.is_empty()
    }

    fn gap(&self) -> Answer {
        Answer {
            seq: self.expected,
            msn: self.msn,
            syndrome: Syndrome::Nak(NakCode::SequenceError),
        }
    }
}

/// How many RDMA READs a peer that was granted `resources` may have under way.
/// `rdma_rxe` rounds what it was granted up to a power of two.
fn granted(resources: u8) -> usize {
    match resources {
        0 => 0,
        n => usize::from(n).next_power_of_two(),
    }
}

fn read_span(context: &QpContext, va: u64, rkey: u32, len: u32) -> Result<Option<Span>, ()> {
    // No bytes, no key (IBTA 9.7.4.1.1).
    if len == 0 {
        return Ok(None);
    }
    let (table, config) = (&context.links.regions, &context.config);
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

fn complete_failed(context: &QpContext, receive: &Receive, status: Status) -> Result<(), Overrun> {
    let completion = Completion {
        wr_id: receive.wr_id,
        status,
        kind: WorkKind::Receive,
        ..Completion::default()
    };
    context.complete_receive(completion, true)
}

/// How long the peer stays away when told that no receive is posted.
fn away(code: u8, now: Time) -> Time {
    now.plus_nanos(aeth::rnr_nanos(code))
}
