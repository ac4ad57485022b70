//! One connection's data path: its engine under its own small lock, and its queue pair.
//!
//! The shell of `engine/`: it takes the lock, posts what the engine plans, and does for others what
//! the engine asks for. From outside come calls (`send.rs`, `receive.rs`, `rdma.rs`), from the lane
//! come completions (`completions.rs`), from the CM thread come beginning and end (`lifecycle.rs`,
//! `handover.rs`). Nothing is called out to under the lock: whom to wake and what to tell is collected
//! and done after it (`settle.rs`).

mod completions;
mod handover;
mod lifecycle;
mod rdma;
mod receive;
mod send;
mod settle;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use crossbeam::sync::Unparker;
// Without poison: to look for it costs as much as the lock.
use parking_lot::{Mutex, MutexGuard};
use verbs_shim::{CmId, PreparedQp, ProtectionDomain, QpCaps, QueuePair, RegisteredBuffer};

pub(crate) use self::lifecycle::Ingredients;
pub(crate) use self::rdma::RdmaDirection;
use self::rdma::RdmaJob;
pub use self::rdma::{Fence, MAX_SEGMENTS};
pub(crate) use self::send::Payload;
use self::settle::Followed;
use super::Lane;
use super::engine::{Ending, Engine, Payloads};
use crate::control::{Command, Control};
use crate::handles::SwitchHandle;
use crate::memory::Registrations;
use crate::progress::Progress;
use crate::statistics::ConnectionStats;

pub(crate) struct Connection {
    lane: Arc<Lane>,
    progress: Arc<Progress>,
    control: Arc<Control>,
    /// The token of the CM id. It and the queue pair's number change when the peer moves.
    token: AtomicU64,
    qp_num: AtomicU32,
    /// Bytes that were granted inline.
    inline: usize,
    /// Bytes that a message of the peer's may have; the size of every buffer.
    receive_limit: u32,
    handle: OnceLock<SwitchHandle>,
    peer: OnceLock<PeerFeatures>,
    this: Weak<Self>,
    /// How long the opening of memory may take.
    open_deadline: Duration,
    pub(crate) memory: Registrations,
    /// Something can be received, or the end be seen; as it was when the lock was last let go.
    readable: AtomicBool,
    state: Mutex<State>,
}

/// What a peer said of itself in the negotiation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PeerFeatures {
    /// It reads by RDMA from memory that is opened to it.
    pub reads: bool,
    /// What the layer above it said there ([`crate::ProviderConfig::layer_features`]).
    pub layer: u8,
}

/// What the lock protects.
pub(crate) struct State {
    /// The engine [is plain](Engine::is_plain), there is a queue pair, its peer takes what goes inline, and
    /// nobody follows the state: a message takes the shortest way. Whoever takes the lock for anything else
    /// says that it is not so, and [`Connection::settle`] finds out anew.
    plain: bool,
    engine: Engine<Parts>,
    qp: Qp,
    share: LaneShare,
    followed: Followed,
}

/// What the engine keeps for this shell.
#[derive(Debug)]
pub(crate) struct Parts;

impl Payloads for Parts {
    type Buffer = RegisteredBuffer;
    type Rdma = RdmaJob;
    type Waker = Unparker;
}

/// The queue pair, by what may be done with it.
enum Qp {
    /// Not established: receives only.
    Prepared(PreparedQp),
    Connected(QueuePair),
    Gone,
}

/// What a connection has of its lane: a place in the ledger, and receives.
struct LaneShare {
    lane: Arc<Lane>,
    /// It counts as one of the lane's connections.
    taken: bool,
    /// Receives set aside.
    reserved: u32,
    /// Buffers still held by the application after the connection had given its place back, and that
    /// count apart.
    kept: u32,
}

impl LaneShare {
    /// One that was taken for a connection, with its receives.
    fn new(lane: &Arc<Lane>, receives: u32) -> Self {
        Self {
            lane: Arc::clone(lane),
            taken: true,
            reserved: receives,
            kept: 0,
        }
    }

    /// `n` receives more are set aside.
    fn reserve(&mut self, n: u32) {
        self.reserved += n;
    }

    /// Nothing can complete for the connection any more: its place is another's, and so are its
    /// receives, but for the buffers that the application still holds.
    fn leave(&mut self, held: u32) {
        if std::mem::take(&mut self.taken) {
            self.kept = self.lane.receives.ledger.leave(self.reserved, held);
            self.reserved = held - self.kept;
        }
    }

    /// One buffer of those that were still held when the place was given back is free.
    fn give_back(&mut self) {
        if self.kept > 0 {
            self.kept -= 1;
            self.lane.receives.ledger.release_kept(1);
        } else {
            self.give_up(1);
        }
    }

    /// `n` receives are not set aside any more.
    fn give_up(&mut self, n: u32) {
        let n = n.min(self.reserved);
        self.reserved -= n;
        self.lane.receives.ledger.release(n);
    }
}

impl Drop for LaneShare {
    fn drop(&mut self) {
        let ledger = &self.lane.receives.ledger;
        if self.taken {
            ledger.leave(self.reserved, 0);
        } else {
            ledger.release(self.reserved);
            ledger.release_kept(self.kept);
        }
    }
}

impl Connection {
    /// The lock, for whatever may change the state.
    #[inline]
    fn lock_state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock();
        state.plain = false;
        state
    }

    fn number(&self) -> u32 {
        self.qp_num.load(Ordering::Relaxed)
    }

    fn token(&self) -> u64 {
        self.token.load(Ordering::Relaxed)
    }

    pub(crate) fn lane(&self) -> Arc<Lane> {
        Arc::clone(&self.lane)
    }

    pub(crate) fn device_name(&self) -> &str {
        let name = &self.lane.name;
        name.rsplit_once('/').map_or(name, |(device, _)| device)
    }

    /// What the peer said of itself; nothing, before it did.
    pub(crate) fn peer(&self) -> PeerFeatures {
        self.peer.get().copied().unwrap_or_default()
    }

    /// What goes with its upcalls.
    pub(crate) fn set_handle(&self, handle: SwitchHandle) {
        let _ = self.handle.set(handle);
    }

    /// Bytes that a message to the peer may have; 0 until the peer has said so.
    pub(crate) fn send_limit(&self) -> usize {
        self.lock_state().engine.send_limit()
    }

    /// Bytes of an RDMA operation that both sides and the device allow; 0 until the peer has said
    /// so.
    pub(crate) fn rdma_limit(&self) -> usize {
        self.lock_state().engine.rdma_limit()
    }

    /// What this side says of it in the negotiation.
    pub(crate) fn own_rdma_limit(&self) -> u32 {
        self.lane.rdma_limit
    }

    /// Where memory of this connection is registered.
    pub(crate) fn protection_domain(&self) -> &ProtectionDomain {
        &self.lane.pd
    }

    /// What it has counted, and what is pending now.
    pub(crate) fn stats(&self) -> ConnectionStats {
        let (cache_hits, registrations) = self.memory.counts();
        let state = self.lock_state();
        let totals = state.engine.totals();
        let (messages_sent, messages_received) = state.engine.messages();
        let (sends_waiting, messages_waiting, window) = state.engine.waiting();
        ConnectionStats {
            messages_sent,
            messages_received,
            bytes_sent: totals.bytes_sent,
            bytes_received: totals.bytes_received,
            credit_messages_sent: totals.credit_messages_sent,
            credit_messages_received: totals.credit_messages_received,
            rdma_reads: totals.rdma_reads,
            rdma_writes: totals.rdma_writes,
            rdma_bytes_read: totals.rdma_bytes_read,
            rdma_bytes_written: totals.rdma_bytes_written,
            sends_delayed: totals.sends_delayed,
            messages_copied: totals.messages_copied,
            cache_hits,
            registrations,
            sends_waiting,
            messages_waiting,
            window,
        }
    }

    fn break_now(&self, ending: Ending) {
        self.control.send(Command::Break(self.token(), ending));
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("qp_num", &self.number())
            .field("lane", &self.lane.name)
            .finish_non_exhaustive()
    }
}

/// A queue pair of the lane's on `id`.
fn queue_pair(lane: &Lane, id: &CmId, inline: u32) -> Result<PreparedQp, verbs_shim::VerbsError> {
    let caps = QpCaps {
        send_wr: lane.send_depth,
        recv_wr: 0,
        sge: u32::try_from(MAX_SEGMENTS).unwrap_or(1),
        inline,
    };
    let srq = lane.receives.srq();
    id.create_qp(&lane.pd, caps, &lane.send_cq, &lane.recv_cq, Some(srq))
}
