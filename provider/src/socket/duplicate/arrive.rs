//! The process that a connection moves to.
//!
//! Taking up is a connect like any other, to where the peer waits, with the session and the secret in
//! its request; afterwards the socket has the names that it had in the other process.

use std::net::SocketAddr;
use std::sync::Arc;

use san_base::Process;

use super::super::connect::ConnectOptions;
use super::super::network_events::{EventRecorder, NetworkEvents};
use super::super::shared::Socket;
use super::super::types::AddressFamily;
use super::arrival::Arrival;
use super::form::Duplicate;
use crate::error::{ConnectError, ConnectFailure, TakeUpError};
use crate::event::EventObject;
use crate::runtime::Runtime;
use crate::sync::lock;

/// Takes the connection up; waits for it as long as a connect may take.
pub(crate) fn socket_from(
    runtime: &Arc<Runtime>,
    duplicate: &Duplicate,
) -> Result<Socket, TakeUpError> {
    let contents = duplicate.contents();
    if runtime.usable().is_err() {
        return Err(TakeUpError::NotInitialised);
    }
    let pid = contents.target.pid;
    if Process::this() != Some(contents.target) {
        return Err(TakeUpError::OtherProcess { pid });
    }
    let limit = runtime.config.max_sockets;
    let place = runtime
        .socket_place()
        .ok_or(TakeUpError::TooMany { limit })?;
    let family = AddressFamily::of(&contents.local);
    let socket = Socket::new(runtime, family, place);
    lock(&socket.shared.state).options = contents.options;
    socket
        .ask_for_handle()
        .map_err(|why| TakeUpError::Handle { why })?;
    match connect(&socket, duplicate) {
        Ok(()) => {
            runtime.counters.sockets_taken_up.raise();
            Ok(socket)
        }
        Err(error) => {
            socket.shared.shut();
            Err(error)
        }
    }
}

fn connect(socket: &Socket, duplicate: &Duplicate) -> Result<(), TakeUpError> {
    let contents = duplicate.contents();
    let shared = &*socket.shared;
    // From the same address, and so from the same device; the port is still that of others.
    socket
        .bind(SocketAddr::new(contents.local.ip(), 0))
        .map_err(|why| TakeUpError::Address { why })?;
    let event = EventObject::new().map_err(|error| TakeUpError::Handle {
        why: error.to_string(),
    })?;
    lock(&shared.events).select(&event, NetworkEvents::CONNECT, false);
    lock(&shared.state).arrival = Some(Box::new(Arrival {
        resumption: contents.resumption,
        messages: contents.messages.clone(),
    }));
    let mut waits_at = contents.peer;
    waits_at.set_port(contents.resumption.port);
    let gone = |why: ConnectError| TakeUpError::Gone { why };
    match socket.connect(waits_at, ConnectOptions::default()) {
        Err(error) if error.is_in_progress() => {}
        Err(error) => return Err(gone(error)),
        Ok(()) => {}
    }
    // The connect has its own deadline, by which it ends.
    let patience = shared.runtime.config.connect_deadline;
    let is_over = event.wait(patience.saturating_mul(2));
    let ended = lock(&shared.events).take(Some(&event)).connect;
    *lock(&shared.events) = EventRecorder::default();
    ended
        .filter(|_| is_over)
        .unwrap_or_else(|| Err(ConnectFailure::TimedOut.into()))
        .map_err(gone)?;
    let mut state = lock(&shared.state);
    state.local = Some(contents.local);
    state.peer = Some(contents.peer);
    // That of the move says nothing to the layer above.
    state.peer_session = None;
    Ok(())
}
