//! Completion without hand-off: who waits polls, and delivers to the others what is theirs.
//!
//! A lane has one polling role. A waiting thread takes it if it is free, polls, and dispatches
//! every completion to its connection. Other waiting threads sleep on their own operation; the
//! thread that leaves the role wakes one of them to take it over. While the role's holder finds
//! nothing it spins for a bounded time, then asks for notification, polls again, and sleeps on the
//! completion channel.
//!
//! The table from queue pair number to connection belongs to the role; others send mail to it. The
//! rule that nothing gets lost is the same everywhere: leave what is to be done, then try to take
//! the role; and who lets the role go looks for what was left.
//!
//! It does not know what a message means; that is in `messages.rs`.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crossbeam::sync::{Parker, Unparker};
use verbs_shim::{Completion, CompletionBatch, CompletionQueue, VerbsError};

use super::connection::Connection;
use super::lane::Lane;
use super::operation::Ending;
use crate::sync::{lock, try_lock};
use crate::time::Patience;

thread_local! {
    /// What a thread sleeps on while another one polls for it.
    static PARKER: Parker = Parker::new();
}

/// A thread that waits for messages looks at the sends, too, every so manieth time: nobody may be
/// waiting for them, but they hold buffers, and a failed one ends its connection.
const LOOKS_PER_SENDS: u32 = 32;

/// Full batches that the progress thread takes before it lets others have the role.
const POLLS_AT_A_TIME: usize = 64;

/// What the holder of the polling role has.
#[derive(Debug, Default)]
pub(crate) struct Role {
    table: Table,
    batch: CompletionBatch,
    /// Looks since the sends were last looked at.
    looks: u32,
    /// Connections that are no longer in the table, and still have their place.
    leaving: Vec<Arc<Connection>>,
}

/// Who has which queue pair. The device chooses the numbers, not a peer, so they need no hash that
/// withstands one.
type Table = HashMap<u32, Arc<Connection>, BuildHasherDefault<NumberHasher>>;

impl Role {
    /// The number may be another connection's by now.
    fn remove(&mut self, qp_num: u32, connection: &Arc<Connection>) {
        let found = self.table.get(&qp_num);
        if found.is_some_and(|found| Arc::ptr_eq(found, connection)) {
            self.table.remove(&qp_num);
        }
    }
}

/// Spreads a queue pair number over the bits that a table uses.
#[derive(Debug, Default)]
struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(u32::from(byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        // By Knuth's multiplicative method: 2^64 divided by the golden ratio.
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        // The table takes its place from the low bits, and the product has its best ones on top.
        self.0.rotate_left(32)
    }
}

/// How the table of the polling role changes.
#[derive(Debug)]
pub(crate) enum Change {
    /// Before anything can complete on its queue pair.
    Add(Arc<Connection>),
    /// After its queue pair is gone.
    Remove(Arc<Connection>),
    /// It has another queue pair: the one of this number is gone, and nothing has completed yet on
    /// the new one.
    Renumber(Arc<Connection>, u32),
}

#[derive(Clone, Copy)]
enum Queue {
    Receives,
    Sends,
}

/// The threads that wait for somebody else to poll.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    count: AtomicUsize,
    queue: Mutex<VecDeque<(u64, Unparker)>>,
    next: AtomicUsize,
}

impl Waiters {
    fn join(&self, unparker: Unparker) -> u64 {
        let ticket = self.next.fetch_add(1, Ordering::Relaxed) as u64;
        let mut queue = lock(&self.queue);
        queue.push_back((ticket, unparker));
        self.count.store(queue.len(), Ordering::SeqCst);
        ticket
    }

    fn leave(&self, ticket: u64) {
        let mut queue = lock(&self.queue);
        queue.retain(|(other, _)| *other != ticket);
        self.count.store(queue.len(), Ordering::SeqCst);
    }

    /// Wakes the one that waits longest; whether there was one.
    fn wake_one(&self) -> bool {
        if self.count.load(Ordering::SeqCst) == 0 {
            return false;
        }
        let woken = {
            let mut queue = lock(&self.queue);
            let woken = queue.pop_front();
            self.count.store(queue.len(), Ordering::SeqCst);
            woken
        };
        match woken {
            Some((_, unparker)) => {
                unparker.unpark();
                true
            }
            None => false,
        }
    }
}

impl Lane {
    /// Changes the table, or has the role's holder do so.
    pub(super) fn change(&self, change: Change) {
        self.mail_count.fetch_add(1, Ordering::SeqCst);
        self.changes.push(change);
        self.serve_mail();
        self.kick();
    }

    /// Ends a connection once everything that arrived for it is delivered.
    pub(super) fn end(&self, connection: Arc<Connection>, ending: Ending) {
        self.mail_count.fetch_add(1, Ordering::SeqCst);
        self.endings.push((connection, ending));
        self.serve_mail();
        self.kick();
    }

    /// Wakes the role's holder if it sleeps: something has changed behind its back.
    pub(super) fn kick(&self) {
        self.kicks.fetch_add(1, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) {
            self.wake.set();
        }
    }

    /// Polls once if nobody else does, without waiting.
    pub(crate) fn poll_if_free(&self) {
        if let Some(mut role) = try_lock(&self.role) {
            self.poll(&mut role);
            self.let_go(role);
        }
    }

    /// Waits until `check` finds what it looks for, polling meanwhile or letting another thread
    /// poll; `None` at the deadline. `check` is told whom to wake when it finds nothing.
    pub(super) fn wait<T>(
        &self,
        length: Duration,
        mut check: impl FnMut(Option<&Unparker>) -> Option<T>,
    ) -> Option<T> {
        let mut patience = Patience::new(length);
        loop {
            if let Some(role) = try_lock(&self.role) {
                return self.lead(role, &mut patience, &mut check);
            }
            match self.follow(&mut patience, &mut check) {
                Followed::Found(found) => return Some(found),
                Followed::Over => return None,
                Followed::Again => {}
            }
        }
    }

    /// As [`Lane::wait`], but polling itself: `None` if somebody else does.
    pub(super) fn wait_if_free<T>(
        &self,
        length: Duration,
        mut check: impl FnMut(Option<&Unparker>) -> Option<T>,
    ) -> Option<Option<T>> {
        let role = try_lock(&self.role)?;
        Some(self.lead(role, &mut Patience::new(length), &mut check))
    }

    fn lead<T>(
        &self,
        mut role: MutexGuard<'_, Role>,
        patience: &mut Patience,
        check: &mut impl FnMut(Option<&Unparker>) -> Option<T>,
    ) -> Option<T> {
        let mut idle_since = None;
        // What ends an operation without a completion is followed by a kick. So is what others did
        // before the role was taken, as far as we know: hence the first check.
        let mut checked_at = None;
        let mut dispatched = self.look(&mut role);
        let found = loop {
            let kicks = self.kicks.load(Ordering::Acquire);
            if dispatched > 0 || checked_at != Some(kicks) {
                if let Some(found) = check(None) {
                    break Some(found);
                }
                checked_at = Some(kicks);
            }
            if dispatched > 0 {
                idle_since = None;
            } else {
                let sleeps = self.spin.is_zero() || self.has_spun(&mut idle_since);
                let left = patience.left();
                if left.is_some_and(|left| left.is_zero()) {
                    break None;
                }
                if sleeps {
                    dispatched = self.sleep(&mut role, left, kicks);
                    continue;
                }
            }
            dispatched = self.look(&mut role);
        };
        self.let_go(role);
        found
    }

    /// Whether nothing has come for as long as a thread spins.
    fn has_spun(&self, idle_since: &mut Option<Instant>) -> bool {
        std::hint::spin_loop();
        let now = Instant::now();
        let spun = now.duration_since(*idle_since.get_or_insert(now)) >= self.spin;
        if spun {
            *idle_since = None;
        }
        spun
    }

    /// Sleeps on the completion channel until there is something to poll, or somebody kicks; then
    /// polls, and says how much came. `kicks`: how many there were before the last check.
    fn sleep(&self, role: &mut Role, timeout: Option<Duration>, kicks: usize) -> usize {
        // Whoever changes something behind our back kicks and then looks whether we sleep; we say
        // so and then look for kicks. One of the two sees the other.
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let armed = self.arm();
        let dispatched = self.look(role);
        let sleeps = armed && dispatched == 0 && self.kicks.load(Ordering::Acquire) == kicks;
        if sleeps {
            self.counters.sleeps.raise();
            self.wait_for_events(timeout);
        }
        self.asleep.store(false, Ordering::Relaxed);
        if !sleeps {
            return dispatched;
        }
        match self.sends_unseen.swap(false, Ordering::Relaxed) {
            true => self.poll(role),
            false => self.look(role),
        }
    }

    /// The thread that polls, if it has slept since this was called before, has a look at the sends:
    /// a device tells nobody else that the peer of one has vanished, and to be woken by their
    /// completions would cost a call of the system for every sleep.
    pub(crate) fn disturb_sleep(&self) {
        let sleeps = self.counters.sleeps.value();
        let slept = self.sleeps_seen.swap(sleeps, Ordering::Relaxed) == sleeps;
        if slept && self.asleep.load(Ordering::SeqCst) {
            self.sends_unseen.store(true, Ordering::Relaxed);
            self.kick();
        }
    }

    /// Polls as a thread does that waits.
    fn look(&self, role: &mut Role) -> usize {
        role.looks += 1;
        if role.looks >= LOOKS_PER_SENDS || self.send_interest.load(Ordering::SeqCst) > 0 {
            return self.poll(role);
        }
        match self.prepare(role) {
            true => self.poll_queue(role, Queue::Receives),
            false => 0,
        }
    }

    /// Asks for notification. `false`: the queues are broken, and nothing would come.
    pub(super) fn arm(&self) -> bool {
        let mut result = self.recv_cq.request_notify();
        if self.send_interest.load(Ordering::SeqCst) > 0 {
            result = result.and(self.send_cq.request_notify());
        }
        if let Err(error) = &result {
            self.break_down(error);
        }
        result.is_ok()
    }

    fn wait_for_events(&self, timeout: Option<Duration>) {
        // Interrupted or over: the caller polls again and looks at its deadline.
        match self.sleeper.sleep(timeout) {
            Ok(woken) if woken.other => self.wake.reset(),
            Ok(_) => {}
            Err(error) => self.break_down(&error),
        }
    }

    /// Sleeps until the operation has ended, or the role is free.
    fn follow<T>(
        &self,
        patience: &mut Patience,
        check: &mut impl FnMut(Option<&Unparker>) -> Option<T>,
    ) -> Followed<T> {
        PARKER.with(|parker| {
            let unparker = parker.unparker();
            if let Some(found) = check(Some(unparker)) {
                return Followed::Found(found);
            }
            let ticket = self.waiters.join(unparker.clone());
            fence(Ordering::SeqCst);
            // The role may have become free before anybody could know of us.
            let free = match try_lock(&self.role) {
                Some(role) => {
                    drop(role);
                    fence(Ordering::SeqCst);
                    self.serve_mail();
                    true
                }
                None => false,
            };
            if !free {
                match patience.left() {
                    Some(left) => parker.park_timeout(left),
                    None => parker.park(),
                }
            }
            self.waiters.leave(ticket);
            match check(None) {
                Some(found) => {
                    // The wake-up may have been meant to hand the role over.
                    self.hand_over();
                    Followed::Found(found)
                }
                None if patience.is_over() => {
                    self.hand_over();
                    Followed::Over
                }
                None => Followed::Again,
            }
        })
    }

    /// Lets the role go, and sees to it that somebody takes it who needs it.
    pub(super) fn let_go(&self, role: MutexGuard<'_, Role>) {
        let mut role = role;
        // The progress thread sleeps on the same channel: it hears of what comes from now on, and
        // is woken for what may have come before.
        let more = self.async_interest.load(Ordering::SeqCst) > 0
            && !self.progress_waits.load(Ordering::SeqCst)
            && self.arm()
            && self.poll(&mut role) > 0;
        drop(role);
        fence(Ordering::SeqCst);
        self.serve_mail();
        if more && let Some(progress) = self.progress.upgrade() {
            progress.wake();
        }
        self.hand_over();
    }

    /// Polls for what nobody waits for. `false`: somebody polls, and will wake the progress thread
    /// when it stops.
    pub(crate) fn serve(&self) -> bool {
        for attempt in 0..2 {
            if let Some(mut role) = try_lock(&self.role) {
                self.progress_waits.store(false, Ordering::SeqCst);
                if let Err(error) = self.channel.consume() {
                    self.break_down(&error);
                }
                // If there is more than this, letting go finds it.
                for _ in 0..POLLS_AT_A_TIME {
                    if self.poll(&mut role) == 0 {
                        break;
                    }
                }
                self.let_go(role);
                return true;
            }
            if attempt == 0 {
                self.progress_waits.store(true, Ordering::SeqCst);
                fence(Ordering::SeqCst);
            }
        }
        false
    }

    fn hand_over(&self) {
        if !self.waiters.wake_one()
            && self.progress_waits.swap(false, Ordering::SeqCst)
            && let Some(progress) = self.progress.upgrade()
        {
            progress.wake();
        }
    }

    /// Does what the mail says, unless somebody holds the role: then that thread does.
    fn serve_mail(&self) {
        while self.mail_count.load(Ordering::SeqCst) > 0 {
            let Some(mut role) = try_lock(&self.role) else {
                return;
            };
            self.poll(&mut role);
            drop(role);
            fence(Ordering::SeqCst);
        }
    }

    /// Polls both queues once and dispatches what they held; how much that was.
    pub(super) fn poll(&self, role: &mut Role) -> usize {
        role.looks = 0;
        match self.prepare(role) {
            true => self.poll_queue(role, Queue::Receives) + self.poll_queue(role, Queue::Sends),
            false => 0,
        }
    }

    /// Reads the mail; whether the queues can be polled.
    fn prepare(&self, role: &mut Role) -> bool {
        if self.mail_count.load(Ordering::Acquire) > 0 {
            self.read_changes(role);
            self.let_leave(role);
            self.read_endings(role);
        }
        if self.broken.load(Ordering::Relaxed) {
            for (_, connection) in role.table.drain() {
                connection.finish(Ending::NetDown);
            }
            return false;
        }
        true
    }

    fn read_changes(&self, role: &mut Role) {
        while let Some(change) = self.changes.pop() {
            match change {
                Change::Add(connection) => {
                    self.mail_count.fetch_sub(1, Ordering::SeqCst);
                    role.table.insert(connection.qp_num(), connection);
                }
                Change::Renumber(connection, before) => {
                    self.mail_count.fetch_sub(1, Ordering::SeqCst);
                    role.remove(before, &connection);
                    role.table.insert(connection.qp_num(), connection);
                }
                Change::Remove(connection) => {
                    role.remove(connection.qp_num(), &connection);
                    // It goes on counting as mail until it has left.
                    role.leaving.push(connection);
                }
            }
        }
    }

    /// Those that were removed give their places back, once nothing of theirs is left in the queue
    /// that is as long as the connections with a place can fill it.
    fn let_leave(&self, role: &mut Role) {
        if role.leaving.is_empty() {
            return;
        }
        self.drain(role, Queue::Sends);
        while let Some(connection) = role.leaving.pop() {
            connection.leave();
            self.mail_count.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Polls for all that is in a queue by now: at most as much as it holds.
    fn drain(&self, role: &mut Role, queue: Queue) {
        let mut left = self.queue(queue).depth() as usize;
        while left > 0 {
            match self.poll_queue(role, queue) {
                0 => break,
                found => left = left.saturating_sub(found),
            }
        }
    }

    fn read_endings(&self, role: &mut Role) {
        while let Some((connection, ending)) = self.endings.pop() {
            self.mail_count.fetch_sub(1, Ordering::SeqCst);
            // What arrived before the end is delivered before the end is told.
            self.drain(role, Queue::Receives);
            self.drain(role, Queue::Sends);
            connection.finish(ending);
        }
    }

    fn poll_queue(&self, role: &mut Role, queue: Queue) -> usize {
        match self.queue(queue).poll(&mut role.batch) {
            Ok(0) => 0,
            Ok(found) => {
                // A queue pair is announced before anything can complete on it; and its number may
                // be that of one before it.
                if self.mail_count.load(Ordering::Acquire) > 0 {
                    self.read_changes(role);
                }
                for completion in &role.batch {
                    self.dispatch(&role.table, completion);
                }
                found
            }
            Err(error) => {
                self.break_down(&error);
                0
            }
        }
    }

    fn queue(&self, queue: Queue) -> &CompletionQueue {
        match queue {
            Queue::Receives => &self.recv_cq,
            Queue::Sends => &self.send_cq,
        }
    }

    /// The queues cannot be used any more: all connections of the lane are over.
    fn break_down(&self, error: &VerbsError) {
        if !self.broken.swap(true, Ordering::SeqCst) {
            tracing::error!(lane = self.name, %error, "completion queues failed, connections end");
        }
    }

    fn dispatch(&self, table: &Table, completion: &Completion) {
        let connection = table.get(&completion.qp_num());
        if completion.is_shared_recv() {
            let Some(buffer) = self.srq.claim(completion) else {
                self.counters.stray_completions.raise();
                return;
            };
            match connection {
                Some(connection) => connection.received(completion, buffer),
                None => {
                    self.counters.stray_completions.raise();
                    self.repost(buffer);
                }
            }
        } else {
            match connection {
                Some(connection) => connection.sent(completion),
                // What a queue pair that is gone had posted was freed with it.
                None => self.counters.stray_completions.raise(),
            }
        }
    }
}

enum Followed<T> {
    Found(T),
    Over,
    Again,
}

#[cfg(test)]
#[path = "dispatch_tests.rs"]
mod tests;
