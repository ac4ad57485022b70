//! A lane: the completion queues, the shared receive queue and the buffers that a number of
//! connections of one device have in common, and the one thread at a time that polls them.
//!
//! A device has as many lanes as its connections need (`device_context.rs`). Sizes are chosen so
//! that nothing can overflow: a lane takes no more connections than its queue for send completions
//! can hold sends of, and posts no more receives than its queue for receive completions can hold.
//!
//! `ledger.rs` keeps the account of receives, `pool.rs` the buffers, `receives.rs` posts. `poller.rs`
//! is the polling role, `followers.rs` who waits for it, `spin.rs` how long it spins. `members.rs` is who
//! is in the lane. What a completion means is in `connection/`.

mod followers;
mod ledger;
mod members;
// Its tests load it a second time, with loom's primitives.
#[allow(clippy::duplicate_mod)]
mod poller;
#[cfg(test)]
mod poller_tests;
mod pool;
mod primitives;
mod receives;
mod spin;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use verbs_shim::{
    CompletionChannel, CompletionQueue, Device, ProtectionDomain, RegisteredBuffer, Sleeper,
    VerbsError, Woken,
};

use self::ledger::Ledger;
pub(crate) use self::members::{Change, Member};
use self::members::{Mail, Members};
use self::poller::{Poller, Queues, Source};
pub(crate) use self::poller::{See, Wanted};
use self::pool::GrowingPool;
pub(crate) use self::receives::Receives;
use super::engine::Ending;
use crate::config::ProviderConfig;
use crate::counters::DataCounters;
use crate::event::EventObject;
use crate::progress::{Progress, Served};

/// Receives that are posted beyond what was promised, for those that a dying queue pair takes with
/// it half-way.
const SPARE_RECEIVES: u32 = 8;

pub(crate) struct Lane<M: Member> {
    pub(crate) name: String,
    pub(crate) pd: ProtectionDomain,
    channel: CompletionChannel,
    /// Sleeps on the channel and `wake`.
    sleeper: Sleeper,
    pub(crate) recv_cq: CompletionQueue,
    pub(crate) send_cq: CompletionQueue,
    pub(crate) send_depth: u32,
    /// Bytes of an RDMA operation; 0: the device cannot open memory to one peer alone.
    pub(crate) rdma_limit: u32,
    counters: DataCounters,

    pub(crate) receives: Receives,
    send_pool: GrowingPool,

    poller: Poller<Members<M>>,
    mail: Mail<M>,
    /// Wakes the thread that sleeps.
    wake: EventObject,
    outside: Outside,
    progress: Weak<Progress>,
}

/// For one thread that sleeps in an epoll set of its own instead of here.
struct Outside {
    sleeper: Sleeper,
    /// A thread is there.
    taken: AtomicBool,
    /// Wakes it.
    bell: EventObject,
    rung: AtomicBool,
}

impl Outside {
    fn new(channel: &CompletionChannel) -> Result<Self, VerbsError> {
        let (bell, bell_fd) = event()?;
        Ok(Self {
            sleeper: channel.sleeper(bell_fd)?,
            taken: AtomicBool::new(false),
            bell,
            rung: AtomicBool::new(false),
        })
    }
}

/// An event object, and a descriptor of its own for it.
fn event() -> Result<(EventObject, OwnedFd), VerbsError> {
    let failed = |source| VerbsError {
        call: "eventfd",
        source,
    };
    let event = EventObject::new().map_err(failed)?;
    let fd = event.try_clone_fd().map_err(failed)?;
    Ok((event, fd))
}

impl<M: Member + Send + Sync + 'static> Lane<M> {
    pub(crate) fn new(
        device: &Device,
        pd: &ProtectionDomain,
        config: &ProviderConfig,
        number: usize,
        progress: &Arc<Progress>,
    ) -> Result<Arc<Self>, VerbsError> {
        let limits = device.limits()?;
        let send_depth = u32::from(config.send_depth).min(limits.max_qp_wr.max(2));
        let most_connections = config
            .lane_connections
            .min(limits.max_cqe / send_depth)
            .max(1);
        let depth = config
            .lane_receives
            .min(limits.max_srq_wr)
            .min(limits.max_cqe);
        let channel = device.completion_channel()?;
        let recv_cq = device.create_cq(depth, Some(&channel))?;
        let spare = SPARE_RECEIVES.min(depth / 4);
        let each = u32::from(config.initial_window) + 1;
        let send_cq = device.create_cq(most_connections * send_depth, Some(&channel))?;
        let name = format!("{}/{number}", device.name());
        let size = config.max_message_size;
        let receives = Receives::new(
            &name,
            pd,
            depth,
            Ledger::new(most_connections, each, depth, spare),
            GrowingPool::new(pd.clone(), size, depth * 2),
        )?;
        let (wake, wake_fd) = event()?;
        tracing::debug!(
            lane = name,
            most_connections,
            receives = depth,
            "lane opened"
        );
        let lane = Arc::new(Self {
            name,
            pd: pd.clone(),
            sleeper: channel.sleeper(wake_fd)?,
            outside: Outside::new(&channel)?,
            channel,
            recv_cq,
            send_cq,
            send_depth,
            rdma_limit: match limits.max_windows {
                0 => 0,
                _ => config.max_rdma_size.min(device.port(1)?.max_message_size),
            },
            counters: DataCounters::default(),
            receives,
            send_pool: GrowingPool::new(pd.clone(), size, config.lane_send_buffers),
            poller: Poller::new(Members::default(), config.spin),
            mail: Mail::default(),
            wake,
            progress: Arc::downgrade(progress),
        });
        lane.receives.provide_buffers()?;
        lane.receives.post(spare, || None);
        Ok(lane)
    }

    /// Takes a place for a connection with the receives of its initial window, and one for credit
    /// messages, if there is one.
    pub(crate) fn join(&self) -> bool {
        !self.mail.is_broken() && self.receives.ledger.join()
    }

    pub(crate) fn connections(&self) -> u32 {
        self.receives.ledger.connections()
    }

    /// Whether one more connection would have a place now.
    pub(crate) fn has_place(&self) -> bool {
        !self.mail.is_broken() && self.receives.ledger.has_place()
    }

    pub(crate) fn counted(&self) -> &DataCounters {
        &self.counters
    }

    /// A buffer to send from.
    pub(crate) fn registered_buffer(&self) -> Result<Option<RegisteredBuffer>, VerbsError> {
        self.send_pool.take_or_grow()
    }

    /// A buffer to send from that is here already.
    pub(crate) fn ready_buffer(&self) -> Option<RegisteredBuffer> {
        self.send_pool.take()
    }

    /// How many buffers to send from are free, or could be made.
    pub(crate) fn buffers_left(&self) -> usize {
        self.send_pool.left()
    }

    /// Changes the table, or has the leader do so.
    pub(crate) fn change(&self, change: Change<M>) {
        self.mail.change(change);
        self.poller.mail_left(self);
    }

    /// Ends a connection once everything that arrived for it is delivered.
    pub(crate) fn end(&self, member: Arc<M>, ending: Ending) {
        self.mail.end(member, ending);
        self.poller.mail_left(self);
    }

    /// Wakes the leader if it sleeps: something has changed behind its back.
    pub(crate) fn kick(&self) {
        self.poller.kick(self);
    }

    /// Polls once if nobody else does, without waiting; how much came.
    pub(crate) fn poll_once(&self) -> usize {
        self.poller.poll_if_free(self)
    }

    /// Waits until what is wanted is there; `None` at the deadline.
    #[inline(always)]
    pub(crate) fn wait<W: Wanted<Self>>(
        &self,
        length: Duration,
        wanted: &mut W,
    ) -> Option<W::Found> {
        self.poller.wait(self, length, wanted)
    }

    /// Somebody wants to hear of send completions while the leader sleeps, or not any more.
    pub(crate) fn watch_sends(&self, wanted: bool) {
        self.poller.watch_sends(wanted);
    }

    /// Somebody wants the lane served while nobody waits, or not any more.
    pub(crate) fn serve_async(&self, wanted: bool) {
        self.poller.serve_async(wanted);
    }

    /// Somebody has sends queued, or not any more.
    pub(crate) fn serve_lazily(&self, wanted: bool) {
        self.poller.serve_lazily(wanted);
    }

    /// The descriptors that wake a thread which sleeps outside.
    pub(crate) fn fds(&self) -> Vec<BorrowedFd<'_>> {
        let mut fds = self.outside.sleeper.fds();
        fds.push(self.outside.bell.as_fd());
        fds
    }

    /// Polls until nothing is left, if nobody else does; how much came.
    pub(crate) fn poll_all(&self) -> usize {
        self.poller.poll_all_if_free(self)
    }

    /// A thread is about to sleep outside, on [`Lane::fds`]. `false`: it must not, since something came
    /// or another thread does.
    pub(crate) fn arm_outside(&self) -> bool {
        if self.outside.taken.swap(true, Ordering::SeqCst) {
            return false;
        }
        if self.poller.arm_outside(self) > 0 {
            self.poller.disarm_outside();
            self.outside.taken.store(false, Ordering::SeqCst);
            return false;
        }
        let may_sleep = self.outside.sleeper.before();
        if !may_sleep {
            self.disarm_outside();
        }
        may_sleep
    }

    /// That thread does not sleep any more. Whether something was announced meanwhile.
    pub(crate) fn disarm_outside(&self) -> bool {
        let events = self.outside.sleeper.after().unwrap_or_else(|error| {
            self.break_down(&error);
            1
        });
        let mut is_announced = events > 0;
        if self.outside.rung.swap(false, Ordering::SeqCst) {
            self.outside.bell.reset();
            is_announced = true;
        }
        self.poller.disarm_outside();
        self.outside.taken.store(false, Ordering::SeqCst);
        // A leader may sleep on the same channel, whose event was just taken from under it.
        self.poller.kick(self);
        is_announced
    }

    pub(crate) fn is_armed_outside(&self) -> bool {
        self.outside.taken.load(Ordering::SeqCst)
    }

    fn consume(&self) {
        if let Err(error) = self.channel.consume() {
            self.break_down(&error);
        }
    }

    /// Asks the send queue for notification, too.
    #[inline(never)]
    fn arm_sends(&self) -> bool {
        match self.send_cq.request_notify() {
            Ok(()) => true,
            Err(error) => self.not_armed(&error),
        }
    }

    #[cold]
    #[inline(never)]
    fn not_armed(&self, error: &VerbsError) -> bool {
        self.break_down(error);
        false
    }

    /// The queues cannot be used any more: all connections of the lane are over.
    #[cold]
    #[inline(never)]
    fn break_down(&self, error: &VerbsError) {
        if self.mail.set_broken() {
            tracing::error!(lane = self.name, %error, "completion queues failed, connections end");
            // Whoever was about to sleep has nothing to wait for.
            self.poller.kick(self);
        }
    }

    #[cold]
    #[inline(never)]
    fn end_all(members: &mut Members<M>) {
        for member in members.drain() {
            member.finish(Ending::NetDown);
        }
    }

    /// Reads the mail. `true`: the lane is broken, and there is nothing to poll.
    #[cold]
    #[inline(never)]
    fn look_at_mail(&self, members: &mut Members<M>, see: &mut impl See<M, M::State>) -> bool {
        if self.mail.is_some() {
            self.read_changes(members);
            self.let_leave(members, see);
            self.read_endings(members, see);
        }
        let broken = self.mail.is_broken();
        if broken {
            Self::end_all(members);
        }
        broken
    }

    #[cold]
    #[inline(never)]
    fn read_changes(&self, members: &mut Members<M>) {
        while let Some(change) = self.mail.changes.pop() {
            match change {
                Change::Add(member) => {
                    self.mail.done();
                    members.insert(member);
                }
                Change::Renumber(member, before) => {
                    self.mail.done();
                    members.remove(before, &member);
                    members.insert(member);
                }
                Change::Remove(member) => {
                    members.remove(member.qp_num(), &member);
                    // It goes on counting as mail until it has left.
                    members.leaving.push(member);
                }
            }
        }
    }

    /// Those that were removed give their places back, once nothing of theirs is left in the queue
    /// that is as long as the connections with a place can fill it.
    fn let_leave(&self, members: &mut Members<M>, see: &mut impl See<M, M::State>) {
        if members.leaving.is_empty() {
            return;
        }
        self.drain(members, &self.send_cq, see);
        while let Some(member) = members.leaving.pop() {
            member.leave();
            self.mail.done();
        }
    }

    fn read_endings(&self, members: &mut Members<M>, see: &mut impl See<M, M::State>) {
        while let Some((member, ending)) = self.mail.endings.pop() {
            self.mail.done();
            // What arrived before the end is delivered before the end is told.
            self.drain(members, &self.recv_cq, see);
            self.drain(members, &self.send_cq, see);
            member.finish(ending);
        }
    }

    /// Polls for all that is in a queue by now: at most as much as it holds.
    fn drain(
        &self,
        members: &mut Members<M>,
        queue: &CompletionQueue,
        see: &mut impl See<M, M::State>,
    ) {
        let mut left = queue.depth() as usize;
        while left > 0 {
            match self.poll_queue(members, queue, see) {
                0 => break,
                found => left = left.saturating_sub(found),
            }
        }
    }

    /// Polls a queue once. Mostly nothing is there, so this much stands where it is called.
    #[inline(always)]
    fn poll_queue(
        &self,
        members: &mut Members<M>,
        queue: &CompletionQueue,
        see: &mut impl See<M, M::State>,
    ) -> usize {
        let found = queue.poll_or(&mut members.batch, |error| self.break_down(&error));
        if found > 0 {
            self.hand_out(members, see);
        }
        found
    }

    /// As [`Lane::poll_queue`], of the queue for sends.
    #[inline(always)]
    fn poll_sends(&self, members: &mut Members<M>, see: &mut impl See<M, M::State>) -> usize {
        let failed = |error| self.break_down(&error);
        let found = self.send_cq.poll_or(&mut members.batch, failed);
        if found > 0 && !members.hand_out_sends() {
            self.hand_out_all(members, see);
        }
        found
    }

    /// Hands out what a poll has found. A function of its own: the thread that polls has its registers
    /// full, and this needs them.
    #[inline(never)]
    fn hand_out(&self, members: &mut Members<M>, see: &mut impl See<M, M::State>) {
        // Who has a queue pair knows its number, whatever the mail says.
        if !members.hand_out_one(self.receives.srq(), see) {
            self.hand_out_all(members, see);
        }
    }

    #[inline(never)]
    fn hand_out_all(&self, members: &mut Members<M>, see: &mut impl See<M, M::State>) {
        // A queue pair is announced before anything can complete on it; and its number may be that of
        // one before it.
        if self.mail.is_some() {
            self.read_changes(members);
        }
        let stray = |buffer| self.take_stray(buffer);
        members.hand_out_all(self.receives.srq(), stray, see);
    }

    /// Something completed for nobody: what a queue pair that is gone had posted was freed with it.
    #[cold]
    #[inline(never)]
    fn take_stray(&self, buffer: Option<RegisteredBuffer>) {
        self.counters.stray_completions.raise();
        if let Some(buffer) = buffer {
            self.receives.repost(buffer);
        }
    }
}

impl<M: Member + Send + Sync + 'static> Source for Lane<M> {
    type Role = Members<M>;
    type Member = M;
    type State = M::State;

    #[inline(always)]
    fn poll(
        &self,
        members: &mut Members<M>,
        queues: Queues,
        see: &mut impl See<M, M::State>,
    ) -> usize {
        if self.mail.wants_a_look() && self.look_at_mail(members, see) {
            return 0;
        }
        let came = self.poll_queue(members, &self.recv_cq, see);
        match queues {
            Queues::Receives => came,
            Queues::Both => came + self.poll_sends(members, see),
        }
    }

    fn has_mail(&self) -> bool {
        self.mail.is_some()
    }

    #[inline]
    fn arm(&self, queues: Queues) -> bool {
        match self.recv_cq.request_notify() {
            Ok(()) => queues == Queues::Receives || self.arm_sends(),
            Err(error) => self.not_armed(&error),
        }
    }

    fn sleep(&self, timeout: Option<Duration>) {
        // Interrupted or over: the caller polls again and looks at its deadline.
        match self.sleeper.sleep(timeout) {
            Woken::Announced | Woken::Nothing => {}
            Woken::Other => self.wake.reset(),
            Woken::Failed(error) => self.break_down(&error),
        }
    }

    fn wake(&self) {
        self.wake.set();
    }

    fn wake_outside(&self) {
        // In this order. The other way round the sleeper could see that it was rung, stop the bell, and have it
        // ring with nobody to stop it.
        self.outside.bell.set();
        self.outside.rung.store(true, Ordering::SeqCst);
    }

    fn wake_progress(&self) {
        if let Some(progress) = self.progress.upgrade() {
            progress.wake();
        }
    }
}

impl<M: Member + Send + Sync + 'static> Served for Lane<M> {
    fn has_async_interest(&self) -> bool {
        self.poller.has_async_interest()
    }

    fn has_lazy_interest(&self) -> bool {
        self.poller.has_lazy_interest()
    }

    fn serve(&self) -> bool {
        self.poller.serve(self, || self.consume())
    }

    fn poll_if_free(&self) {
        self.poll_once();
    }

    fn disturb_sleep(&self) {
        self.poller.disturb_sleep(self);
    }

    fn probe_idle(&self) {
        self.poller.with_role_if_free(self, |members| {
            for member in members.table.values() {
                member.probe();
            }
        });
    }

    fn channel_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    fn counters(&self) -> &DataCounters {
        &self.counters
    }

    fn sleeps(&self) -> u64 {
        self.poller.sleeps() as u64
    }
}

impl<M: Member> std::fmt::Debug for Lane<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane")
            .field("name", &self.name)
            .field("ledger", &self.receives.ledger)
            .finish_non_exhaustive()
    }
}
