//! Carrying out the packet that is expected.
//!
//! What it does: the rules of IBTA 9.7.4.1 (which packet may follow which, how
//! long each may be, who may touch what), then the copying, then the completion.
//! Nothing is changed before every check has passed, so that a packet refused
//! for want of a receive can come again.
//! What it does not do: packets out of order.

use super::out::{Answer, ReadJob};
use super::{Active, Missing, Responder, away, complete_failed, read_span};
use crate::rc::context::{Failure, QpContext};
use crate::rc::cq::{Completion, Status, WorkKind};
use crate::rc::mr::{Access, Span};
use crate::rc::psn;
use crate::rc::srq::Receive;
use crate::rc::wr::MAX_MESSAGE;
use crate::time::Time;
use crate::wire::{NakCode, Packet, PacketKind, Position, Syndrome};

/// The message that is being received.
#[derive(Debug, Default)]
pub(super) enum Current {
    #[default]
    None,
    Send {
        receive: Receive,
        /// Bytes placed.
        at: u32,
    },
    Write {
        /// None for no bytes.
        span: Option<Span>,
        /// Bytes placed, and bytes of the whole.
        at: u32,
        len: u32,
    },
}

impl Responder {
    /// Carries out the packet expected. Says whether it was; otherwise the peer
    /// is told to come again.
    pub(super) fn execute(
        &mut self,
        context: &mut QpContext,
        now: Time,
        packet: &Packet<'_>,
    ) -> Result<bool, Failure> {
        let done = match packet.bth.opcode.packet_kind() {
            PacketKind::Send => self.send(context, now, packet)?,
            PacketKind::Write => self.write(context, now, packet)?,
            PacketKind::ReadRequest => {
                self.read(context, packet)?;
                return Ok(true);
            }
            _ => return self.refuse(context, NakCode::InvalidRequest),
        };
        if !done {
            return Ok(false);
        }
        context.counters.requests_received += 1;
        if let Some(active) = &mut self.active {
            active.expected += 1;
            if packet.bth.opcode.position().ends() {
                active.msn = active.msn.wrapping_add(1);
            }
            if packet.bth.ack_req {
                active.tell(context);
            }
        }
        Ok(true)
    }

    fn send(
        &mut self,
        context: &mut QpContext,
        now: Time,
        packet: &Packet<'_>,
    ) -> Result<bool, Failure> {
        let position = packet.bth.opcode.position();
        let Some(active) = &mut self.active else {
            return Ok(false);
        };
        let mtu = context.peer.mtu as usize;
        if !fits_position(position, packet.payload.len(), mtu) {
            return self.refuse(context, NakCode::InvalidRequest);
        }
        let (receive, at) = match std::mem::take(&mut active.current) {
            Current::None if position.starts() => match self.take_receive(context) {
                Some(receive) => (receive, 0),
                None => return Ok(self.not_ready(context, now)),
            },
            Current::Send { receive, at } if !position.starts() => (receive, at),
            other => {
                active.current = other;
                return self.refuse(context, NakCode::InvalidRequest);
            }
        };
        let fail = |status| complete_failed(context, &receive, status);
        if !receive.pieces.is_usable() {
            fail(Status::LocalProtection)?;
            return self.refuse(context, NakCode::RemoteOperation);
        }
        // At most 2^31 before, and a packet more.
        let end = at + packet.payload.len() as u32;
        if end > receive.pieces.len() {
            fail(Status::LocalLength)?;
            return self.refuse(context, NakCode::InvalidRequest);
        }
        if receive.pieces.scatter(at, packet.payload).is_err() {
            fail(Status::LocalProtection)?;
            return self.refuse(context, NakCode::RemoteOperation);
        }
        if !position.ends() {
            if let Some(active) = &mut self.active {
                active.current = Current::Send { receive, at: end };
            }
            return Ok(true);
        }
        let invalidated = packet.ieth.map(|ieth| ieth.0);
        if let Some(key) = invalidated {
            let (table, config) = (&context.links.regions, &context.config);
            if table.invalidate_remote(key, config.pd, config.qpn).is_err() {
                fail(Status::LocalQpOperation)?;
                return self.refuse(context, NakCode::RemoteAccess);
            }
        }
        let completion = Completion {
            wr_id: receive.wr_id,
            status: Status::Success,
            kind: WorkKind::Receive,
            byte_len: end,
            imm: packet.imm.map(|imm| imm.0),
            invalidated,
            ..Completion::default()
        };
        context.complete_receive(completion, packet.bth.solicited)?;
        Ok(true)
    }

    fn write(
        &mut self,
        context: &mut QpContext,
        now: Time,
        packet: &Packet<'_>,
    ) -> Result<bool, Failure> {
        let position = packet.bth.opcode.position();
        let Some(active) = &mut self.active else {
            return Ok(false);
        };
        let mtu = context.peer.mtu as usize;
        // IBTA 9.7.4.1.2: the right of the queue pair comes before the key's.
        if !context.access.allows(Access::REMOTE_WRITE)
            || !fits_position(position, packet.payload.len(), mtu)
        {
            return self.refuse(context, NakCode::InvalidRequest);
        }
        let fresh;
        let (span, at, len) = match (&active.current, packet.reth) {
            (Current::None, Some(reth)) if position.starts() && reth.len <= MAX_MESSAGE => {
                fresh = if reth.len == 0 {
                    None
                } else {
                    let config = &context.config;
                    let span = context.links.regions.remote(
                        reth.rkey,
                        config.pd,
                        config.qpn,
                        (reth.va, reth.len.into()),
                        Access::REMOTE_WRITE,
                    );
                    match span {
                        Ok(span) => Some(span),
                        Err(_) => return self.refuse(context, NakCode::RemoteAccess),
                    }
                };
                (&fresh, 0, reth.len)
            }
            (Current::Write { span, at, len }, None) if !position.starts() => (span, *at, *len),
            _ => return self.refuse(context, NakCode::InvalidRequest),
        };
        // The last packet fills it exactly, no other one does.
        let end = at as usize + packet.payload.len();
        if end > len as usize || (end == len as usize) != position.ends() {
            return self.refuse(context, NakCode::InvalidRequest);
        }
        let span = span.clone();
        let receive = match packet.imm {
            Some(imm) => match self.take_receive(context) {
                Some(receive) => Some((receive, imm)),
                None => return Ok(self.not_ready(context, now)),
            },
            None => None,
        };
        if let Some(span) = &span
            && span
                .region
                .write(span.offset + u64::from(at), packet.payload)
                .is_err()
        {
            if let Some((receive, _)) = receive {
                complete_failed(context, &receive, Status::WrFlush)?;
            }
            return self.refuse(context, NakCode::RemoteAccess);
        }
        if !position.ends() {
            if let Some(active) = &mut self.active {
                active.current = Current::Write {
                    span,
                    at: end as u32,
                    len,
                };
            }
            return Ok(true);
        }
        if let Some((receive, imm)) = receive {
            let completion = Completion {
                wr_id: receive.wr_id,
                status: Status::Success,
                kind: WorkKind::ReceiveWriteImm,
                byte_len: len,
                imm: Some(imm.0),
                ..Completion::default()
            };
            context.complete_receive(completion, packet.bth.solicited)?;
        }
        if let Some(active) = &mut self.active {
            active.current = Current::None;
        }
        Ok(true)
    }

    fn read(&mut self, context: &mut QpContext, packet: &Packet<'_>) -> Result<(), Failure> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        let acceptable = context.access.allows(Access::REMOTE_READ)
            && matches!(active.current, Current::None)
            && packet.payload.is_empty()
            && active.out.reads() < active.resources;
        let reth = match packet.reth {
            Some(reth) if acceptable && reth.len <= MAX_MESSAGE => reth,
            _ => return self.refuse(context, NakCode::InvalidRequest).map(|_| ()),
        };
        let Ok(span) = read_span(context, reth.va, reth.rkey, reth.len) else {
            return self.refuse(context, NakCode::RemoteAccess).map(|_| ());
        };
        let packets = psn::packets(reth.len, context.peer.mtu);
        active.msn = active.msn.wrapping_add(1);
        active.out.read(ReadJob::new(
            span,
            active.expected,
            reth.len,
            packets,
            active.msn,
            true,
        ));
        active
            .reads
            .remember((active.expected, packets), reth, context.peer.mtu);
        active.expected += u64::from(packets);
        context.counters.requests_received += 1;
        Ok(())
    }

    fn take_receive(&mut self, context: &QpContext) -> Option<Receive> {
        match &context.links.srq {
            Some(srq) => srq.take(),
            None => self.receives.take(),
        }
    }

    /// Tells the peer to come again when a receive may be posted.
    fn not_ready(&mut self, context: &mut QpContext, now: Time) -> bool {
        if let Some(active) = &mut self.active {
            context.counters.rnr_naks_sent += 1;
            active.missing = Missing::Receive(away(active.rnr_timer, now));
            active.out.answer(Answer {
                seq: active.expected,
                msn: active.msn,
                syndrome: Syndrome::Rnr(active.rnr_timer),
            });
        }
        false
    }

    /// Ends the connection over the packet expected, and says why.
    fn refuse(&mut self, context: &mut QpContext, code: NakCode) -> Result<bool, Failure> {
        match code {
            NakCode::RemoteAccess => context.counters.access_denied += 1,
            _ => context.counters.invalid_requests += 1,
        }
        if let Some(active) = &mut self.active {
            active.end(active.expected, code);
        }
        Err(Failure::Responder(code))
    }
}

impl Active {
    /// Ends the connection over packet `seq`.
    pub(super) fn end(&mut self, seq: psn::Seq, code: NakCode) {
        let answer = Answer {
            seq,
            msn: self.msn,
            syndrome: Syndrome::Nak(code),
        };
        self.ended = Some(answer);
        self.out.answer(answer);
    }
}

/// Whether a packet may carry so many bytes at its place in the message.
fn fits_position(position: Position, len: usize, mtu: usize) -> bool {
    match position {
        Position::First | Position::Middle => len == mtu,
        Position::Last => (1..=mtu).contains(&len),
        Position::Only => len <= mtu,
    }
}
