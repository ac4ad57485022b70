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
use crate::core::Core;
use crate::owners::{CmHandler, Role};

/// Events that are handled before deadlines and commands are looked at again.
const EVENTS_AT_A_TIME: usize = 64;

/// The thread.
pub(crate) fn run(core: &Arc<Core>, watch: Option<&AddressWatch>) {
    let Some(channel) = core.channel() else {
        return;
    };
    while !core.control.is_stopping() {
        wait(core, &channel, watch);
        for _ in 0..EVENTS_AT_A_TIME {
            match channel.next() {
                Ok(Some(event)) => handle(core, event),
                Ok(None) => break,
                Err(error) => {
                    tracing::error!(%error, "the RDMA CM event channel failed");
                    // Not in a busy circle, should it stay so.
                    std::thread::sleep(std::time::Duration::from_millis(100));
                    break;
                }
            }
        }
        while let Some(command) = core.control.next_command() {
            carry_out(core, &command);
        }
        while let Some(token) = core.control.take_expired() {
            expired(core, token);
        }
        if core.control.take_mappings_changed() {
            core.memory.tidy();
        }
        if watch.is_some_and(AddressWatch::drain) {
            core.refresh_addresses();
        }
    }
}

fn wait(core: &Core, channel: &EventChannel, watch: Option<&AddressWatch>) {
    let control = &core.control;
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

fn carry_out(core: &Core, command: &Command) {
    match *command {
        Command::Break(token, ending) => {
            if let Some(socket) = connection_of(core, token) {
                socket.broke(ending);
            }
        }
        Command::PeerMoves(token) => {
            if let Some(socket) = connection_of(core, token) {
                socket.peer_moves();
            }
        }
    }
}

/// The deadline of this CM id is over.
fn expired(core: &Core, token: u64) {
    if let Some((role, owner)) = core.owners.owner(token) {
        owner.deadline_over(role, token);
    }
}

fn connection_of(core: &Core, token: u64) -> Option<Arc<dyn CmHandler>> {
    match core.owners.owner(token)? {
        (Role::Own, owner) => Some(owner),
        (Role::Queued | Role::Move, _) => None,
    }
}

fn handle(core: &Core, event: Event) {
    if let Event::ConnectRequest(request) = event {
        match core.owners.owner(request.listener) {
            Some((Role::Move, owner)) => owner.peer_arrived(request),
            Some((_, listener)) => listener.request_arrived(request),
            None => refusal::refuse_for_nobody(core, request),
        }
        return;
    }
    let token = event.id();
    match core.owners.owner(token) {
        Some((Role::Own, owner)) => owner.cm_event(&event),
        Some((Role::Queued, listener)) if is_over(&event) => {
            tracing::debug!(token, ?event, "a queued request was withdrawn");
            core.owners.remove(token);
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
