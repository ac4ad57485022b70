//! The dedicated thread `san-accept`, one per switch (duty 26).
//!
//! It waits for the FD_ACCEPT event objects of all listening companions and accepts eagerly into
//! the listeners' ready queues, so that a peer's connect, one from this very thread of the
//! application included, never waits for the application's accept. It stamps TCP's arrivals so
//! that both sides come out in order, and it rebuilds the table of subnets after a change of
//! addresses. It does not read or write data, and it holds no lock while it calls the provider or
//! the application's condition function.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use san_provider::{Decision as Answers, Rejection, WsaCode};
use tracing::field;

use super::condition::{Decision, IncomingRequest, Side};
use super::keeper::Keeper;
use super::shared::{ListenerShared, ReadySan};
use super::socket::Companion;
use super::watch::{WAKE, Watched};
use crate::san::signals::Signals;
use crate::san::socket::UNKNOWN;
use crate::tcp;

/// The thread's name, as `ps -L` shows it.
pub(crate) const THREAD_NAME: &str = "san-accept";
/// Requests of one companion that are answered before the others get their turn.
const BATCH: usize = 64;
/// How long a companion rests when there was no descriptor for a request.
const REST: Duration = Duration::from_millis(20);

/// The running thread.
#[derive(Debug)]
pub(crate) struct AcceptThread {
    handle: JoinHandle<()>,
    signals: Arc<Signals>,
    /// Closed when the thread ends.
    done: Receiver<()>,
}

impl AcceptThread {
    pub(crate) fn start(keeper: Arc<Keeper>) -> io::Result<Self> {
        let signals = Arc::clone(keeper.signals());
        let (alive, done) = mpsc::channel();
        let handle = std::thread::Builder::new()
            .name(THREAD_NAME.to_owned())
            .spawn(move || {
                let _alive: mpsc::Sender<()> = alive;
                Worker {
                    keeper,
                    resting: Vec::new(),
                }
                .run();
            })?;
        Ok(Self {
            handle,
            signals,
            done,
        })
    }

    /// Has the thread end, and waits for it until the deadline. Says whether it ended: it does
    /// not while the application's condition function has it.
    pub(crate) fn stop(self, timeout: Duration) -> bool {
        self.signals.stop.store(true, Ordering::Release);
        self.signals.wake.set();
        if self.handle.thread().id() == std::thread::current().id() {
            // Dropped by the condition function itself: the thread ends when that returns.
            return true;
        }
        if self.done.recv_timeout(timeout) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("the accept thread is busy in the condition function; not waited for");
            return false;
        }
        if self.handle.join().is_err() {
            tracing::error!("the accept thread panicked");
        }
        true
    }
}

struct Worker {
    keeper: Arc<Keeper>,
    /// Companions whose events are not watched for now, and until when.
    resting: Vec<(Instant, Arc<Companion>)>,
}

impl Worker {
    fn run(&mut self) {
        let mut events = Vec::with_capacity(64);
        while !self.keeper.signals().stop.load(Ordering::Acquire) {
            let timeout = self.wake_the_rested();
            if let Err(error) = self.keeper.watch.wait(&mut events, timeout) {
                tracing::error!(%error, "the accept thread cannot wait");
                return;
            }
            for event in &events {
                let token = event.data.u64();
                if token == WAKE {
                    self.keeper.signals().wake.reset();
                    continue;
                }
                match self.keeper.watch.find(token) {
                    Some(Watched::Tcp(listener)) => listener.tcp_arrived(),
                    Some(Watched::Companion(listener, companion)) => {
                        self.serve(&listener, &companion);
                    }
                    None => {} // Retired since.
                }
            }
            let changed = &self.keeper.signals().addresses_changed;
            if changed.swap(false, Ordering::AcqRel) {
                self.keeper.refresh();
            }
        }
    }

    /// Answers what waits at a companion. What is left after a batch keeps its event set
    /// (duty 88), so the next round goes on.
    fn serve(&mut self, listener: &Arc<ListenerShared>, companion: &Arc<Companion>) {
        match companion.socket.network_events(&companion.event) {
            Ok(record) if record.accept => listener.counters.accept_signals.raise(),
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "a listening companion is gone");
                self.keeper.retire(companion);
                return;
            }
        }
        for _ in 0..BATCH {
            match accept_one(&self.keeper, listener, companion) {
                Answer::Answered => {}
                Answer::NothingWaits => return,
                Answer::CannotNow => {
                    if self.keeper.watch.hear_companion(companion, false).is_ok() {
                        self.resting
                            .push((Instant::now() + REST, Arc::clone(companion)));
                    }
                    return;
                }
                Answer::Gone => {
                    self.keeper.retire(companion);
                    return;
                }
            }
        }
    }

    /// Watches again the companions that have rested; says how long the next one still does.
    fn wake_the_rested(&mut self) -> Option<Duration> {
        let now = Instant::now();
        let watch = &self.keeper.watch;
        self.resting.retain(|(until, companion)| {
            let due = *until <= now;
            // One that was retired meanwhile must not come back.
            if due
                && watch.find(companion.token).is_some()
                && let Err(error) = watch.hear_companion(companion, true)
            {
                tracing::error!(%error, "cannot watch a companion again");
            }
            !due
        });
        let next = self.resting.iter().map(|(until, _)| *until).min()?;
        Some(next.saturating_duration_since(now))
    }
}

enum Answer {
    Answered,
    NothingWaits,
    CannotNow,
    Gone,
}

fn accept_one(keeper: &Keeper, listener: &ListenerShared, companion: &Companion) -> Answer {
    let span = tracing::debug_span!("accept", listener = %listener.address, peer = field::Empty);
    let _entered = span.enter();
    let mut descriptor = None;
    let outcome = companion.socket.accept(|request| {
        if let Some(peer) = request.peer {
            span.record("peer", field::display(peer));
        }
        if !listener.has_room() {
            listener.counters.refused_backlog.raise();
            let backlog = listener.backlog;
            tracing::debug!(backlog, "refused: the backlog is full");
            return Answers::Reject(Rejection::BacklogFull { backlog });
        }
        let local = request.local.unwrap_or(listener.address);
        let request = IncomingRequest {
            peer: request.peer.unwrap_or(UNKNOWN),
            local,
            side: Side::San,
        };
        if listener.ask(&request) == Decision::Reject {
            listener.counters.refused_condition.raise();
            tracing::debug!("refused by the condition function");
            return Answers::Reject(Rejection::Unwanted);
        }
        // Duty 10: the application's descriptor, before the peer is promised anything. Where none
        // is left the request waits, as one in TCP's queue would.
        match tcp::socket(local) {
            Ok(socket) => {
                descriptor = Some(match listener.is_adopted {
                    true => tcp::aside(socket.into()).into(),
                    false => socket,
                });
                Answers::Accept
            }
            Err(error) => {
                tracing::warn!(%error, "no descriptor for a SAN connection");
                listener.counters.put_off.raise();
                Answers::Defer
            }
        }
    });
    match (outcome, descriptor) {
        (Ok(accepted), Some(tcp)) => {
            let ready = ReadySan::new(companion, accepted, tcp);
            tracing::debug!("a connection over the SAN waits for accept");
            keeper.stamp_arrivals(listener);
            // Room cannot have gone: only this thread fills the queue. A listener that was closed
            // meanwhile gives the connection back, and dropping it closes it (duty 32).
            if listener.push_san(ready).is_ok() {
                listener.counters.san_queued.raise();
            }
            Answer::Answered
        }
        (Ok(_), None) => Answer::Answered,
        (Err(error), _) => match error.code() {
            WsaCode::WouldBlock => Answer::NothingWaits,
            WsaCode::ConnRefused => Answer::Answered,
            WsaCode::TryAgain => Answer::CannotNow,
            WsaCode::NotSocket | WsaCode::NotInitialised | WsaCode::Invalid => Answer::Gone,
            _ => {
                // The provider has refused it, or the peer has given up.
                listener.counters.accept_failures.raise();
                tracing::debug!(%error, "a SAN request came to nothing");
                Answer::Answered
            }
        },
    }
}
