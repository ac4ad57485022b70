//! CM events while they wait.
//!
//! What it does: a queue with a file descriptor that is readable while there are
//! events, for who sleeps on that.
//! What it does not do: make events (`cm`), or ids of those who ask to connect;
//! they are made when the event is taken out.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use san_base::lock;

use super::cq::ChannelShared;
use crate::cm::ConnKey;
use crate::wire::cm::RejReason;

/// The most private data of any message.
pub const MAX_PRIVATE_DATA: usize = 196;

/// Private data as it came: zero-padded to the length of its message's field.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PrivateData {
    bytes: [u8; MAX_PRIVATE_DATA],
    len: u8,
}

impl PrivateData {
    /// No private data.
    pub const EMPTY: Self = Self {
        bytes: [0; MAX_PRIVATE_DATA],
        len: 0,
    };

    /// Takes at most [`MAX_PRIVATE_DATA`] bytes.
    pub(crate) fn new(data: &[u8]) -> Self {
        let mut bytes = [0; MAX_PRIVATE_DATA];
        let len = data.len().min(MAX_PRIVATE_DATA);
        bytes[..len].copy_from_slice(&data[..len]);
        // At most 196.
        Self {
            bytes,
            len: len as u8,
        }
    }
}

impl Deref for PrivateData {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl fmt::Debug for PrivateData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // It may hold secrets.
        write!(f, "{} bytes", self.len)
    }
}

/// What happened to an id. The names are those of `rdma_cm`.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "taken out of the queue and looked at once"
)]
pub enum EventKind<Id> {
    /// The address is known.
    AddrResolved,
    /// The route is known.
    RouteResolved,
    /// Somebody wants to connect. Dropping the id refuses.
    ConnectRequest {
        /// An id of its own for the connection.
        id: Id,
        /// What the peer sent along: 56 bytes.
        private_data: PrivateData,
        /// READs that the peer serves at a time.
        responder_resources: u8,
        /// READs that the peer wants under way at a time.
        initiator_depth: u8,
        /// The peer's address and port.
        src: SocketAddr,
        /// Ours, to which the request came.
        dst: SocketAddr,
    },
    /// The connection stands.
    Established {
        /// What the peer sent along with its acceptance: 196 bytes on the active
        /// side, none on the passive.
        private_data: PrivateData,
    },
    /// The queue pair could not be made ready; an errno.
    ConnectError(i32),
    /// The peer did not answer; an errno.
    Unreachable(i32),
    /// The peer refused, or withdrew.
    Rejected {
        /// Why.
        reason: RejReason,
        /// What the peer sent along: 148 bytes.
        private_data: PrivateData,
    },
    /// The connection has ended.
    Disconnected,
    /// Nothing of the connection is on its way any more.
    TimewaitExit,
}

impl<Id> EventKind<Id> {
    /// The same with an id made by `make`, if it is a request.
    pub(crate) fn with_id<New>(self, make: impl FnOnce(Id) -> New) -> EventKind<New> {
        match self {
            Self::AddrResolved => EventKind::AddrResolved,
            Self::RouteResolved => EventKind::RouteResolved,
            Self::ConnectRequest {
                id,
                private_data,
                responder_resources,
                initiator_depth,
                src,
                dst,
            } => EventKind::ConnectRequest {
                id: make(id),
                private_data,
                responder_resources,
                initiator_depth,
                src,
                dst,
            },
            Self::Established { private_data } => EventKind::Established { private_data },
            Self::ConnectError(errno) => EventKind::ConnectError(errno),
            Self::Unreachable(errno) => EventKind::Unreachable(errno),
            Self::Rejected {
                reason,
                private_data,
            } => EventKind::Rejected {
                reason,
                private_data,
            },
            Self::Disconnected => EventKind::Disconnected,
            Self::TimewaitExit => EventKind::TimewaitExit,
        }
    }
}

/// The id that was made for a request, which nobody holds yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unclaimed {
    pub(crate) token: u64,
    pub(crate) conn: ConnKey,
}

pub(crate) type QueuedKind = EventKind<Unclaimed>;

/// An event while it waits.
#[derive(Debug)]
pub(crate) struct Queued {
    /// The id it is about.
    pub(crate) id: u64,
    pub(crate) kind: QueuedKind,
}

/// A queue of events.
#[derive(Debug)]
pub(crate) struct EventQueue {
    queue: Mutex<Waiting>,
    /// Who sleeps until there is one.
    pub(crate) channel: Arc<ChannelShared>,
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<Queued>,
    /// The descriptor was made readable for them.
    is_signaled: bool,
}

impl Waiting {
    /// Nothing is there to be woken for any more.
    fn quiet(&mut self, channel: &ChannelShared) {
        channel.take();
        if std::mem::take(&mut self.is_signaled) {
            channel.wake.drain();
        }
    }
}

impl EventQueue {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            queue: Mutex::default(),
            channel: Arc::new(ChannelShared::new()?),
        })
    }

    /// Puts an event last. True: [`EventQueue::signal`] is to follow.
    #[must_use]
    pub(crate) fn push(&self, event: Queued) -> bool {
        let mut queue = lock(&self.queue);
        queue.events.push_back(event);
        queue.events.len() == 1
    }

    /// Has who sleeps look, if events are still there.
    pub(crate) fn signal(&self) {
        let mut queue = lock(&self.queue);
        if !queue.events.is_empty() {
            queue.is_signaled |= self.channel.notify();
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.queue).events.is_empty()
    }

    pub(crate) fn pop(&self) -> Option<Queued> {
        let mut queue = lock(&self.queue);
        let event = queue.events.pop_front();
        if event.is_some() && queue.events.is_empty() {
            queue.quiet(&self.channel);
        }
        event
    }

    /// Takes out what is about an id.
    pub(crate) fn take_all_of(&self, id: u64) -> Vec<Queued> {
        let mut queue = lock(&self.queue);
        let (of_it, rest): (VecDeque<_>, _) = std::mem::take(&mut queue.events)
            .into_iter()
            .partition(|event| event.id == id);
        queue.events = rest;
        if queue.events.is_empty() {
            queue.quiet(&self.channel);
        }
        of_it.into()
    }
}

impl AsFd for EventQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // What came while nobody had the descriptor was not told there.
        if !self.channel.has_descriptor.swap(true, Ordering::SeqCst) {
            self.signal();
        }
        self.channel.wake.as_fd()
    }
}
