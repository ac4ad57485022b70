//! Listening: the call, and what becomes of requests that arrive (duties 25, 77 to 81).
//!
//! Requests are looked at in the thread `san-cm`. One that finds no place is rejected there at
//! once, before anything is allocated for it, and no event is signalled. The kernel has a backlog
//! of its own, past which it drops requests without a word; it is set as large as the kernel
//! allows, and the thread empties it at once, so that it never decides.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use verbs_shim::{CmId, Request};

use crate::core::{Core, IdOwner};
use crate::error::ListenError;
use crate::memlock;
use crate::socket::backlog::{self, Backlog, NoPlace, Withdrawn};
use crate::socket::state::{Happening, Misfit, Phase};
use crate::socket::{Socket, SocketShared};
use crate::sync::lock;
use crate::wire::{Hello, HelloKind, Malformed, Refusal, RefusalReason};

/// As large as the kernel allows (`net.rdma_ucm.max_backlog`).
const KERNEL_BACKLOG: u32 = i32::MAX as u32;

/// Queued requests that a request past the backlog has looked at, whether their peers still wait.
const PROBES: usize = 2;

/// A request with a place in a backlog.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) id: CmId,
    pub(crate) hello: Hello,
    pub(crate) local: Option<SocketAddr>,
    pub(crate) peer: Option<SocketAddr>,
}

impl Socket {
    /// Listens, with places for `backlog` requests: from the arrival of a request until accept has
    /// answered it (duties 25, 77 to 80). 0 stands for 1; [`crate::SOMAXCONN`] and Winsock's
    /// `SOMAXCONN` for the most there can be. The backlog is fixed: listening again with another
    /// one is an error, since requests that wait could lose a place they have.
    ///
    /// # Errors
    /// `WSAEINVAL`: not bound, a backlog out of range, or another one than before. `WSAEISCONN`,
    /// `WSAEMFILE`, `WSAENETDOWN`, `WSAENOTSOCK`, `WSANOTINITIALISED`. `WSAENOBUFS`; where the
    /// process may lock too little memory the text says what to raise.
    #[doc(alias = "WSPListen")]
    pub fn listen(&self, backlog: u32) -> Result<(), ListenError> {
        let socket = &self.shared;
        if socket.core.is_stopped() {
            return Err(ListenError::NotInitialised);
        }
        let asked = backlog;
        let limit = backlog::granted(asked);
        let mut state = lock(&socket.state);
        state
            .phase
            .after(Happening::Listen)
            .map_err(|misfit| match misfit {
                Misfit::Closed => ListenError::NotSocket,
                Misfit::NotBound => ListenError::NotBound,
                _ => ListenError::Connected,
            })?;
        let limit = limit.ok_or(ListenError::BacklogOutOfRange { asked })?;
        if state.phase == Phase::Listening {
            let fixed = socket
                .backlog
                .get()
                .map_or(0, |backlog| lock(backlog).limit());
            let fixed = u32::try_from(fixed).unwrap_or(u32::MAX);
            return match fixed == limit {
                true => Ok(()),
                false => Err(ListenError::BacklogFixed { fixed, asked }),
            };
        }
        let Some(id) = &state.id else {
            return Err(ListenError::NetDown);
        };
        memlock::check(&socket.core.fabric, id.device(), &socket.core.config)?;
        let token = id.token();
        // Before the first request can come.
        socket
            .backlog
            .get_or_init(|| Mutex::new(Backlog::new(limit)));
        socket
            .core
            .set_owner(token, IdOwner::Socket(Arc::downgrade(socket)));
        if let Err(error) = id.listen(KERNEL_BACKLOG) {
            socket.core.remove_owner(token);
            return Err(error.into());
        }
        socket
            .step(&mut state, Happening::Listen)
            .map_err(|_| ListenError::NotSocket)?;
        tracing::debug!(socket = socket.number, backlog = limit, "listening");
        Ok(())
    }
}

/// A request arrived for `listener`, or for one that is gone.
pub(crate) fn request_arrived(
    core: &Arc<Core>,
    listener: Option<&Arc<SocketShared>>,
    request: Request,
) {
    core.counters.requests.raise();
    if let Some(listener) = listener {
        listener.listened.requests.raise();
    }
    let hello = match Hello::parse(HelloKind::Request, &request.private_data) {
        Ok(hello) => hello,
        Err(malformed) => {
            let reason = match malformed {
                Malformed::Version(_) => RefusalReason::Version,
                _ => RefusalReason::NotOurProtocol,
            };
            tracing::debug!(why = %malformed, peer = ?request.id.peer_addr(), "not our request");
            refuse(core, listener.map(|l| &**l), request.id, reason, 0);
            return;
        }
    };
    let backlog = listener.and_then(|l| l.backlog.get().map(|backlog| (l, backlog)));
    let Some((listener, backlog)) = backlog else {
        refuse(core, None, request.id, RefusalReason::Closing, 0);
        return;
    };
    // Asked first, so that a request without a place costs its reject and nothing else. Only this
    // thread adds requests, so a place that is there stays there.
    let (place, gone, limit) = {
        let mut backlog = lock(backlog);
        let gone = match backlog.place() {
            // The kernel does not say that a peer gave up while its request was queued.
            Err(NoPlace::Full) => backlog.withdraw_gone(PROBES, |p| p.id.is_pending()),
            _ => None,
        };
        (backlog.place(), gone, backlog.limit())
    };
    if let Some((token, pending)) = gone {
        tracing::debug!(token, peer = ?pending.peer, "a queued request's peer has gone");
        core.counters.withdrawn.raise();
        listener.listened.withdrawn.raise();
        core.remove_owner(token);
    }
    if let Err(reason) = place {
        refuse_for(listener, request.id, reason, limit);
        return;
    }
    let token = request.id.token();
    let pending = Pending {
        local: request.id.local_addr(),
        peer: request.id.peer_addr(),
        id: request.id,
        hello,
    };
    let peer = pending.peer;
    core.set_owner(token, IdOwner::Request(Arc::downgrade(listener)));
    let queued = {
        let mut backlog = lock(backlog);
        let queued = backlog.arrive(token, pending);
        if queued.is_ok() {
            core.counters.queued.raise();
            if lock(&listener.events).request_queued() {
                core.counters.events_signalled.raise();
            }
        }
        queued
    };
    match queued {
        Ok(()) => tracing::debug!(socket = listener.number, token, ?peer, "request queued"),
        Err((reason, pending)) => {
            core.remove_owner(token);
            refuse_for(listener, pending.id, reason, limit);
        }
    }
}

/// The peer of a queued request is gone: its place is free.
pub(crate) fn withdrawn(core: &Core, listener: &SocketShared, token: u64) {
    core.counters.withdrawn.raise();
    listener.listened.withdrawn.raise();
    if let Some(backlog) = listener.backlog.get() {
        let withdrawn = lock(backlog).withdraw(token);
        if let Withdrawn::Queued(pending) = withdrawn {
            drop(pending);
        }
    }
}

fn refuse_for(listener: &SocketShared, id: CmId, reason: NoPlace, limit: usize) {
    let core = &listener.core;
    match reason {
        NoPlace::Full => {
            let backlog = u32::try_from(limit).unwrap_or(u32::MAX);
            refuse(
                core,
                Some(listener),
                id,
                RefusalReason::BacklogFull,
                backlog,
            );
        }
        NoPlace::Closed => {
            refuse(core, Some(listener), id, RefusalReason::Closing, 0);
        }
    }
}

/// Rejects a request with our private data, and lets its id go; it is counted for `listener`, too,
/// where there is one. `false`: the peer had given up, so
/// nobody was told.
pub(crate) fn refuse(
    core: &Core,
    listener: Option<&SocketShared>,
    id: CmId,
    reason: RefusalReason,
    backlog: u32,
) -> bool {
    let counters = &core.counters;
    if !reject(id, reason, backlog) {
        counters.withdrawn.raise();
        return false;
    }
    match reason {
        RefusalReason::BacklogFull => &counters.refused_backlog,
        RefusalReason::Condition => &counters.refused_condition,
        RefusalReason::ReadyQueueFull => &counters.refused_ready_queue,
        RefusalReason::NotOurProtocol => &counters.refused_foreign,
        RefusalReason::Version => &counters.refused_version,
        RefusalReason::Closing => &counters.refused_closing,
        RefusalReason::NotNow => &counters.refused_not_now,
        RefusalReason::NoSuchConnection => &counters.refused_no_connection,
        RefusalReason::NoResources | RefusalReason::Unknown(_) => &counters.refused_resources,
    }
    .raise();
    if let Some(listener) = listener {
        listener.listened.refused(reason).raise();
    }
    true
}

/// Rejects a request with our private data, and lets its id go. `false`: nobody was told.
// The id ends here.
#[allow(clippy::needless_pass_by_value)]
pub(crate) fn reject(id: CmId, reason: RefusalReason, backlog: u32) -> bool {
    let told = id.reject(&Refusal::new(reason, backlog).emit());
    match &told {
        Ok(()) => tracing::debug!(?reason, backlog, token = id.token(), "request refused"),
        Err(error) => tracing::debug!(%error, ?reason, token = id.token(), "nobody to refuse"),
    }
    told.is_ok()
}
