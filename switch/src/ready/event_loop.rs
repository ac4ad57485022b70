//! A loop: one epoll set of the program's, and beside it the sources that the kernel cannot see.
//!
//! The epoll set holds the program's kernel descriptors, untouched, and under a tag of our own the
//! doorbell and the descriptors of the lanes. The sources are in a table here. A wait polls the
//! lanes, tells what is ready, and sleeps in the kernel's epoll_wait if nothing is.
//!
//! # Why no wake-up is lost
//! What makes a source ready is seen by a thread that polls the source's lane, and that thread calls
//! the source's hub, which pushes it on this loop's list ([`super::wakes`] argues why a sleeper hears
//! of that). So it is enough that somebody polls:
//! - what came before the sleeper had armed the lane is found by the poll that arming does;
//! - what comes after makes a descriptor of the lane readable, and wakes the sleeper's epoll_wait;
//! - where another thread polls the lane at that moment, that thread asks for notification again when
//!   it stops, or wakes the sleeper (`provider/src/transfer/lane/poller.rs`);
//! - where another loop has the lane armed, that loop polls when it is woken, and before it goes to
//!   work it wakes one that stands by ([`super::lanes`]).

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::io::Errno;
use san_base::{Deadline, Signal};
use san_provider::LaneHandle;

use super::hub::{Source, Told};
use super::interest::{Interest, Verdict};
use super::lanes::{Armed, Lanes, Turn};
use super::wakes::Wakes;
use crate::tcp;

/// Every so many waits that find something, the kernel is asked first: neither side starves the other.
const KERNELS_TURN: usize = 8;

/// The kernel's part of a wait: fills in events, waits so long, and says how many there are.
pub(crate) type KernelWait<'a> =
    &'a mut dyn FnMut(&mut [Event], Option<Duration>) -> io::Result<usize>;

/// A loop.
pub(crate) struct EventLoop {
    shared: Arc<Shared>,
    members: Mutex<HashMap<u64, Arc<Member>>>,
    lanes: Mutex<Lanes>,
    turns: AtomicUsize,
}

struct Shared {
    wakes: Wakes<Arc<Member>>,
    doorbell: Arc<Signal>,
    /// Another descriptor of the program's epoll set.
    epoll: Arc<OwnedFd>,
}

/// A sleep on a loop's epoll set; it ends when this is dropped.
pub(crate) struct StandBy<'a> {
    turn: Turn<'a>,
    wakes: &'a Wakes<Arc<Member>>,
    lanes: &'a Mutex<Lanes>,
}

impl Drop for StandBy<'_> {
    fn drop(&mut self) {
        let mut lanes = self.lanes.lock();
        self.turn.awake(|number| lanes.warm(number));
        self.wakes.awake();
    }
}

/// A source in a loop.
struct Member {
    shared: Weak<Shared>,
    source: Weak<dyn Source>,
    interest: Mutex<Interest>,
    /// The lane that it had when the loop last looked: the loop polls that one for it.
    lane: Mutex<Option<LaneHandle>>,
    /// It is on the list.
    is_queued: AtomicBool,
    is_gone: AtomicBool,
}

impl Told for Member {
    fn ready(self: Arc<Self>) {
        // Who takes it from the list clears this and looks at the source afterwards, so that a change
        // that finds it set is still seen.
        if self.is_queued.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(shared) = self.shared.upgrade()
            && shared.wakes.push(self)
        {
            shared.doorbell.set();
        }
    }
}

/// The data of descriptors of our own in a program's epoll set: no pointer, and no small number.
fn tag() -> u64 {
    static TAG: OnceLock<u64> = OnceLock::new();
    *TAG.get_or_init(|| {
        let mut random = [0; 8];
        // Without randomness a fixed number that is no address serves nearly as well.
        let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
        (u64::from_ne_bytes(random) >> 16) | 0x5a4e_0000_0000_0000
    })
}

impl EventLoop {
    /// A loop on an epoll set, of which it keeps a descriptor of its own.
    ///
    /// # Errors
    /// EMFILE, or EINVAL if it is no epoll set.
    pub(crate) fn new(epoll: BorrowedFd<'_>) -> io::Result<Self> {
        let epoll = Arc::new(tcp::aside(rustix::io::fcntl_dupfd_cloexec(epoll, 0)?));
        let doorbell = Arc::new(Signal::new()?);
        let data = EventData::new_u64(tag());
        epoll::add(&*epoll, doorbell.as_fd(), data, EventFlags::IN)?;
        Ok(Self {
            shared: Arc::new(Shared {
                wakes: Wakes::new(),
                doorbell,
                epoll,
            }),
            members: Mutex::default(),
            lanes: Mutex::default(),
            turns: AtomicUsize::new(0),
        })
    }

    /// Whether there is a source under this key.
    pub(crate) fn has(&self, key: u64) -> bool {
        has(&self.members.lock(), key)
    }

    /// Wakes whoever sleeps in the epoll set.
    pub(crate) fn ring(&self) {
        self.shared.doorbell.set();
    }

    /// The number of its epoll set, another one than the program's.
    pub(crate) fn number(&self) -> RawFd {
        self.shared.epoll.as_raw_fd()
    }

    /// Its epoll set, by another descriptor than the program's.
    pub(crate) fn epoll(&self) -> BorrowedFd<'_> {
        self.shared.epoll.as_fd()
    }

    /// Adds a source under a key of the caller's.
    ///
    /// # Errors
    /// EEXIST; EINVAL as [`Interest::check_added`].
    pub(crate) fn add(
        &self,
        key: u64,
        source: &Arc<dyn Source>,
        interest: Interest,
    ) -> io::Result<()> {
        interest.check_added()?;
        let member = Arc::new(Member {
            shared: Arc::downgrade(&self.shared),
            source: Arc::downgrade(source),
            interest: Mutex::new(interest),
            lane: Mutex::new(None),
            is_queued: AtomicBool::new(false),
            is_gone: AtomicBool::new(false),
        });
        let mut members = self.members.lock();
        if has(&members, key) {
            return Err(Errno::EXIST.into());
        }
        members.insert(key, Arc::clone(&member));
        drop(members);
        self.look_at_lane(&member);
        let told: Weak<dyn Told> = Arc::downgrade(&member) as Weak<dyn Told>;
        source.hub().add(told);
        // What is the case already is the first edge.
        member.ready();
        Ok(())
    }

    /// The source may have another lane than when it was added, or when this was called last. Who sleeps is
    /// woken, and arms it.
    pub(crate) fn see_lane(&self, key: u64) {
        let member = self.members.lock().get(&key).map(Arc::clone);
        if let Some(member) = member
            && self.look_at_lane(&member)
        {
            member.ready();
        }
    }

    /// Has the loop poll the lane that the source has now. Whether that is another one.
    fn look_at_lane(&self, member: &Member) -> bool {
        let Some(now) = member.source.upgrade().and_then(|source| source.lane()) else {
            return false;
        };
        let mut lane = member.lane.lock();
        let is_known = lane.as_ref().is_some_and(|lane| lane.same_as(&now));
        // Who takes the member out marks it before he looks for its lane.
        if is_known || member.is_gone.load(Ordering::Acquire) {
            return false;
        }
        let before = lane.replace(now.clone());
        let mut lanes = self.lanes.lock();
        if let Err(error) = lanes.add(now, &self.shared.epoll, tag()) {
            // Without a descriptor to spare the loop is late: it polls when it has something else to do.
            tracing::error!(%error, "a lane cannot wake its loop");
        }
        if let Some(before) = before {
            lanes.remove(&before, &self.shared.epoll);
        }
        true
    }

    /// Changes what is told of a source, and tells it anew.
    ///
    /// # Errors
    /// ENOENT.
    pub(crate) fn modify(&self, key: u64, interest: Interest) -> io::Result<()> {
        let member = self.members.lock().get(&key).map(Arc::clone);
        let member = member.ok_or(Errno::NOENT)?;
        let mut present = member.interest.lock();
        present.check_changed(&interest)?;
        *present = interest;
        drop(present);
        member.ready();
        Ok(())
    }

    /// Takes a source out, and gives what was to be told of it.
    ///
    /// # Errors
    /// ENOENT.
    pub(crate) fn remove(&self, key: u64) -> io::Result<Interest> {
        let mut members = self.members.lock();
        let member = members.remove(&key).ok_or(Errno::NOENT)?;
        drop(members);
        member.is_gone.store(true, Ordering::Release);
        if let Some(source) = member.source.upgrade() {
            let told: Weak<dyn Told> = Arc::downgrade(&member) as Weak<dyn Told>;
            source.hub().remove(&told);
        }
        if let Some(lane) = member.lane.lock().take() {
            self.lanes.lock().remove(&lane, &self.shared.epoll);
        }
        let interest = *member.interest.lock();
        Ok(interest)
    }

    /// Waits for events of both kinds, as epoll_wait(2): at least one, unless the time is over.
    ///
    /// # Errors
    /// What the kernel's part says; EINVAL for no room.
    pub(crate) fn wait(
        &self,
        events: &mut [Event],
        timeout: Option<Duration>,
        kernel: KernelWait<'_>,
    ) -> io::Result<usize> {
        if events.is_empty() {
            return Err(Errno::INVAL.into());
        }
        let deadline = Deadline::after(timeout);
        let mut turn = Turn::new(&self.shared.doorbell, Some((&self.shared.epoll, tag())));
        loop {
            self.lanes.lock().poll_warm();
            let first = match self.is_kernels_turn() {
                true => {
                    self.lanes.lock().poll_cold();
                    let room = events.len().div_ceil(2);
                    self.ask(&mut events[..room], Some(Duration::ZERO), kernel)?
                }
                false => 0,
            };
            let found = self.collect_after(first, events);
            if found > 0 {
                return Ok(found);
            }
            if deadline.is_over() {
                self.lanes.lock().poll_cold();
                let first = self.ask(events, Some(Duration::ZERO), kernel)?;
                return Ok(first + self.collect(&mut events[first..]));
            }
            let outcome = self.sleep(&mut turn, events, deadline, kernel);
            let first = outcome?;
            self.lanes.lock().poll_warm();
            let found = self.collect_after(first, events);
            if found > 0 || deadline.is_over() {
                return Ok(found);
            }
        }
    }

    /// Prepares a sleep on the epoll set's own descriptor, somewhere else: it becomes readable when
    /// something may be ready. `None`: something may be ready already.
    pub(crate) fn stand_by(&self) -> Option<StandBy<'_>> {
        if !self.shared.wakes.fall_asleep() {
            return None;
        }
        let mut stand_by = StandBy {
            turn: Turn::new(&self.shared.doorbell, Some((&self.shared.epoll, tag()))),
            wakes: &self.shared.wakes,
            lanes: &self.lanes,
        };
        let may_sleep = self.arm(&mut stand_by.turn);
        (may_sleep && self.shared.wakes.is_empty()).then_some(stand_by)
    }

    /// Sleeps until something may be ready; how many events the kernel has told.
    fn sleep(
        &self,
        turn: &mut Turn<'_>,
        events: &mut [Event],
        deadline: Deadline,
        kernel: KernelWait<'_>,
    ) -> io::Result<usize> {
        if !self.shared.wakes.fall_asleep() {
            return Ok(0);
        }
        let may_sleep = self.arm(turn);
        let left = match may_sleep && self.shared.wakes.is_empty() {
            true => deadline.left(),
            false => Some(Duration::ZERO),
        };
        let outcome = self.ask(events, left, kernel);
        let mut lanes = self.lanes.lock();
        lanes.poll_some();
        turn.awake(|number| lanes.warm(number));
        drop(lanes);
        self.shared.wakes.awake();
        outcome
    }

    /// Asks for notification on all lanes; whether the caller may sleep.
    fn arm(&self, turn: &mut Turn<'_>) -> bool {
        let mut lanes = self.lanes.lock();
        match turn.arm(lanes.all()) {
            Armed::MaySleep => true,
            Armed::SomethingCame { number } => {
                lanes.warm(number);
                false
            }
        }
    }

    fn is_kernels_turn(&self) -> bool {
        let turn = self.turns.fetch_add(1, Ordering::Relaxed);
        turn.is_multiple_of(KERNELS_TURN)
    }

    /// Asks the kernel, and takes out what was meant for us.
    fn ask(
        &self,
        events: &mut [Event],
        timeout: Option<Duration>,
        kernel: KernelWait<'_>,
    ) -> io::Result<usize> {
        let room = events.len();
        let mut came = kernel(events, timeout)?.min(room);
        let mut kept = without_ours(events, came);
        if kept < came {
            self.shared.doorbell.reset();
        }
        // What was meant for us may have taken all the room. The kernel tells those that are ready by turns.
        let mut turns = self.lanes.lock().len() + 1;
        while kept == 0 && came == room && turns > 0 {
            turns -= 1;
            came = kernel(events, Some(Duration::ZERO))?.min(room);
            kept = without_ours(events, came);
        }
        Ok(kept)
    }

    /// What is told after the kernel has told so much. A source may have come from the kernel's set a moment
    /// ago, and would be told twice: then the next wait tells the sources.
    fn collect_after(&self, first: usize, events: &mut [Event]) -> usize {
        match first {
            0 => self.collect(events),
            told => told,
        }
    }

    /// Tells what is ready, as far as there is room.
    fn collect(&self, events: &mut [Event]) -> usize {
        // A look may have its source put itself on the list again: that one is told by the next wait.
        let mut left = self.shared.wakes.len();
        if left == 0 {
            return 0;
        }
        let mut candidates = Vec::with_capacity(events.len().min(64));
        let mut kept = Vec::new();
        let mut told = 0;
        loop {
            let most = left.min(events.len() - told);
            let taken = self.shared.wakes.take(most, &mut candidates);
            left -= candidates.len();
            if candidates.is_empty() && told < events.len() {
                break;
            }
            for member in candidates.drain(..) {
                if let Some((event, again)) = member.judge() {
                    events[told] = event;
                    told += 1;
                    if again && !member.is_queued.swap(true, Ordering::AcqRel) {
                        kept.push(member);
                    }
                }
            }
            if told == events.len() {
                if taken.more {
                    self.shared.doorbell.set();
                }
                break;
            }
        }
        // What stays ready is looked at again by the next wait, whose turn comes without a ring.
        self.shared.wakes.put_back(kept.into_iter());
        told
    }
}

/// What is gone without having been taken out has left its key.
fn has(members: &HashMap<u64, Arc<Member>>, key: u64) -> bool {
    let member = members.get(&key);
    member.is_some_and(|member| member.source.strong_count() > 0)
}

/// Takes out what was meant for us; how many are left.
pub(crate) fn without_ours(events: &mut [Event], came: usize) -> usize {
    let tag = tag();
    let mut kept = 0;
    for index in 0..came {
        let event = events[index];
        let data = event.data;
        if data.u64() != tag {
            events[kept] = event;
            kept += 1;
        }
    }
    kept
}

/// The wait of a process that has inherited an epoll set with a loop's descriptors in it. Where they
/// alone have woken it, it has waited for less than it asked.
pub(crate) fn kernels_alone(
    events: &mut [Event],
    timeout: Option<Duration>,
    kernel: KernelWait<'_>,
) -> io::Result<usize> {
    let came = kernel(events, timeout)?.min(events.len());
    Ok(without_ours(events, came))
}

impl Member {
    /// What the program hears of it now, and whether it is to be looked at again the next time.
    fn judge(&self) -> Option<(Event, bool)> {
        self.is_queued.swap(false, Ordering::AcqRel);
        if self.is_gone.load(Ordering::Acquire) {
            return None;
        }
        let source = self.source.upgrade()?;
        // The look may have the source leave the loop, which asks for the interest.
        let now = source.events();
        let mut interest = self.interest.lock();
        let (flags, again) = match interest.judge(now) {
            Verdict::Silent => return None,
            Verdict::Tell(flags) => (flags, false),
            Verdict::TellAndKeep(flags) => (flags, true),
        };
        let data = EventData::new_u64(interest.data());
        Some((Event { flags, data }, again))
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        let members = std::mem::take(&mut *self.members.lock());
        for member in members.into_values() {
            member.is_gone.store(true, Ordering::Release);
            if let Some(source) = member.source.upgrade() {
                let told: Weak<dyn Told> = Arc::downgrade(&member) as Weak<dyn Told>;
                source.hub().remove(&told);
            }
        }
    }
}

#[cfg(test)]
#[path = "event_loop_tests.rs"]
mod tests;
