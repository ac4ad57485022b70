//! What the responder has to send: answers and READ responses, in the order of
//! the requests (IBTA 9.7.5.1.1: responses go out in PSN order).
//!
//! What it does: a queue in which a newer answer takes the place of an older one
//! that nothing separates from it, so that many packets cost one ACK; and the
//! packets themselves.
//! What it does not do: decide what to answer.

use std::collections::VecDeque;

use super::Active;
use crate::rc::context::{Failure, QpContext};
use crate::rc::mr::Span;
use crate::rc::psn::{self, Seq};
use crate::rc::requester::Sent;
use crate::sink::PacketSink;
use crate::wire::{Aeth, Bth, NakCode, Opcode, Packet, Syndrome};

/// An ACK or a NAK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) seq: Seq,
    pub(super) msn: u32,
    pub(super) syndrome: Syndrome,
}

impl Answer {
    /// Whether a later answer says all that this one says.
    fn is_superseded(&self) -> bool {
        matches!(
            self.syndrome,
            Syndrome::Ack(_) | Syndrome::Nak(NakCode::SequenceError)
        )
    }

    /// Up to where it says that all was carried out.
    fn carried_out(&self) -> Seq {
        match self.syndrome {
            Syndrome::Ack(_) => self.seq,
            Syndrome::Rnr(_) | Syndrome::Nak(_) => self.seq - 1,
        }
    }
}

/// An RDMA READ that is being answered.
#[derive(Debug)]
pub(super) struct ReadJob {
    /// None for no bytes.
    span: Option<Span>,
    first: Seq,
    len: u32,
    packets: u32,
    /// The next packet, and the end of what is still wanted.
    next: u32,
    end: u32,
    msn: u32,
    /// Asked for, for the first time.
    original: bool,
}

impl ReadJob {
    pub(super) fn new(
        span: Option<Span>,
        first: Seq,
        len: u32,
        packets: u32,
        msn: u32,
        original: bool,
    ) -> Self {
        Self {
            span,
            first,
            len,
            packets,
            next: 0,
            end: packets,
            msn,
            original,
        }
    }
}

#[derive(Debug)]
enum Out {
    Answer(Answer),
    Read(ReadJob),
}

#[derive(Debug, Default)]
pub(super) struct OutQueue {
    queue: VecDeque<Out>,
    originals: usize,
    repeated: usize,
}

impl OutQueue {
    /// RDMA READs asked for once that are not answered yet.
    pub(super) fn reads(&self) -> usize {
        self.originals
    }

    pub(super) fn answer(&mut self, answer: Answer) {
        let Some(Out::Answer(last)) = self.queue.back_mut() else {
            self.queue.push_back(Out::Answer(answer));
            return;
        };
        match last.syndrome {
            // It says already that all before it was carried out. If the packet
            // itself has come again since, the new answer is the better one.
            Syndrome::Rnr(_) if answer.seq <= last.seq && answer.is_superseded() => {}
            // To a duplicate; what waits to be sent says more.
            Syndrome::Ack(_) | Syndrome::Nak(NakCode::SequenceError)
                if answer.seq < last.seq && answer.is_superseded() => {}
            Syndrome::Ack(_) | Syndrome::Rnr(_) | Syndrome::Nak(NakCode::SequenceError) => {
                *last = answer;
            }
            // The end of the connection has no successor.
            Syndrome::Nak(_) => {}
        }
    }

    pub(super) fn read(&mut self, job: ReadJob) {
        self.originals += 1;
        self.queue.push_back(Out::Read(job));
    }

    /// Answers an RDMA READ once more, unless `most` wait already. With `first`
    /// before everything else: a few packets that complete what has come are
    /// worth more than the many that follow.
    pub(super) fn repeat_read(&mut self, job: ReadJob, most: usize, first: bool) {
        if self.repeated >= most {
            return;
        }
        self.repeated += 1;
        let at = if first {
            let is_repeated = |out: &Out| matches!(out, Out::Read(job) if !job.original);
            let leading = self.queue.iter().position(|out| !is_repeated(out));
            leading.unwrap_or(self.queue.len())
        } else {
            self.queue.len()
        };
        self.queue.insert(at, Out::Read(job));
    }

    /// Drops everything from `seq` on. Says up to where it would have told that
    /// all was carried out.
    pub(super) fn cut(&mut self, seq: Seq) -> Option<Seq> {
        let (originals, repeated) = (&mut self.originals, &mut self.repeated);
        let mut told = None;
        self.queue.retain_mut(|out| match out {
            Out::Answer(answer) if answer.seq < seq || !answer.is_superseded() => true,
            Out::Answer(answer) => {
                told = told.max(Some(answer.carried_out()));
                false
            }
            Out::Read(job) => {
                let wanted = seq.saturating_sub(job.first).min(job.end.into());
                job.end = wanted as u32;
                let keep = job.next < job.end;
                if !keep {
                    let count = if job.original {
                        &mut *originals
                    } else {
                        &mut *repeated
                    };
                    *count -= 1;
                }
                keep
            }
        });
        told
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether it holds acknowledgements and nothing else.
    pub(super) fn has_only_acks(&self) -> bool {
        let is_ack = |out: &Out| matches!(out, Out::Answer(answer) if matches!(answer.syndrome, Syndrome::Ack(_)));
        !self.queue.is_empty() && self.queue.iter().all(is_ack)
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    fn pop_read(&mut self) {
        if let Some(Out::Read(job)) = self.queue.pop_front() {
            if job.original {
                self.originals -= 1;
            } else {
                self.repeated -= 1;
            }
        }
    }
}

impl Active {
    /// Sends one packet.
    pub(super) fn transmit(
        &mut self,
        context: &mut QpContext,
        sink: &mut impl PacketSink,
    ) -> Result<Sent, Failure> {
        loop {
            match self.out.queue.front_mut() {
                None => return Ok(Sent::Nothing),
                Some(Out::Answer(answer)) => {
                    let answer = *answer;
                    let Some(answer) = self.brought_up(answer) else {
                        self.out.queue.pop_front();
                        continue;
                    };
                    let sent = self.transmit_answer(context, answer, sink);
                    if sent == Sent::One {
                        self.out.queue.pop_front();
                    }
                    return Ok(sent);
                }
                Some(Out::Read(job)) => {
                    let seq = job.first + u64::from(job.next);
                    match job.transmit(context, seq, sink) {
                        Ok(Sent::One) if job.next < job.end => {}
                        Ok(Sent::One) => self.out.pop_read(),
                        Ok(other) => return Ok(other),
                        // Asked for again, but the memory is gone since: a late
                        // copy, or else the peer hears of it by nothing.
                        Err(()) if !job.original => self.out.pop_read(),
                        Err(()) => {
                            context.counters.access_denied += 1;
                            self.out.clear();
                            self.end(seq, NakCode::RemoteAccess);
                            return Err(Failure::Responder(NakCode::RemoteAccess));
                        }
                    }
                    return Ok(Sent::One);
                }
            }
        }
    }

    /// What an answer says now. A packet that was missing may have come since:
    /// then all before it is acknowledged, unless nothing there may be.
    fn brought_up(&self, mut answer: Answer) -> Option<Answer> {
        if answer.syndrome == Syndrome::Nak(NakCode::SequenceError) && answer.seq < self.expected {
            answer.seq = self.reads.last_before(answer.seq)?;
            answer.syndrome = Syndrome::Ack(Syndrome::NO_CREDITS);
        }
        Some(answer)
    }

    fn transmit_answer(
        &self,
        context: &mut QpContext,
        answer: Answer,
        sink: &mut impl PacketSink,
    ) -> Sent {
        let kept = match answer.syndrome {
            Syndrome::Nak(NakCode::SequenceError) => {
                let room = context.peer.mtu as usize;
                self.reorder.bitmap_len(answer.seq, room)
            }
            _ => 0,
        };
        let packet = Packet {
            aeth: Some(Aeth {
                syndrome: answer.syndrome,
                msn: answer.msn,
            }),
            ..Packet::new(Bth::new(
                Opcode::Ack,
                context.peer.qpn,
                psn::to_wire(answer.seq),
            ))
        };
        let Some(out) = sink.packet(packet.wire_len(kept)) else {
            return Sent::Full;
        };
        let payload = packet.emit_headers(out, kept);
        if kept > 0 {
            self.reorder.write_bitmap(answer.seq, payload);
        }
        context.counters.acks_sent += 1;
        Sent::One
    }
}

impl ReadJob {
    /// Sends the next packet. An error: the memory was withdrawn.
    fn transmit(
        &mut self,
        context: &mut QpContext,
        seq: Seq,
        sink: &mut impl PacketSink,
    ) -> Result<Sent, ()> {
        let (first, last) = (self.next == 0, self.next + 1 == self.packets);
        let opcode = match (first, last) {
            (true, true) => Opcode::ReadResponseOnly,
            (true, false) => Opcode::ReadResponseFirst,
            (false, false) => Opcode::ReadResponseMiddle,
            (false, true) => Opcode::ReadResponseLast,
        };
        let mtu = context.peer.mtu;
        let offset = self.next * mtu;
        let len = (self.len - offset).min(mtu) as usize;
        let mut packet = Packet::new(Bth::new(opcode, context.peer.qpn, psn::to_wire(seq)));
        packet.aeth = (first || last).then_some(Aeth {
            syndrome: Syndrome::Ack(Syndrome::NO_CREDITS),
            msn: self.msn,
        });
        let Some(out) = sink.packet(packet.wire_len(len)) else {
            return Ok(Sent::Full);
        };
        let payload = packet.emit_headers(out, len);
        let copied = match &self.span {
            Some(span) => span.region.read(span.offset + u64::from(offset), payload),
            None => Ok(()),
        };
        if copied.is_err() {
            // The packet cannot be taken back, so it goes to no queue pair.
            packet.bth.dest_qpn = 0;
            packet.emit_headers(out, len).fill(0);
            return Err(());
        }
        self.next += 1;
        context.counters.responses_sent += 1;
        Ok(Sent::One)
    }
}
