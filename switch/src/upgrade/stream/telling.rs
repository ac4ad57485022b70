//! The stream's lock, and who is told of what was done under it.
//!
//! The queue pair tells from whichever thread polls its lane. It leaves mail (`queue_pair.rs`) and tries the
//! stream's lock; who has that lock looks for mail after he has let it go. So mail is read by one of the two.
//! Who polls may hold other locks, those of an event loop among them. So while the queue pair carries, he
//! does what the mail asks for and tells the watcher, and nothing else. Whatever changes the carrier is left
//! to the thread `san-stream`, or to the next call of the application.
//!
//! # Why no wake-up is lost
//! - A reader or a writer clears its flag (`look`, `room`), then takes the lock and looks at the stream, then
//!   waits at the queue pair for the flag. What changes after the look is done under the lock, and sets the
//!   flag after it.
//! - A watcher is told after each change that it may see, also after one by the thread `san-stream`. It
//!   then asks for what holds now, so one telling serves many changes, and one too many does no harm.
//! - Until the queue pair carries, the thread `san-stream` polls for the stream, and is told of all that
//!   comes. Whoever follows the stream in an event loop has the lane there from the beginning
//!   (`Follower::followed` comes before the first message), so what comes once it carries is polled for.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use parking_lot::MutexGuard;
use san_stream::{Failure, State};

use super::MovingStream;
use crate::carrier::IdleMemory;
use crate::readiness::Events;
use crate::upgrade::mover::{Around, Mover, News};
use crate::upgrade::queue_pair::Reader;

impl MovingStream {
    fn lock(&self) -> MutexGuard<'_, Mover> {
        let mut mover = self.mover.lock();
        mover.catch_up(self.read.load(Ordering::Acquire));
        mover
    }

    /// Looks at something under the lock, without a change.
    pub(super) fn look_at<T>(&self, what: impl FnOnce(&Mover) -> T) -> T {
        let mover = self.lock();
        let outcome = what(&mover);
        let is_on_san = mover.is_on_san();
        drop(mover);
        self.serve_mail(is_on_san);
        outcome
    }

    /// Does something under the lock, and what follows from it without.
    pub(super) fn with<T>(&self, what: impl FnOnce(&mut Mover, &Around) -> T) -> T {
        let mut mover = self.lock();
        let outcome = what(&mut mover, &self.around);
        let changed = mover.changed.take();
        let mut news = mover.settle();
        if changed.is_some() || mover.drains {
            (news.reader, news.writer) = (true, true);
        }
        let phase = mover.phase() as u8;
        let has_turned = self.phase.load(Ordering::Relaxed) != phase
            && self.phase.swap(phase, Ordering::AcqRel) != phase;
        if has_turned {
            mover.watch(&self.around);
        }
        let data = mover.pair.as_ref().filter(|_| news.reader || news.writer);
        let data = data.map(|pair| pair.data.clone());
        let is_on_san = mover.is_on_san();
        drop(mover);
        if let Some(state) = changed {
            self.changed(state);
        }
        if (has_turned || changed.is_some())
            && let Some(follower) = self.follower()
        {
            follower.followed();
        }
        if news != News::default() {
            self.tell(news);
            if let Some(data) = data {
                data.wake();
            }
            // On the queue pair nobody waits at the signals.
            if changed.is_some() || !is_on_san {
                self.wake();
            }
            if news.watcher {
                self.tell_watcher();
            }
        }
        self.serve_mail(is_on_san);
        outcome
    }

    /// Reads the mail that came while the caller had the lock.
    #[inline]
    fn serve_mail(&self, is_on_san: bool) {
        if self.around.feed.has_mail() {
            match is_on_san {
                true => self.read_mail(),
                false => self.attend_soon(),
            }
        }
    }

    /// Reads the mail, unless somebody has the lock, who does it then.
    #[cold]
    #[inline(never)]
    fn read_mail(&self) {
        while self.around.feed.has_mail() {
            let Some(mut mover) = self.mover.try_lock() else {
                return;
            };
            mover.catch_up(self.read.load(Ordering::Acquire));
            if !mover.is_on_san() {
                drop(mover);
                return self.attend_soon();
            }
            mover.progress(&self.around);
            // The reader must not take a message that the peer sends once it knows that what was offered
            // before it is read: so it hears of the offer before the peer hears of that.
            let mut news = mover.settle();
            if news.reader {
                self.look.store(true, Ordering::SeqCst);
            }
            let is_left = mover.changed.is_some() || !mover.is_on_san() || mover.is_closed();
            if is_left {
                (news.reader, news.writer) = (true, true);
            }
            let data = mover.pair.as_ref().map(|pair| pair.data.clone());
            drop(mover);
            self.tell(news);
            if is_left {
                self.attend_soon();
                self.wake();
            }
            if (news.reader || news.writer)
                && let Some(data) = data
            {
                data.wake();
            }
            if news.watcher {
                self.tell_watcher_only();
            }
        }
    }

    fn tell(&self, news: News) {
        if news.reader {
            self.look.store(true, Ordering::SeqCst);
        }
        if news.writer {
            self.room.store(true, Ordering::SeqCst);
        }
        if news.memory
            && let Some(this) = self.this.upgrade()
        {
            let memory = Arc::downgrade(&this) as std::sync::Weak<dyn IdleMemory>;
            self.keeper.look_after(memory);
        }
    }

    fn changed(&self, state: State) {
        self.log(state);
        let counters = &self.around.service.counters;
        if let State::Broken(Failure::Protocol(violation)) = state {
            tracing::warn!(connector = %self.ends.connector, acceptor = %self.ends.acceptor, %violation, "the peer broke the protocol");
        }
        let is_san = match state {
            State::San => true,
            State::Leaving | State::Tcp | State::TcpForGood | State::Broken(_) => false,
            _ => return,
        };
        let mut carrying = self.carrying.write();
        if carrying.is_san == is_san {
            return;
        }
        carrying.is_san = is_san;
        carrying.since = Instant::now();
        if is_san {
            carrying.ups += 1;
            counters.streams_up.raise();
        } else {
            carrying.downs += 1;
            counters.streams_down.raise();
        }
    }

    /// Has a span `up` or `down` for as long as a change takes.
    fn log(&self, state: State) {
        let (connector, acceptor) = (self.ends.connector, self.ends.acceptor);
        let mut change = self.change.lock();
        match state {
            State::Inviting | State::Dialling => {
                *change = tracing::debug_span!("up", %connector, %acceptor);
            }
            State::Leaving => *change = tracing::debug_span!("down", %connector, %acceptor),
            _ => {}
        }
        let span = match state {
            State::Inviting
            | State::Dialling
            | State::Proving
            | State::Cutting
            | State::Leaving => change.clone(),
            // It is over, and this is its last word.
            _ => std::mem::replace(&mut *change, tracing::Span::none()),
        };
        drop(change);
        let _entered = span.enter();
        tracing::debug!(%connector, %acceptor, role = ?self.role, ?state, "stream");
    }

    /// Ends the waits of calls: they look at the stream again.
    pub(super) fn call_off(&self) {
        self.look.store(true, Ordering::SeqCst);
        self.room.store(true, Ordering::SeqCst);
        let data = self.look_at(|mover| mover.pair.as_ref().map(|pair| pair.data.clone()));
        if let Some(data) = data {
            data.wake();
        }
        self.wake();
    }

    pub(super) fn tell_watcher(&self) {
        let watcher = self.watcher.lock().clone();
        if let Some((watcher, token)) = watcher {
            watcher.changed(token, crate::carrier::Carrier::events(self));
        }
    }

    /// As [`MovingStream::tell_watcher`], where the caller may be in the middle of a poll: whatever else is to
    /// be done is left.
    fn tell_watcher_only(&self) {
        let watcher = self.watcher.lock().clone();
        if let Some((watcher, token)) = watcher {
            let is_shut = self.receives_over.load(Ordering::Acquire);
            let events: Events = self.lock().events(&self.around, is_shut);
            watcher.changed(token, events);
        }
    }

    pub(super) fn wake(&self) {
        for wake in [&self.read_wake, &self.write_wake] {
            if let Some(signal) = wake.get() {
                signal.set();
            }
        }
    }
}

impl Reader for MovingStream {
    fn has_mail(&self) {
        self.read_mail();
    }

    fn attend(&self) {
        self.attend_soon();
    }
}
