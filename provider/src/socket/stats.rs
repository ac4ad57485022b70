//! A socket's statistics, read.

use super::shared::{Socket, SocketShared};
use super::state::Phase;
use crate::error::QueryError;
use crate::runtime::OpenSocket;
use crate::statistics::{ListenStats, SocketStats};
use crate::sync::lock;

impl Socket {
    /// The socket's statistics now.
    ///
    /// # Errors
    /// `WSAENOTSOCK`, `WSANOTINITIALISED`.
    pub fn stats(&self) -> Result<SocketStats, QueryError> {
        self.shared.runtime.usable()?;
        if lock(&self.shared.state).phase == Phase::Closed {
            return Err(QueryError::NotSocket);
        }
        Ok(self.shared.stats())
    }
}

impl OpenSocket for SocketShared {
    fn shut(&self) {
        SocketShared::shut(self);
    }

    fn stats(&self) -> SocketStats {
        let (state, local, peer) = {
            let state = lock(&self.state);
            (state.phase.to_string(), state.local, state.peer)
        };
        let connection = self.connection();
        let places = self.backlog.get().map(|backlog| {
            let backlog = lock(backlog);
            (backlog.limit(), backlog.held())
        });
        SocketStats {
            number: self.number,
            state,
            local,
            peer,
            device: connection.as_ref().map(|c| c.device_name().to_owned()),
            listen: places.map(|(backlog, held)| ListenStats {
                backlog,
                held,
                ..self.listened.snapshot()
            }),
            connection: connection.map(|connection| connection.stats()),
        }
    }
}
