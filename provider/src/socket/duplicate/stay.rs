//! The end that stays: it waits for its peer, which comes back from another process.
//!
//! All of this runs in the thread `san-cm`. A connection waits at an id of its own, at its own local
//! address, for one request with the session and the secret that it gave to its peer; others are
//! refused, and the wait goes on. At the deadline the connection ends with `WSAECONNRESET`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use verbs_shim::{CmId, Request, VerbsError};

use super::super::shared::SocketShared;
use super::super::state::{Input, Phase};
use super::awaited::{Awaited, await_no_longer};
use crate::cm::negotiation::{own_hello, set_ack_timeout, takes_path, transport};
use crate::cm::refusal::{reason_for, reject};
use crate::owners::Role;
use crate::runtime::Runtime;
use crate::sync::lock;
use crate::transfer::Ending;
use crate::wire::{Hello, HelloKind, RefusalReason, Resumption, Session};

/// Requests that may be unread at a time. The thread reads them at once.
const KERNEL_BACKLOG: u32 = 16;

impl SocketShared {
    /// The peer has asked to move.
    pub(crate) fn wait_for_peer(self: &Arc<Self>) {
        let Some(connection) = self.connection() else {
            return;
        };
        let answer = self.await_peer();
        if let Err(error) = &answer {
            tracing::debug!(socket = self.number, %error, "cannot wait for a peer that moves");
        }
        connection.answer(answer.ok());
    }

    /// Waits where the answer says.
    fn await_peer(self: &Arc<Self>) -> Result<Resumption, VerbsError> {
        let runtime = &self.runtime;
        let not_connected = || VerbsError::from_errno("move", Errno::NOTCONN.raw_os_error());
        let local = lock(&self.state).local.ok_or_else(not_connected)?;
        let id = runtime.new_id()?;
        let token = id.token();
        if local.is_ipv6() {
            id.set_v6_only(true)?;
        }
        id.bind(with_any_port(local))?;
        runtime.owners.set(token, Role::Move, self);
        let listening = id.listen(KERNEL_BACKLOG);
        let resumption = listening.and_then(|()| resumption(&id));
        let resumption = resumption.inspect_err(|_| runtime.owners.remove(token))?;
        let deadline = Instant::now().checked_add(runtime.config.move_deadline);
        let awaited = Awaited {
            id,
            resumption,
            deadline,
        };
        let before = {
            let mut state = lock(&self.state);
            if !matches!(state.phase, Phase::Accepted | Phase::Connected) {
                drop(state);
                runtime.owners.remove(token);
                return Err(not_connected());
            }
            state.awaited.replace(Box::new(awaited))
        };
        if let Some(when) = deadline {
            runtime.control.set_deadline(when, token);
        }
        await_no_longer(runtime, before);
        tracing::debug!(socket = self.number, ?local, "the peer moves");
        Ok(resumption)
    }

    /// Whether a connection that ends is only that of a peer which has moved. It is answered, so that
    /// the other side need not wait for that.
    pub(crate) fn ends_for_a_move(&self) -> bool {
        if !self.connection().is_some_and(|c| c.awaits_peer()) {
            return false;
        }
        self.disconnect(&lock(&self.state));
        true
    }

    /// The peer did not come in time (duty 121).
    pub(crate) fn peer_is_late(&self, token: u64) {
        let is_awaited = lock(&self.state)
            .awaited
            .as_ref()
            .is_some_and(|awaited| awaited.id.token() == token);
        if is_awaited {
            self.runtime.counters.resumes_timed_out.raise();
            tracing::debug!(socket = self.number, "the peer did not come back in time");
            self.ended(Ending::Reset);
        }
    }

    /// A request came, to where a peer is awaited.
    pub(crate) fn take_up(self: &Arc<Self>, request: Request) {
        let id = request.id;
        match Hello::parse(HelloKind::Request, &request.private_data) {
            Ok(hello) => self.peer_arrived(id, &hello),
            Err(malformed) => {
                let reason = reason_for(malformed, &id);
                refuse(&self.runtime, id, reason);
            }
        }
    }

    fn peer_arrived(self: &Arc<Self>, id: CmId, hello: &Hello) {
        let runtime = &self.runtime;
        let is_expected = lock(&self.state)
            .awaited
            .as_ref()
            .is_some_and(|awaited| awaited.resumption.admits(&hello.session));
        if !is_expected {
            tracing::warn!(socket = self.number, peer = ?id.peer_addr(), "not the peer that moves");
            return refuse(runtime, id, RefusalReason::Condition);
        }
        let Some(connection) = self.connection() else {
            return refuse(runtime, id, RefusalReason::Closing);
        };
        if !takes_path(&id) {
            return refuse(runtime, id, RefusalReason::PathMtu);
        }
        set_ack_timeout(&id, runtime.config.ack_timeout);
        let credits = match connection.renew(&id, hello, runtime.config.inline_size) {
            Ok(Some(credits)) => credits,
            Ok(None) => return refuse(runtime, id, RefusalReason::NoResources),
            Err(error) => {
                tracing::debug!(%error, "no queue pair for a peer that has moved");
                return refuse(runtime, id, RefusalReason::NoResources);
            }
        };
        connection.negotiated(hello);
        let reply = Hello {
            credits,
            session: Session::with_id(hello.session.id),
            ..own_hello(&runtime.config, &connection, Session::NONE)
        };
        self.take_back(id, &reply);
    }

    /// The connection goes on with `id`.
    fn take_back(self: &Arc<Self>, id: CmId, reply: &Hello) {
        let runtime = &self.runtime;
        let mut state = lock(&self.state);
        let awaited = state.awaited.take();
        if awaited.is_none() || self.step(&mut state, Input::Resume).is_err() {
            // Closed at this moment; the kernel refuses the request.
            drop(state);
            await_no_longer(runtime, awaited);
            return;
        }
        runtime.owners.set(id.token(), Role::Own, self);
        let private_data = reply.emit(HelloKind::Reply);
        let accepted = id.accept(&transport(&runtime.config, &private_data));
        let old = state.id.replace(id);
        drop(state);
        if let Some(old) = &old {
            runtime.owners.remove(old.token());
        }
        drop(old);
        await_no_longer(runtime, awaited);
        match accepted {
            Ok(()) => {
                runtime.counters.resumes_accepted.raise();
                tracing::debug!(socket = self.number, "the peer is back");
            }
            Err(error) => {
                tracing::debug!(socket = self.number, %error, "the peer came and went");
                self.ended(Ending::Reset);
            }
        }
    }
}

fn refuse(runtime: &Runtime, id: CmId, reason: RefusalReason) {
    runtime.counters.resumes_refused.raise();
    reject(id, reason, 0);
}

/// Where `id` listens, with a session and a secret that nobody can guess.
fn resumption(id: &CmId) -> Result<Resumption, VerbsError> {
    let mut random = [0_u8; 24];
    let got = getrandom(&mut random[..], GetRandomFlags::empty());
    let errno = |errno: Errno| VerbsError::from_errno("getrandom", errno.raw_os_error());
    if got.map_err(errno)? != random.len() {
        return Err(errno(Errno::IO));
    }
    let (mut session_id, mut secret) = ([0; 8], [0; 16]);
    session_id.copy_from_slice(&random[..8]);
    secret.copy_from_slice(&random[8..]);
    let port = id.local_addr().map_or(0, |local| local.port());
    Ok(Resumption {
        port,
        // 0 stands for none.
        session_id: u64::from_be_bytes(session_id).max(1),
        secret,
    })
}

fn with_any_port(mut addr: SocketAddr) -> SocketAddr {
    addr.set_port(0);
    addr
}
