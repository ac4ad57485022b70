//! CM events and the channels they come on.
//!
//! What it does: a queue with a file descriptor that is readable while there are
//! events.
//! What it does not do: make events (`cm`).

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use super::id::CmId;
use super::inner::{Inner, lock};
use crate::cm::ConnKey;
use crate::driver::wake::Wake;
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
    pub(super) fn new(data: &[u8]) -> Self {
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

/// An event.
#[derive(Debug)]
pub struct CmEvent {
    /// The id it is about ([`CmId::token`]); for a request the listener.
    pub id: u64,
    /// What happened.
    pub kind: CmEventKind,
}

/// What happened to an id. The names are those of `rdma_cm`.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "taken out of the queue and looked at once"
)]
pub enum CmEventKind {
    /// The address is known.
    AddrResolved,
    /// The route is known.
    RouteResolved,
    /// Somebody wants to connect. Dropping the id refuses.
    ConnectRequest {
        /// An id of its own for the connection.
        id: CmId,
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

/// An event while it waits: ids are made when it is taken out.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) id: u64,
    pub(super) kind: QueuedKind,
}

#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "the common ones are the large ones"
)]
pub(super) enum QueuedKind {
    Plain(CmEventKind),
    Request {
        /// The id made for it.
        id: u64,
        conn: ConnKey,
        private_data: PrivateData,
        responder_resources: u8,
        initiator_depth: u8,
        src: SocketAddr,
        dst: SocketAddr,
    },
}

/// A queue of events.
#[derive(Debug)]
pub(super) struct ChannelShared {
    queue: Mutex<VecDeque<Queued>>,
    wake: Wake,
}

impl ChannelShared {
    pub(super) fn push(&self, event: Queued) {
        let mut queue = lock(&self.queue);
        queue.push_back(event);
        if queue.len() == 1 {
            self.wake.signal();
        }
    }

    fn pop(&self) -> Option<Queued> {
        let mut queue = lock(&self.queue);
        let event = queue.pop_front();
        if queue.is_empty() {
            self.wake.drain();
        }
        event
    }

    /// Takes out what is about an id.
    pub(super) fn take_all_of(&self, id: u64) -> Vec<Queued> {
        let mut queue = lock(&self.queue);
        let (of_it, rest): (VecDeque<_>, _) = std::mem::take(&mut *queue)
            .into_iter()
            .partition(|event| event.id == id);
        *queue = rest;
        if queue.is_empty() {
            self.wake.drain();
        }
        of_it.into()
    }
}

/// Where CM ids report. The descriptor is readable while events are there.
#[derive(Debug)]
pub struct EventChannel {
    pub(super) shared: Arc<ChannelShared>,
    inner: Arc<Inner>,
}

impl EventChannel {
    pub(super) fn new(inner: &Arc<Inner>) -> io::Result<Self> {
        let shared = ChannelShared {
            queue: Mutex::default(),
            wake: Wake::new()?,
        };
        Ok(Self {
            shared: Arc::new(shared),
            inner: inner.clone(),
        })
    }

    /// The oldest event.
    #[must_use]
    pub fn next(&self) -> Option<CmEvent> {
        let Queued { id: about, kind } = self.shared.pop()?;
        let kind = match kind {
            QueuedKind::Plain(kind) => kind,
            QueuedKind::Request {
                id,
                conn,
                private_data,
                responder_resources,
                initiator_depth,
                src,
                dst,
            } => {
                self.inner.taken(conn);
                CmEventKind::ConnectRequest {
                    id: CmId::existing(&self.inner, id),
                    private_data,
                    responder_resources,
                    initiator_depth,
                    src,
                    dst,
                }
            }
        };
        Some(CmEvent { id: about, kind })
    }
}

impl Drop for EventChannel {
    fn drop(&mut self) {
        // Requests that nobody will see are refused.
        while let Some(event) = self.next() {
            drop(event);
        }
    }
}

impl AsFd for EventChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.wake.as_fd()
    }
}
