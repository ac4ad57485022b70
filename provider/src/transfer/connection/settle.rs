//! Letting the lock go: what others have to hear of, and what the lane is told of the connection's
//! wishes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;
use verbs_shim::RegisteredBuffer;

use super::{Connection, Parts, Qp, State};
use crate::control::Command;
use crate::error::TransferError;
use crate::event::EventObject;
use crate::progress::Upcall;
use crate::transfer::Lane;
use crate::transfer::engine::{Direction, Effects, Operation, Outcome, Writable};
use crate::transfer::message::OverlappedResult;
use crate::transfer::sink::{Readiness, ReadySink};

/// Who follows the state of a connection, and what they were told last.
#[derive(Default)]
pub(super) struct Followed {
    /// There is something below.
    any: bool,
    readable: Option<(EventObject, bool)>,
    writable: Option<(EventObject, bool)>,
    sink: Option<Sink>,
    /// Counted in the lane's interest in sends, in being served while nobody waits, and in being
    /// looked at now and then.
    watches_sends: bool,
    served_async: bool,
    served_lazily: bool,
    /// The layer above wants the last.
    wants_looks: bool,
    /// Messages that go past the inbox, for the sink.
    control: Vec<(u8, RegisteredBuffer)>,
}

/// A sink, and what it was told last.
struct Sink {
    sink: Arc<dyn ReadySink>,
    token: u64,
    /// Somebody polls the lane by itself: the progress thread need not.
    polled_by_caller: bool,
    readable: bool,
    writable: Writable,
    over: bool,
}

impl Followed {
    /// Nobody is told anything any more, but the lane.
    pub(super) fn forget(&mut self) {
        (self.readable, self.writable, self.sink) = (None, None, None);
        self.control.clear();
    }

    /// Takes the connection's wishes back.
    pub(super) fn release(&mut self, lane: &Lane) {
        if std::mem::take(&mut self.watches_sends) {
            lane.watch_sends(false);
        }
        if std::mem::take(&mut self.served_async) {
            lane.serve_async(false);
        }
        if std::mem::take(&mut self.served_lazily) {
            lane.serve_lazily(false);
        }
    }

    /// A sink that has nothing more to hear, until something becomes readable, costs a message nothing.
    fn refresh_any(&mut self) {
        self.any = self.readable.is_some()
            || self.writable.is_some()
            || self
                .sink
                .as_ref()
                .is_some_and(|sink| sink.writable < Writable::All)
            || self.watches_sends
            || self.served_async
            || self.served_lazily
            || !self.control.is_empty();
    }
}

/// What the sink is told once the lock is let go.
struct News {
    sink: Arc<dyn ReadySink>,
    token: u64,
    control: Vec<(u8, RegisteredBuffer)>,
    ended: Vec<(Operation, Outcome<RegisteredBuffer>)>,
    readable: bool,
    writable: bool,
    over: bool,
}

impl Connection {
    /// Has an event follow whether something can be received, or a message would go out at once.
    pub(crate) fn select_ready(&self, direction: Direction, event: Option<&EventObject>) {
        let mut state = self.lock_state();
        // Begins as not set, so that it is set when it should be.
        let event = event.map(|event| (event.clone(), false));
        match direction {
            Direction::Receive => state.followed.readable = event,
            Direction::Send => state.followed.writable = event,
        }
        state.followed.refresh_any();
        self.settle(state);
    }

    /// Has a sink follow both, and gives it control messages.
    pub(crate) fn set_sink(&self, sink: Option<(Arc<dyn ReadySink>, u64)>, polled_by_caller: bool) {
        let mut state = self.lock_state();
        state.engine.set_control_aside(sink.is_some());
        state.followed.sink = sink.map(|(sink, token)| Sink {
            sink,
            token,
            polled_by_caller,
            readable: false,
            writable: Writable::Nothing,
            over: false,
        });
        state.followed.refresh_any();
        if state.followed.sink.is_some() {
            // What comes from now on must not go past what came before.
            for (kind, buffer) in state.engine.control_that_waits() {
                Self::keep_control(&mut state, kind, buffer);
            }
        }
        self.settle(state);
    }

    /// Whether the sink hears of every message that waits, and not only of the first.
    pub(crate) fn set_tell_each(&self, each: bool) {
        self.lock_state().engine.set_tell_each(each);
    }

    /// Whether the lane is looked at now and then, though nobody waits for this connection.
    pub(crate) fn set_wants_looks(&self, wanted: bool) {
        let mut state = self.lock_state();
        state.followed.wants_looks = wanted;
        state.followed.any = true;
        self.settle(state);
    }

    /// A message did not go out at once: the sink is to hear when one would.
    pub(super) fn refused_to_send(&self, mut state: MutexGuard<'_, State>) {
        state.followed.any |= state.followed.sink.is_some();
        self.settle(state);
    }

    /// Has the threads that wait for this connection look again at what they wait for.
    pub(crate) fn wake(&self) {
        let mut state = self.lock_state();
        state.engine.wake_arrival();
        self.settle(state);
        self.lane.kick();
    }

    /// A message for the sink came.
    pub(super) fn keep_control(state: &mut State, kind: u8, buffer: RegisteredBuffer) {
        state.followed.control.push((kind, buffer));
        state.followed.any = true;
    }

    /// Lets the lock go, and does what is to be done without it.
    #[inline]
    pub(super) fn settle(&self, mut state: MutexGuard<'_, State>) {
        let readable = state.engine.is_readable();
        let mut follows = state.followed.any || state.engine.is_followed();
        if readable != self.readable.load(Ordering::Relaxed) {
            self.readable.store(readable, Ordering::Release);
            follows |= state.followed.sink.is_some();
        }
        let settled = !follows && !state.engine.has_effects();
        state.plain = settled
            && state.engine.is_plain()
            && self.inline <= state.engine.send_limit()
            && matches!(state.qp, Qp::Connected(_));
        if !settled {
            self.settle_slowly(state, follows);
        }
    }

    #[cold]
    #[inline(never)]
    fn settle_slowly(&self, mut state: MutexGuard<'_, State>, follows: bool) {
        let mut wake_progress = false;
        let mut news = None;
        let mut kick = false;
        let mut effects = state.engine.effects().unwrap_or_default();
        let ended = std::mem::take(&mut effects.ended);
        if follows || effects.arrived || !ended.is_empty() {
            (wake_progress, kick) = self.follow(&mut state);
            news = state.news(effects.arrived, ended);
        }
        wake_progress |= self.tell_under_lock(&mut state, &mut effects);
        drop(state);
        if let Some(waker) = effects.waker {
            waker.unpark();
        }
        for waker in effects.more_wakers {
            waker.unpark();
        }
        if wake_progress {
            self.progress.wake();
        }
        if kick || effects.kick {
            self.lane.kick();
        }
        if let Some(ending) = effects.broken {
            self.break_now(ending);
        }
        if effects.peer_moves {
            self.control.send(Command::PeerMoves(self.token()));
        }
        if let Some(news) = news {
            self.tell_sink(news);
        }
    }

    /// What has to keep its order: upcalls, and the account of receives. Whether the progress thread
    /// has something to do.
    fn tell_under_lock(&self, state: &mut State, effects: &mut Effects<Parts>) -> bool {
        if let Some(is_posted) = effects.answer_receive_over {
            if is_posted {
                self.lane.receives.abandon(1);
            }
            state.share.give_up(1);
        }
        self.lane
            .counted()
            .messages_copied
            .add(u64::from(effects.copied));
        let mut made = false;
        for (operation, outcome) in effects.upcalls.drain(..) {
            let (Some(handle), Some(this)) = (self.handle.get().copied(), self.this.upgrade())
            else {
                continue;
            };
            let result = OverlappedResult::new(operation, outcome, &this);
            self.progress.queue(Upcall::Complete { handle, result });
            made = true;
        }
        made
    }

    fn tell_sink(&self, news: News) {
        let had_control = !news.control.is_empty();
        let mut free = Vec::with_capacity(news.control.len());
        for (kind, buffer) in news.control {
            news.sink.control(news.token, kind, &buffer);
            free.push(buffer);
        }
        for (operation, outcome) in news.ended {
            let result = match outcome {
                Outcome::Sent(bytes) => Ok(bytes),
                Outcome::Received(_) | Outcome::Emptied => Ok(0),
                Outcome::Failed(ending) => Err(TransferError::from(ending)),
            };
            news.sink.ended(news.token, operation, result);
        }
        if news.readable {
            news.sink.ready(news.token, Readiness::Readable);
        }
        if news.writable {
            news.sink.ready(news.token, Readiness::Writable);
        }
        if news.over {
            news.sink.over(news.token);
        }
        if had_control {
            let mut state = self.lock_state();
            for buffer in free {
                state.engine.recycle_control(buffer);
            }
            self.pump(&mut state);
            self.settle(state);
        }
    }

    /// Brings the ready events, and what the lane is told of the connection's wishes, in line with
    /// its state. Whether the progress thread, and the thread that polls, have to hear of it.
    fn follow(&self, state: &mut State) -> (bool, bool) {
        let (mut wake_progress, mut kick) = (false, false);
        let readable = state.engine.is_readable();
        let writable = state.engine.writable() == Writable::All;
        let up = state.is_up();
        let State {
            engine, followed, ..
        } = state;
        set_to(&mut followed.readable, readable);
        set_to(&mut followed.writable, writable);
        let sends_by_upcall = engine.upcalls(Direction::Send) > 0;
        let follows_writable =
            !writable && (followed.writable.is_some() || followed.sink.is_some());
        let watches = up && (engine.waits_for_place() || sends_by_upcall || follows_writable);
        if watches != followed.watches_sends {
            followed.watches_sends = watches;
            self.lane.watch_sends(watches);
            kick |= watches;
            wake_progress |= watches;
        }
        let served_sink = |sink: &Sink| !sink.polled_by_caller;
        let wanted = up
            && (followed.readable.is_some()
                || followed.writable.is_some()
                || followed.sink.as_ref().is_some_and(served_sink)
                || sends_by_upcall
                || engine.upcalls(Direction::Receive) > 0);
        if wanted != followed.served_async {
            followed.served_async = wanted;
            self.lane.serve_async(wanted);
            wake_progress |= wanted;
        }
        // Whoever sent may not come back for long, and the credits that they need come without
        // anybody waiting for them.
        let lazily = up && (followed.wants_looks || engine.sends_waiting() > 0);
        if lazily != followed.served_lazily {
            followed.served_lazily = lazily;
            self.lane.serve_lazily(lazily);
            wake_progress |= lazily && !self.progress.ticks();
        }
        followed.refresh_any();
        (wake_progress, kick)
    }
}

impl State {
    /// Whether there is a queue pair.
    fn is_up(&self) -> bool {
        !matches!(self.qp, Qp::Gone)
    }

    /// What the sink has to hear: each change to true once, and what `arrived` meanwhile.
    fn news(
        &mut self,
        arrived: bool,
        ended: Vec<(Operation, Outcome<RegisteredBuffer>)>,
    ) -> Option<News> {
        let (readable, writable) = (self.engine.is_readable(), self.engine.writable());
        let over = self.engine.is_over();
        let followed = &mut self.followed;
        let sink = followed.sink.as_mut()?;
        let news = News {
            sink: Arc::clone(&sink.sink),
            token: sink.token,
            control: std::mem::take(&mut followed.control),
            ended,
            readable: readable && (arrived || !sink.readable),
            writable: writable > sink.writable,
            over: over && !sink.over,
        };
        (sink.readable, sink.writable, sink.over) = (readable, writable, over);
        followed.refresh_any();
        let is_any = news.readable || news.writable || news.over;
        (is_any || !news.control.is_empty() || !news.ended.is_empty()).then_some(news)
    }
}

fn set_to(event: &mut Option<(EventObject, bool)>, state: bool) {
    if let Some((event, was)) = event
        && *was != state
    {
        *was = state;
        if state {
            event.set();
        } else {
            event.reset();
        }
    }
}
