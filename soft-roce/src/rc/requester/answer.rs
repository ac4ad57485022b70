//! Answers: acknowledgements and RDMA READ responses.

use super::{Active, Requester, completion};
use crate::rc::context::{Failure, QpContext};
use crate::rc::cq::Status;
use crate::rc::psn::{self, Seq};
use crate::rc::sack;
use crate::time::Time;
use crate::wire::{Aeth, NakCode, Packet, Syndrome, aeth};

use super::queue::Source;

impl Requester {
    /// Takes an ACK or a NAK. One that answers nothing under way is dropped
    /// (IBTA 9.7.5.1.3: ghosts and duplicates).
    pub(crate) fn handle_ack(
        &mut self,
        context: &mut QpContext,
        now: Time,
        packet: &Packet<'_>,
    ) -> Result<(), Failure> {
        let (Some(active), Some(aeth)) = (&mut self.active, packet.aeth) else {
            context.counters.stale_answers += 1;
            return Ok(());
        };
        let seq = psn::extend(packet.bth.psn, active.window.una());
        let fatal = match aeth.syndrome {
            Syndrome::Ack(_) => {
                if !active.window.contains(seq) {
                    context.counters.stale_answers += 1;
                    return Ok(());
                }
                active.window.acknowledge(seq);
                None
            }
            Syndrome::Nak(NakCode::SequenceError) => {
                if !active.window.contains(seq) {
                    context.counters.stale_answers += 1;
                    return Ok(());
                }
                context.counters.sequence_naks += 1;
                active.handle_gap(now, seq, packet.payload);
                None
            }
            Syndrome::Rnr(code) => {
                if !active.window.contains(seq) {
                    context.counters.stale_answers += 1;
                    return Ok(());
                }
                context.counters.rnr_naks += 1;
                active.window.acknowledge(seq - 1);
                active.handle_not_ready(now, seq, code)
            }
            Syndrome::Nak(code) => {
                if !active.window.contains(seq) {
                    context.counters.stale_answers += 1;
                    return Ok(());
                }
                active.window.acknowledge(seq - 1);
                Some(fatal_status(code))
            }
        };
        context.counters.acks_received += 1;
        // Before progress, which may complete and forget the request.
        let failed = fatal.map(|status| (active.window.wqe(seq), status));
        self.progress(context, now)?;
        match failed {
            Some((wqe, status)) => Err(Failure::Request { wqe, status }),
            None => Ok(()),
        }
    }

    /// Takes a packet of an RDMA READ's response. Its PSN alone says where its
    /// bytes belong.
    pub(crate) fn handle_response(
        &mut self,
        context: &mut QpContext,
        now: Time,
        packet: &Packet<'_>,
    ) -> Result<(), Failure> {
        let Some(active) = &mut self.active else {
            context.counters.stale_answers += 1;
            return Ok(());
        };
        let seq = psn::extend(packet.bth.psn, active.window.una());
        let is_nak = |a: Aeth| !matches!(a.syndrome, Syndrome::Ack(_));
        if !active.window.contains(seq)
            || !active.window.awaits_response(seq)
            || packet.aeth.is_some_and(is_nak)
        {
            context.counters.stale_answers += 1;
            return Ok(());
        }
        let number = active.window.wqe(seq);
        let Some(wqe) = self.queue.get(number) else {
            return Ok(());
        };
        // Less than the packets of the request.
        let offset = (seq - wqe.first) as u32 * context.peer.mtu;
        let expected = (wqe.len - offset).min(context.peer.mtu);
        if packet.payload.len() != expected as usize {
            return Err(Failure::Request {
                wqe: number,
                status: Status::BadResponse,
            });
        }
        if let Source::Pieces(pieces) = &wqe.source
            && pieces.scatter(offset, packet.payload).is_err()
        {
            return Err(Failure::Request {
                wqe: number,
                status: Status::LocalProtection,
            });
        }
        context.counters.responses_received += 1;
        active.window.respond(seq);
        self.progress(context, now)
    }

    /// Draws the conclusions from what the window was told.
    fn progress(&mut self, context: &mut QpContext, now: Time) -> Result<(), Failure> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        let news = active.window.advance();
        let una = active.window.una();
        if news > 0 {
            active.congestion.acknowledged(news);
            active.heard(now);
        }
        if let Some((seq, at)) = active.timed
            && seq < una
        {
            active.trip.sample(now.nanos_since(at));
            active.timed = None;
        }
        while active.reads.front().is_some_and(|end| *end <= una) {
            active.reads.pop_front();
        }
        active.find_losses(now, false);
        if active.rnr.is_some_and(|(seq, _)| seq < una) {
            active.rnr = None;
            active.timers.rnr = None;
        }
        if active.window.is_empty() || active.timers.rnr.is_some() {
            active.timers.retransmit = None;
        } else if news > 0 || active.timers.retransmit.is_none() {
            active.arm_retransmit(now);
        }
        self.complete(context, una)
    }

    /// Completes the requests that end before `una`, in order.
    fn complete(&mut self, context: &QpContext, una: Seq) -> Result<(), Failure> {
        while let Some(wqe) = self.queue.front() {
            if wqe.sent < wqe.packets || wqe.first + u64::from(wqe.packets) > una {
                break;
            }
            let done = wqe.signaled.then(|| completion(wqe, Status::Success));
            self.queue.pop();
            if let Some(done) = done {
                context.complete_send(done)?;
            }
        }
        Ok(())
    }
}

impl Active {
    /// The peer misses `seq`.
    fn handle_gap(&mut self, now: Time, seq: Seq, kept: &[u8]) {
        self.window.acknowledge(seq - 1);
        if self.selective && !kept.is_empty() {
            for ahead in sack::marked(kept) {
                self.window.keep(seq + ahead);
            }
            return;
        }
        // A copy of a NAK that was obeyed already. Sending all again once more
        // would bring the next one.
        let settled = self.trip.estimate() / 2;
        let repeated = |(s, at): (Seq, Time)| s == seq && now.nanos_since(at) < settled;
        if self.last_nak.is_some_and(repeated) {
            return;
        }
        self.last_nak = Some((seq, now));
        self.window.go_back(seq);
        self.slow_down(1);
    }

    /// The peer has no receive for the message that `seq` belongs to.
    fn handle_not_ready(&mut self, now: Time, seq: Seq, code: u8) -> Option<Status> {
        // Forever, when it starts at 7 (IBTA 9.7.5.2.8).
        let left = match self.rnr {
            Some((at, left)) if at == seq => left,
            _ => self.rnr_retry,
        };
        if self.timers.rnr.is_some() {
            // A copy of the NAK that is being waited for.
            return None;
        }
        if left == 0 {
            return Some(Status::RnrRetryExceeded);
        }
        let left = if self.rnr_retry == 7 { left } else { left - 1 };
        self.rnr = Some((seq, left));
        self.timers.rnr = Some(now.plus_nanos(aeth::rnr_nanos(code)));
        // The peer lives.
        self.heard(now);
        self.timed = None;
        None
    }
}

fn fatal_status(code: NakCode) -> Status {
    match code {
        NakCode::InvalidRequest | NakCode::InvalidRdRequest => Status::RemoteInvalidRequest,
        NakCode::RemoteAccess => Status::RemoteAccess,
        NakCode::RemoteOperation | NakCode::SequenceError => Status::RemoteOperation,
    }
}
