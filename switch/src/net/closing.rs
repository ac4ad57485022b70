//! Closed SAN connections whose last bytes the peer has not taken in yet, and the thread
//! `san-linger` that sees them off. It also lets memory of open ones go that they have not used for
//! some seconds.
//!
//! The kernel does this for TCP after the application's close. Here it is a thread's work, since
//! what is under way needs somebody who looks for completions. The thread starts with the first
//! such connection and ends when there has been none for a while.
//!
//! Every wait has its bound: a connection that makes no progress for [`PATIENCE`] is given up, at
//! most [`ROOM`] are held, and a switch that shuts down waits [`SHUTDOWN_PATIENCE`] at most for the
//! next step of any of them. What is given up is counted and said.

use std::fmt;
use std::io;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use san_base::Deadline;

use crate::carrier::san::{CloseStep, SanCarrier};
use crate::carrier::{IdleMemory, MemoryKeeper, bulk};
use crate::counters::SwitchCounters;

/// The thread's name, as `ps -L` shows it.
pub(crate) const THREAD_NAME: &str = "san-linger";
/// How long a peer may take nothing in. One that has vanished is found by the provider, earlier.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a peer that ended last may take to disconnect. Nothing is lost after that: it is time
/// enough for an acknowledgement to arrive, or to be asked for again.
const LAST_WORD: Duration = Duration::from_millis(200);
/// The same, while the switch shuts down: the process is about to end.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(2);
/// Connections that are held; of more, the oldest is given up.
const ROOM: usize = 1024;
/// Between two looks at the connections: short while they make progress, then longer and longer.
const SHORT_PAUSE: Duration = Duration::from_millis(1);
const LONG_PAUSE: Duration = Duration::from_millis(50);
/// Between two looks at the memory of open connections.
const LOOKS: Duration = Duration::from_secs(1);
/// The thread ends when it had nothing to do for so long.
const IDLE: Duration = Duration::from_secs(2);

/// The closed connections of one switch.
pub(crate) struct Closing {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    state: Mutex<State>,
    /// Something came, or the thread is to end.
    changed: Condvar,
    counters: Arc<SwitchCounters>,
}

#[derive(Default)]
struct State {
    /// The oldest first.
    closed: Vec<Closed>,
    /// Memory to look after, of open connections.
    memory: Vec<Weak<dyn IdleMemory>>,
    is_served: bool,
    is_over: bool,
}

/// One that the application has closed.
#[derive(Debug)]
struct Closed {
    carrier: Arc<SanCarrier>,
    advanced: Instant,
}

impl Closing {
    pub(crate) fn new(counters: Arc<SwitchCounters>) -> Self {
        Self {
            shared: Arc::new(Shared {
                state: Mutex::default(),
                changed: Condvar::new(),
                counters,
            }),
            thread: Mutex::new(None),
        }
    }

    /// Takes a connection that its application has closed, and sees to it that what it has sent
    /// arrives. It does not wait.
    pub(crate) fn take(&self, carrier: Arc<SanCarrier>) {
        self.shared.counters.closes_continued.raise();
        self.add(carrier);
    }

    /// Takes one whose bytes have arrived, but whose peer ended last.
    pub(crate) fn take_ended(&self, carrier: Arc<SanCarrier>) {
        self.add(carrier);
    }

    fn add(&self, carrier: Arc<SanCarrier>) {
        let mut state = self.shared.state.lock();
        if state.is_over {
            drop(state);
            if carrier.close_step(Deadline::passed()) != CloseStep::Done {
                self.shared.lost(&carrier, "the switch was shut down");
            }
            return;
        }
        let too_many = state.closed.len() >= ROOM;
        let oldest = too_many.then(|| state.closed.remove(0).carrier);
        state.closed.push(Closed {
            carrier,
            advanced: Instant::now(),
        });
        let needs_thread = state.is_needed();
        self.shared.changed.notify_all();
        drop(state);
        if let Some(oldest) = oldest
            && oldest.close_step(Deadline::passed()) != CloseStep::Done
        {
            self.shared.lost(&oldest, "too many closes wait");
        }
        if needs_thread && let Err(error) = self.start() {
            tracing::warn!(%error, "no thread sees closed connections off; their last bytes may be lost");
            let mut state = self.shared.state.lock();
            state.is_served = false;
            // The memory stays until its connections end.
            state.memory.clear();
            let closed = std::mem::take(&mut state.closed);
            drop(state);
            for one in closed {
                if one.carrier.close_step(Deadline::passed()) != CloseStep::Done {
                    self.shared.lost(&one.carrier, "no thread could be started");
                }
            }
        }
    }

    /// One that lost bytes at once.
    pub(crate) fn lost(&self, carrier: &SanCarrier) {
        self.shared.lost(carrier, "the peer is gone");
    }

    fn start(&self) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new()
            .name(THREAD_NAME.to_owned())
            .spawn(move || shared.serve())?;
        // The one before it has ended, or is about to: it had said that it serves no more.
        let before = self.thread.lock().replace(thread);
        if let Some(before) = before {
            let _ = before.join();
        }
        Ok(())
    }

    /// Waits until there are none, at most so long; whether there are none.
    pub(crate) fn wait(&self, timeout: Duration) -> bool {
        let deadline = Deadline::after(timeout);
        while !self.shared.state.lock().closed.is_empty() {
            if deadline.is_over() {
                return false;
            }
            std::thread::sleep(SHORT_PAUSE);
        }
        true
    }

    /// Waits for those that make progress, gives up the others, and ends the thread.
    pub(crate) fn shut_down(&self) {
        let mut state = self.shared.state.lock();
        state.is_over = true;
        self.shared.changed.notify_all();
        drop(state);
        // From here on nobody starts one.
        let thread = self.thread.lock().take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the thread of closed connections panicked");
        }
    }
}

impl MemoryKeeper for Closing {
    fn look_after(&self, memory: Weak<dyn IdleMemory>) {
        let mut state = self.shared.state.lock();
        if state.is_over {
            return;
        }
        state.memory.push(memory);
        let needs_thread = state.is_needed();
        drop(state);
        if needs_thread && let Err(error) = self.start() {
            tracing::debug!(%error, "no thread lets idle memory go");
            let mut state = self.shared.state.lock();
            state.is_served = false;
            state.memory.clear();
        }
    }
}

impl fmt::Debug for Closing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Closing").finish_non_exhaustive()
    }
}

impl Shared {
    /// The thread.
    fn serve(&self) {
        let mut pause = SHORT_PAUSE;
        let mut looked = Instant::now();
        loop {
            let mut state = self.state.lock();
            let has_memory = |state: &State| !state.memory.is_empty() || bulk::has_spare();
            if state.closed.is_empty() && !state.is_over {
                let wait = if has_memory(&state) { LOOKS } else { IDLE };
                self.changed.wait_for(&mut state, wait);
            }
            if state.closed.is_empty() && (!has_memory(&state) || state.is_over) {
                state.is_served = false;
                return;
            }
            if looked.elapsed() >= LOOKS {
                looked = Instant::now();
                let memory = std::mem::take(&mut state.memory);
                drop(state);
                let kept = memory.into_iter().filter(|memory| {
                    let memory = memory.upgrade();
                    memory.is_some_and(|memory| !memory.let_go_if_idle())
                });
                let kept: Vec<_> = kept.collect();
                bulk::let_spare_go(looked);
                state = self.state.lock();
                state.memory.extend(kept);
            }
            if state.closed.is_empty() {
                continue;
            }
            let patience = if state.is_over {
                SHUTDOWN_PATIENCE
            } else {
                PATIENCE
            };
            // They are looked at without the lock: a look may find more memory to look after.
            let closed = std::mem::take(&mut state.closed);
            drop(state);
            let seen = look(closed, patience);
            let mut state = self.state.lock();
            // Those that came meanwhile are younger.
            let younger = std::mem::replace(&mut state.closed, seen.left);
            state.closed.extend(younger);
            drop(state);
            for (carrier, lost) in seen.gone {
                if let Some(why) = lost {
                    self.lost(&carrier, why);
                }
            }
            pause = if seen.advanced {
                SHORT_PAUSE
            } else {
                (pause * 2).min(LONG_PAUSE)
            };
            let mut state = self.state.lock();
            if !state.closed.is_empty() {
                self.changed.wait_for(&mut state, pause);
            }
        }
    }

    fn lost(&self, carrier: &SanCarrier, why: &str) {
        self.counters.closes_lost.raise();
        tracing::warn!(
            peer = %carrier.peer(),
            "bytes that were sent before the close did not arrive: {why}"
        );
    }
}

/// What one look at all of them has found.
#[derive(Debug, Default)]
struct Seen {
    /// Those that are done with; why, if bytes were lost. They are closed without the lock.
    gone: Vec<(Arc<SanCarrier>, Option<&'static str>)>,
    /// The others.
    left: Vec<Closed>,
    /// Whether anything moved.
    advanced: bool,
}

impl State {
    /// Whether a thread has to be started, which the caller does.
    fn is_needed(&mut self) -> bool {
        !std::mem::replace(&mut self.is_served, true)
    }
}

fn look(mut closed: Vec<Closed>, patience: Duration) -> Seen {
    let mut seen = Seen::default();
    let now = Instant::now();
    closed.retain_mut(|one| {
        let lost = match one.carrier.close_step(Deadline::at(now)) {
            CloseStep::Done
                if now - one.advanced < LAST_WORD
                    && !one.carrier.wait_for_peer(Deadline::at(now)) =>
            {
                return true;
            }
            CloseStep::Done => None,
            CloseStep::Lost => Some("the peer is gone"),
            CloseStep::Advanced => {
                one.advanced = now;
                seen.advanced = true;
                return true;
            }
            CloseStep::Waiting if now - one.advanced >= patience => {
                Some("the peer takes nothing in")
            }
            CloseStep::Waiting => return true,
        };
        seen.advanced = true;
        seen.gone.push((Arc::clone(&one.carrier), lost));
        false
    });
    seen.left = closed;
    seen
}
