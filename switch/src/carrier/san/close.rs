//! The end of a stream, and the steps of a close.

use std::io::{self, IoSliceMut};
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::io::Errno;
use san_base::Deadline;
use san_provider::{DataPath, TransferError};
use san_stream::Kind;

use super::SanCarrier;
use crate::carrier::timeout::left;

/// How far a close has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CloseStep {
    /// All that was sent has arrived, and the end of the stream after it; or the connection was
    /// broken, and its application knows.
    Done,
    /// Not yet, but something arrived since the last look.
    Advanced,
    /// Nothing moved.
    Waiting,
    /// The peer is gone, and had not taken everything in.
    Lost,
}

/// What is left of what was written.
enum Rest {
    Arrived,
    UnderWay,
    /// The connection ended; whether bytes may not have arrived.
    Over {
        lost: bool,
        errno: i32,
    },
}

impl SanCarrier {
    /// The next step of a close: sends the end of the stream, and sees whether everything has
    /// arrived. Nobody else uses the connection any more. It waits until the deadline at most.
    pub(crate) fn close_step(&self, deadline: Deadline) -> CloseStep {
        let Some(data) = &self.data else {
            return CloseStep::Done;
        };
        match self.wait_for_rest(data, deadline) {
            Rest::Arrived => CloseStep::Done,
            Rest::Over { lost: true, .. } => CloseStep::Lost,
            Rest::Over { .. } => CloseStep::Done,
            Rest::UnderWay if self.has_advanced(data) => CloseStep::Advanced,
            Rest::UnderWay => CloseStep::Waiting,
        }
    }

    /// Whether something has left or arrived since this was last asked.
    fn has_advanced(&self, data: &DataPath) -> bool {
        let unacknowledged = data.unacknowledged();
        let (mut state, _) = self.lock();
        let progress = (state.progress(), unacknowledged);
        let has_advanced = std::mem::replace(&mut state.seen_progress, progress) != progress;
        self.release(state);
        has_advanced
    }

    /// Ends our stream and waits until all of it has arrived.
    pub(super) fn wait_for_arrival(&self, deadline: Deadline) -> io::Result<()> {
        match self.wait_for_rest(self.data()?, deadline) {
            Rest::Arrived | Rest::Over { lost: false, .. } => Ok(()),
            Rest::UnderWay => Err(Errno::AGAIN.into()),
            Rest::Over { errno, .. } => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    fn wait_for_rest(&self, data: &DataPath, deadline: Deadline) -> Rest {
        loop {
            self.room.store(false, Ordering::SeqCst);
            match self.rest(data) {
                Rest::UnderWay => {}
                rest => return rest,
            }
            if !data.wait_for(&self.room, left(deadline)) && deadline.is_over() {
                return self.rest(data);
            }
        }
    }

    fn rest(&self, data: &DataPath) -> Rest {
        let (mut state, _) = self.lock();
        if state.has_end_arrived {
            self.release(state);
            return Rest::Arrived;
        }
        let was_closed = state.is_closed;
        if !was_closed {
            state.close(data);
        }
        state.look_for_end(data);
        let rest = if state.is_over() || state.is_broken() {
            let end = u32::from(state.has_sent_end());
            // What was broken before the close its application knows of.
            let was_broken = state.is_broken() && !was_closed;
            Rest::Over {
                lost: !was_broken && (state.owes() || data.unacknowledged() > end),
                errno: Errno::CONNRESET.raw_os_error(),
            }
        } else {
            Rest::UnderWay
        };
        self.unlock(state);
        rest
    }

    /// Whether bytes of the peer are here that nobody has read.
    pub(crate) fn has_unread(&self) -> bool {
        let Some(data) = &self.data else {
            return false;
        };
        data.poll();
        let first = data.inbox().first;
        let (state, _) = self.lock();
        let has_bulk = state.has_bulk();
        self.release(state);
        has_bulk
            || self.peeked.load(Ordering::Acquire) > 0
            || first == Some(Kind::Data.number())
            || first == Some(Kind::Urgent.number())
    }

    /// Gives the stream up: the peer's calls fail with ECONNRESET, and what is under way is lost.
    pub(crate) fn abort(&self) {
        let (mut state, data) = self.lock();
        if let Some(data) = data {
            state.abort(data);
        }
        self.unlock(state);
    }

    /// Waits for the peer to disconnect, if it ended its stream last. Its end has arrived here, but
    /// the acknowledgement of it may not have arrived there: to disconnect now might undo it, and the
    /// peer would take bytes for lost that are not. TCP has LAST-ACK and TIME-WAIT for it.
    pub(crate) fn wait_for_peer(&self, deadline: Deadline) -> bool {
        let (state, data) = self.lock();
        let is_last = state.has_peer_ended_last;
        self.release(state);
        let Some(data) = data.filter(|_| is_last) else {
            return true;
        };
        let came = data.receive_into(&mut [IoSliceMut::new(&mut [0])], left(deadline));
        !matches!(came, Err(TransferError::WouldBlock))
    }

    /// How long a close waits, as SO_LINGER says.
    pub(crate) fn lingers(&self) -> Option<Duration> {
        *self.linger.lock()
    }
}
