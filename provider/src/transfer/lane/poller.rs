//! Completion without hand-off: who waits polls, and delivers to the others what is theirs.
//!
//! A lane has one polling role. A waiting thread takes it if it is free, and *leads*: it polls, and
//! every completion is handed to its connection. Other waiting threads *follow*: they sleep on their
//! own operation, and the thread that leaves the role wakes one of them to take it over. A leader that
//! finds nothing spins for a while (`spin.rs`), then asks for notification, polls again, and sleeps
//! on the completion channel.
//!
//! Others leave mail for the leader. The rule that nothing gets lost is the same everywhere: leave
//! what is to be done, then try to take the role; and who lets the role go looks for what was left.
//!
//! What is polled, and to whom it belongs, is the [`Source`]'s affair. So `poller_tests.rs` runs this
//! very file on a source of its own, with loom's primitives in place of the system's.

use std::time::Duration;

use super::followers::Followers;
use super::primitives::{
    AtomicBool, AtomicUsize, Mutex, MutexGuard, Ordering, Parker, Unparker, fence, try_lock,
    with_parker,
};
use super::spin::Learner;
use crate::time::Patience;

/// A leader that waits for messages looks at the sends, too, at least at every 10th wait or look while it
/// spins: nobody may be waiting for them, but they hold buffers, and a failed one ends its connection. So
/// that the answers to messages that are waited for are no more than a send queue has places for.
const LOOKS_PER_SENDS: u32 = 10;

/// Full batches that the progress thread takes before it lets others have the role.
const POLLS_AT_A_TIME: usize = 64;

/// What is polled.
pub(crate) trait Source {
    /// What only the holder of the role may touch.
    type Role;
    /// To whom completions belong.
    type Member;
    /// A member's state, under its lock.
    type State;

    /// Reads the mail and polls; hands what came to its members, and shows it and them to `see` while
    /// their lock is held. How many completions there were.
    fn poll(
        &self,
        role: &mut Self::Role,
        queues: Queues,
        see: &mut impl See<Self::Member, Self::State>,
    ) -> usize;

    /// Whether somebody has left mail.
    fn has_mail(&self) -> bool;

    /// Asks for notification. `false`: the queues are broken, and nothing would come.
    fn arm(&self, queues: Queues) -> bool;

    /// Sleeps until there is something to poll, or [`Source::wake`].
    fn sleep(&self, timeout: Option<Duration>);

    /// Has the thread in [`Source::sleep`] come back.
    fn wake(&self);

    /// Has the thread that sleeps outside look.
    fn wake_outside(&self);

    /// Has the progress thread look.
    fn wake_progress(&self);
}

/// Which queues are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Queues {
    Receives,
    Both,
}

impl Queues {
    #[inline(always)]
    fn of(hears_of_sends: bool) -> Self {
        match hears_of_sends {
            false => Self::Receives,
            true => Self::Both,
        }
    }
}

/// Who is shown what a poll hands out.
pub(crate) trait See<M, S> {
    /// The only message that came, before it is kept for a member: takes its bytes, if they are all that
    /// is wanted. `true`: it has, and the message is not needed any more.
    #[inline]
    fn take(&mut self, _member: &M, _kind: u8, _bytes: &[u8]) -> bool {
        false
    }

    /// A member to which something was just handed.
    fn see(&mut self, member: &M, state: &mut S);
}

/// Nobody.
struct Unseen;

impl<M, S> See<M, S> for Unseen {
    #[inline]
    fn see(&mut self, _: &M, _: &mut S) {}
}

/// What a thread waits for, which is shown what it polls.
pub(crate) trait Wanted<S: Source>: See<S::Member, S::State> {
    type Found;

    /// What it has seen.
    fn seen(&mut self) -> Option<Self::Found>;

    /// Looks whether it is there; if not, `waker` is to be woken when it is.
    fn check(&mut self, waker: Option<&Unparker>) -> Option<Self::Found>;
}

/// What the holder of the polling role has.
pub(crate) struct Role<R> {
    source: R,
    /// Looks until the sends are looked at again, at least 1.
    looks_left: u32,
    spin: Learner,
}

/// The polling of one lane.
pub(crate) struct Poller<R> {
    role: Mutex<Role<R>>,
    followers: Followers,
    /// The leader is asleep, or about to be.
    asleep: AtomicBool,
    /// How often something was done that the leader has to look at.
    kicks: AtomicUsize,
    /// How often a leader went to sleep; and as it was when [`Poller::disturb_sleep`] last looked.
    sleeps: AtomicUsize,
    sleeps_seen: AtomicUsize,
    /// Twice as many as want to hear of send completions while the leader sleeps; and [`SENDS_UNSEEN`]. So that
    /// who wakes looks at one number.
    send_interest: AtomicUsize,
    /// How many want the lane served while nobody waits; and, by [`OUTSIDE`] each, how many threads sleep
    /// outside, on the channel's descriptor. So that who lets the role go looks at one number.
    watchers: AtomicUsize,
    /// How many have sends queued that nobody may be waiting for.
    lazy_interest: AtomicUsize,
}

/// The leader is to look at the sends when it wakes.
const SENDS_UNSEEN: usize = 1;
/// One that wants to hear of send completions.
const SEND_INTEREST: usize = 2;

/// One thread that sleeps outside.
const OUTSIDE: usize = 1 << (usize::BITS / 2);

enum Followed<T> {
    Found(T),
    Over,
    Again,
}

impl<R> Poller<R> {
    pub(super) fn new(role: R, spin: Duration) -> Self {
        Self {
            role: Mutex::new(Role {
                source: role,
                looks_left: LOOKS_PER_SENDS,
                spin: Learner::new(spin),
            }),
            followers: Followers::new(),
            asleep: AtomicBool::new(false),
            kicks: AtomicUsize::new(0),
            sleeps: AtomicUsize::new(0),
            sleeps_seen: AtomicUsize::new(0),
            send_interest: AtomicUsize::new(0),
            watchers: AtomicUsize::new(0),
            lazy_interest: AtomicUsize::new(0),
        }
    }

    /// Somebody wants to hear of send completions while the leader sleeps, or not any more.
    pub(super) fn watch_sends(&self, wanted: bool) {
        count(&self.send_interest, SEND_INTEREST, wanted);
    }

    /// Somebody wants the lane served while nobody waits, or not any more.
    pub(super) fn serve_async(&self, wanted: bool) {
        count(&self.watchers, 1, wanted);
    }

    /// Somebody has sends queued, or not any more.
    pub(super) fn serve_lazily(&self, wanted: bool) {
        count(&self.lazy_interest, 1, wanted);
    }

    pub(super) fn has_async_interest(&self) -> bool {
        self.watchers.load(Ordering::SeqCst) & (OUTSIDE - 1) > 0
    }

    pub(super) fn has_lazy_interest(&self) -> bool {
        self.lazy_interest.load(Ordering::SeqCst) > 0
    }

    /// How often a leader went to sleep.
    pub(super) fn sleeps(&self) -> usize {
        self.sleeps.load(Ordering::Relaxed)
    }

    /// Wakes the leader if it sleeps: something has changed behind its back.
    pub(super) fn kick<S: Source<Role = R>>(&self, source: &S) {
        self.kicks.fetch_add(1, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) {
            source.wake();
        }
    }

    /// The leader, if it has slept since this was called before, has a look at the sends: a device
    /// tells nobody else that the peer of one has vanished, and to be woken by their completions would
    /// cost a call of the system for every sleep.
    pub(super) fn disturb_sleep<S: Source<Role = R>>(&self, source: &S) {
        let sleeps = self.sleeps();
        let slept = self.sleeps_seen.swap(sleeps, Ordering::Relaxed) == sleeps;
        if slept && self.asleep.load(Ordering::SeqCst) {
            self.send_interest.fetch_or(SENDS_UNSEEN, Ordering::SeqCst);
            self.kick(source);
        }
    }

    /// Polls once if nobody else does, without waiting; how much came.
    pub(super) fn poll_if_free<S: Source<Role = R>>(&self, source: &S) -> usize {
        let Some(mut role) = try_lock(&self.role) else {
            return 0;
        };
        let came = poll(source, &mut role, &mut Unseen);
        self.let_go(source, role);
        came
    }

    /// Waits until what is wanted is there, polling meanwhile or letting another thread poll; `None`
    /// at the deadline.
    // Always: whoever calls it does little else.
    #[inline(always)]
    pub(super) fn wait<S: Source<Role = R>, W: Wanted<S>>(
        &self,
        source: &S,
        length: Duration,
        wanted: &mut W,
    ) -> Option<W::Found> {
        match try_lock(&self.role) {
            Some(mut role) => match Patience::is_endless(length) && role.spin.sleeps_at_once() {
                true => self.lead_asleep(source, role, length, wanted),
                false => self.lead(source, role, &mut Patience::new(length), wanted),
            },
            None => self.wait_behind(source, length, wanted),
        }
    }

    /// The shortest way of [`Poller::lead`], where the wait has no end and, as the last one tells, has to sleep:
    /// there is nothing to spin for and no clock to look at.
    #[inline(always)]
    fn lead_asleep<S: Source<Role = R>, W: Wanted<S>>(
        &self,
        source: &S,
        mut role: MutexGuard<'_, Role<R>>,
        length: Duration,
        wanted: &mut W,
    ) -> Option<W::Found> {
        let mut kicks = self.kicks.load(Ordering::Acquire);
        let mut found = wanted.check(None);
        if found.is_none() {
            self.sleep(source, &mut role, None, kicks, wanted);
            found = self.has_come(wanted, &mut kicks);
            if found.is_none() {
                return self.lead(source, role, &mut Patience::new(length), wanted);
            }
        }
        self.let_go(source, role);
        found
    }

    /// The same where another thread polls.
    #[cold]
    #[inline(never)]
    fn wait_behind<S: Source<Role = R>, W: Wanted<S>>(
        &self,
        source: &S,
        length: Duration,
        wanted: &mut W,
    ) -> Option<W::Found> {
        let mut patience = Patience::new(length);
        loop {
            if let Some(role) = try_lock(&self.role) {
                return self.lead(source, role, &mut patience, wanted);
            }
            match self.follow(source, &mut patience, wanted) {
                Followed::Found(found) => return Some(found),
                Followed::Over => return None,
                Followed::Again => {}
            }
        }
    }

    /// Polls, spins and sleeps until what is wanted is there.
    #[inline(never)]
    fn lead<S: Source<Role = R>, W: Wanted<S>>(
        &self,
        source: &S,
        mut role: MutexGuard<'_, Role<R>>,
        patience: &mut Patience,
        wanted: &mut W,
    ) -> Option<W::Found> {
        let mut spin = role.spin.begin();
        // What ends an operation without a completion is followed by a kick. So is what others did
        // before the role was taken, as far as we know: hence the first check.
        let mut kicks = self.kicks.load(Ordering::Acquire);
        let found = 'led: {
            if let Some(found) = wanted.check(None) {
                break 'led Some(found);
            }
            // Where the last wait had to sleep, nothing is likely to be here: asking for notification
            // polls as well.
            let mut looks = !role.spin.sleeps_likely(&spin);
            loop {
                while looks {
                    let came = self.look(source, &mut role, wanted);
                    if let Some(found) = self.has_come(wanted, &mut kicks) {
                        role.spin.found_awake(&spin);
                        break 'led Some(found);
                    }
                    looks = came > 0
                        || spin.is_some() && role.spin.goes_on(&mut spin) && !patience.is_over();
                }
                let left = patience.left();
                if left.is_some_and(|left| left.is_zero()) {
                    break None;
                }
                let came = self.sleep(source, &mut role, left, kicks, wanted);
                if let Some(found) = self.has_come(wanted, &mut kicks) {
                    role.spin.found_asleep();
                    break Some(found);
                }
                looks = came > 0
                    || spin.is_some() && role.spin.goes_on(&mut spin) && !patience.is_over();
            }
        };
        self.let_go(source, role);
        found
    }

    /// What is wanted, if it was seen or somebody has kicked and it is there; `kicks` were known before.
    #[inline(always)]
    fn has_come<S: Source<Role = R>, W: Wanted<S>>(
        &self,
        wanted: &mut W,
        kicks: &mut usize,
    ) -> Option<W::Found> {
        if let Some(found) = wanted.seen() {
            return Some(found);
        }
        let now = self.kicks.load(Ordering::Acquire);
        if now == *kicks {
            return None;
        }
        *kicks = now;
        wanted.check(None)
    }

    /// Sleeps on the completion channel until there is something to poll, or somebody kicks; then
    /// polls, and says how much came. `kicks`: how many there were before the last check.
    #[inline(always)]
    fn sleep<S: Source<Role = R>>(
        &self,
        source: &S,
        role: &mut Role<R>,
        timeout: Option<Duration>,
        kicks: usize,
        wanted: &mut impl Wanted<S>,
    ) -> usize {
        // Whoever changes something behind our back kicks and then looks whether we sleep; we say
        // so and then look for kicks. One of the two sees the other.
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let hears_of_sends = self.hears_of_sends();
        let armed = source.arm(Queues::of(hears_of_sends));
        let came = self.look_at(source, role, hears_of_sends, wanted);
        if came > 0 || self.kicks.load(Ordering::Acquire) != kicks || !armed {
            self.asleep.store(false, Ordering::Relaxed);
            return came;
        }
        // Only the leader writes it.
        self.sleeps.store(self.sleeps() + 1, Ordering::Relaxed);
        source.sleep(timeout);
        self.asleep.store(false, Ordering::Relaxed);
        // Who wants to hear of sends was there before the sleep, or has kicked.
        if self.hears_of_sends() {
            return self.look_at_sends(source, role, wanted);
        }
        source.poll(&mut role.source, Queues::Receives, wanted)
    }

    /// Polls both queues, after a sleep.
    #[inline(never)]
    fn look_at_sends<S: Source<Role = R>>(
        &self,
        source: &S,
        role: &mut Role<R>,
        wanted: &mut impl Wanted<S>,
    ) -> usize {
        self.send_interest
            .fetch_and(!SENDS_UNSEEN, Ordering::SeqCst);
        poll(source, role, wanted)
    }

    /// Whether somebody wants to hear of send completions, or the sends are to be looked at.
    #[inline(always)]
    fn hears_of_sends(&self) -> bool {
        self.send_interest.load(Ordering::SeqCst) > 0
    }

    /// Polls as a thread does that waits. Always where it is called: mostly nothing is there, and to save
    /// the registers would cost as much as the poll.
    #[inline(always)]
    fn look<S: Source<Role = R>>(
        &self,
        source: &S,
        role: &mut Role<R>,
        wanted: &mut impl See<S::Member, S::State>,
    ) -> usize {
        self.look_at(source, role, self.hears_of_sends(), wanted)
    }

    /// The same, also at the sends if somebody wants to hear of them.
    #[inline(always)]
    fn look_at<S: Source<Role = R>>(
        &self,
        source: &S,
        role: &mut Role<R>,
        hears_of_sends: bool,
        wanted: &mut impl See<S::Member, S::State>,
    ) -> usize {
        role.looks_left -= 1;
        if role.looks_left == 0 || hears_of_sends {
            return poll(source, role, wanted);
        }
        source.poll(&mut role.source, Queues::Receives, wanted)
    }

    /// Asks for notification. `false`: nothing would come.
    #[inline]
    pub(super) fn arm<S: Source<Role = R>>(&self, source: &S) -> bool {
        source.arm(Queues::of(self.hears_of_sends()))
    }

    /// Sleeps until the operation has ended, or the role is free.
    fn follow<S: Source<Role = R>, W: Wanted<S>>(
        &self,
        source: &S,
        patience: &mut Patience,
        wanted: &mut W,
    ) -> Followed<W::Found> {
        with_parker(|parker: &Parker| {
            let unparker = parker.unparker();
            if let Some(found) = wanted.check(Some(unparker)) {
                return Followed::Found(found);
            }
            let ticket = self.followers.join(unparker.clone());
            fence(Ordering::SeqCst);
            // The role may have become free before anybody could know of us.
            let free = match try_lock(&self.role) {
                Some(role) => {
                    drop(role);
                    fence(Ordering::SeqCst);
                    self.serve_mail(source);
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
            self.followers.leave(ticket);
            match wanted.check(None) {
                Some(found) => {
                    // The wake-up may have been meant to hand the role over.
                    self.hand_over(source);
                    Followed::Found(found)
                }
                None if patience.is_over() => {
                    self.hand_over(source);
                    Followed::Over
                }
                None => Followed::Again,
            }
        })
    }

    /// Lets the role go, and sees to it that somebody takes it who needs it.
    #[inline]
    fn let_go<S: Source<Role = R>>(&self, source: &S, role: MutexGuard<'_, Role<R>>) {
        if self.watchers.load(Ordering::SeqCst) > 0 {
            return self.let_go_watched(source, role);
        }
        drop(role);
        fence(Ordering::SeqCst);
        self.serve_mail(source);
        self.hand_over(source);
    }

    /// Lets the role go where others sleep on the same channel.
    #[cold]
    #[inline(never)]
    fn let_go_watched<S: Source<Role = R>>(&self, source: &S, mut role: MutexGuard<'_, Role<R>>) {
        // The progress thread sleeps on the same channel: it hears of what comes from now on, and
        // is woken for what may have come before.
        let mut more = self.has_async_interest()
            && !self.followers.progress_waits()
            && self.arm(source)
            && poll(source, &mut role, &mut Unseen) > 0;
        if self.watchers.load(Ordering::SeqCst) >= OUTSIDE {
            self.followers.take_unarmed();
            if !self.arm_until_empty(source, &mut role) {
                source.wake_outside();
                more = true;
            }
        }
        drop(role);
        fence(Ordering::SeqCst);
        self.serve_mail(source);
        if more {
            source.wake_progress();
        }
        self.hand_over(source);
    }

    /// Polls for what nobody waits for. `false`: somebody polls, and will wake the progress thread
    /// when it stops. `consume` takes the events that were announced.
    pub(super) fn serve<S: Source<Role = R>>(&self, source: &S, consume: impl Fn()) -> bool {
        for attempt in 0..2 {
            if let Some(mut role) = try_lock(&self.role) {
                self.followers.take_progress_waits();
                consume();
                // If there is more than this, letting go finds it.
                for _ in 0..POLLS_AT_A_TIME {
                    if poll(source, &mut role, &mut Unseen) == 0 {
                        break;
                    }
                }
                self.let_go(source, role);
                return true;
            }
            if attempt == 0 {
                self.followers.set_progress_waits();
                fence(Ordering::SeqCst);
            }
        }
        false
    }

    /// Asks for notification and polls until nothing has come since; `false`: it goes on coming.
    fn arm_until_empty<S: Source<Role = R>>(&self, source: &S, role: &mut Role<R>) -> bool {
        for _ in 0..POLLS_AT_A_TIME {
            if !self.arm(source) || poll(source, role, &mut Unseen) == 0 {
                return true;
            }
        }
        false
    }

    /// A thread is about to sleep outside; how much came. If another thread polls, that one asks for notification
    /// when it stops, if it sees then that somebody is outside. It may have looked too early. So it looks for
    /// [`Followers::UNARMED`] after it has let the role go, and wakes the sleeper if it finds that; the sleeper says
    /// so before it tries to take the role once more. One of the two sees the other.
    pub(super) fn arm_outside<S: Source<Role = R>>(&self, source: &S) -> usize {
        self.watchers.fetch_add(OUTSIDE, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let free = try_lock(&self.role).or_else(|| {
            self.followers.set_unarmed();
            fence(Ordering::SeqCst);
            let free = try_lock(&self.role)?;
            self.followers.take_unarmed();
            Some(free)
        });
        let Some(mut role) = free else {
            return 0;
        };
        let came = match self.arm(source) {
            true => self.look(source, &mut role, &mut Unseen),
            false => 0,
        };
        drop(role);
        fence(Ordering::SeqCst);
        self.serve_mail(source);
        self.hand_over(source);
        came
    }

    /// That thread does not sleep any more.
    pub(super) fn disarm_outside(&self) {
        self.watchers.fetch_sub(OUTSIDE, Ordering::SeqCst);
    }

    /// Polls until nothing is left, if nobody else polls; how much came.
    pub(super) fn poll_all_if_free<S: Source<Role = R>>(&self, source: &S) -> usize {
        let Some(mut role) = try_lock(&self.role) else {
            return 0;
        };
        let mut all = 0;
        for _ in 0..POLLS_AT_A_TIME {
            match poll(source, &mut role, &mut Unseen) {
                0 => break,
                came => all += came,
            }
        }
        self.let_go(source, role);
        all
    }

    /// Does something with what the holder of the role has, if nobody else holds it.
    pub(super) fn with_role_if_free<S: Source<Role = R>>(
        &self,
        source: &S,
        work: impl FnOnce(&mut R),
    ) {
        if let Some(mut role) = try_lock(&self.role) {
            work(&mut role.source);
            self.let_go(source, role);
        }
    }

    /// Wakes somebody who takes the role over, if there is anybody, and the thread outside if nobody has asked for
    /// notification for it.
    #[inline]
    fn hand_over<S: Source<Role = R>>(&self, source: &S) {
        if self.followers.any_or_others() {
            self.hand_over_to_one(source);
        }
    }

    #[cold]
    #[inline(never)]
    fn hand_over_to_one<S: Source<Role = R>>(&self, source: &S) {
        if self.followers.take_unarmed() {
            source.wake_outside();
        }
        if !self.followers.wake_one() && self.followers.take_progress_waits() {
            source.wake_progress();
        }
    }

    /// Mail was left: does what it says, or has the leader do so.
    pub(super) fn mail_left<S: Source<Role = R>>(&self, source: &S) {
        // Who lets the role go looks for mail after that; we look for the role after this.
        fence(Ordering::SeqCst);
        self.serve_mail(source);
        self.kick(source);
    }

    /// Does what the mail says, unless somebody holds the role: then that thread does.
    #[inline]
    pub(super) fn serve_mail<S: Source<Role = R>>(&self, source: &S) {
        if source.has_mail() {
            self.serve_mail_there_is(source);
        }
    }

    #[cold]
    #[inline(never)]
    fn serve_mail_there_is<S: Source<Role = R>>(&self, source: &S) {
        let mut served = false;
        while source.has_mail() {
            let Some(mut role) = try_lock(&self.role) else {
                break;
            };
            poll(source, &mut role, &mut Unseen);
            drop(role);
            fence(Ordering::SeqCst);
            served = true;
        }
        if served {
            // Somebody may have found the role taken meanwhile, and sleeps.
            self.hand_over(source);
        }
    }
}

/// Polls both queues once; how much came.
#[inline(never)]
fn poll<S: Source>(
    source: &S,
    role: &mut Role<S::Role>,
    see: &mut impl See<S::Member, S::State>,
) -> usize {
    role.looks_left = LOOKS_PER_SENDS;
    source.poll(&mut role.source, Queues::Both, see)
}

fn count(value: &AtomicUsize, one: usize, up: bool) {
    if up {
        value.fetch_add(one, Ordering::SeqCst);
    } else {
        value.fetch_sub(one, Ordering::SeqCst);
    }
}
