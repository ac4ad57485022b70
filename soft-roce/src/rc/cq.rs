//! Completion queues.
//!
//! What it does: a bounded queue of completions that engines fill and the user
//! polls, and the arming of its notification. A queue that overflows goes into
//! a state of its own, which every later call reports: nothing is lost quietly.
//! What it does not do: wake anybody. Whoever ran an engine asks
//! [`CompletionQueue::take_event`] afterwards and signals what the user waits
//! on, so that nothing foreign runs under an engine's lock.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How a work request ended. The numbers are those of `ibv_wc_status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u32)]
#[non_exhaustive]
pub enum Status {
    /// Carried out.
    #[default]
    Success = 0,
    /// A message was longer than the receive buffer.
    LocalLength = 1,
    /// The queue pair broke a rule of its own.
    LocalQpOperation = 2,
    /// A local key, range or access right was wrong.
    LocalProtection = 4,
    /// The queue pair failed before this request was carried out.
    WrFlush = 5,
    /// The peer answered with something that no request asked for.
    BadResponse = 7,
    /// The peer's RDMA broke a local access right.
    LocalAccess = 8,
    /// The peer found the request invalid.
    RemoteInvalidRequest = 9,
    /// The peer refused access to its memory.
    RemoteAccess = 10,
    /// The peer failed to carry the request out.
    RemoteOperation = 11,
    /// The peer did not answer until the retries were used up.
    RetryExceeded = 12,
    /// The peer had no receive posted until the retries were used up.
    RnrRetryExceeded = 13,
    /// Anything else.
    General = 21,
}

impl Status {
    /// The number of `ibv_wc_status`.
    #[must_use]
    pub fn number(self) -> u32 {
        self as u32
    }
}

/// What a completed work request was. The numbers are those of `ibv_wc_opcode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum WorkKind {
    /// SEND of any kind.
    #[default]
    Send = 0,
    /// RDMA WRITE of any kind.
    Write = 1,
    /// RDMA READ.
    Read = 2,
    /// A receive that a SEND filled.
    Receive = 128,
    /// A receive that an RDMA WRITE with immediate data used up.
    ReceiveWriteImm = 129,
}

/// A completed work request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Completion {
    /// The user's number, as posted.
    pub wr_id: u64,
    /// How it ended. Unless it is [`Status::Success`] the rest says nothing,
    /// apart from `wr_id`, `kind` and `qpn`.
    pub status: Status,
    /// What it was.
    pub kind: WorkKind,
    /// Bytes received or read.
    pub byte_len: u32,
    /// Immediate data that came along, as a number.
    pub imm: Option<u32>,
    /// The key that the peer's SEND invalidated.
    pub invalidated: Option<u32>,
    /// The queue pair it was posted to (or, for a shared receive queue, that
    /// used it up).
    pub qpn: u32,
}

/// When a completion raises an event (IBTA 11.4.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notify {
    /// At the next completion.
    Next,
    /// At the next one that failed or that the sender marked as solicited.
    Solicited,
}

/// A completion queue has overflowed: completions are missing from here on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("completion queue overrun: {capacity} entries were not enough")]
pub struct Overrun {
    /// Entries it holds.
    pub capacity: usize,
}

/// A bounded queue of completions.
#[derive(Debug)]
pub struct CompletionQueue {
    ring: Mutex<Ring>,
    capacity: usize,
    /// Entries, so that a poller that finds none takes no lock.
    len: AtomicUsize,
    overrun: AtomicBool,
    event: AtomicBool,
}

#[derive(Debug)]
struct Ring {
    entries: VecDeque<Completion>,
    armed: Option<Notify>,
}

impl CompletionQueue {
    /// A queue of at most `capacity` entries. Memory grows with use.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            ring: Mutex::new(Ring {
                entries: VecDeque::with_capacity(capacity.min(64)),
                armed: None,
            }),
            capacity,
            len: AtomicUsize::new(0),
            overrun: AtomicBool::new(false),
            event: AtomicBool::new(false),
        }
    }

    /// Entries it can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Moves the oldest completions to `out` and says how many. Zero means that
    /// there are none.
    ///
    /// # Errors
    /// [`Overrun`] once the queue is empty and had overflowed.
    pub fn poll(&self, out: &mut [Completion]) -> Result<usize, Overrun> {
        if self.is_empty() {
            return self.check().map(|()| 0);
        }
        let mut ring = self.lock();
        let n = ring.entries.len().min(out.len());
        for (to, from) in out.iter_mut().zip(ring.entries.drain(..n)) {
            *to = from;
        }
        self.len.store(ring.entries.len(), Ordering::Release);
        Ok(n)
    }

    /// Whether nothing is there to poll, without a lock.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len.load(Ordering::Acquire) == 0
    }

    /// Whether it has overflowed.
    #[must_use]
    pub fn is_overrun(&self) -> bool {
        self.overrun.load(Ordering::Acquire)
    }

    /// Asks for one event. As everywhere in verbs, poll once more after this
    /// and before waiting.
    pub fn request_notify(&self, when: Notify) {
        let mut ring = self.lock();
        // The wider request wins, as in `ibv_req_notify_cq`.
        if ring.armed != Some(Notify::Next) {
            ring.armed = Some(when);
        }
    }

    /// Whether an event is due since the last call. For whoever ran an engine.
    #[must_use]
    pub fn take_event(&self) -> bool {
        // The load first: the common answer costs no write to shared memory.
        self.event.load(Ordering::Relaxed) && self.event.swap(false, Ordering::AcqRel)
    }

    /// Adds a completion.
    pub(crate) fn push(&self, completion: Completion, solicited: bool) -> Result<(), Overrun> {
        let mut ring = self.lock();
        if ring.entries.len() >= self.capacity {
            self.overrun.store(true, Ordering::Release);
            self.event.store(true, Ordering::Release);
            return self.check();
        }
        let failed = completion.status != Status::Success;
        ring.entries.push_back(completion);
        self.len.store(ring.entries.len(), Ordering::Release);
        let due = match ring.armed {
            Some(Notify::Next) => true,
            Some(Notify::Solicited) => solicited || failed,
            None => false,
        };
        if due {
            ring.armed = None;
            self.event.store(true, Ordering::Release);
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Overrun> {
        if self.is_overrun() {
            return Err(Overrun {
                capacity: self.capacity,
            });
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        // No code that can panic runs under the lock with the ring half changed.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completion(wr_id: u64) -> Completion {
        Completion {
            wr_id,
            ..Completion::default()
        }
    }

    #[test]
    fn in_order_and_bounded() {
        let cq = CompletionQueue::new(2);
        cq.push(completion(1), false).unwrap();
        cq.push(completion(2), false).unwrap();
        assert_eq!(cq.push(completion(3), false), Err(Overrun { capacity: 2 }));
        let mut out = [Completion::default(); 4];
        assert_eq!(cq.poll(&mut out), Ok(2));
        assert_eq!((out[0].wr_id, out[1].wr_id), (1, 2));
        assert_eq!(cq.poll(&mut out), Err(Overrun { capacity: 2 }));
        assert!(cq.take_event(), "whoever waits learns of the overrun");
    }

    #[test]
    fn one_event_an_arming() {
        let cq = CompletionQueue::new(8);
        cq.push(completion(1), true).unwrap();
        assert!(!cq.take_event(), "not armed");
        cq.request_notify(Notify::Solicited);
        cq.push(completion(2), false).unwrap();
        assert!(!cq.take_event());
        cq.push(completion(3), true).unwrap();
        assert!(cq.take_event());
        assert!(!cq.take_event());
        cq.request_notify(Notify::Next);
        cq.request_notify(Notify::Solicited);
        cq.push(completion(4), false).unwrap();
        assert!(cq.take_event(), "the wider request holds");
        cq.push(completion(5), false).unwrap();
        assert!(!cq.take_event());
    }

    #[test]
    fn a_failure_is_always_solicited() {
        let cq = CompletionQueue::new(8);
        cq.request_notify(Notify::Solicited);
        let failed = Completion {
            status: Status::WrFlush,
            ..completion(1)
        };
        cq.push(failed, false).unwrap();
        assert!(cq.take_event());
    }
}
