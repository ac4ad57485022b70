//! The thread `san-progress`: it serves what nobody waits for, and makes the upcalls.
//!
//! Sends that are queued need credits, which come while nobody may be waiting. The thread looks after
//! those too, but only every millisecond, so that it keeps out of the way of a thread that comes
//! back to wait.
//!
//! It polls a lane otherwise only while some connection there has asynchronous interest (a pending operation
//! that ends by upcall, or a ready event) and no other thread polls. It sleeps on the completion
//! channels of those lanes. Twice a second it looks at what became of their sends, and has a thread
//! do so that polls another lane and has slept that long. It never takes the polling role from a
//! thread that waits.
//!
//! At the same looks it lets go of lanes and registrations that nobody has used for long (`runtime.rs`).
//!
//! Three times in the keepalive time it has every lane ask idle peers whether they are still there, one lane
//! after the other (`probes.rs`).

use std::os::fd::BorrowedFd;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use crossbeam::queue::SegQueue;
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::counters::{Counter, DataCounters};
use crate::event::EventObject;
use crate::probes::Probes;
use crate::sync::lock;
use crate::transfer::message::OverlappedResult;
use crate::upcalls::{SwitchHandle, SwitchUpcalls};

/// A lane, as the thread serves it.
pub(crate) trait Served: Send + Sync {
    /// Whether somebody wants it served while nobody waits.
    fn has_async_interest(&self) -> bool;

    /// Whether sends are queued there that nobody may be waiting for.
    fn has_lazy_interest(&self) -> bool;

    /// Polls for what nobody waits for. `false`: somebody polls, and will wake the progress thread
    /// when it stops.
    fn serve(&self) -> bool;

    /// Polls once if nobody else does, without waiting.
    fn poll_if_free(&self);

    /// Has a thread that polls and has slept since the last call look at the sends.
    fn disturb_sleep(&self);

    /// Asks the peers of connections on which nothing has moved since the last call; the answers are
    /// seen by whoever polls.
    fn probe_idle(&self);

    /// Readable when there is something to poll.
    fn channel_fd(&self) -> BorrowedFd<'_>;

    /// What its connections have counted.
    fn counters(&self) -> &DataCounters;

    /// How often a waiting thread went to sleep.
    fn sleeps(&self) -> u64;
}

pub(crate) struct Progress {
    upcalls: Arc<dyn SwitchUpcalls>,
    /// Bounded by what each connection may have pending, and by the number of sockets.
    queue: SegQueue<Upcall>,
    lanes: Mutex<Vec<Weak<dyn Served>>>,
    wake: EventObject,
    stopping: AtomicBool,
    /// How long after the last one idle peers are asked again, if they are.
    probe_every: Option<Duration>,
    /// The thread looks every millisecond at lanes with queued sends.
    ticking: AtomicBool,
    made: Counter,
}

const TICK: Duration = Duration::from_millis(1);

/// How long nobody looks at sends that nobody waits for.
const SENDS_UNSEEN: Duration = Duration::from_millis(500);

/// Ticks that go on after the last queued send, so that a stream of them wakes the thread once.
const TICKS_AFTER: u32 = 20;

/// An upcall to make.
pub(crate) enum Upcall {
    Complete {
        handle: SwitchHandle,
        result: OverlappedResult,
    },
    CloseHandle(SwitchHandle),
    AddressListChanged,
}

impl Progress {
    pub(crate) fn new(
        upcalls: Arc<dyn SwitchUpcalls>,
        keepalive: Duration,
    ) -> std::io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            upcalls,
            probe_every: (!keepalive.is_zero()).then_some(keepalive / 3),
            queue: SegQueue::new(),
            lanes: Mutex::new(Vec::new()),
            wake: EventObject::new()?,
            stopping: AtomicBool::new(false),
            ticking: AtomicBool::new(false),
            made: Counter::default(),
        }))
    }

    /// The switch's upcall table.
    pub(crate) fn table(&self) -> &Arc<dyn SwitchUpcalls> {
        &self.upcalls
    }

    pub(crate) fn made(&self) -> u64 {
        self.made.value()
    }

    /// Leaves an upcall to be made, once the thread is woken.
    pub(crate) fn queue(&self, upcall: Upcall) {
        self.queue.push(upcall);
    }

    /// Leaves an upcall to be made.
    pub(crate) fn push(&self, upcall: Upcall) {
        self.queue(upcall);
        self.wake();
    }

    /// Has the thread look again at what there is to do.
    pub(crate) fn wake(&self) {
        self.wake.set();
    }

    /// Whether queued sends will be looked at without a call to `wake`.
    pub(crate) fn ticks(&self) -> bool {
        self.ticking.load(Ordering::SeqCst)
    }

    /// From now on the thread looks after this lane too.
    pub(crate) fn add_lane(&self, lane: &Arc<impl Served + 'static>) {
        let lane = Arc::downgrade(lane) as Weak<dyn Served>;
        lock(&self.lanes).push(lane);
        // It may sleep for ever so far.
        self.wake();
    }

    /// The lanes there are.
    pub(crate) fn lanes(&self) -> Vec<Arc<dyn Served>> {
        let mut lanes = lock(&self.lanes);
        lanes.retain(|lane| lane.strong_count() > 0);
        lanes.iter().filter_map(Weak::upgrade).collect()
    }

    /// Makes the upcalls that are left, then ends the thread.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.wake.set();
    }

    /// The thread. Twice a second, while there are lanes, it calls `look`.
    pub(crate) fn run(&self, look: impl Fn()) {
        let mut ticks = 0;
        let mut looked = Instant::now();
        let mut probes = self.probe_every.map(|every| Probes::new(every, looked));
        loop {
            self.make_upcalls();
            if self.stopping.load(Ordering::SeqCst) && self.queue.is_empty() {
                return;
            }
            let is_look_due = looked.elapsed() >= SENDS_UNSEEN;
            if is_look_due {
                // Before this thread has the lanes in hand.
                look();
            }
            let mut lanes = self.lanes();
            ticks = self.tick(&lanes, ticks);
            if is_look_due {
                for lane in &lanes {
                    lane.disturb_sleep();
                    if self.probe_every.is_some() {
                        // Nobody else may look at what a probe says.
                        lane.poll_if_free();
                    }
                }
                looked = Instant::now();
            }
            let mut unseen = SENDS_UNSEEN;
            if let Some(probes) = &mut probes {
                if let Some(number) = probes.turn(Instant::now(), lanes.len()) {
                    lanes[number].probe_idle();
                }
                unseen = unseen.min(probes.pause(lanes.len()));
            }
            let timeout = match ticks {
                0 => (!lanes.is_empty()).then_some(unseen),
                _ => Some(TICK),
            };
            lanes.retain(|lane| lane.has_async_interest() && lane.serve());
            if self.queue.is_empty() {
                self.sleep(&lanes, timeout);
            }
        }
    }

    /// Looks at lanes with queued sends; how many ticks are left if nothing changes.
    fn tick(&self, lanes: &[Arc<dyn Served>], ticks: u32) -> u32 {
        let queued = || lanes.iter().filter(|lane| lane.has_lazy_interest());
        let left = match queued().count() {
            0 => ticks.saturating_sub(1),
            _ => TICKS_AFTER,
        };
        queued().for_each(|lane| lane.poll_if_free());
        self.ticking.store(left > 0, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        // Whoever queued before that was stored did not wake us.
        match left == 0 && queued().count() > 0 {
            true => TICKS_AFTER,
            false => left,
        }
    }

    fn sleep(&self, lanes: &[Arc<dyn Served>], timeout: Option<Duration>) {
        let wake = PollFd::new(&self.wake, PollFlags::IN);
        let channels = lanes.iter().map(|lane| lane.channel_fd());
        let channels =
            channels.map(|fd: BorrowedFd<'_>| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        let mut fds: Vec<PollFd<'_>> = std::iter::once(wake).chain(channels).collect();
        // Interrupted or not: the caller looks at everything again.
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let _ = rustix::event::poll(&mut fds, timeout.as_ref());
        if fds.first().is_some_and(|fd| !fd.revents().is_empty()) {
            self.wake.reset();
        }
    }

    fn make_upcalls(&self) {
        while let Some(upcall) = self.queue.pop() {
            self.made.raise();
            // A switch that panics loses its upcall, not the provider's thread.
            let made = std::panic::catch_unwind(AssertUnwindSafe(|| self.make(upcall)));
            if made.is_err() {
                tracing::error!("an upcall of the switch panicked");
            }
        }
    }

    fn make(&self, upcall: Upcall) {
        match upcall {
            Upcall::Complete { handle, result } => {
                self.upcalls.complete_overlapped(handle, result);
            }
            Upcall::CloseHandle(handle) => self.upcalls.close_socket_handle(handle),
            Upcall::AddressListChanged => self.upcalls.address_list_changed(),
        }
    }
}
