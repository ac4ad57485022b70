//! The thread `san-cm`: it reads RDMA CM events and carries each to whom it concerns, ends
//! connects at their deadline, follows address changes, and lets go of registrations whose memory
//! is gone.
//!
//! It is the only reader of the event channel. What an event means is decided in
//! `socket/`; here is only the way there.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use crossbeam::queue::SegQueue;
use rustix::event::{PollFd, PollFlags};
use verbs_shim::{AddressWatch, Event, EventChannel};

use crate::core::{Core, IdOwner};
use crate::error::ConnectFailure;
use crate::event::EventObject;
use crate::socket::SocketShared;
use crate::socket::duplicate;
use crate::socket::listen;
use crate::sync::lock;
use crate::time::Deadline;
use crate::transfer::Ending;

/// Events that are handled before deadlines and commands are looked at again.
const EVENTS_AT_A_TIME: usize = 64;

/// How others reach the thread.
#[derive(Debug)]
pub(crate) struct Control {
    /// Bounded by the number of connections: each breaks once, and asks once to move.
    commands: SegQueue<Command>,
    deadlines: Mutex<BTreeSet<(Instant, u64)>>,
    wake: EventObject,
    stopping: AtomicBool,
    /// Mappings changed under registered memory.
    mappings_changed: AtomicBool,
}

/// What the thread is asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// The connection of this CM id is over; the peer has to be told.
    Break(u64, Ending),
    /// The peer of this CM id's connection wants to move to another process.
    PeerMoves(u64),
}

impl Control {
    pub(crate) fn new() -> std::io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            commands: SegQueue::new(),
            deadlines: Mutex::new(BTreeSet::new()),
            wake: EventObject::new()?,
            stopping: AtomicBool::new(false),
            mappings_changed: AtomicBool::new(false),
        }))
    }

    pub(crate) fn send(&self, command: Command) {
        self.commands.push(command);
        self.wake.set();
    }

    /// The connect of this CM id, or the wait for a peer at it, has to end at `when`.
    pub(crate) fn set_deadline(&self, when: Instant, token: u64) {
        let mut deadlines = lock(&self.deadlines);
        let is_first = deadlines.first().is_none_or(|&(first, _)| when < first);
        deadlines.insert((when, token));
        drop(deadlines);
        if is_first {
            self.wake.set();
        }
    }

    pub(crate) fn cancel_deadline(&self, when: Instant, token: u64) {
        lock(&self.deadlines).remove(&(when, token));
    }

    /// Mappings changed under registered memory. It neither allocates nor waits.
    pub(crate) fn mappings_changed(&self) {
        self.mappings_changed.store(true, Ordering::SeqCst);
        self.wake.set();
    }

    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.wake.set();
    }

    fn next_deadline(&self) -> Deadline {
        Deadline::at(lock(&self.deadlines).first().map(|&(when, _)| when))
    }

    fn take_expired(&self) -> Option<u64> {
        let mut deadlines = lock(&self.deadlines);
        let &(when, token) = deadlines.first()?;
        if when > Instant::now() {
            return None;
        }
        deadlines.remove(&(when, token));
        Some(token)
    }
}

/// The thread.
pub(crate) fn run(core: &Arc<Core>, watch: Option<&AddressWatch>) {
    let Some(channel) = core.channel() else {
        return;
    };
    while !core.control.stopping.load(Ordering::SeqCst) {
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
        while let Some(command) = core.control.commands.pop() {
            carry_out(core, &command);
        }
        while let Some(token) = core.control.take_expired() {
            expired(core, token);
        }
        if core.control.mappings_changed.swap(false, Ordering::SeqCst) {
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
            if let Some(socket) = socket_of(core, token) {
                socket.ended(ending);
            }
        }
        Command::PeerMoves(token) => {
            if let Some(socket) = socket_of(core, token) {
                socket.peer_moves();
            }
        }
    }
}

/// The deadline of this CM id is over.
fn expired(core: &Core, token: u64) {
    match core.owner(token) {
        Some(IdOwner::Socket(socket)) => {
            if let Some(socket) = socket.upgrade() {
                socket.connect_failed(ConnectFailure::TimedOut.into());
            }
        }
        Some(IdOwner::Move(socket)) => {
            if let Some(socket) = socket.upgrade() {
                socket.peer_is_late(token);
            }
        }
        Some(IdOwner::Request(_)) | None => {}
    }
}

fn socket_of(core: &Core, token: u64) -> Option<Arc<SocketShared>> {
    match core.owner(token)? {
        IdOwner::Socket(socket) => socket.upgrade(),
        IdOwner::Request(_) | IdOwner::Move(_) => None,
    }
}

fn handle(core: &Arc<Core>, event: Event) {
    if let Event::ConnectRequest(request) = event {
        if let Some(IdOwner::Move(socket)) = core.owner(request.listener) {
            duplicate::request_arrived(core, socket.upgrade().as_ref(), request);
            return;
        }
        let listener = socket_of(core, request.listener);
        listen::request_arrived(core, listener.as_ref(), request);
        return;
    }
    let token = event.id();
    match core.owner(token) {
        Some(IdOwner::Socket(socket)) => match socket.upgrade() {
            Some(socket) => to_socket(&socket, &event),
            None => tracing::trace!(token, ?event, "an event for a socket that is gone"),
        },
        Some(IdOwner::Request(listener)) => to_request(core, &listener, token, &event),
        Some(IdOwner::Move(_)) => tracing::trace!(?event, "an event of no consequence"),
        None => tracing::trace!(token, ?event, "an event for nobody"),
    }
}

fn to_socket(socket: &Arc<SocketShared>, event: &Event) {
    match event {
        Event::AddrResolved { .. } => socket.address_resolved(),
        Event::RouteResolved { .. } => socket.route_resolved(),
        Event::Established { private_data, .. } => socket.established(private_data),
        Event::AddrError { errno, .. } => socket.resolve_failed("rdma_resolve_addr", *errno),
        Event::RouteError { errno, .. } => socket.resolve_failed("rdma_resolve_route", *errno),
        Event::ConnectError { errno, .. } | Event::Unreachable { errno, .. } => {
            socket.unreachable(*errno);
        }
        Event::Rejected {
            reason,
            private_data,
            ..
        } => socket.rejected(*reason, private_data),
        Event::Disconnected { .. } if socket.ends_for_a_move() => {}
        Event::Disconnected { .. } => socket.ended(Ending::Reset),
        Event::DeviceRemoval { .. } => socket.device_removed(),
        other => tracing::trace!(event = ?other, "an event of no consequence"),
    }
}

/// An event on a request that waits in a backlog: whatever it is, the peer is gone, unless it is
/// one that says nothing.
fn to_request(core: &Core, listener: &Weak<SocketShared>, token: u64, event: &Event) {
    match event {
        Event::Rejected { .. }
        | Event::Unreachable { .. }
        | Event::ConnectError { .. }
        | Event::Disconnected { .. }
        | Event::DeviceRemoval { .. } => {
            tracing::debug!(token, ?event, "a queued request was withdrawn");
            core.remove_owner(token);
            if let Some(listener) = listener.upgrade() {
                listen::withdrawn(core, &listener, token);
            }
        }
        other => tracing::trace!(event = ?other, "an event of no consequence"),
    }
}
