//! The queue pair of a stream while it has one: messages out, and what comes out of turn.

use std::collections::VecDeque;
use std::fmt;
use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use san_provider::{DataPath, Readiness, ReadySink, TransferError};
use san_stream::Post;

use super::service::Service;
use crate::san::socket::ProviderSocket;

/// Control messages that may wait. No peer of this protocol comes near it.
const MOST_CONTROL: usize = 256;

/// A connected queue pair.
pub(super) struct QueuePair {
    socket: ProviderSocket,
    pub(super) data: DataPath,
    /// The engine has counted it, and there was no place for it yet.
    pending: Option<Post>,
}

/// What came of posting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Posted {
    Yes,
    /// No place; it waits.
    Waits,
    /// The queue pair is over.
    Broken,
}

impl QueuePair {
    /// `None`: it is over already.
    pub(super) fn new(socket: ProviderSocket, feed: &Arc<Feed>) -> Option<Self> {
        let data = socket.data().data_path().ok()?;
        data.set_sink(Some((Arc::clone(feed) as Arc<dyn ReadySink>, 0)));
        // An edge is a message that came, though others wait.
        data.tell_each(feed.is_watched.load(Ordering::Acquire));
        Some(Self {
            socket,
            data,
            pending: None,
        })
    }

    pub(super) fn has_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// What was counted and has not left.
    pub(super) fn take_pending(&mut self) -> Option<Post> {
        self.pending.take()
    }

    /// Posts a message; `ring` has the bytes of the stream.
    pub(super) fn post(&mut self, post: Post, ring: &[u8]) -> Posted {
        let staged = post.staged.map_or(&[][..], |staged| {
            let from = usize::try_from(staged.position % san_stream::RING).unwrap_or(0);
            ring.get(from..from + staged.length).unwrap_or_default()
        });
        let parts = [IoSlice::new(&post.head), IoSlice::new(staged)];
        match self.data.try_send_gathered(&parts, post.kind.number()) {
            Ok(()) => Posted::Yes,
            Err(error) => {
                // The engine has counted it, so it counts as not acknowledged.
                self.pending = Some(post);
                match error {
                    TransferError::WouldBlock | TransferError::NoBuffers => Posted::Waits,
                    _ => Posted::Broken,
                }
            }
        }
    }

    /// Sends a message that the engine does not count.
    pub(super) fn say(&self, kind: u8, bytes: &[u8]) {
        // The peer hears of the end anyway.
        let _ = self.data.try_send(bytes, kind);
    }

    /// How many messages that the engine has counted may not have arrived.
    pub(super) fn unacknowledged(&self) -> u32 {
        self.data.unacknowledged() + u32::from(self.pending.is_some())
    }

    /// Takes it into its error state: what had come can still be received.
    pub(super) fn disconnect(&self) {
        let _ = self.socket.data().disconnect();
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        self.data.set_sink(None);
    }
}

impl fmt::Debug for QueuePair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueuePair").finish_non_exhaustive()
    }
}

/// What the provider tells a stream, from whichever thread polls. It only notes it: the stream's lock
/// may be held by this very thread.
pub(super) struct Feed {
    token: u64,
    service: Arc<Service>,
    control: Mutex<Control>,
    has_control: AtomicBool,
    /// The queue pair is over, whoever ended it.
    is_over: AtomicBool,
    /// The stream has something to send and no place for it.
    pub(super) wants_room: AtomicBool,
    /// Somebody wants to hear that bytes came.
    pub(super) is_watched: AtomicBool,
}

#[derive(Default)]
struct Control {
    messages: VecDeque<(u8, Vec<u8>)>,
    /// More came than may wait.
    is_flooded: bool,
}

impl Feed {
    pub(super) fn new(token: u64, service: Arc<Service>) -> Self {
        Self {
            token,
            service,
            control: Mutex::default(),
            has_control: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            wants_room: AtomicBool::new(false),
            is_watched: AtomicBool::new(false),
        }
    }

    /// The next control message. An error: more came than a peer of this protocol sends.
    pub(super) fn next(&self) -> Result<Option<(u8, Vec<u8>)>, ()> {
        if !self.has_control.load(Ordering::Acquire) {
            return Ok(None);
        }
        let mut control = self.control.lock();
        if control.is_flooded {
            return Err(());
        }
        let next = control.messages.pop_front();
        if next.is_none() {
            self.has_control.store(false, Ordering::Release);
        }
        Ok(next)
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// Forgets what an ended queue pair has said: there may be another one.
    pub(super) fn clear(&self) {
        self.is_over.store(false, Ordering::Release);
        *self.control.lock() = Control::default();
        self.has_control.store(false, Ordering::Release);
    }
}

impl ReadySink for Feed {
    fn ready(&self, _token: u64, readiness: Readiness) {
        let wanted = match readiness {
            Readiness::Readable => &self.is_watched,
            Readiness::Writable => &self.wants_room,
        };
        if wanted.load(Ordering::Acquire) {
            self.service.attend(self.token);
        }
    }

    fn over(&self, _token: u64) {
        self.is_over.store(true, Ordering::Release);
        self.service.attend(self.token);
    }

    fn control(&self, _token: u64, kind: u8, bytes: &[u8]) {
        let mut control = self.control.lock();
        if control.messages.len() < MOST_CONTROL {
            control.messages.push_back((kind, bytes.to_vec()));
        } else {
            control.is_flooded = true;
        }
        self.has_control.store(true, Ordering::Release);
        drop(control);
        self.service.attend(self.token);
    }
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed").finish_non_exhaustive()
    }
}
