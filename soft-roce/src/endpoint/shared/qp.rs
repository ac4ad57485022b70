//! A queue pair with a way to its peer, as the endpoint sees it.
//!
//! What it does: runs the engine under the queue pair's lock, and after each run
//! sends what is due, sets the timer and tells the channels.
//! What it does not do: the protocol (`rc`).

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use san_base::lock;

use super::cq::CqShared;
use super::schedule::{NEVER, Schedule};
use crate::driver::batch::{Batch, TxBuffer};
use crate::driver::bundle::Bundle;
use crate::driver::port::Port;
use crate::rc::{
    self, FailureCause, Modify, ModifyError, PostError, QpEvent, QpState, RecvRequest, Status,
};
use crate::time::Time;
use crate::wire::FlowCrc;

thread_local! {
    /// What a thread sends from.
    static TX: RefCell<TxBuffer> = RefCell::default();
}

/// A queue pair as the endpoint sees it.
#[derive(Debug)]
pub(crate) struct QpShared {
    qpn: u32,
    cell: Mutex<Cell>,
    /// The moment for which the table of timers has an entry; changed under the
    /// cell's lock.
    timer: AtomicU64,
    /// The connection that counts as established when the first packet comes;
    /// 0: none.
    awaiting: AtomicU32,
    /// The number under which something to send was put off, 0 if it has been sent
    /// since; changed under the cell's lock.
    put_off: AtomicU32,
    /// Whether packets of the peer need no ICRC.
    trusts: AtomicBool,
    /// The connection it belongs to, if any.
    pub(crate) conn: AtomicU32,
    send_cq: Arc<CqShared>,
    recv_cq: Arc<CqShared>,
    pub(crate) has_srq: bool,
}

#[derive(Debug)]
struct Cell {
    qp: rc::QueuePair,
    link: Option<Link>,
    /// When the peer was last heard, for the keepalive.
    heard: Time,
    /// How often something was put off. The last number it was put off under.
    put_offs: u32,
}

/// The way to the peer.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) port: Arc<Port>,
    pub(crate) to: SocketAddr,
    /// Whether the peer is of this crate: then its packets come from `to`
    /// exactly, and were numbered by segment.
    pub(crate) ours: bool,
    pub(crate) crc: FlowCrc,
    /// Whether the peer is an endpoint of this crate on this host with which
    /// bundles are agreed on.
    pub(crate) trusted: bool,
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

impl QpShared {
    pub(crate) fn new(
        qp: rc::QueuePair,
        send_cq: Arc<CqShared>,
        recv_cq: Arc<CqShared>,
        has_srq: bool,
    ) -> Self {
        Self {
            qpn: qp.qpn(),
            cell: Mutex::new(Cell {
                qp,
                link: None,
                heard: Time::ZERO,
                put_offs: 0,
            }),
            timer: AtomicU64::new(NEVER),
            awaiting: AtomicU32::new(0),
            put_off: AtomicU32::new(0),
            trusts: AtomicBool::new(false),
            conn: AtomicU32::new(0),
            send_cq,
            recv_cq,
            has_srq,
        }
    }

    pub(crate) fn qpn(&self) -> u32 {
        self.qpn
    }

    pub(crate) fn counters(&self) -> rc::Counters {
        *lock(&self.cell).qp.counters()
    }

    pub(crate) fn state(&self) -> QpState {
        lock(&self.cell).qp.state()
    }

    /// Posts a receive to the queue pair's own queue.
    pub(crate) fn post_receive(&self, request: &RecvRequest<'_>) -> Result<(), PostError> {
        let mut cell = lock(&self.cell);
        let result = cell.qp.post_receive(request);
        let broken = cell.qp.state() == QpState::Error;
        drop(cell);
        if broken {
            self.notify();
        }
        result
    }

    /// Frees what is posted, and with it the memory it refers to.
    pub(crate) fn reset(&self) {
        let mut cell = lock(&self.cell);
        // The way to RESET is always open.
        let _ = cell.qp.modify(&Modify::Reset);
        cell.link = None;
    }

    /// Runs the engine: `work`, then whatever it wants sent, told and timed.
    pub(crate) fn drive<R>(
        &self,
        schedule: &Schedule,
        work: impl FnOnce(&mut rc::QueuePair, Time) -> R,
    ) -> R {
        let now = schedule.now();
        let mut cell = lock(&self.cell);
        let result = work(&mut cell.qp, now);
        self.put_off.store(0, Ordering::Relaxed);
        cell.send(now);
        self.finish(schedule, cell);
        result
    }

    /// Posts send requests: `work`. Sends what the window allows, unless `gathers`
    /// and it may wait for more to go along with. Returns the number under which
    /// that was put off just now.
    pub(crate) fn post<R>(
        &self,
        schedule: &Schedule,
        gathers: bool,
        work: impl FnOnce(&mut rc::QueuePair) -> R,
    ) -> (R, Option<u32>) {
        let now = schedule.now();
        let mut cell = lock(&self.cell);
        let result = work(&mut cell.qp);
        if gathers && cell.gathers() {
            let first = self.note_put_off(&mut cell);
            self.finish(schedule, cell);
            return (result, first);
        }
        self.put_off.store(0, Ordering::Relaxed);
        cell.send(now);
        self.finish(schedule, cell);
        (result, None)
    }

    /// After packets of the peer: sends what is due, unless that is only
    /// acknowledgements. Returns the number under which those were put off just now.
    pub(crate) fn answer(&self, schedule: &Schedule, now: Time) -> Option<u32> {
        let mut cell = lock(&self.cell);
        if cell.qp.owes_only_acks() {
            let first = self.note_put_off(&mut cell);
            self.finish(schedule, cell);
            return first;
        }
        self.put_off.store(0, Ordering::Relaxed);
        cell.send(now);
        self.finish(schedule, cell);
        None
    }

    /// A number, if nothing is put off yet.
    fn note_put_off(&self, cell: &mut Cell) -> Option<u32> {
        if self.put_off.load(Ordering::Relaxed) != 0 {
            return None;
        }
        cell.put_offs = cell.put_offs.wrapping_add(1).max(1);
        self.put_off.store(cell.put_offs, Ordering::Relaxed);
        Some(cell.put_offs)
    }

    /// Sends what was put off under a number, unless it went along with something
    /// meanwhile.
    pub(crate) fn send_put_off(&self, schedule: &Schedule, number: u32) {
        if self.put_off.load(Ordering::Relaxed) == number {
            self.drive(schedule, |_, _| ());
        }
    }

    /// Sends what was put off, if anything was.
    pub(crate) fn catch_up(&self, schedule: &Schedule) {
        if self.put_off.load(Ordering::Relaxed) != 0 {
            self.drive(schedule, |_, _| ());
        }
    }

    /// Whether packets of the peer need no ICRC.
    pub(crate) fn trusts(&self) -> bool {
        self.trusts.load(Ordering::Relaxed)
    }

    /// Gives packets to the engine, without sending. Whoever calls this calls
    /// [`QpShared::drive`] afterwards. False: not from the peer.
    pub(crate) fn take(
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

    pub(crate) fn modify(&self, schedule: &Schedule, change: &Modify) -> Result<(), ModifyError> {
        self.drive(schedule, |qp, _| qp.modify(change))
    }

    /// Sets the way to the peer, before the queue pair may receive.
    pub(crate) fn set_link(&self, link: Link, now: Time) {
        let mut cell = lock(&self.cell);
        self.trusts.store(link.trusted, Ordering::Relaxed);
        if !link.trusted {
            link.port.expect_runs();
        }
        cell.link = Some(link);
        cell.heard = now;
    }

    /// Has the first packet of the peer count as its RTU.
    pub(crate) fn set_awaiting(&self, conn: u32) {
        self.awaiting.store(conn, Ordering::Release);
    }

    /// The connection of which the peer has just shown that it has the reply.
    pub(crate) fn take_awaiting(&self) -> Option<u32> {
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
    pub(crate) fn expire(&self, schedule: &Schedule, at: u64) {
        let now = schedule.now();
        let mut cell = lock(&self.cell);
        // Otherwise a newer entry has taken the place of this one.
        if self.timer.load(Ordering::Relaxed) != at {
            return;
        }
        self.timer.store(NEVER, Ordering::Relaxed);
        cell.qp.handle_timeout(now);
        if cell.keepalive_at(schedule) <= now.nanos() {
            cell.heard = now;
            cell.qp.probe();
        }
        cell.send(now);
        self.finish(schedule, cell);
    }

    /// Tells the channels of both queues.
    pub(crate) fn notify(&self) {
        self.send_cq.notify();
        if !Arc::ptr_eq(&self.send_cq, &self.recv_cq) {
            self.recv_cq.notify();
        }
    }

    /// After the engine ran: timers, events, channels.
    fn finish(&self, schedule: &Schedule, mut cell: std::sync::MutexGuard<'_, Cell>) {
        let deadline = cell.qp.poll_timeout().map_or(NEVER, Time::nanos);
        let deadline = deadline.min(cell.keepalive_at(schedule));
        if deadline < self.timer.load(Ordering::Relaxed) {
            self.timer.store(deadline, Ordering::Relaxed);
            if schedule.timers.add(deadline, self.qpn) {
                schedule.thread_by(deadline);
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
            schedule.note_dead(self.conn.load(Ordering::Acquire));
        }
    }
}

impl Cell {
    /// When to ask the peer for a sign of life.
    fn keepalive_at(&self, schedule: &Schedule) -> u64 {
        match schedule.keepalive {
            Some(silence) if self.qp.state() == QpState::Rts => (self.heard + silence).nanos(),
            _ => NEVER,
        }
    }

    /// Whether what is to be sent may wait for more.
    fn gathers(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.ours) && self.qp.gathers()
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
