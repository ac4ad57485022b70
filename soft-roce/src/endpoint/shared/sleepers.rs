//! Those that sleep until something comes.
//!
//! What it does: names what they sleep on; lets one of them, the leader, work the
//! sockets for all, and has another follow when it leaves; counts what users do,
//! so that the endpoint's thread sees whether it is needed.
//! What it does not do: sleep.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::epoll;
use san_base::lock;

use super::cq::ChannelShared;
use crate::driver::wake::Wake;
use crate::time::Time;

/// What a thread sleeps on. It outlives the endpoint, so that sleeping does not
/// keep the endpoint alive.
#[derive(Debug)]
pub(crate) struct Waiter {
    /// All sockets.
    pub(crate) sockets: OwnedFd,
    /// For the endpoint's thread.
    pub(crate) wake: Wake,
    /// Until when the thread sleeps, in nanoseconds.
    pub(crate) sleeps_until: AtomicU64,
    /// Whether somebody sleeps on the sockets in the thread's place.
    pub(crate) led: AtomicBool,
    /// How many sockets that one watches.
    pub(crate) watched: AtomicUsize,
    /// Whether the thread leaves the sockets to others.
    pub(crate) stands_back: AtomicBool,
    pub(crate) stop: AtomicBool,
}

impl Waiter {
    /// # Errors
    /// The process or the system has no file descriptor left.
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self {
            sockets: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            wake: Wake::new()?,
            sleeps_until: AtomicU64::new(0),
            led: AtomicBool::new(false),
            watched: AtomicUsize::new(0),
            stands_back: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        })
    }
}

impl AsFd for Waiter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sockets.as_fd()
    }
}

/// Whoever holds it sleeps on the sockets; the thread does not.
#[derive(Debug)]
pub(crate) struct Leader<'a>(&'a Waiter);

impl Drop for Leader<'_> {
    fn drop(&mut self) {
        self.0.led.store(false, Ordering::Release);
    }
}

/// All that sleep.
#[derive(Debug)]
pub(crate) struct Sleepers {
    pub(crate) waiter: Arc<Waiter>,
    pub(crate) activity: Activity,
    /// Those that wait behind the leader.
    followers: Mutex<Vec<Arc<ChannelShared>>>,
}

impl Sleepers {
    pub(crate) fn new(waiter: Arc<Waiter>) -> Self {
        Self {
            waiter,
            activity: Activity::default(),
            followers: Mutex::default(),
        }
    }

    /// Becomes the one who sleeps on the sockets, if nobody is.
    pub(crate) fn lead(&self) -> Option<Leader<'_>> {
        let led = &self.waiter.led;
        let is_first = led
            .compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok();
        is_first.then(|| {
            self.activity.note_led();
            Leader(&self.waiter)
        })
    }

    /// Waits behind the leader.
    pub(crate) fn follow(&self, channel: &Arc<ChannelShared>) {
        lock(&self.followers).push(channel.clone());
    }

    /// Waits no longer. False: was roused to lead.
    pub(crate) fn unfollow(&self, channel: &Arc<ChannelShared>) -> bool {
        let mut followers = lock(&self.followers);
        let at = followers
            .iter()
            .position(|other| Arc::ptr_eq(other, channel));
        at.map(|at| followers.swap_remove(at)).is_some()
    }

    /// Has one that waits work the sockets, unless somebody does.
    pub(crate) fn rouse_follower(&self) {
        if !self.waiter.led.load(Ordering::Acquire)
            && let Some(channel) = lock(&self.followers).pop()
        {
            channel.rouse();
        }
    }

    /// Whether somebody else works the sockets: one who spins, or sleeps on them.
    /// The thread then looks once a millisecond at what was put off.
    pub(crate) fn thread_stands_back(&self) -> bool {
        self.waiter.stands_back.load(Ordering::Relaxed)
    }

    /// A user will sleep on a descriptor: has the thread work the sockets.
    pub(crate) fn arm(&self) {
        self.activity.note_armed();
        if self.waiter.stands_back.load(Ordering::Acquire) {
            self.waiter.wake.signal();
        }
    }
}

/// What users do, for the thread to see whether it is needed.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    /// Polls that found nothing.
    empty: AtomicU64,
    /// Notifications asked for by users who sleep on descriptors.
    armed: AtomicU64,
    /// Sleeps on the sockets in the thread's place.
    led: AtomicU64,
}

/// What the thread knows of it from its looks.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    armed: u64,
    led: u64,
    /// When counting of polls began, and the count at that moment.
    began: Time,
    empty: u64,
    spins: bool,
}

/// What users have done since the last look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    /// Somebody spins, and nobody went to sleep on a descriptor.
    pub(crate) spins: bool,
    /// Somebody has slept on the sockets, and nobody went to sleep on a descriptor.
    pub(crate) led: bool,
}

/// Who polls in vain more often than this in a [`TICK`] does not sleep.
const SPINS: u64 = 8;
/// How long no polls are taken for the end of polling. While users poll, the thread looks so often.
pub(crate) const TICK: Duration = Duration::from_millis(1);

impl Activity {
    /// Counts a poll that found nothing. How many there were before.
    pub(crate) fn note_empty(&self) -> u64 {
        self.empty.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn note_armed(&self) {
        self.armed.fetch_add(1, Ordering::Relaxed);
    }

    fn note_led(&self) {
        self.led.fetch_add(1, Ordering::Relaxed);
    }

    /// What was done since the last look, which was at `now` at the latest.
    ///
    /// Whether somebody spins is a matter of polls a time, not of polls a look: a packet may wake the thread
    /// after a few of them. Were it to take the sockets then, each packet would wake it, and it would see no
    /// more polls the next time.
    pub(crate) fn since(&self, seen: &mut Seen, now: Time) -> Done {
        let armed = self.armed.load(Ordering::Relaxed);
        let led = self.led.load(Ordering::Relaxed);
        let empty = self.empty.load(Ordering::Relaxed);
        let nobody_armed = armed == std::mem::replace(&mut seen.armed, armed);
        let has_led = led != std::mem::replace(&mut seen.led, led);
        let ticks = (now - seen.began).as_nanos() / TICK.as_nanos();
        let many = u128::from(empty.wrapping_sub(seen.empty)) > u128::from(SPINS) * ticks.max(1);
        if many || ticks > 0 || !nobody_armed {
            seen.spins = many && nobody_armed;
            (seen.began, seen.empty) = (now, empty);
        }
        Done {
            spins: seen.spins,
            led: nobody_armed && has_led,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thread that looks at `activity`, with a clock of its own.
    struct Looks<'a> {
        activity: &'a Activity,
        seen: Seen,
        now: Time,
    }

    impl<'a> Looks<'a> {
        fn at(activity: &'a Activity) -> Self {
            Self {
                activity,
                seen: Seen::default(),
                now: Time::ZERO,
            }
        }

        /// Looks after so many microseconds, in which a user polled in vain so often.
        fn after(&mut self, micros: u64, polls: u64) -> Done {
            self.now = self.now + Duration::from_micros(micros);
            for _ in 0..polls {
                self.activity.note_empty();
            }
            self.activity.since(&mut self.seen, self.now)
        }
    }

    #[test]
    fn one_who_spins_is_seen_though_packets_wake_the_thread_after_a_few_polls() {
        let activity = Activity::default();
        let mut looks = Looks::at(&activity);
        looks.after(5_000, 0);
        let saw = (0..8).position(|_| looks.after(10, 2).spins);
        assert_eq!(saw, Some(4), "the fifth look has seen ten polls");
    }

    #[test]
    fn one_who_has_just_been_seen_to_spin_is_not_taken_for_gone_after_a_moment() {
        let activity = Activity::default();
        let mut looks = Looks::at(&activity);
        assert!(looks.after(1_000, 9).spins);
        assert!(looks.after(10, 0).spins, "ten microseconds say nothing");
        assert!(!looks.after(1_000, 0).spins, "a tick without polls does");
    }

    #[test]
    fn one_who_polls_now_and_then_does_not_spin() {
        let activity = Activity::default();
        let mut looks = Looks::at(&activity);
        assert!(!looks.after(1_000_000, 1_000).spins, "once a millisecond");
    }

    #[test]
    fn one_who_goes_to_sleep_on_a_descriptor_is_seen_at_once() {
        let activity = Activity::default();
        let mut looks = Looks::at(&activity);
        assert!(looks.after(1_000, 100).spins);
        activity.note_armed();
        assert!(!looks.after(10, 100).spins);
        assert!(!looks.after(10, 2).spins, "what came before does not count");
    }
}
