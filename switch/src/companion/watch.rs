//! What the accept thread waits for: one epoll set for the TCP sockets of all listeners, the event
//! objects of all companions, and the wake-up signal.
//!
//! It knows what each token stands for. It calls no provider.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::epoll;
use rustix::io::Errno;
use san_base::{lock, timespec};

use super::shared::ListenerShared;
use super::socket::Companion;
use crate::san::signals::Signals;

/// The token of the wake-up signal.
pub(super) const WAKE: u64 = 0;

/// What a token stands for.
#[derive(Debug, Clone)]
pub(super) enum Watched {
    Tcp(Arc<ListenerShared>),
    Companion(Arc<ListenerShared>, Arc<Companion>),
}

/// The epoll set.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) signals: Arc<Signals>,
    epoll: OwnedFd,
    watched: Mutex<HashMap<u64, Watched>>,
    next_token: AtomicU64,
}

impl Watch {
    pub(super) fn new() -> io::Result<Self> {
        let signals = Signals::new()?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64(WAKE);
        epoll::add(&epoll, signals.wake.as_fd(), data, epoll::EventFlags::IN)?;
        Ok(Self {
            signals: Arc::new(signals),
            epoll,
            watched: Mutex::default(),
            next_token: AtomicU64::new(WAKE + 1),
        })
    }

    pub(super) fn new_token(&self) -> u64 {
        self.next_token.fetch_add(1, Ordering::Relaxed)
    }

    /// Waits, and fills in the tokens of what happened.
    pub(super) fn wait(
        &self,
        events: &mut Vec<epoll::Event>,
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        events.clear();
        let timeout = timeout.map(timespec);
        let spare = rustix::buffer::spare_capacity(events);
        match epoll::wait(&self.epoll, spare, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    pub(super) fn find(&self, token: u64) -> Option<Watched> {
        lock(&self.watched).get(&token).cloned()
    }

    /// Every listener that is open.
    pub(super) fn listeners(&self) -> Vec<Arc<ListenerShared>> {
        lock(&self.watched)
            .values()
            .filter_map(|watched| match watched {
                Watched::Tcp(listener) => Some(Arc::clone(listener)),
                Watched::Companion(..) => None,
            })
            .collect()
    }

    /// Takes a listener in.
    pub(super) fn add_listener(&self, listener: &Arc<ListenerShared>) {
        lock(&self.watched).insert(listener.token, Watched::Tcp(Arc::clone(listener)));
    }

    /// Watches a listener's TCP socket for arrivals, edge-triggered: each gives one stamp.
    pub(super) fn hear_tcp(&self, listener: &ListenerShared) -> io::Result<()> {
        let data = epoll::EventData::new_u64(listener.token);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&self.epoll, listener.tcp.as_fd(), data, flags)?;
        Ok(())
    }

    pub(super) fn remove_listener(&self, listener: &ListenerShared) {
        lock(&self.watched).remove(&listener.token);
        let _ = epoll::delete(&self.epoll, listener.tcp.as_fd());
    }

    pub(super) fn add_companion(
        &self,
        listener: &Arc<ListenerShared>,
        companion: &Arc<Companion>,
    ) -> io::Result<()> {
        let watched = Watched::Companion(Arc::clone(listener), Arc::clone(companion));
        lock(&self.watched).insert(companion.token, watched);
        self.hear_companion(companion, true)
    }

    pub(super) fn remove_companion(&self, companion: &Companion) {
        lock(&self.watched).remove(&companion.token);
        let _ = epoll::delete(&self.epoll, companion.event.as_fd());
    }

    /// Has the companion's event object tell the accept thread, or stops that for a while.
    pub(super) fn hear_companion(&self, companion: &Companion, on: bool) -> io::Result<()> {
        let data = epoll::EventData::new_u64(companion.token);
        let fd = companion.event.as_fd();
        if on {
            epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN)?;
        } else {
            epoll::delete(&self.epoll, fd)?;
        }
        Ok(())
    }
}
