//! Queue pairs with a way to their peer.
//!
//! What it does: posts, and sends at once what posting made ready; moves queue
//! pairs when the CM says so.
//! What it does not do: the protocol (`rc`).

use std::cell::RefCell;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::config::{MAX_INLINE, MAX_WR};
use super::cq::{CompletionQueue, CqShared};
use super::inner::{Inner, lock};
use super::timers::NEVER;
use crate::driver::batch::{Batch, TxBuffer};
use crate::driver::bundle::Bundle;
use crate::driver::port::Port;
use crate::rc::{
    self, Access, FailureCause, MAX_SGE, Modify, ModifyError, Pd, PostError, QpConfig, QpEvent,
    QpLinks, QpState, RecvRequest, SendRequest, SharedReceiveQueue, Status,
};
use crate::time::Time;
use crate::wire::{FlowCrc, MAX_24};

thread_local! {
    /// What a thread sends from.
    static TX: RefCell<TxBuffer> = RefCell::default();
}

/// What a queue pair is made of.
#[derive(Clone, Copy, Debug)]
pub struct QpInit<'a> {
    /// Its protection domain.
    pub pd: Pd,
    /// Where completed sends go.
    pub send_cq: &'a CompletionQueue,
    /// Where completed receives go.
    pub recv_cq: &'a CompletionQueue,
    /// Where receives come from, if not from a queue of its own.
    pub srq: Option<&'a Arc<SharedReceiveQueue>>,
    /// Requests that the send queue holds.
    pub send_wr: u32,
    /// Requests that the receive queue holds.
    pub recv_wr: u32,
    /// Pieces of a send request.
    pub send_sge: usize,
    /// Pieces of a receive.
    pub recv_sge: usize,
    /// Inline bytes of a send request.
    pub inline: usize,
    /// What the peer may do with regions that allow it.
    pub access: Access,
}

/// Why there is no queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QpError {
    /// As many queue pairs as there may be.
    #[error("no room for more than {0} queue pairs")]
    Full(usize),
    /// More than the device's limit.
    #[error("{name} is more than {limit}")]
    Limit {
        /// Of what.
        name: &'static str,
        /// How much there may be.
        limit: usize,
    },
}

/// A queue pair as the endpoint sees it.
#[derive(Debug)]
pub(super) struct QpShared {
    qpn: u32,
    cell: Mutex<Cell>,
    /// The moment for which the table of timers has an entry; changed under the
    /// cell's lock.
    timer: AtomicU64,
    /// The connection that counts as established when the first packet comes;
    /// 0: none.
    awaiting: AtomicU32,
    /// Whether acknowledgements were put off and not sent since.
    put_off: AtomicBool,
    /// Whether packets of the peer need no ICRC.
    trusts: AtomicBool,
    /// The connection it belongs to, if any.
    pub(super) conn: AtomicU32,
    send_cq: Arc<CqShared>,
    recv_cq: Arc<CqShared>,
    pub(super) has_srq: bool,
}

#[derive(Debug)]
struct Cell {
    qp: rc::QueuePair,
    link: Option<Link>,
    /// When the peer was last heard, for the keepalive.
    heard: Time,
}

/// The way to the peer.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) port: Arc<Port>,
    pub(super) to: SocketAddr,
    /// Whether the peer is of this crate: then its packets come from `to`
    /// exactly, and were numbered by segment.
    pub(super) ours: bool,
    pub(super) crc: FlowCrc,
    /// Whether the peer is an endpoint of this crate on this host with which
    /// bundles are agreed on.
    pub(super) trusted: bool,
}

/// Segments of one call, and with it the identifications that occur.
const MAX_IDENT: u16 = 128;

impl Link {
    /// Whether a packet can have come from the peer.
    fn is_from(&self, from: SocketAddr, ident: u16) -> bool {
        if self.ours {
            from == self.to && (from.is_ipv6() || ident < MAX_IDENT)
        } else {
            same_ip(from.ip(), self.to.ip())
        }
    }
}

fn same_ip(a: IpAddr, b: IpAddr) -> bool {
    a == b || a.to_canonical() == b.to_canonical()
}

/// A queue pair. When it is dropped its number is free, and packets for it are
/// dropped; work that is posted does not complete any more.
pub struct QueuePair {
    pub(super) shared: Arc<QpShared>,
    inner: Arc<Inner>,
}

impl fmt::Debug for QueuePair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueuePair")
            .field("qpn", &self.shared.qpn)
            .finish_non_exhaustive()
    }
}

impl QueuePair {
    pub(super) fn new(inner: &Arc<Inner>, init: &QpInit<'_>) -> Result<Self, QpError> {
        let most = MAX_WR as usize;
        for (name, value, limit) in [
            ("send_wr", init.send_wr as usize, most),
            ("recv_wr", init.recv_wr as usize, most),
            ("send_sge", init.send_sge, MAX_SGE),
            ("recv_sge", init.recv_sge, MAX_SGE),
            ("inline", init.inline, MAX_INLINE),
        ] {
            if value > limit {
                return Err(QpError::Limit { name, limit });
            }
        }
        if inner.qp_count() >= inner.config.max_qp {
            return Err(QpError::Full(inner.config.max_qp));
        }
        loop {
            let qpn = inner.keys.next_u32() & MAX_24;
            // 0 and 1 are the management queue pairs, all ones is multicast.
            if !(2..MAX_24).contains(&qpn) {
                continue;
            }
            let shared = Arc::new(Self::shared(inner, init, qpn));
            if inner.insert_qp(qpn, shared.clone()) {
                return Ok(Self {
                    shared,
                    inner: inner.clone(),
                });
            }
        }
    }

    fn shared(inner: &Arc<Inner>, init: &QpInit<'_>, qpn: u32) -> QpShared {
        let config = QpConfig {
            qpn,
            pd: init.pd,
            send_wr: init.send_wr,
            recv_wr: init.recv_wr,
            send_sge: init.send_sge,
            recv_sge: init.recv_sge,
            inline: init.inline,
        };
        let links = QpLinks {
            regions: inner.regions.clone(),
            send_cq: init.send_cq.shared.ring.clone(),
            recv_cq: init.recv_cq.shared.ring.clone(),
            srq: init.srq.cloned(),
            reorder: inner.reorder.clone(),
        };
        let mut qp = rc::QueuePair::new(config, links);
        let access = init.access;
        // The way from RESET to INIT is always open.
        let _ = qp.modify(&Modify::Init { access });
        QpShared {
            qpn,
            cell: Mutex::new(Cell {
                qp,
                link: None,
                heard: Time::ZERO,
            }),
            timer: AtomicU64::new(NEVER),
            awaiting: AtomicU32::new(0),
            put_off: AtomicBool::new(false),
            trusts: AtomicBool::new(false),
            conn: AtomicU32::new(0),
            send_cq: init.send_cq.shared.clone(),
            recv_cq: init.recv_cq.shared.clone(),
            has_srq: init.srq.is_some(),
        }
    }

    /// Its number.
    #[must_use]
    pub fn qpn(&self) -> u32 {
        self.shared.qpn
    }

    /// Its state.
    #[must_use]
    pub fn state(&self) -> QpState {
        lock(&self.shared.cell).qp.state()
    }

    /// What it has counted.
    #[must_use]
    pub fn counters(&self) -> rc::Counters {
        self.shared.counters()
    }

    /// Posts a send request and sends what the window allows.
    ///
    /// # Errors
    /// [`PostError`]; nothing was posted.
    pub fn post_send(&self, request: &SendRequest<'_>) -> Result<(), PostError> {
        self.shared
            .drive(&self.inner, |qp, _| qp.post_send(request))
    }

    /// Posts several send requests, then sends. On an error those before the
    /// failed one are posted; the error says how many.
    ///
    /// # Errors
    /// The first [`PostError`], and how many requests were posted before it.
    pub fn post_sends(&self, requests: &[SendRequest<'_>]) -> Result<(), (usize, PostError)> {
        self.shared.drive(&self.inner, |qp, _| {
            for (done, request) in requests.iter().enumerate() {
                qp.post_send(request).map_err(|why| (done, why))?;
            }
            Ok(())
        })
    }

    /// Posts a receive to the queue pair's own queue.
    ///
    /// # Errors
    /// [`PostError`]; nothing was posted.
    pub fn post_receive(&self, request: &RecvRequest<'_>) -> Result<(), PostError> {
        let mut cell = lock(&self.shared.cell);
        let result = cell.qp.post_receive(request);
        let broken = cell.qp.state() == QpState::Error;
        drop(cell);
        if broken {
            self.shared.notify();
        }
        result
    }

    /// Does what dropping it does, now: afterwards no memory of posted work is
    /// touched any more. May be called again.
    pub fn destroy(&self) {
        // An acknowledgement that it owes keeps it alive.
        self.inner.send_put_off();
        self.inner.remove_qp(self.shared.qpn, &self.shared);
        let mut cell = lock(&self.shared.cell);
        // Frees what is posted, and with it the memory it refers to.
        let _ = cell.qp.modify(&Modify::Reset);
        cell.link = None;
    }

    /// Breaks the queue pair off: posted work completes as flushed.
    pub fn set_error(&self) {
        // There is a way from every state.
        let _ = self.shared.modify(&self.inner, &Modify::Error);
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        self.destroy();
    }
}

impl QpShared {
    pub(super) fn qpn(&self) -> u32 {
        self.qpn
    }

    pub(super) fn counters(&self) -> rc::Counters {
        *lock(&self.cell).qp.counters()
    }

    /// Runs the engine: `work`, then whatever it wants sent, told and timed.
    pub(super) fn drive<R>(
        &self,
        inner: &Inner,
        work: impl FnOnce(&mut rc::QueuePair, Time) -> R,
    ) -> R {
        let now = inner.now();
        let mut cell = lock(&self.cell);
        let result = work(&mut cell.qp, now);
        self.put_off.store(false, Ordering::Relaxed);
        cell.send(now);
        self.finish(inner, cell);
        result
    }

    /// After packets of the peer: sends what is due, unless that is only
    /// acknowledgements. Returns whether those were put off just now.
    pub(super) fn answer(&self, inner: &Inner, now: Time) -> bool {
        let mut cell = lock(&self.cell);
        if cell.qp.owes_only_acks() {
            let first = !self.put_off.swap(true, Ordering::Relaxed);
            self.finish(inner, cell);
            return first;
        }
        self.put_off.store(false, Ordering::Relaxed);
        cell.send(now);
        self.finish(inner, cell);
        false
    }

    /// Sends acknowledgements that were put off, unless they went along with
    /// something meanwhile.
    pub(super) fn drive_if_put_off(&self, inner: &Inner) {
        if self.put_off.load(Ordering::Relaxed) {
            self.drive(inner, |_, _| ());
        }
    }

    /// Whether packets of the peer need no ICRC.
    pub(super) fn trusts(&self) -> bool {
        self.trusts.load(Ordering::Relaxed)
    }

    /// Gives packets to the engine, without sending. Whoever calls this calls
    /// [`QpShared::drive`] afterwards. False: not from the peer.
    pub(super) fn take(
        &self,
        now: Time,
        from: SocketAddr,
        ident: u16,
        packet: &crate::wire::Packet<'_>,
    ) -> bool {
        let mut cell = lock(&self.cell);
        match &cell.link {
            Some(link) if link.is_from(from, ident) => {}
            _ => return false,
        }
        cell.heard = now;
        cell.qp.handle_packet(now, packet);
        true
    }

    pub(super) fn modify(&self, inner: &Inner, change: &Modify) -> Result<(), ModifyError> {
        self.drive(inner, |qp, _| qp.modify(change))
    }

    /// Sets the way to the peer, before the queue pair may receive.
    pub(super) fn set_link(&self, link: Link, now: Time) {
        let mut cell = lock(&self.cell);
        self.trusts.store(link.trusted, Ordering::Relaxed);
        cell.link = Some(link);
        cell.heard = now;
    }

    /// Has the first packet of the peer count as its RTU.
    pub(super) fn set_awaiting(&self, conn: u32) {
        self.awaiting.store(conn, Ordering::Release);
    }

    /// The connection of which the peer has just shown that it has the reply.
    pub(super) fn take_awaiting(&self) -> Option<u32> {
        if self.awaiting.load(Ordering::Acquire) == 0 {
            return None;
        }
        let heard = lock(&self.cell).qp.counters().requests_received > 0;
        let conn = if heard {
            self.awaiting.swap(0, Ordering::AcqRel)
        } else {
            0
        };
        (conn != 0).then_some(conn)
    }

    /// Fires the timer that was set for `at`.
    pub(super) fn expire(&self, inner: &Inner, at: u64) {
        let now = inner.now();
        let mut cell = lock(&self.cell);
        // Otherwise a newer entry has taken the place of this one.
        if self.timer.load(Ordering::Relaxed) != at {
            return;
        }
        self.timer.store(NEVER, Ordering::Relaxed);
        cell.qp.handle_timeout(now);
        if cell.keepalive_at(inner) <= now.nanos() {
            cell.heard = now;
            cell.qp.probe();
        }
        cell.send(now);
        self.finish(inner, cell);
    }

    /// Tells the channels of both queues.
    pub(super) fn notify(&self) {
        self.send_cq.notify();
        if !Arc::ptr_eq(&self.send_cq, &self.recv_cq) {
            self.recv_cq.notify();
        }
    }

    /// After the engine ran: timers, events, channels.
    fn finish(&self, inner: &Inner, mut cell: std::sync::MutexGuard<'_, Cell>) {
        let deadline = cell.qp.poll_timeout().map_or(NEVER, Time::nanos);
        let deadline = deadline.min(cell.keepalive_at(inner));
        if deadline < self.timer.load(Ordering::Relaxed) {
            self.timer.store(deadline, Ordering::Relaxed);
            if inner.timers.add(deadline, self.qpn) {
                inner.thread_by(deadline);
            }
        }
        let mut dead = false;
        while let Some(event) = cell.qp.poll_event() {
            if let QpEvent::Failed(cause) = event {
                tracing::debug!(qpn = self.qpn, ?cause, "queue pair failed");
                dead |= cause == FailureCause::Request(Status::RetryExceeded);
            }
        }
        drop(cell);
        self.notify();
        if dead {
            inner.note_dead(self.conn.load(Ordering::Acquire));
        }
    }
}

impl Cell {
    /// When to ask the peer for a sign of life.
    fn keepalive_at(&self, inner: &Inner) -> u64 {
        match inner.config.keepalive {
            Some(silence) if self.qp.state() == QpState::Rts => (self.heard + silence).nanos(),
            _ => NEVER,
        }
    }

    fn send(&mut self, now: Time) {
        let Some(link) = &self.link else {
            return;
        };
        // Neither sink blocks: whatever the engine has to send is taken.
        TX.with_borrow_mut(|buffer| {
            if link.trusted {
                let mut bundle = Bundle::new(&link.port, link.to, buffer);
                self.qp.transmit(now, &mut bundle);
            } else {
                let mut batch = Batch::new(&link.port, link.to, &link.crc, buffer);
                self.qp.transmit(now, &mut batch);
            }
        });
    }
}
