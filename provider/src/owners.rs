//! Whom the events of a CM id go to.
//!
//! Every id that events can come for has an owner here: something that handles them, and what the
//! id is to it. The table knows no sockets.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use verbs_shim::{Event, Request};

use crate::sync::lock;
use crate::transfer::Ending;

/// What an id is to its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Its own: it listens, connects, or is connected.
    Own,
    /// A request in its backlog.
    Queued,
    /// Where it waits for its peer, which moves to another process.
    Move,
}

/// Handles the events of its ids. Every call comes in the thread `san-cm`.
pub(crate) trait CmHandler: Send + Sync {
    /// An event of its own id.
    fn cm_event(&self, event: &Event);

    /// A request arrived at its own id.
    fn request_arrived(self: Arc<Self>, request: Request);

    /// The peer of a request in its backlog is gone.
    fn request_withdrawn(&self, token: u64);

    /// A request arrived where it waits for its peer.
    fn peer_arrived(self: Arc<Self>, request: Request);

    /// Its peer asked to move to another process.
    fn peer_moves(self: Arc<Self>);

    /// Its connection broke; the peer has to be told.
    fn broke(&self, ending: Ending);

    /// The deadline of one of its ids is over.
    fn deadline_over(&self, role: Role, token: u64);
}

/// The owners of all ids.
#[derive(Default)]
pub(crate) struct Owners {
    owners: Mutex<HashMap<u64, Owner>>,
}

#[derive(Clone)]
struct Owner {
    role: Role,
    handler: Weak<dyn CmHandler>,
}

impl Owners {
    /// From now on the events of the id go to `owner`.
    pub(crate) fn set<H: CmHandler + 'static>(&self, token: u64, role: Role, owner: &Arc<H>) {
        // In two steps: a weak pointer to the type becomes one to the trait.
        let handler = Arc::downgrade(owner);
        lock(&self.owners).insert(token, Owner { role, handler });
    }

    /// Events of the id that still come are nobody's.
    pub(crate) fn remove(&self, token: u64) {
        lock(&self.owners).remove(&token);
    }

    /// The owner of the id, unless it is gone.
    pub(crate) fn owner(&self, token: u64) -> Option<(Role, Arc<dyn CmHandler>)> {
        let Owner { role, handler } = lock(&self.owners).get(&token).cloned()?;
        Some((role, handler.upgrade()?))
    }
}
