//! Listening: the call (duties 25, 77 to 80). What becomes of requests is in `requests.rs`.
//!
//! The kernel has a backlog of its own, past which it drops requests without a word; it is set as
//! large as the kernel allows, and the thread `san-cm` empties it at once, so that it never decides.

use std::sync::Mutex;

use super::backlog::{self, Backlog};
use super::shared::Socket;
use super::state::{Input, InvalidTransition, Phase};
use crate::error::ListenError;
use crate::memlock;
use crate::owners::Role;
use crate::sync::lock;

/// As large as the kernel allows (`net.rdma_ucm.max_backlog`).
const KERNEL_BACKLOG: u32 = i32::MAX as u32;

impl Socket {
    /// Listens, with places for `backlog` requests: from the arrival of a request until accept has
    /// answered it (duties 25, 77 to 80). 0 stands for 1; [`crate::SOMAXCONN`] and Winsock's
    /// `SOMAXCONN` for the most there can be. The backlog is fixed: listening again with another
    /// one is an error, since requests that wait could lose a place they have.
    ///
    /// # Errors
    /// `WSAEINVAL`: not bound, a backlog out of range, or another one than before. `WSAEISCONN`,
    /// `WSAEMFILE`, `WSAENETDOWN`, `WSAENOTSOCK`, `WSANOTINITIALISED`. `WSAENOBUFS`; where the
    /// process may lock too little memory the text says what to raise.
    #[doc(alias = "WSPListen")]
    pub fn listen(&self, backlog: u32) -> Result<(), ListenError> {
        let socket = &self.shared;
        socket.runtime.usable()?;
        let asked = backlog;
        let limit = backlog::granted(asked);
        let mut state = lock(&socket.state);
        state
            .phase
            .after(Input::Listen)
            .map_err(|invalid| match invalid {
                InvalidTransition::Closed => ListenError::NotSocket,
                InvalidTransition::NotBound => ListenError::NotBound,
                _ => ListenError::Connected,
            })?;
        let limit = limit.ok_or(ListenError::BacklogOutOfRange { asked })?;
        if state.phase == Phase::Listening {
            let fixed = socket
                .backlog
                .get()
                .map_or(0, |backlog| lock(backlog).limit());
            let fixed = u32::try_from(fixed).unwrap_or(u32::MAX);
            return match fixed == limit {
                true => Ok(()),
                false => Err(ListenError::BacklogFixed { fixed, asked }),
            };
        }
        let Some(id) = &state.id else {
            return Err(ListenError::NetDown);
        };
        memlock::check(&socket.runtime.fabric, id.device(), &socket.runtime.config)?;
        let token = id.token();
        // Before the first request can come.
        socket
            .backlog
            .get_or_init(|| Mutex::new(Backlog::new(limit)));
        socket.runtime.owners.set(token, Role::Own, socket);
        if let Err(error) = id.listen(KERNEL_BACKLOG) {
            socket.runtime.owners.remove(token);
            return Err(error.into());
        }
        socket
            .step(&mut state, Input::Listen)
            .map_err(|_| ListenError::NotSocket)?;
        tracing::debug!(socket = socket.number, backlog = limit, "listening");
        Ok(())
    }
}
