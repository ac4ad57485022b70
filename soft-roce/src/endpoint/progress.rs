//! What comes in, and what time brings.
//!
//! What it does: reads sockets, finds the queue pair or the CM for each packet,
//! then lets each engine that was touched send once: so many packets cost one
//! acknowledgement. Fires timers.
//! What it does not do: decide who calls it.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, TryLockError};

use san_base::lock;

use super::device::Device;
use super::shared::qp::QpShared;
use crate::cm::{ConnKey, Path};
use crate::driver::counters::count;
use crate::driver::port::Port;
use crate::driver::receive::{Inbound, Receiver};
use crate::time::Time;
use crate::wire::deth::{GSI_QKEY, GSI_QPN};
use crate::wire::{Bth, Packet};

/// While a user spins, one poll in so many looks for timers that are due: that costs a reading of the clock.
const TIMERS_EVERY: u64 = 8;

/// Queue pairs that are remembered until all packets of a read are in.
const TOUCHED: usize = 8;

/// The membership bit does not count (IBTA 10.9.3).
const PKEY_MASK: u16 = 0x7fff;

/// How many datagrams a reader asks for at least that goes on to the last one: so it mostly knows which that is.
const TO_THE_END: usize = 2;

/// What a look at the sockets came to.
#[derive(Clone, Copy, Debug, Default)]
struct Come {
    datagrams: usize,
    /// Whether more may be there.
    more: bool,
    /// When the last were read, if there were any.
    at: Time,
}

/// One read's worth of packets on its way to the engines.
struct Run<'a> {
    device: &'a Device,
    port: &'a Port,
    now: Time,
    touched: [Option<Arc<QpShared>>; TOUCHED],
    /// Where the queue pair of the last packet is among them.
    last: usize,
    cm: bool,
}

impl Device {
    /// Reads the sockets on behalf of a user: the thread stands back. Fires timers that are due, and says how
    /// much came.
    pub(super) fn progress_by_user(&self) -> usize {
        let (come, _) = self.work_for_user();
        self.fire_timers_after(come);
        come.datagrams
    }

    /// The same for a user that may spin.
    pub(super) fn progress_by_poller(&self) {
        let (come, polls) = self.work_for_user();
        let looks = come.datagrams > 0 || polls.is_multiple_of(TIMERS_EVERY);
        if looks || !self.sleepers.thread_stands_back() {
            self.fire_timers_after(come);
        }
    }

    /// What came, and how many polls had found nothing before.
    fn work_for_user(&self) -> (Come, u64) {
        // One datagram at least is asked for: a user comes again anyway.
        let come = self.look(1);
        if come.datagrams == 0 {
            return (come, self.sleepers.activity.note_empty());
        }
        if !self.sleepers.thread_stands_back() {
            // Nobody else looks at what was put off: the thread sleeps until a packet comes, and this user
            // may not come back soon.
            self.send_put_off();
        }
        (come, 0)
    }

    /// Handles all that has come, and sends what is due.
    pub(super) fn work_off(&self) {
        while self.look(TO_THE_END).more {}
        self.send_put_off();
    }

    /// Reads each socket once, then sends what was put off before. So what has
    /// come meanwhile is acknowledged along with it. A socket that another thread
    /// reads is left to it. `least`: see [`Receiver::fill`].
    fn look(&self, least: usize) -> Come {
        let put_off = self.put_off.len();
        let ports = self.sockets.ports();
        let mut all = Come::default();
        for port in ports.iter() {
            let come = self.read(port, least);
            all.datagrams += come.datagrams;
            all.more |= come.more;
            all.at = all.at.max(come.at);
        }
        for _ in 0..put_off {
            self.send_one_put_off();
        }
        all
    }

    /// Handles what has come to a socket before this call, also what another
    /// thread has read already.
    pub(super) fn catch_up(&self, local: SocketAddr) {
        if let Some(port) = self.sockets.port_at(local) {
            while self.read_with(&port, lock(&port.receiver), TO_THE_END).more {}
        }
    }

    /// Sends all that was put off.
    pub(super) fn send_put_off(&self) {
        while self.send_one_put_off() {}
    }

    fn send_one_put_off(&self) -> bool {
        let Some((qp, number)) = self.put_off.pop() else {
            return false;
        };
        qp.send_put_off(&self.schedule, number);
        true
    }

    fn fire_timers_after(&self, come: Come) {
        if come.datagrams > 0 {
            self.fire_timers_by(come.at);
        } else {
            self.fire_timers();
        }
    }

    /// Fires the timers that are due.
    pub(super) fn fire_timers(&self) {
        // Most calls find nothing due, and the clock is cheaper than the lock.
        self.fire_timers_by(self.schedule.now());
    }

    fn fire_timers_by(&self, now: Time) {
        if self.schedule.cm_deadline.load(Ordering::Acquire) <= now.nanos() {
            let mut cm = self.lock_cm();
            let dead = std::mem::take(&mut *lock(&self.schedule.dead));
            for conn in dead {
                // Ended meanwhile, maybe.
                let _ = cm.engine.disconnect(now, conn);
            }
            cm.engine.handle_timeout(now);
            self.pump(&mut cm, now);
            drop(cm);
            self.look_after_peers(now);
        }
        while let Some((at, qpn)) = self.schedule.timers.pop_due(now) {
            if let Some(qp) = self.qps.get(qpn) {
                qp.expire(&self.schedule, at);
            }
        }
    }

    fn read(&self, port: &Port, least: usize) -> Come {
        let receiver = match port.receiver.try_lock() {
            Ok(receiver) => receiver,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Come::default(),
        };
        self.read_with(port, receiver, least)
    }

    fn read_with(&self, port: &Port, mut receiver: MutexGuard<'_, Receiver>, least: usize) -> Come {
        let filled = receiver.fill(port.source(), least);
        if filled.datagrams == 0 {
            return Come::default();
        }
        let now = self.schedule.now();
        let mut run = Run {
            device: self,
            port,
            now,
            touched: Default::default(),
            last: 0,
            cm: false,
        };
        receiver.packets(&port.counters, |inbound| run.take(&inbound));
        // Others may read while what came is answered.
        drop(receiver);
        run.finish();
        Come {
            datagrams: filled.datagrams,
            more: filled.more,
            at: now,
        }
    }
}

impl Run<'_> {
    fn take(&mut self, inbound: &Inbound<'_>) {
        let Ok(qpn) = Bth::peek_dest_qpn(inbound.packet) else {
            return count(&self.port.counters.malformed, 1);
        };
        let at = if qpn == GSI_QPN {
            None
        } else {
            self.touch(qpn)
        };
        if qpn != GSI_QPN && at.is_none() {
            // Mostly what a peer still sends to a queue pair that is gone. Nobody is there to take it: whether its ICRC
            // is right, if it has one, makes no difference.
            return count(&self.port.counters.unknown_qp, 1);
        }
        let trusted = at
            .and_then(|at| self.touched[at].as_ref())
            .is_some_and(|qp| qp.trusts());
        let ident = if trusted && inbound.is_bundled() {
            0
        } else {
            let Some(ident) = inbound.check() else {
                return count(&self.port.counters.bad_icrc, 1);
            };
            ident
        };
        let packet = match Packet::parse(inbound.packet) {
            Ok(packet) if packet.bth.pkey & PKEY_MASK == PKEY_MASK => packet,
            _ => return count(&self.port.counters.malformed, 1),
        };
        if qpn == GSI_QPN {
            return self.take_mad(inbound.from, &packet);
        }
        if let Some(qp) = at.and_then(|at| self.touched[at].as_ref())
            && !qp.take(self.now, inbound.from, ident, &packet)
        {
            count(&self.port.counters.foreign_source, 1);
        }
    }

    fn take_mad(&mut self, from: SocketAddr, packet: &Packet<'_>) {
        if packet.deth.is_none_or(|deth| deth.qkey != GSI_QKEY) {
            return count(&self.port.counters.malformed, 1);
        }
        let path = Path {
            local: self.port.local(),
            remote: from,
        };
        let mut cm = self.device.lock_cm();
        cm.engine.handle(self.now, path, packet.payload);
        // Answers go out before the next request is looked at: what is queued
        // stays small however many requests come.
        self.device.pump(&mut cm, self.now);
        self.cm = true;
    }

    /// The place of a queue pair among those touched.
    fn touch(&mut self, qpn: u32) -> Option<usize> {
        let is = |place: &Option<Arc<QpShared>>| place.as_ref().is_some_and(|qp| qp.qpn() == qpn);
        if is(&self.touched[self.last]) {
            return Some(self.last);
        }
        if let Some(at) = self.touched.iter().position(is) {
            self.last = at;
            return Some(at);
        }
        let qp = self.device.qps.get(qpn)?;
        let free = self.touched.iter().position(Option::is_none);
        let at = free.unwrap_or((self.last + 1) % TOUCHED);
        if let Some(old) = self.touched[at].replace(qp) {
            self.settle(&old);
        }
        self.last = at;
        Some(at)
    }

    fn finish(mut self) {
        for at in 0..TOUCHED {
            if let Some(qp) = self.touched[at].take() {
                self.settle(&qp);
            }
        }
    }

    /// Lets an engine answer what it was given.
    fn settle(&self, qp: &Arc<QpShared>) {
        if let Some(number) = qp.answer(&self.device.schedule, self.now) {
            // Only acknowledgements are due. The user may be about to send
            // something that they can ride along with; if not, the next poll,
            // or the thread, sends them.
            self.device.put_off.push(qp.clone(), number);
        }
        if let Some(conn) = qp.take_awaiting() {
            let mut cm = self.device.lock_cm();
            cm.engine.peer_has_sent(ConnKey(conn));
            self.device.pump(&mut cm, self.now);
        }
    }
}
