//! Sending: which packet goes next, and its bytes.

use super::queue::Wqe;
use super::{Active, Requester};
use crate::rc::context::{Failure, QpContext};
use crate::rc::cq::Status;
use crate::rc::psn::{self, Seq};
use crate::rc::wr::SendOp;
use crate::sink::PacketSink;
use crate::time::Time;
use crate::wire::{Bth, Ieth, ImmDt, Opcode, Packet, Reth};

/// At least one packet in so many asks for an acknowledgement, so that the
/// sender's buffers are freed in time and the round trip is measured.
const ASK_EVERY: u32 = 32;

/// What sending came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// One packet.
    One,
    /// There is nothing to send now.
    Nothing,
    /// The sink takes no more.
    Full,
}

/// What may be sent next for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fresh {
    Nothing,
    /// A packet of a SEND or an RDMA WRITE.
    Packet,
    /// A request for so many packets of response.
    Read(u32),
    /// The request names memory that it may not.
    Unusable,
}

impl Requester {
    /// Sends one packet.
    pub(crate) fn transmit(
        &mut self,
        context: &mut QpContext,
        now: Time,
        sink: &mut impl PacketSink,
    ) -> Result<Sent, Failure> {
        let Some(active) = &mut self.active else {
            return Ok(Sent::Nothing);
        };
        if active.timers.rnr.is_some() {
            return Ok(Sent::Nothing);
        }
        if let Some(seq) = active.window.first_lost() {
            if !active.has_room() {
                return Ok(Sent::Nothing);
            }
            return self.retransmit(context, now, seq, sink);
        }
        match self.fresh() {
            Fresh::Nothing => Ok(Sent::Nothing),
            Fresh::Packet => self.send_packet(context, now, sink),
            Fresh::Read(n) => self.send_read(context, now, n, sink),
            Fresh::Unusable => self.refuse(),
        }
    }

    /// Whether [`Requester::transmit`] would send nothing.
    pub(crate) fn is_quiet(&mut self) -> bool {
        let Some(active) = &mut self.active else {
            return true;
        };
        if active.timers.rnr.is_some() {
            return true;
        }
        if active.window.first_lost().is_some() {
            return !active.has_room();
        }
        self.fresh() == Fresh::Nothing
    }

    fn fresh(&self) -> Fresh {
        let (Some(active), Some(wqe)) = (&self.active, self.queue.current()) else {
            return Fresh::Nothing;
        };
        let room = active.limits.psns.saturating_sub(active.window.len());
        if room == 0 || !active.has_room() {
            return Fresh::Nothing;
        }
        if wqe.sent == 0 {
            let fenced = wqe.fence && active.window.una() < active.last_read;
            if fenced || active.draining {
                return Fresh::Nothing;
            }
            if !wqe.is_usable() {
                return Fresh::Unusable;
            }
        }
        if !wqe.is_read() {
            return Fresh::Packet;
        }
        let chunk = active.read_chunk.min(active.congestion.packets());
        let n = (wqe.packets - wqe.sent).min(chunk);
        // Not a few packets now and the rest later, if a wait brings all.
        if active.reads.len() >= active.depth || (n > room && !active.window.is_empty()) {
            return Fresh::Nothing;
        }
        Fresh::Read(n.min(room))
    }

    /// Fails a request that names memory it may not, once all before it are
    /// complete.
    fn refuse(&self) -> Result<Sent, Failure> {
        match &self.active {
            Some(active) if active.window.is_empty() => Err(Failure::Request {
                wqe: self.queue.cursor(),
                status: Status::LocalProtection,
            }),
            _ => Ok(Sent::Nothing),
        }
    }

    fn send_packet(
        &mut self,
        context: &mut QpContext,
        now: Time,
        sink: &mut impl PacketSink,
    ) -> Result<Sent, Failure> {
        let number = self.queue.cursor();
        let (Some(active), Some(wqe)) = (&mut self.active, self.queue.current()) else {
            return Ok(Sent::Nothing);
        };
        let seq = active.window.next();
        let mut draft = Draft::data(context, wqe, wqe.sent, seq);
        let Some(out) = sink.packet(draft.wire_len()) else {
            return Ok(Sent::Full);
        };
        let bytes = draft.payload_of(out);
        let copied = self.queue.gather(wqe, draft.offset, bytes);
        active.window.sent(number, 1, false);
        active.on_sent(now);
        self.queue.sent(seq, 1);
        context.counters.requests_sent += 1;
        self.finish(now, draft, copied.is_ok(), out)?;
        Ok(Sent::One)
    }

    fn send_read(
        &mut self,
        context: &mut QpContext,
        now: Time,
        n: u32,
        sink: &mut impl PacketSink,
    ) -> Result<Sent, Failure> {
        let number = self.queue.cursor();
        let (Some(active), Some(wqe)) = (&mut self.active, self.queue.current()) else {
            return Ok(Sent::Nothing);
        };
        let seq = active.window.next();
        let draft = Draft::read(context, wqe, wqe.sent, n, seq);
        let Some(out) = sink.packet(draft.wire_len()) else {
            return Ok(Sent::Full);
        };
        active.window.sent(number, n, true);
        active.reads.push_back(seq + u64::from(n));
        active.last_read = seq + u64::from(n);
        active.on_sent(now);
        // Its response answers, and measures.
        active.unasked = 0;
        if active.timed.is_none() {
            active.timed = Some((seq, now));
        }
        draft.packet.emit_headers(out, 0);
        self.queue.sent(seq, n);
        context.counters.requests_sent += 1;
        Ok(Sent::One)
    }

    fn retransmit(
        &mut self,
        context: &mut QpContext,
        now: Time,
        seq: Seq,
        sink: &mut impl PacketSink,
    ) -> Result<Sent, Failure> {
        let Some(active) = &mut self.active else {
            return Ok(Sent::Nothing);
        };
        let number = active.window.wqe(seq);
        let Some(wqe) = self.queue.get(number) else {
            return Ok(Sent::Nothing);
        };
        let (seq, n) = active.window.again(seq, active.selective);
        // Less than the packets of the request.
        let index = (seq - wqe.first) as u32;
        let mut draft = if wqe.is_read() {
            Draft::read(context, wqe, index, n, seq)
        } else {
            Draft::data(context, wqe, index, seq)
        };
        let Some(out) = sink.packet(draft.wire_len()) else {
            return Ok(Sent::Full);
        };
        let copied = if wqe.is_read() {
            Ok(())
        } else {
            let bytes = draft.payload_of(out);
            self.queue.gather(wqe, draft.offset, bytes)
        };
        active.window.resent(seq, n);
        // Which of the two an answer answers cannot be told (Karn).
        active.timed = None;
        active.on_sent(now);
        context.counters.retransmitted += 1;
        self.finish(now, draft, copied.is_ok(), out)?;
        Ok(Sent::One)
    }

    /// Writes the headers of a packet whose payload is in place.
    fn finish(
        &mut self,
        now: Time,
        mut draft: Draft,
        copied: bool,
        out: &mut [u8],
    ) -> Result<(), Failure> {
        if !copied {
            // The memory was withdrawn while the request was under way. The
            // packet cannot be taken back, so it goes to no queue pair.
            draft.packet.bth.dest_qpn = 0;
            draft.packet.emit_headers(out, draft.len).fill(0);
            let wqe = self.active.as_ref().map(|a| a.window.wqe(draft.seq));
            return match wqe {
                Some(wqe) => Err(Failure::Request {
                    wqe,
                    status: Status::LocalProtection,
                }),
                None => Ok(()),
            };
        }
        // The last packet for now asks, or else the answer never comes.
        let more = matches!(self.fresh(), Fresh::Packet | Fresh::Read(_));
        if let Some(active) = &mut self.active {
            let more = more || active.window.has_lost() && active.has_room();
            let every = ASK_EVERY.min(active.congestion.packets() / 4);
            let ask = !more || active.unasked >= every;
            if ask {
                active.unasked = 0;
                let fresh = draft.seq + 1 == active.window.next();
                if active.timed.is_none() && fresh {
                    active.timed = Some((draft.seq, now));
                }
            }
            draft.packet.bth.ack_req = ask;
        }
        draft.packet.emit_headers(out, draft.len);
        Ok(())
    }
}

impl Active {
    /// Whether one more packet may be under way. One always may.
    fn has_room(&self) -> bool {
        self.window.in_flight() < self.congestion.packets()
    }

    fn on_sent(&mut self, now: Time) {
        self.unasked += 1;
        if self.timers.retransmit.is_none() {
            // Nothing was under way: patience begins here.
            self.heard(now);
            self.arm_retransmit(now);
        }
    }
}

/// A packet before it has a place.
struct Draft {
    packet: Packet<'static>,
    seq: Seq,
    /// Where in the message its payload begins, and how long that is.
    offset: u32,
    len: usize,
}

impl Draft {
    /// Packet `index` of a SEND or an RDMA WRITE.
    fn data(context: &QpContext, wqe: &Wqe, index: u32, seq: Seq) -> Self {
        let mtu = context.peer.mtu;
        let offset = index * mtu;
        let len = (wqe.len - offset).min(mtu);
        let (first, last) = (index == 0, index + 1 == wqe.packets);
        let opcode = opcode(wqe.op, first, last);
        let mut packet = Packet::new(Bth::new(opcode, context.peer.qpn, psn::to_wire(seq)));
        packet.bth.solicited = last && wqe.solicited;
        match wqe.op {
            SendOp::SendImm(imm) | SendOp::WriteImm(_, imm) if last => {
                packet.imm = Some(ImmDt(imm));
            }
            SendOp::SendInvalidate(rkey) if last => packet.ieth = Some(Ieth(rkey)),
            _ => {}
        }
        if let (true, SendOp::Write(remote) | SendOp::WriteImm(remote, _)) = (first, wqe.op) {
            packet.reth = Some(Reth {
                va: remote.va,
                rkey: remote.rkey,
                len: wqe.len,
            });
        }
        Self {
            packet,
            seq,
            offset,
            len: len as usize,
        }
    }

    /// A request for `n` packets of an RDMA READ's response from `index` on.
    fn read(context: &QpContext, wqe: &Wqe, index: u32, n: u32, seq: Seq) -> Self {
        let mtu = context.peer.mtu;
        let offset = index * mtu;
        let mut packet = Packet::new(Bth::new(
            Opcode::ReadRequest,
            context.peer.qpn,
            psn::to_wire(seq),
        ));
        if let SendOp::Read(remote) = wqe.op {
            packet.reth = Some(Reth {
                va: remote.va.wrapping_add(offset.into()),
                rkey: remote.rkey,
                len: (wqe.len - offset).min(n.saturating_mul(mtu)),
            });
        }
        Self {
            packet,
            seq,
            offset,
            len: 0,
        }
    }

    fn wire_len(&self) -> usize {
        self.packet.wire_len(self.len)
    }

    /// The place of the payload in a packet whose headers come later.
    fn payload_of<'a>(&mut self, out: &'a mut [u8]) -> &'a mut [u8] {
        let at = self.packet.bth.opcode.header_len();
        &mut out[at..at + self.len]
    }
}

fn opcode(op: SendOp, first: bool, last: bool) -> Opcode {
    let (start, middle, end, only) = match op {
        SendOp::Send => (
            Opcode::SendFirst,
            Opcode::SendMiddle,
            Opcode::SendLast,
            Opcode::SendOnly,
        ),
        SendOp::SendImm(_) => (
            Opcode::SendFirst,
            Opcode::SendMiddle,
            Opcode::SendLastImm,
            Opcode::SendOnlyImm,
        ),
        SendOp::SendInvalidate(_) => (
            Opcode::SendFirst,
            Opcode::SendMiddle,
            Opcode::SendLastInvalidate,
            Opcode::SendOnlyInvalidate,
        ),
        SendOp::Write(_) => (
            Opcode::WriteFirst,
            Opcode::WriteMiddle,
            Opcode::WriteLast,
            Opcode::WriteOnly,
        ),
        SendOp::WriteImm(..) => (
            Opcode::WriteFirst,
            Opcode::WriteMiddle,
            Opcode::WriteLastImm,
            Opcode::WriteOnlyImm,
        ),
        SendOp::Read(_) => return Opcode::ReadRequest,
    };
    match (first, last) {
        (true, true) => only,
        (true, false) => start,
        (false, false) => middle,
        (false, true) => end,
    }
}
