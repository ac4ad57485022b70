//! The queue pair: a requester and a responder under one state.
//!
//! What it does: takes packets, work requests and moments, gives packets,
//! completions and deadlines. It never touches a socket and never reads a
//! clock. Whoever drives it does, after anything that may have changed it:
//! [`QueuePair::transmit`] until nothing comes, look at
//! [`QueuePair::poll_timeout`], and ask the completion queues for events.
//! Packets that are already there come before expired timers, or else a process
//! that was not scheduled for a while takes its own delay for the network's.
//!
//! Every change of state goes through one function, `enter`. Whatever breaks the
//! queue pair ends there too: each request posted completes exactly once, the
//! one that failed with its reason, the others as flushed.
//!
//! What it does not do: find the queue pair a packet is for, check the ICRC, or
//! know addresses.

use std::collections::VecDeque;

use super::attr::{Modify, ModifyError, QpConfig, QpLinks};
use super::context::{Counters, Failure, Peer, QpContext};
use super::cq::Status;
use super::requester::{Requester, Sent};
use super::responder::Responder;
use super::state::QpState;
use super::wr::{PostError, RecvRequest, SendRequest};
use crate::sink::PacketSink;
use crate::time::Time;
use crate::wire::{NakCode, Packet, PacketKind};

/// Something the user of a queue pair may want to know (IBTA 11.6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QpEvent {
    /// A first packet came before the state was [`QpState::Rts`]: the peer takes
    /// the connection as established, even if its message was lost.
    Established,
    /// The send queue has drained, in state [`QpState::Sqd`].
    Drained,
    /// The queue pair broke; posted work is flushed.
    Failed(FailureCause),
}

/// Why a queue pair broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureCause {
    /// A send request failed.
    Request(Status),
    /// The peer sent a request that was refused, with this NAK.
    Refused(NakCode),
    /// A completion queue overflowed.
    Overrun,
}

/// What became of [`QueuePair::transmit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transmitted {
    /// Nothing more to send for now.
    All,
    /// The sink took no more; there may be more to send.
    Blocked,
}

/// A queue pair of a reliable connection.
#[derive(Debug)]
pub struct QueuePair {
    state: QpState,
    context: QpContext,
    requester: Requester,
    responder: Responder,
    events: VecDeque<QpEvent>,
    /// Whose turn it is to send.
    requester_first: bool,
}

/// Packets that one half sends before the other has a turn.
const TURN: u32 = 16;

impl QueuePair {
    /// A queue pair in state [`QpState::Reset`].
    #[must_use]
    pub fn new(config: QpConfig, links: QpLinks) -> Self {
        Self {
            state: QpState::Reset,
            requester: Requester::new(),
            responder: Responder::new(config.recv_wr as usize, config.recv_sge),
            context: QpContext {
                config,
                links,
                // Known from RTR on; until then nothing is sent.
                peer: Peer {
                    qpn: 0,
                    mtu: 256,
                    ours: false,
                },
                access: super::mr::Access::NONE,
                counters: Counters::default(),
            },
            events: VecDeque::new(),
            requester_first: false,
        }
    }

    /// Its number.
    #[must_use]
    pub fn qpn(&self) -> u32 {
        self.context.config.qpn
    }

    /// Its state.
    #[must_use]
    pub fn state(&self) -> QpState {
        self.state
    }

    /// What it was made with.
    #[must_use]
    pub fn config(&self) -> &QpConfig {
        &self.context.config
    }

    /// What it works with.
    #[must_use]
    pub fn links(&self) -> &QpLinks {
        &self.context.links
    }

    /// What it has counted.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.context.counters
    }

    /// Send requests that are not complete.
    #[must_use]
    pub fn sends_posted(&self) -> usize {
        self.requester.posted()
    }

    /// Receives in its own queue.
    #[must_use]
    pub fn receives_posted(&self) -> usize {
        self.responder.posted()
    }

    /// The oldest event not told yet.
    pub fn poll_event(&mut self) -> Option<QpEvent> {
        self.events.pop_front()
    }

    /// Changes the state.
    ///
    /// # Errors
    /// [`ModifyError`]: there is no such way, or an attribute is out of range.
    /// Nothing has changed then.
    pub fn modify(&mut self, change: &Modify) -> Result<(), ModifyError> {
        let (from, to) = (self.state, change.target());
        if !from.may_become(to) {
            return Err(ModifyError::Transition { from, to });
        }
        // RTS is reached from RTR with attributes and from elsewhere without.
        let wrong = match change {
            Modify::Rts(_) => from != QpState::Rtr,
            Modify::Resume => from == QpState::Rtr,
            _ => false,
        };
        if wrong {
            return Err(ModifyError::Transition { from, to });
        }
        change.check()?;
        match *change {
            Modify::Reset => {
                self.requester.reset();
                self.responder.reset();
                self.events.clear();
            }
            Modify::Init { access } => self.context.access = access,
            Modify::Rtr(attr) => {
                self.context.peer = Peer {
                    qpn: attr.dest_qpn,
                    mtu: attr.path_mtu.bytes(),
                    ours: attr.peer_is_ours,
                };
                self.responder.start(&self.context, &attr);
            }
            Modify::Rts(attr) => self.requester.start(&self.context, &attr),
            Modify::Sqd => self.requester.set_draining(true),
            Modify::Resume => self.requester.set_draining(false),
            Modify::Error => {
                self.enter(QpState::Error);
                self.flush(None);
                return Ok(());
            }
        }
        self.enter(to);
        self.note_drained();
        Ok(())
    }

    /// Posts a send request. In state [`QpState::Error`] it completes at once,
    /// flushed.
    ///
    /// # Errors
    /// [`PostError`]; nothing was posted.
    pub fn post_send(&mut self, request: &SendRequest<'_>) -> Result<(), PostError> {
        match self.state {
            QpState::Rts | QpState::Sqd => self.requester.post(&self.context, request),
            QpState::Error => {
                self.requester.post(&self.context, request)?;
                self.flush(None);
                Ok(())
            }
            state => Err(PostError::State(state)),
        }
    }

    /// Posts a receive to the queue pair's own queue. In state
    /// [`QpState::Error`] it completes at once, flushed.
    ///
    /// # Errors
    /// [`PostError`]; nothing was posted.
    pub fn post_receive(&mut self, request: &RecvRequest<'_>) -> Result<(), PostError> {
        if self.context.links.srq.is_some() {
            return Err(PostError::Shared);
        }
        if self.state == QpState::Reset {
            return Err(PostError::State(self.state));
        }
        let (context, queue) = (&self.context, self.responder.receives_mut());
        queue.post(&context.links.regions, context.config.pd, request)?;
        if self.state == QpState::Error {
            self.flush(None);
        }
        Ok(())
    }

    /// Asks the peer for a sign of life, unless something under way does so
    /// already: if none comes, the queue pair fails with
    /// [`Status::RetryExceeded`] like any request (but without a completion,
    /// where no request is posted). For connections that are idle.
    pub fn probe(&mut self) {
        if self.state == QpState::Rts {
            self.requester.probe();
        }
    }

    /// Takes a packet that was sent to this queue pair by its peer.
    pub fn handle_packet(&mut self, now: Time, packet: &Packet<'_>) {
        let result = match packet.bth.opcode.packet_kind() {
            PacketKind::Send | PacketKind::Write | PacketKind::ReadRequest => {
                self.handle_request(now, packet)
            }
            // Requests of atomics are refused there; responses answer nothing.
            PacketKind::Atomic if packet.aeth.is_none() => self.handle_request(now, packet),
            PacketKind::Atomic => {
                self.context.counters.stale_answers += 1;
                Ok(())
            }
            PacketKind::ReadResponse | PacketKind::Ack if !self.state.sends() => {
                self.context.counters.wrong_state += 1;
                Ok(())
            }
            PacketKind::ReadResponse => {
                self.requester
                    .handle_response(&mut self.context, now, packet)
            }
            PacketKind::Ack => self.requester.handle_ack(&mut self.context, now, packet),
            PacketKind::Datagram => {
                self.context.counters.wrong_opcode += 1;
                Ok(())
            }
        };
        self.settle(result);
        self.note_drained();
    }

    /// Sends what there is to send.
    pub fn transmit(&mut self, now: Time, sink: &mut impl PacketSink) -> Transmitted {
        loop {
            let mut sent = 0;
            for _ in 0..2 {
                self.requester_first = !self.requester_first;
                for _ in 0..TURN {
                    let result = if self.requester_first {
                        self.requester.transmit(&mut self.context, now, sink)
                    } else {
                        self.responder.transmit(&mut self.context, sink)
                    };
                    match self.settle(result) {
                        Some(Sent::One) => sent += 1,
                        Some(Sent::Full) => return Transmitted::Blocked,
                        Some(Sent::Nothing) => break,
                        // It broke; the peer is to hear of it.
                        None => {
                            sent += 1;
                            break;
                        }
                    }
                }
            }
            if sent == 0 {
                return Transmitted::All;
            }
        }
    }

    /// Whether all that [`QueuePair::transmit`] would send are acknowledgements.
    /// Those may wait a little for something that they can go along with.
    #[must_use]
    pub fn owes_only_acks(&mut self) -> bool {
        self.responder.owes_only_acks() && self.requester.is_quiet()
    }

    /// Whether what [`QueuePair::transmit`] would send may wait a little for more
    /// to go along with: the answer to what is under way brings the next occasion.
    #[must_use]
    pub fn gathers(&self) -> bool {
        self.state == QpState::Rts
            && self.responder.owes_no_more_than_acks()
            && self.requester.gathers()
    }

    /// When [`QueuePair::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        self.requester.poll_timeout()
    }

    /// Does what is due by `now`. Too early a call does nothing.
    pub fn handle_timeout(&mut self, now: Time) {
        let result = self.requester.handle_timeout(&mut self.context, now);
        self.settle(result);
    }

    fn handle_request(&mut self, now: Time, packet: &Packet<'_>) -> Result<(), Failure> {
        match self.state {
            QpState::Error => self.responder.handle_late(packet),
            state if state.receives() => {
                if state == QpState::Rtr && self.context.counters.requests_received == 0 {
                    self.note(QpEvent::Established);
                }
                return self
                    .responder
                    .handle_request(&mut self.context, now, packet);
            }
            _ => self.context.counters.wrong_state += 1,
        }
        Ok(())
    }

    /// Breaks the queue pair if `result` says so.
    fn settle<T>(&mut self, result: Result<T, Failure>) -> Option<T> {
        match result {
            Ok(done) => Some(done),
            Err(failure) => {
                self.fail(failure);
                None
            }
        }
    }

    fn fail(&mut self, failure: Failure) {
        if self.state == QpState::Error {
            return;
        }
        let (cause, request) = match failure {
            Failure::Request { wqe, status } => {
                (FailureCause::Request(status), Some((wqe, status)))
            }
            Failure::Responder(code) => (FailureCause::Refused(code), None),
            Failure::Overrun => (FailureCause::Overrun, None),
        };
        self.enter(QpState::Error);
        self.note(QpEvent::Failed(cause));
        self.flush(request);
    }

    /// Completes all posted work. An overrun changes nothing more: the
    /// completion queue itself reports it.
    fn flush(&mut self, failed: Option<(u32, Status)>) {
        let sends = self.requester.flush(&self.context, failed);
        let receives = self.responder.flush(&self.context);
        if (sends.is_err() || receives.is_err()) && self.events.is_empty() {
            self.note(QpEvent::Failed(FailureCause::Overrun));
        }
    }

    /// The one place where the state changes.
    fn enter(&mut self, to: QpState) {
        tracing::trace!(qpn = self.context.config.qpn, from = ?self.state, ?to, "queue pair");
        self.state = to;
    }

    fn note_drained(&mut self) {
        if self.state == QpState::Sqd && self.requester.take_drained() {
            self.note(QpEvent::Drained);
        }
    }

    fn note(&mut self, event: QpEvent) {
        // Each kind at most once until it is asked for.
        if !self.events.contains(&event) {
            self.events.push_back(event);
        }
    }
}
