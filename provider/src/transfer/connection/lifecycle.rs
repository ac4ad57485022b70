//! Beginning and end of a connection's data path.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use verbs_shim::{CmId, VerbsError};

use super::settle::Followed;
use super::{Connection, LaneShare, PeerFeatures, Qp, State, queue_pair};
use crate::config::ProviderConfig;
use crate::control::Control;
use crate::memory::{MemoryStore, Registrations};
use crate::progress::Progress;
use crate::transfer::Lane;
use crate::transfer::engine::{Ending, Engine, Settings};
use crate::transfer::lane::Change;
use crate::transfer::message::Holder;
use crate::wire::Hello;

/// What a connection is made of.
pub(crate) struct Ingredients<'a> {
    pub(crate) lane: Arc<Lane>,
    pub(crate) progress: &'a Arc<Progress>,
    pub(crate) control: &'a Arc<Control>,
    pub(crate) config: &'a ProviderConfig,
    pub(crate) memory: &'a Arc<MemoryStore>,
    pub(crate) id: &'a CmId,
}

impl Connection {
    /// Makes the queue pair and posts its receives, so that the credits of the negotiation are
    /// good (duty 29). The lane's place is the caller's to take, and the connection's to give
    /// back. `None`: the lane has no receives left.
    pub(crate) fn prepare(from: Ingredients<'_>) -> Result<Option<Arc<Self>>, VerbsError> {
        let Ingredients {
            lane,
            progress,
            control,
            config,
            memory,
            id,
        } = from;
        let window = u32::from(config.initial_window);
        // One more, for credit messages.
        let receives = window + 1;
        let share = LaneShare::new(&lane, receives);
        lane.receives.provide_buffers()?;
        let qp = queue_pair(&lane, id, config.inline_size)?;
        let posted = lane.receives.post(receives, || None);
        if posted < receives {
            lane.receives.abandon(posted);
            return Ok(None);
        }
        let settings = Settings {
            window,
            most_window: u32::from(config.max_window),
            operations: config.max_operations,
            send_depth: lane.send_depth,
        };
        let connection = Arc::new_cyclic(|this| Self {
            this: this.clone(),
            progress: Arc::clone(progress),
            control: Arc::clone(control),
            token: AtomicU64::new(id.token()),
            qp_num: AtomicU32::new(qp.qp_num()),
            inline: qp.caps().inline as usize,
            receive_limit: config.max_message_size,
            handle: OnceLock::new(),
            peer: OnceLock::new(),
            open_deadline: config.connect_deadline,
            memory: Registrations::new(config.max_registrations, memory),
            readable: AtomicBool::new(false),
            state: Mutex::new(State {
                plain: false,
                engine: Engine::new(settings),
                qp: Qp::Prepared(qp),
                share,
                followed: Followed::default(),
            }),
            lane: Arc::clone(&lane),
        });
        lane.change(Change::Add(Arc::clone(&connection)));
        Ok(Some(connection))
    }

    /// What the peer said in the negotiation.
    pub(crate) fn negotiated(&self, hello: &Hello) {
        // What the peer takes, and what fits into a send buffer of ours.
        let send = hello.max_message_size.min(self.receive_limit) as usize;
        let rdma = hello.max_rdma_size.min(self.lane.rdma_limit) as usize;
        let _ = self.peer.set(PeerFeatures {
            reads: hello.features.rdma_read,
            layer: hello.features.layer,
        });
        let mut state = self.lock_state();
        let came = state
            .engine
            .negotiated((send, rdma), hello.credits, hello.features.moving);
        drop(state);
        if let Err(violation) = came {
            self.break_now(Ending::Protocol(violation));
        }
    }

    /// The peer knows of the connection: sends may go out.
    pub(crate) fn established(&self) {
        let mut state = self.lock_state();
        state.bring_up();
        self.pump(&mut state);
        self.settle(state);
    }

    /// The connection is over: what arrived before is delivered, then every operation that waits
    /// fails.
    pub(crate) fn end(self: &Arc<Self>, ending: Ending) {
        self.lane.end(Arc::clone(self), ending);
    }

    /// The owner is about to close: what the disconnect flushes was aborted.
    pub(crate) fn abort(&self) {
        self.lock_state().engine.abort();
    }

    /// Closes: the queue pair is destroyed, its memory freed, and only then every pending
    /// operation is told (duties 106, 113).
    pub(crate) fn close(self: &Arc<Self>) {
        let qp = {
            let mut state = self.lock_state();
            if !state.engine.begin_close() {
                return;
            }
            std::mem::replace(&mut state.qp, Qp::Gone)
        };
        drop(qp);
        // The memory is free before anybody hears of the end.
        let mut state = self.lock_state();
        state.engine.drop_memory();
        // What is posted for it stays posted, for others. They have to find it as soon as the place is
        // theirs to take: no other buffers may be left.
        self.lane.receives.abandon(state.engine.posted_receives());
        drop(state);
        self.memory.close();
        self.lane.change(Change::Remove(Arc::clone(self)));
        let mut state = self.lock_state();
        state.followed.forget();
        state.engine.end_close();
        self.settle(state);
    }
}

impl State {
    /// The queue pair may send from now on.
    pub(super) fn bring_up(&mut self) {
        if self.engine.bring_up() {
            self.qp = match std::mem::replace(&mut self.qp, Qp::Gone) {
                Qp::Prepared(qp) => Qp::Connected(qp.established()),
                other => other,
            };
        }
    }
}

impl Holder for Connection {
    fn let_go(&self) {
        let mut state = self.lock_state();
        state.engine.let_go();
        if !state.share.taken {
            state.share.give_back();
            return;
        }
        if state.engine.has_work() {
            self.pump(&mut state);
        }
        self.settle(state);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Messages hold the connection, so all its receives are free or posted by now, or in
        // operations whose end nobody asked for.
        let state = self.state.get_mut();
        if state.engine.begin_close() {
            state.qp = Qp::Gone;
            self.lane.receives.abandon(state.engine.posted_receives());
        }
        state.engine.drop_memory();
        state.followed.release(&self.lane);
    }
}
