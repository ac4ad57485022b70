//! What becomes of requests that arrive at a listener (duties 79 to 81).
//!
//! Requests are looked at in the thread `san-cm`. One that finds no place is rejected there at
//! once, before anything is allocated for it, and no event is signalled.

use std::sync::{Arc, Mutex};

use verbs_shim::{CmId, Request};

use super::backlog::{Backlog, NoPlace, Withdrawn};
use super::shared::{QueuedRequest, SocketShared};
use crate::address_list::is_usable;
use crate::cm::negotiation::takes_path;
use crate::cm::refusal::{reason_for, refuse};
use crate::owners::Role;
use crate::sync::lock;
use crate::wire::{Hello, HelloKind, RefusalReason};

/// Queued requests that a request past the backlog has looked at, whether their peers still wait.
const PROBES: usize = 2;

impl SocketShared {
    /// A request arrived.
    pub(super) fn take_request(self: &Arc<Self>, request: Request) {
        self.runtime.counters.requests.raise();
        self.listened.requests.raise();
        let hello = match Hello::parse(HelloKind::Request, &request.private_data) {
            Ok(hello) => hello,
            Err(malformed) => {
                let reason = reason_for(malformed, &request.id);
                refuse(&self.runtime, Some(&self.listened), request.id, reason, 0);
                return;
            }
        };
        let Some(backlog) = self.backlog.get() else {
            refuse(&self.runtime, None, request.id, RefusalReason::Closing, 0);
            return;
        };
        // Asked first, so that a request without a place costs its reject and nothing else. Only
        // this thread adds requests, so a place that is there stays there.
        if let Err(reason) = self.find_place(backlog) {
            self.refuse_for(request.id, reason);
            return;
        }
        // A wildcard listener hears what comes to any device.
        if request
            .id
            .device()
            .is_some_and(|device| !is_usable(&device))
        {
            let reason = RefusalReason::NotOurProtocol;
            refuse(&self.runtime, Some(&self.listened), request.id, reason, 0);
            return;
        }
        if !takes_path(&request.id) {
            let reason = RefusalReason::PathMtu;
            refuse(&self.runtime, Some(&self.listened), request.id, reason, 0);
            return;
        }
        let pending = QueuedRequest {
            local: request.id.local_addr(),
            peer: request.id.peer_addr(),
            id: request.id,
            hello,
        };
        self.queue(backlog, pending);
    }

    /// Whether there is a place for one more request; one whose peer is gone gives up its own.
    fn find_place(&self, backlog: &Mutex<Backlog<QueuedRequest>>) -> Result<(), NoPlace> {
        let (place, gone) = {
            let mut backlog = lock(backlog);
            let gone = match backlog.place() {
                // The kernel does not say that a peer gave up while its request was queued.
                Err(NoPlace::Full) => backlog.withdraw_gone(PROBES, |p| p.id.is_pending()),
                _ => None,
            };
            (backlog.place(), gone)
        };
        if let Some((token, pending)) = gone {
            tracing::debug!(token, peer = ?pending.peer, "a queued request's peer has gone");
            self.runtime.counters.withdrawn.raise();
            self.listened.withdrawn.raise();
            self.runtime.owners.remove(token);
        }
        place
    }

    fn queue(self: &Arc<Self>, backlog: &Mutex<Backlog<QueuedRequest>>, pending: QueuedRequest) {
        let (token, peer) = (pending.id.token(), pending.peer);
        self.runtime.owners.set(token, Role::Queued, self);
        let queued = {
            let mut backlog = lock(backlog);
            let queued = backlog.arrive(token, pending);
            if queued.is_ok() {
                self.runtime.counters.queued.raise();
                if lock(&self.events).request_queued() {
                    self.runtime.counters.events_signalled.raise();
                }
            }
            queued
        };
        match queued {
            Ok(()) => tracing::debug!(socket = self.number, token, ?peer, "request queued"),
            Err((reason, pending)) => {
                self.runtime.owners.remove(token);
                self.refuse_for(pending.id, reason);
            }
        }
    }

    /// The peer of a queued request is gone: its place is free.
    pub(super) fn withdraw(&self, token: u64) {
        self.runtime.counters.withdrawn.raise();
        self.listened.withdrawn.raise();
        if let Some(backlog) = self.backlog.get() {
            let withdrawn = lock(backlog).withdraw(token);
            if let Withdrawn::Queued(pending) = withdrawn {
                drop(pending);
            }
        }
    }

    fn refuse_for(&self, id: CmId, why: NoPlace) {
        let limit = self
            .backlog
            .get()
            .map_or(0, |backlog| lock(backlog).limit());
        let (reason, backlog) = match why {
            NoPlace::Full => (
                RefusalReason::BacklogFull,
                u32::try_from(limit).unwrap_or(u32::MAX),
            ),
            NoPlace::Closed => (RefusalReason::Closing, 0),
        };
        refuse(&self.runtime, Some(&self.listened), id, reason, backlog);
    }
}
