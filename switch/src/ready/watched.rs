//! A connection as a source of loops.

use std::sync::{Arc, Weak};

use rustix::event::epoll::EventFlags;
use san_provider::LaneHandle;

use super::hub::{Hub, Source};
use crate::net::connection::Connection;
use crate::readiness::{Events, Watcher};

/// A connection over the SAN, and who hears of it. The connection keeps it as its watcher.
pub(crate) struct Watched {
    connection: Weak<Connection>,
    hub: Hub,
}

impl Watched {
    /// Has this connection tell a hub of its own.
    pub(crate) fn start(connection: &Arc<Connection>) -> Arc<Self> {
        let watched = Arc::new(Self {
            connection: Arc::downgrade(connection),
            hub: Hub::default(),
        });
        connection.set_polling_watcher(Arc::clone(&watched) as Arc<dyn Watcher>);
        watched
    }
}

impl Watcher for Watched {
    fn changed(&self, _token: u64, _events: Events) {
        self.hub.tell();
    }
}

impl Source for Watched {
    fn events(&self) -> EventFlags {
        let connection = self.connection.upgrade();
        connection.map_or(EventFlags::empty(), |connection| flags(connection.events()))
    }

    fn hub(&self) -> &Hub {
        &self.hub
    }

    fn lane(&self) -> Option<LaneHandle> {
        self.connection.upgrade()?.lane()
    }
}

/// Each event in our words and in epoll's.
const WORDS: [(Events, EventFlags); 6] = [
    (Events::READABLE, EventFlags::IN),
    (Events::WRITABLE, EventFlags::OUT),
    (Events::READ_CLOSED, EventFlags::RDHUP),
    (Events::HANG_UP, EventFlags::HUP),
    (Events::ERROR, EventFlags::ERR),
    (Events::PRIORITY, EventFlags::PRI),
];

/// The same in epoll's words. The numbers are those of poll(2), too.
pub(crate) fn flags(events: Events) -> EventFlags {
    let holding = WORDS.into_iter().filter(|(one, _)| events.contains(*one));
    holding.map(|(_, flag)| flag).collect()
}

/// What epoll has told, in our words.
pub(super) fn events(flags: EventFlags) -> Events {
    let holding = WORDS.into_iter().filter(|(_, flag)| flags.contains(*flag));
    holding.map(|(one, _)| one).collect()
}
