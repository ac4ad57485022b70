//! The thread `san-cm`: it reads RDMA CM events and carries each to whom it concerns, ends
//! connects at their deadline, follows address changes, and lets go of registrations whose memory
//! is gone.
//!
//! It is the only reader of the event channel. What an event means to a socket is decided by the
//! socket ([`CmHandler`]); here is only the way there. Others reach the thread by `control.rs`.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags};
use verbs_shim::{AddressWatch, Event, EventChannel};

use super::refusal;
use crate::control::Command;
use crate::owners::{CmHandler, Role};
use crate::runtime::Runtime;

/// Events that are handled before deadlines and commands are looked at again.
const EVENTS_AT_A_TIME: usize = 64;

/// The thread.
pub(crate) fn run(runtime: &Arc<Runtime>, watch: Option<&AddressWatch>) {
    let Some(channel) = runtime.channel() else {
        return;
    };
    while !runtime.control.is_stopping() {
        wait(runtime, &channel, watch);
        for _ in 0..EVENTS_AT_A_TIME {
            match channel.next() {
                Ok(Some(event)) => handle(runtime, event),
                Ok(None) => break,
                Err(error) => {
                    tracing::error!(%error, "the RDMA CM event channel failed");
                    // Not in a busy circle, should it stay so.
                    std::thread::sleep(std::time::Duration::from_millis(100));
                    break;
                }
            }
        }
        while let Some(command) = runtime.control.next_command() {
            carry_out(runtime, &command);
        }
        while let Some(token) = runtime.control.take_expired() {
            expired(runtime, token);
        }
        if runtime.control.take_mappings_changed() {
            runtime.memory.tidy();
        }
        if watch.is_some_and(AddressWatch::drain) {
            runtime.refresh_addresses();
        }
    }
}

fn wait(runtime: &Runtime, channel: &EventChannel, watch: Option<&AddressWatch>) {
    let control = &runtime.control;
    let mut fds = [
        PollFd::new(channel, PollFlags::IN),
        PollFd::new(&control.wake, PollFlags::IN),
        // Twice the same stands for none.
        match watch {
            Some(watch) => PollFd::from_borrowed_fd(watch.as_fd(), PollFlags::IN),
            None => PollFd::new(&control.wake, PollFlags::IN),
        },
    ];
    // Interrupted or not: the caller looks at everything.
    let _ = rustix::event::poll(&mut fds, control.next_deadline().timespec().as_ref());
    if !fds[1].revents().is_empty() {
        control.wake.reset();
    }
}

fn carry_out(runtime: &Runtime, command: &Command) {
    match *command {
        Command::Break(token, ending) => {
            if let Some(socket) = connection_of(runtime, token) {
                socket.broke(ending);
            }
        }
        Command::PeerMoves(token) => {
            if let Some(socket) = connection_of(runtime, token) {
                socket.peer_moves();
            }
        }
    }
}

/// The deadline of this CM id is over.
fn expired(runtime: &Runtime, token: u64) {
    if let Some((role, owner)) = runtime.owners.owner(token) {
        owner.deadline_over(role, token);
    }
}

fn connection_of(runtime: &Runtime, token: u64) -> Option<Arc<dyn CmHandler>> {
    match runtime.owners.owner(token)? {
        (Role::Own, owner) => Some(owner),
        (Role::Queued | Role::Move, _) => None,
    }
}

fn handle(runtime: &Runtime, event: Event) {
    if let Event::ConnectRequest(request) = event {
        match runtime.owners.owner(request.listener) {
            Some((Role::Move, owner)) => owner.peer_arrived(request),
            Some((_, listener)) => listener.request_arrived(request),
            None => refusal::refuse_for_nobody(runtime, request),
        }
        return;
    }
    let token = event.id();
    match runtime.owners.owner(token) {
        Some((Role::Own, owner)) => owner.cm_event(&event),
        Some((Role::Queued, listener)) if is_over(&event) => {
            tracing::debug!(token, ?event, "a queued request was withdrawn");
            runtime.owners.remove(token);
            listener.request_withdrawn(token);
        }
        Some(_) => tracing::trace!(?event, "an event of no consequence"),
        None => tracing::trace!(token, ?event, "an event for nobody"),
    }
}

/// Whether an event on a request that waits in a backlog says that its peer is gone.
fn is_over(event: &Event) -> bool {
    matches!(
        event,
        Event::Rejected { .. }
            | Event::Unreachable { .. }
            | Event::ConnectError { .. }
            | Event::Disconnected { .. }
            | Event::DeviceRemoval { .. }
    )
}
