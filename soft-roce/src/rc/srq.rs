//! Receive queues: a queue pair's own, and the one that many share.
//!
//! What it does: bounded FIFOs of posted receives. The shared one counts down
//! to a limit and says once when it falls below (IBTA 10.2.9.4).
//! What it does not do: complete receives; the responder that takes one does.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::mr::{Access, MrTable, Pd};
use super::wr::{Pieces, PostError, RecvRequest};

/// A posted receive.
#[derive(Debug)]
pub(crate) struct Receive {
    pub(crate) wr_id: u64,
    pub(crate) pieces: Pieces,
}

/// A queue pair's own receives.
#[derive(Debug)]
pub(crate) struct ReceiveQueue {
    queue: VecDeque<Receive>,
    capacity: usize,
    max_sge: usize,
}

impl ReceiveQueue {
    pub(crate) fn new(capacity: usize, max_sge: usize) -> Self {
        Self {
            queue: VecDeque::new(),
            capacity,
            max_sge,
        }
    }

    pub(crate) fn post(
        &mut self,
        table: &MrTable,
        pd: Pd,
        request: &RecvRequest<'_>,
    ) -> Result<(), PostError> {
        if self.queue.len() >= self.capacity {
            return Err(PostError::QueueFull);
        }
        let pieces = Pieces::resolve(table, pd, request.sges, self.max_sge, Access::LOCAL_WRITE)?;
        self.queue.push_back(Receive {
            wr_id: request.wr_id,
            pieces,
        });
        Ok(())
    }

    pub(crate) fn take(&mut self) -> Option<Receive> {
        self.queue.pop_front()
    }

    pub(crate) fn clear(&mut self) {
        self.queue.clear();
    }

    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }
}

/// Receives that many queue pairs share.
#[derive(Debug)]
pub struct SharedReceiveQueue {
    pd: Pd,
    table: Arc<MrTable>,
    posted: Mutex<Posted>,
    limit_event: AtomicBool,
}

#[derive(Debug)]
struct Posted {
    queue: ReceiveQueue,
    /// Armed when not 0.
    limit: usize,
}

impl SharedReceiveQueue {
    /// A queue of at most `capacity` receives of at most `max_sge` pieces in
    /// domain `pd`. Memory grows with use.
    #[must_use]
    pub fn new(pd: Pd, table: Arc<MrTable>, capacity: usize, max_sge: usize) -> Self {
        Self {
            pd,
            table,
            posted: Mutex::new(Posted {
                queue: ReceiveQueue::new(capacity, max_sge),
                limit: 0,
            }),
            limit_event: AtomicBool::new(false),
        }
    }

    /// Posts a receive.
    ///
    /// # Errors
    /// [`PostError`]: the queue is full, or there are too many pieces.
    pub fn post(&self, request: &RecvRequest<'_>) -> Result<(), PostError> {
        self.lock().queue.post(&self.table, self.pd, request)
    }

    /// Receives posted and not used up.
    #[must_use]
    pub fn posted(&self) -> usize {
        self.lock().queue.len()
    }

    /// Asks for one event when fewer than `limit` receives are left; 0 disarms.
    pub fn arm_limit(&self, limit: usize) {
        self.lock().limit = limit;
    }

    /// Whether the limit was passed since the last call.
    #[must_use]
    pub fn take_limit_event(&self) -> bool {
        self.limit_event.load(Ordering::Relaxed) && self.limit_event.swap(false, Ordering::AcqRel)
    }

    pub(crate) fn take(&self) -> Option<Receive> {
        let mut posted = self.lock();
        let taken = posted.queue.take();
        if posted.queue.len() < posted.limit {
            posted.limit = 0;
            self.limit_event.store(true, Ordering::Release);
        }
        taken
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Posted> {
        self.posted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rc::keys::KeySource;

    #[test]
    fn bounded_fifo_with_a_limit() {
        let table = Arc::new(MrTable::new(1, KeySource::seeded(0)));
        let srq = SharedReceiveQueue::new(Pd(0), table, 3, 1);
        let post = |wr_id| srq.post(&RecvRequest { wr_id, sges: &[] });
        for id in 0..3 {
            post(id).unwrap();
        }
        assert_eq!(post(3), Err(PostError::QueueFull));
        srq.arm_limit(2);
        assert_eq!(srq.take().map(|r| r.wr_id), Some(0));
        assert!(!srq.take_limit_event(), "two are left");
        assert_eq!(srq.take().map(|r| r.wr_id), Some(1));
        assert!(srq.take_limit_event());
        assert_eq!(srq.take().map(|r| r.wr_id), Some(2));
        assert!(!srq.take_limit_event(), "once an arming");
        assert!(srq.take().is_none());
    }
}
