//! The requester: the half of a queue pair that sends requests.
//!
//! What it does: cuts requests into packets of the path's size, keeps a window of
//! them under way, asks for acknowledgements where they are of use, repeats what
//! is lost, and completes requests in the order of posting, once each.
//!
//! How losses are repaired depends on the peer. Any responder says which packet
//! it misses and drops what follows (IBTA 9.7.5.1.2): all from there on is sent
//! again. A peer of our kind keeps what follows and says so: only what is
//! missing is sent again. A missing part of an RDMA READ's response is asked for
//! alone from a peer of our kind, and together with what follows from others,
//! without what comes after that READ. When nothing at all is heard, the measured round trip says
//! when to try again, not the coarse ACK timeout; the ACK timeout and the retry
//! count together say when to give up.
//!
//! A long RDMA READ goes out as several requests, so that the responses under
//! way fit the window and with it the receive buffers.
//!
//! What it does not do: end-to-end credits (every AETH says "none"), atomics.

mod answer;
mod pace;
mod queue;
#[cfg(test)]
mod tests;
mod transmit;
mod window;

pub(crate) use self::transmit::Sent;
use std::collections::VecDeque;

use self::pace::{Congestion, RoundTrip, Timers, expired};
use self::queue::{SendQueue, Source, Wqe};
use self::window::Window;
use super::attr::{RtsAttr, SendWindow};
use super::context::{Failure, QpContext};
use super::cq::{Completion, Overrun, Status, WorkKind};
use super::mr::Access;
use super::psn::{self, Seq};
use super::wr::{MAX_MESSAGE, Payload, Pieces, PostError, Remote, SendOp, SendRequest};
use crate::time::Time;

/// So many requests, or bytes, are worth a datagram.
const GATHER_REQUESTS: usize = 16;
const GATHER_BYTES: u32 = 16 << 10;

/// The requester of one queue pair.
#[derive(Debug)]
pub(crate) struct Requester {
    queue: SendQueue,
    /// There once the queue pair is ready to send.
    active: Option<Active>,
}

/// What there is from RTS on.
#[derive(Debug)]
struct Active {
    /// Whether the peer keeps what follows a gap.
    selective: bool,
    limits: SendWindow,
    window: Window,
    congestion: Congestion,
    trip: RoundTrip,
    timers: Timers,
    /// How long silence lasts until the connection is given up.
    patience: u64,
    last_heard: Time,
    /// A packet whose answer measures the round trip, and when it was sent.
    timed: Option<(Seq, Time)>,
    /// Packets since one asked for an acknowledgement.
    unasked: u32,
    /// Ends of the RDMA READ requests under way.
    reads: VecDeque<Seq>,
    depth: usize,
    /// Longest RDMA READ request in packets.
    read_chunk: u32,
    /// End of the last RDMA READ begun, for fences.
    last_read: Seq,
    /// Losses below this belong to a round trip that was slowed down already.
    slowed_until: Seq,
    /// The packet that was last asked for by an ordinary NAK, and when.
    last_nak: Option<(Seq, Time)>,
    /// The packet for which no receive was posted, and the retries left.
    rnr: Option<(Seq, u8)>,
    rnr_retry: u8,
    /// Nothing new is begun.
    draining: bool,
    /// That all begun is complete was told.
    drained: bool,
}

impl Requester {
    pub(crate) fn new() -> Self {
        Self {
            queue: SendQueue::new(),
            active: None,
        }
    }

    /// Ready to send.
    pub(crate) fn start(&mut self, context: &QpContext, attr: &RtsAttr) {
        let ours = context.peer.ours;
        let default = if ours {
            SendWindow::OURS
        } else {
            SendWindow::OTHERS
        };
        let limits = attr.window.unwrap_or(default);
        // IBTA 9.7.6.1.3.
        let timeout = 4096 << attr.timeout;
        let depth = usize::from(attr.initiator_depth);
        let first = psn::start(attr.sq_psn);
        self.active = Some(Active {
            selective: ours,
            limits,
            window: Window::new(first),
            congestion: Congestion::new(limits.packets),
            trip: RoundTrip::new(timeout, attr.on_host),
            timers: Timers::default(),
            patience: timeout * (u64::from(attr.retry_count) + 1),
            last_heard: Time::ZERO,
            timed: None,
            unasked: 0,
            reads: VecDeque::with_capacity(depth),
            depth,
            // So many that the pipe stays full while the next is asked for.
            read_chunk: (limits.packets / depth.clamp(1, 4) as u32).max(1),
            last_read: first,
            slowed_until: first,
            last_nak: None,
            rnr: None,
            rnr_retry: attr.rnr_retry,
            draining: false,
            drained: false,
        });
    }

    /// Stops beginning requests, or goes on.
    pub(crate) fn set_draining(&mut self, draining: bool) {
        if let Some(active) = &mut self.active {
            active.draining = draining;
            active.drained = false;
        }
    }

    /// Whether everything begun is complete, the first time that it is asked
    /// after draining began.
    pub(crate) fn take_drained(&mut self) -> bool {
        let begun = self.queue.front().is_some_and(|wqe| wqe.sent > 0);
        match &mut self.active {
            Some(active) if active.draining && !begun => {
                !std::mem::replace(&mut active.drained, true)
            }
            _ => false,
        }
    }

    /// Requests in the queue.
    pub(crate) fn posted(&self) -> usize {
        self.queue.len()
    }

    pub(crate) fn post(
        &mut self,
        context: &QpContext,
        request: &SendRequest<'_>,
    ) -> Result<(), PostError> {
        let config = &context.config;
        if self.queue.len() >= config.send_wr as usize {
            return Err(PostError::QueueFull);
        }
        let is_read = matches!(request.op, SendOp::Read(_));
        let (source, len) = match request.payload {
            Payload::Inline(_) if is_read => return Err(PostError::InlineRead),
            Payload::Inline(data) => match u32::try_from(data.len()) {
                Ok(len) if data.len() <= config.inline && len <= MAX_MESSAGE => {
                    (self.queue.keep_inline(data), len)
                }
                _ => return Err(PostError::InlineTooLong(data.len())),
            },
            Payload::Sges(sges) => {
                let right = if is_read {
                    Access::LOCAL_WRITE
                } else {
                    Access::NONE
                };
                let table = &context.links.regions;
                let pieces = Pieces::resolve(table, config.pd, sges, config.send_sge, right)?;
                let len = pieces.len();
                (Source::Pieces(pieces), len)
            }
        };
        self.queue.push(Wqe {
            wr_id: request.wr_id,
            op: request.op,
            source,
            len,
            signaled: request.signaled,
            fence: request.fence,
            solicited: request.solicited,
            internal: false,
            first: 0,
            packets: psn::packets(len, context.peer.mtu),
            sent: 0,
        });
        Ok(())
    }

    /// Asks the peer for a sign of life, if nothing is under way that does: an
    /// RDMA WRITE of no bytes, which touches no memory and needs no key
    /// (IBTA 9.7.4.1.1). Says whether it was queued.
    pub(crate) fn probe(&mut self) -> bool {
        let idle = self.queue.len() == 0 && self.active.is_some();
        if idle {
            self.queue.push(Wqe {
                wr_id: 0,
                op: SendOp::Write(Remote { va: 0, rkey: 0 }),
                source: Source::Pieces(Pieces::default()),
                len: 0,
                signaled: false,
                fence: false,
                solicited: false,
                internal: true,
                first: 0,
                packets: 1,
                sent: 0,
            });
        }
        idle
    }

    /// Whether what is to be sent may wait for more to go along with: something
    /// under way will be answered, and what waits is little.
    pub(crate) fn gathers(&self) -> bool {
        let Some(active) = &self.active else {
            return false;
        };
        // The last packet that went out asked for an answer.
        active.window.in_flight() > 0
            && active.unasked == 0
            && !active.window.has_lost()
            && active.timers.rnr.is_none()
            && self.queue.is_little(GATHER_REQUESTS, GATHER_BYTES)
    }

    pub(crate) fn poll_timeout(&self) -> Option<Time> {
        self.active.as_ref()?.timers.next()
    }

    pub(crate) fn handle_timeout(
        &mut self,
        context: &mut QpContext,
        now: Time,
    ) -> Result<(), Failure> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        if expired(&mut active.timers.rnr, now) {
            active.retry_not_ready(now);
        }
        if expired(&mut active.timers.reorder, now) {
            active.find_losses(now, true);
        }
        if expired(&mut active.timers.retransmit, now) && !active.window.is_empty() {
            if now.nanos_since(active.last_heard) >= active.patience {
                return Err(Failure::Request {
                    wqe: active.window.wqe(active.window.una()),
                    status: Status::RetryExceeded,
                });
            }
            context.counters.timeouts += 1;
            active.window.time_out();
            active.congestion.timed_out();
            active.slowed_until = active.window.next();
            active.timed = None;
            active.trip.back_off();
            active.arm_retransmit(now);
        }
        Ok(())
    }

    /// Completes everything that is left: `failed` with its status, the others
    /// as flushed.
    pub(crate) fn flush(
        &mut self,
        context: &QpContext,
        failed: Option<(u32, Status)>,
    ) -> Result<(), Overrun> {
        self.active = None;
        let mut result = Ok(());
        loop {
            let number = self.queue.base();
            let Some(wqe) = self.queue.pop() else {
                break result;
            };
            let status = match failed {
                Some((at, status)) if at == number => status,
                _ => Status::WrFlush,
            };
            if !wqe.internal {
                result = result.and(context.complete_send(completion(&wqe, status)));
            }
        }
    }

    /// Forgets everything.
    pub(crate) fn reset(&mut self) {
        self.queue.clear();
        self.active = None;
    }
}

impl Active {
    /// Something was heard, or the first packet after a silence goes out.
    fn heard(&mut self, now: Time) {
        self.last_heard = now;
        self.trip.heard();
    }

    fn arm_retransmit(&mut self, now: Time) {
        let wait = self.trip.retransmit_after();
        let end = self.last_heard.plus_nanos(self.patience);
        // Not past the end of patience, yet always ahead.
        self.timers.retransmit = Some(now.plus_nanos(wait).min(end).max(now.plus_nanos(1)));
    }

    /// Marks what is lost and slows down for it.
    fn find_losses(&mut self, now: Time, force: bool) {
        let (found, suspected) = self.window.detect(force);
        if found > 0 {
            self.slow_down(found);
        }
        if !suspected {
            self.timers.reorder = None;
        } else if self.timers.reorder.is_none() {
            self.timers.reorder = Some(now.plus_nanos(self.trip.reorder_after()));
        }
    }

    fn slow_down(&mut self, lost: u32) {
        if self.selective {
            self.congestion.lost(lost);
        } else if self.window.una() >= self.slowed_until {
            // Once for all losses of one round trip.
            self.congestion.went_back();
            self.slowed_until = self.window.next();
        }
    }

    /// The wait for a receive is over.
    fn retry_not_ready(&mut self, now: Time) {
        let Some((seq, _)) = self.rnr else {
            return;
        };
        if self.selective {
            self.window.lose(seq);
        } else {
            self.window.go_back(seq);
        }
        self.arm_retransmit(now);
    }
}

fn completion(wqe: &Wqe, status: Status) -> Completion {
    let kind = match wqe.op {
        SendOp::Send | SendOp::SendImm(_) | SendOp::SendInvalidate(_) => WorkKind::Send,
        SendOp::Write(_) | SendOp::WriteImm(..) => WorkKind::Write,
        SendOp::Read(_) => WorkKind::Read,
    };
    Completion {
        wr_id: wqe.wr_id,
        status,
        kind,
        byte_len: wqe.len,
        ..Completion::default()
    }
}
