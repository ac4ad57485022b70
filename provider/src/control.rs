//! How others reach the thread `san-cm`: commands, deadlines, and that mappings changed.
//!
//! It keeps what is left here until the thread takes it; what it means is known to the thread
//! (`cm/thread.rs`).

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crossbeam::queue::SegQueue;

use crate::event::EventObject;
use crate::sync::lock;
use crate::time::Deadline;
use crate::transfer::Ending;

/// How others reach the thread.
#[derive(Debug)]
pub(crate) struct Control {
    /// Bounded by the number of connections: each breaks once, and asks once to move.
    commands: SegQueue<Command>,
    deadlines: Mutex<BTreeSet<(Instant, u64)>>,
    pub(crate) wake: EventObject,
    stopping: AtomicBool,
    /// Mappings changed under registered memory.
    mappings_changed: AtomicBool,
}

/// What the thread is asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// The connection of this CM id is over; the peer has to be told.
    Break(u64, Ending),
    /// The peer of this CM id's connection wants to move to another process.
    PeerMoves(u64),
}

impl Control {
    pub(crate) fn new() -> std::io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            commands: SegQueue::new(),
            deadlines: Mutex::new(BTreeSet::new()),
            wake: EventObject::new()?,
            stopping: AtomicBool::new(false),
            mappings_changed: AtomicBool::new(false),
        }))
    }

    pub(crate) fn send(&self, command: Command) {
        self.commands.push(command);
        self.wake.set();
    }

    /// The connect of this CM id, or the wait for a peer at it, has to end at `when`.
    pub(crate) fn set_deadline(&self, when: Instant, token: u64) {
        let mut deadlines = lock(&self.deadlines);
        let is_first = deadlines.first().is_none_or(|&(first, _)| when < first);
        deadlines.insert((when, token));
        drop(deadlines);
        if is_first {
            self.wake.set();
        }
    }

    pub(crate) fn cancel_deadline(&self, when: Instant, token: u64) {
        lock(&self.deadlines).remove(&(when, token));
    }

    /// Mappings changed under registered memory. It neither allocates nor waits.
    pub(crate) fn mappings_changed(&self) {
        self.mappings_changed.store(true, Ordering::SeqCst);
        self.wake.set();
    }

    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.wake.set();
    }

    /// When the thread has to look again.
    pub(crate) fn next_deadline(&self) -> Deadline {
        Deadline::at(lock(&self.deadlines).first().map(|&(when, _)| when))
    }

    /// A CM id whose deadline is over.
    pub(crate) fn take_expired(&self) -> Option<u64> {
        let mut deadlines = lock(&self.deadlines);
        let &(when, token) = deadlines.first()?;
        if when > Instant::now() {
            return None;
        }
        deadlines.remove(&(when, token));
        Some(token)
    }

    pub(crate) fn next_command(&self) -> Option<Command> {
        self.commands.pop()
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Whether mappings changed since the last call.
    pub(crate) fn take_mappings_changed(&self) -> bool {
        self.mappings_changed.swap(false, Ordering::SeqCst)
    }
}
