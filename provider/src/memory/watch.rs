//! The thread `san-memory`, and what it and the cache share: notice of changed mappings.
//!
//! A thread that unmaps watched memory waits in the kernel until the event was read, and it may
//! hold a lock of the allocator's meanwhile. So nothing that the reading needs may ever allocate or
//! free: the thread allocates nothing from its first look to its last, and neither does anybody
//! who holds the lock `watched`, which guards reading and a list of fixed size. What was read is
//! acted on elsewhere, by whoever uses the cache next, or by the thread that `notify` wakes.
//!
//! Not done here: the cache, and which memory is watched.

use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use arrayvec::ArrayVec;
use rustix::event::{PollFd, PollFlags};
use verbs_shim::{AtRim, MappingChange, MappingWatch, WatchError};

use crate::event::EventObject;
use crate::sync::lock;

/// Changes that are kept until somebody takes them; with more, everything counts as changed.
const KEPT: usize = 128;

/// Changes, in the order in which they were read.
pub(super) type Changes = ArrayVec<MappingChange, KEPT>;

/// How long the thread may take to start.
const START: Duration = Duration::from_secs(5);

pub(super) struct Watch {
    watched: Arc<Mutex<Watched>>,
    stop: EventObject,
    thread: Mutex<Thread>,
    notify: Arc<dyn Fn() + Send + Sync>,
}

/// Never locked while memory is allocated or freed.
struct Watched {
    /// The thread has it too, and lets it go last.
    mappings: Option<Arc<MappingWatch>>,
    changes: Changes,
}

enum Thread {
    NotStarted,
    Runs(JoinHandle<()>),
    /// Stopped, or it could not be started.
    Ended,
}

/// What is known about what was not told yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notice {
    /// Every change that is complete was told.
    Complete,
    /// One is on its way.
    Pending,
    /// Nothing is watched.
    Blind,
}

impl Watch {
    /// `notify` is called when something changed. It must not allocate, free, or wait.
    pub(super) fn new(notify: Arc<dyn Fn() + Send + Sync>) -> std::io::Result<Self> {
        Ok(Self {
            watched: Arc::new(Mutex::new(Watched {
                mappings: None,
                changes: Changes::new(),
            })),
            stop: EventObject::new()?,
            thread: Mutex::new(Thread::NotStarted),
            notify,
        })
    }

    /// Starts the thread if it was not; whether it runs. A failure is logged, and final.
    pub(super) fn start(&self) -> bool {
        let mut thread = lock(&self.thread);
        if matches!(*thread, Thread::NotStarted) {
            *thread = match self.spawn() {
                Ok(handle) => Thread::Runs(handle),
                Err(why) => {
                    tracing::warn!(%why, "registrations are not kept beyond their use");
                    Thread::Ended
                }
            };
        }
        matches!(*thread, Thread::Runs(_))
    }

    /// Ends the thread, and all watching: whoever waits for an event goes on.
    pub(super) fn stop(&self) {
        let thread = std::mem::replace(&mut *lock(&self.thread), Thread::Ended);
        if let Thread::Runs(handle) = thread {
            self.stop.set();
            if handle.join().is_err() {
                tracing::error!("the thread san-memory panicked");
            }
        }
    }

    /// Watches memory that is about to be registered; `at_rims`: also where nothing is mapped
    /// beside it.
    pub(super) fn watch(&self, range: &Range<usize>, at_rims: bool) -> Result<AtRim, WatchError> {
        const NOWHERE: AtRim = AtRim {
            before: false,
            behind: false,
        };
        match &lock(&self.watched).mappings {
            Some(mappings) if at_rims => mappings.watch(range),
            Some(mappings) => mappings.watch_inside(range).map(|()| NOWHERE),
            None => Err(WatchError::Kind),
        }
    }

    pub(super) fn unwatch(&self, pages: &Range<usize>) {
        if let Some(mappings) = &lock(&self.watched).mappings {
            mappings.unwatch(pages);
        }
    }

    /// Whether two mappings meet at this address that could be one.
    pub(super) fn is_seam(&self, at: usize) -> bool {
        let watched = lock(&self.watched);
        let mappings = watched.mappings.as_ref();
        mappings.is_some_and(|mappings| mappings.is_seam(at))
    }

    /// Puts what changed since the last call into `changes`, which is empty before. The list is long for a
    /// stack: the caller may be a signal handler with a small one.
    pub(super) fn take(&self, changes: &mut Changes) -> Notice {
        let mut watched = lock(&self.watched);
        let notice = watched.look();
        if !watched.changes.is_empty() {
            std::mem::swap(&mut watched.changes, changes);
        }
        notice
    }

    fn spawn(&self) -> Result<JoinHandle<()>, String> {
        let mappings = Arc::new(MappingWatch::new().map_err(|e| e.to_string())?);
        let ready = EventObject::new().map_err(|e| e.to_string())?;
        let (watched, stop) = (Arc::clone(&self.watched), self.stop.clone());
        let (seen, running) = (Arc::clone(&mappings), ready.clone());
        let notify = Arc::clone(&self.notify);
        let handle = std::thread::Builder::new()
            .name("san-memory".into())
            .spawn(move || {
                running.set();
                read(&watched, &seen, &stop, &*notify);
                lock(&watched).mappings = None;
                // This closes it, and only then is memory freed.
                drop(seen);
            })
            .map_err(|e| e.to_string())?;
        // Nothing is watched before that: until then the thread does allocate.
        if !ready.wait(START) {
            self.stop.set();
            return Err("the thread san-memory does not start".to_owned());
        }
        lock(&self.watched).mappings = Some(mappings);
        Ok(handle)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Watched {
    /// Reads what there is; whether that is all.
    fn look(&mut self) -> Notice {
        let Some(mappings) = &self.mappings else {
            return Notice::Blind;
        };
        // What waits to be read is on its way too, so this alone is the rule.
        if mappings.is_settled() {
            return Notice::Complete;
        }
        let changes = &mut self.changes;
        if mappings.read(|change| note(changes, change)).is_err() {
            changes.clear();
            changes.push(MappingChange::Unknown);
            return Notice::Blind;
        }
        match mappings.is_settled() {
            true => Notice::Complete,
            false => Notice::Pending,
        }
    }
}

fn note(changes: &mut Changes, change: MappingChange) {
    if changes.try_push(change).is_err() {
        changes.clear();
        changes.push(MappingChange::Unknown);
    }
}

/// The thread's work. It must not allocate, free, log, or wait for any lock but `watched`.
fn read(watched: &Mutex<Watched>, seen: &MappingWatch, stop: &EventObject, notify: &dyn Fn()) {
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(seen.as_fd(), PollFlags::IN),
            PollFd::new(stop, PollFlags::IN),
        ];
        // Interrupted or not: both are looked at.
        let _ = rustix::event::poll(&mut fds, None);
        if !fds[1].revents().is_empty() {
            return;
        }
        let mut watched = lock(watched);
        let changes = &mut watched.changes;
        let read = seen.read(|change| note(changes, change));
        drop(watched);
        match read {
            Ok(true) => notify(),
            Ok(false) => {}
            // Closing it lets everybody go on, and from then on nothing is found.
            Err(_) => return,
        }
    }
}
