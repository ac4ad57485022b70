//! Close: everything a socket has ends at once (duties 74, 106, 113 to 115).
//!
//! It never waits for a peer: the peer is told, and all that is ours is freed. What was sent and
//! not yet acknowledged may be lost; a switch that wants more has its own protocol for that.

use super::duplicate::awaited::await_no_longer;
use super::network_events::EventRecorder;
use super::shared::{Socket, SocketShared};
use super::state::Input;
use crate::cm::refusal::refuse;
use crate::error::CloseError;
use crate::progress::Upcall;
use crate::sync::lock;
use crate::time::Deadline;
use crate::wire::RefusalReason;

impl Socket {
    /// Closes the socket for all its clones. A connect under way is aborted, queued requests are
    /// refused, pending operations end with `WSA_OPERATION_ABORTED` after their memory is free;
    /// the last upcall is `close_socket_handle`.
    ///
    /// # Errors
    /// `WSAENOTSOCK`: closed already.
    #[doc(alias = "WSPCloseSocket")]
    pub fn close(&self) -> Result<(), CloseError> {
        if self.shared.runtime.is_inherited() {
            return Err(CloseError::NotSocket);
        }
        match self.shared.shut() {
            true => Ok(()),
            false => Err(CloseError::NotSocket),
        }
    }
}

impl SocketShared {
    /// Closes; `false`: it was closed before.
    pub(crate) fn shut(&self) -> bool {
        let (id, place, awaited) = {
            let mut state = lock(&self.state);
            if self.step(&mut state, Input::Close).is_err() {
                return false;
            }
            self.cancel_deadline(&mut state);
            (state.id.take(), state.place.take(), state.awaited.take())
        };
        await_no_longer(&self.runtime, awaited);
        if let Some(backlog) = self.backlog.get() {
            // Whatever arrives from now on finds the backlog closed, or no listener.
            let queued = lock(backlog).close();
            let deadline = Deadline::after(self.runtime.config.close_deadline);
            for (token, pending) in queued {
                self.runtime.owners.remove(token);
                // Past the deadline the kernel rejects by itself, without our data: the same to
                // the peers.
                if !deadline.is_over() {
                    let reason = RefusalReason::Closing;
                    refuse(&self.runtime, Some(&self.listened), pending.id, reason, 0);
                }
            }
        }
        if let Some(id) = &id {
            self.runtime.owners.remove(id.token());
        }
        let connection = lock(&self.connection).take();
        if let Some(connection) = connection {
            connection.abort();
            if let Some(id) = &id
                && let Err(error) = id.disconnect()
            {
                tracing::trace!(socket = self.number, %error, "disconnect");
            }
            connection.close();
        }
        drop(id);
        *lock(&self.events) = EventRecorder::default();
        self.runtime.remove_socket(self.number);
        self.runtime.counters.sockets_closed.raise();
        drop(place);
        if let Some(handle) = self.handle.get() {
            self.runtime.progress.push(Upcall::CloseHandle(*handle));
        }
        true
    }
}

impl Drop for SocketShared {
    fn drop(&mut self) {
        self.shut();
    }
}
