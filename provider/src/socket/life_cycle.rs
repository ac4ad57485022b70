//! The life of a connection, from the first CM event to the last: connecting, established, ended
//! (duties 71 to 76, 113).
//!
//! It is the same for an end that connected, one that was accepted, and one that was taken up from
//! another process. Everything but the end runs in the thread `san-cm`. The states are in
//! `state.rs`; how a life begins is in `connect.rs`, `accept.rs` and `duplicate/`.

use std::time::{Duration, Instant};

use verbs_shim::{CmId, Event, RejectReason, VerbsError};

use super::duplicate::awaited::await_no_longer;
use super::shared::{SocketShared, SocketState};
use super::state::{Input, Phase};
use crate::cm::negotiation::{own_hello, prepare, transport};
use crate::cm::refusal::failure_of;
use crate::error::{ConnectError, ConnectFailure, WsaCode};
use crate::sync::lock;
use crate::transfer::Ending;
use crate::wire::{Hello, HelloKind};

impl SocketShared {
    /// An event of its own id: what it means.
    pub(super) fn follow(&self, event: &Event) {
        match event {
            Event::AddrResolved { .. } => self.address_resolved(),
            Event::RouteResolved { .. } => self.route_resolved(),
            Event::Established { private_data, .. } => self.established(private_data),
            Event::AddrError { errno, .. } => self.resolve_failed("rdma_resolve_addr", *errno),
            Event::RouteError { errno, .. } => self.resolve_failed("rdma_resolve_route", *errno),
            Event::ConnectError { errno, .. } | Event::Unreachable { errno, .. } => {
                self.unreachable(*errno);
            }
            Event::Rejected {
                reason,
                private_data,
                ..
            } => self.rejected(*reason, private_data),
            Event::Disconnected { .. } if self.ends_for_a_move() => {}
            Event::Disconnected { .. } => self.ended(Ending::Reset),
            Event::DeviceRemoval { .. } => self.device_removed(),
            other => tracing::trace!(event = ?other, "an event of no consequence"),
        }
    }

    /// The connect under way has come to its deadline.
    pub(super) fn connect_timed_out(&self) {
        self.connect_failed(ConnectFailure::TimedOut.into());
    }

    fn address_resolved(&self) {
        let mut state = lock(&self.state);
        if self.step(&mut state, Input::AddressResolved).is_err() {
            return;
        }
        let left = state.time_left();
        let result = match &state.id {
            Some(id) => id.resolve_route(left),
            None => return,
        };
        drop(state);
        if let Err(error) = result {
            self.connect_failed(ConnectError::with_source(
                ConnectFailure::Unreachable,
                error,
            ));
        }
    }

    fn route_resolved(&self) {
        let mut state = lock(&self.state);
        if self.step(&mut state, Input::RouteResolved).is_err() {
            return;
        }
        let result = self.request(&mut state);
        drop(state);
        if let Err(error) = result {
            self.connect_failed(error);
        }
    }

    /// Makes the queue pair and sends the request.
    fn request(&self, state: &mut SocketState) -> Result<(), ConnectError> {
        let arrival = state.arrival.take();
        let Some(id) = &state.id else {
            return Err(ConnectFailure::System.into());
        };
        let connection =
            prepare(&self.runtime, id, state.lane).map_err(ConnectError::of_resources)?;
        if let Some(handle) = self.handle.get() {
            connection.set_handle(*handle);
        }
        let mut hello = own_hello(&self.runtime.config, &connection, state.session);
        if let Some(arrival) = arrival {
            arrival.into_request(&mut hello, &connection);
        }
        let private_data = hello.emit(HelloKind::Request);
        *lock(&self.connection) = Some(connection);
        let config = &self.runtime.config;
        id.connect(&transport(config, &private_data))
            .map_err(|error| ConnectError::with_source(ConnectFailure::System, error))?;
        state.local = id.local_addr().or(state.local);
        Ok(())
    }

    /// Both sides know of the connection.
    fn established(&self, private_data: &[u8]) {
        let mut state = lock(&self.state);
        let Some(connection) = self.connection() else {
            return;
        };
        if state.phase == Phase::Accepted {
            let _ = self.step(&mut state, Input::Established);
            drop(state);
            connection.established();
            return;
        }
        if state.phase == Phase::Ended {
            // It broke before the peer's confirmation was here, when its CM could not be told.
            self.disconnect(&state);
            return;
        }
        if state.phase != Phase::Requested {
            return;
        }
        let hello = match Hello::parse(HelloKind::Reply, private_data) {
            Ok(hello) => hello,
            Err(malformed) => {
                tracing::debug!(socket = self.number, why = %malformed, "not our reply");
                drop(state);
                self.connect_failed(ConnectFailure::ForeignReply.into());
                return;
            }
        };
        let _ = self.step(&mut state, Input::Established);
        state.peer_session = Some(hello.session);
        self.cancel_deadline(&mut state);
        drop(state);
        connection.negotiated(&hello);
        connection.established();
        self.runtime.counters.connects_succeeded.raise();
        self.signal_connect(Ok(()));
    }

    fn resolve_failed(&self, call: &'static str, errno: i32) {
        let source = VerbsError::from_errno(call, errno);
        self.connect_failed(ConnectError::with_source(
            ConnectFailure::Unreachable,
            source,
        ));
    }

    /// The peer does not answer: while connecting, or later.
    fn unreachable(&self, errno: i32) {
        let is_connecting = lock(&self.state).phase.is_connecting();
        if is_connecting {
            self.resolve_failed("rdma_connect", errno);
        } else {
            self.ended(Ending::TimedOut);
        }
    }

    /// The peer, or its kernel, said no: to our request, or to our reply.
    fn rejected(&self, reason: RejectReason, private_data: &[u8]) {
        let phase = lock(&self.state).phase;
        if !phase.is_connecting() {
            self.ended(Ending::Reset);
            return;
        }
        let failure = failure_of(reason, private_data, self.runtime.config.strict);
        if ConnectError::from(failure).code() == WsaCode::ConnRefused {
            self.runtime.counters.connects_refused.raise();
        }
        self.connect_failed(failure.into());
    }

    fn device_removed(&self) {
        let (phase, device) = {
            let state = lock(&self.state);
            (state.phase, state.id.as_ref().and_then(CmId::device))
        };
        if let Some(device) = device {
            tracing::warn!(
                device = device.name(),
                socket = self.number,
                "device removed"
            );
            self.runtime.devices.forget(&device);
            self.runtime.memory.shed();
        }
        if phase.is_connecting() {
            self.connect_failed(ConnectFailure::NetDown.into());
        } else {
            self.ended(Ending::NetDown);
        }
    }

    /// The connect under way is over: everything it had is freed, then it is told.
    fn connect_failed(&self, error: ConnectError) {
        let id = {
            let mut state = lock(&self.state);
            if self.step(&mut state, Input::ConnectFailed).is_err() {
                return;
            }
            self.cancel_deadline(&mut state);
            tracing::debug!(socket = self.number, peer = ?state.peer, %error, "connect failed");
            state.id.take()
        };
        if error.code() != WsaCode::ConnRefused {
            self.runtime.counters.connects_failed.raise();
        }
        if let Some(id) = &id {
            self.runtime.owners.remove(id.token());
            if error.failure() == ConnectFailure::ForeignReply {
                // They believe that they are connected.
                let _ = id.disconnect();
            }
        }
        let connection = lock(&self.connection).take();
        if let Some(connection) = connection {
            connection.close();
        }
        drop(id);
        self.signal_connect(Err(error));
    }

    /// The peer ended the connection, or it broke (duty 113).
    pub(crate) fn ended(&self, ending: Ending) {
        let mut state = lock(&self.state);
        if self.step(&mut state, Input::PeerEnded).is_err() {
            return;
        }
        // Once: messages behind the one that broke it are found to be wrong, too.
        if let Ending::Protocol(violation) = ending {
            self.runtime.counters.protocol_violations.raise();
            tracing::warn!(socket = self.number, peer = ?state.peer, %violation, "connection broken");
        }
        self.disconnect(&state);
        let awaited = state.awaited.take();
        drop(state);
        await_no_longer(&self.runtime, awaited);
        self.runtime.counters.connections_ended.raise();
        if let Some(connection) = self.connection() {
            connection.end(ending);
        }
    }

    pub(crate) fn disconnect(&self, state: &SocketState) {
        if let Some(id) = &state.id
            && let Err(error) = id.disconnect()
        {
            tracing::trace!(socket = self.number, %error, "disconnect");
        }
    }

    pub(crate) fn cancel_deadline(&self, state: &mut SocketState) {
        if let (Some(when), Some(id)) = (state.deadline.take(), &state.id) {
            self.runtime.control.cancel_deadline(when, id.token());
        }
    }

    fn signal_connect(&self, result: Result<(), ConnectError>) {
        if lock(&self.events).connect_ended(result) {
            self.runtime.counters.events_signalled.raise();
        }
    }
}

impl SocketState {
    fn time_left(&self) -> Duration {
        // The kernel counts in milliseconds, and takes 0 for no time at all.
        let left = self
            .deadline
            .map(|when| when.saturating_duration_since(Instant::now()));
        left.unwrap_or(Duration::from_secs(3600))
            .max(Duration::from_millis(1))
    }
}
