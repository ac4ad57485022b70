//! The end that moves, in the process that has it.

use san_base::Process;

use super::super::shared::{Socket, SocketShared};
use super::super::state::{Input, Phase};
use super::form::{Contents, Duplicate};
use crate::error::DuplicateError;
use crate::sync::lock;

impl Socket {
    /// Hands the connection to the process `target`, which takes it up by
    /// [`crate::Provider::socket_from`]; it may be this one (duties 116 to 121).
    ///
    /// Everything that was sent arrives first, and everything that the peer had sent goes along.
    /// Receives that wait end with success and 0 bytes. The peer sees a pause, and what it has opened
    /// or this side had opened for RDMA is closed. It waits for the other process as long as its
    /// configuration says (`move_deadline`); then its connection ends with `WSAECONNRESET`.
    ///
    /// This call waits, at most as long as a connect may take (`connect_deadline`): for the peer to
    /// take in what was sent before, and for its answer. The peer's provider answers by itself while
    /// somebody waits for the peer's socket, has an operation pending that ends by upcall, or follows
    /// its readiness; else its progress thread finds the question within half a second, unless its
    /// configuration has no `keepalive`.
    ///
    /// After success this socket is of no use but to be closed: transfers fail with `WSAENOTCONN`,
    /// and its number and handle are not given again before (duty 120).
    ///
    /// # Errors
    /// `WSAEINVAL`: the socket is not connected, was handed over, or is being; or there is no such
    /// process. `WSAENOBUFS`: it cannot be now, and the connection goes on as before.
    /// `WSAECONNRESET`: the connection has ended, or is broken because the peer did not answer.
    /// `WSAEOPNOTSUPP`: the peer's version cannot wait for it. `WSAENETDOWN`, `WSAENOTSOCK`,
    /// `WSANOTINITIALISED`.
    #[doc(alias = "WSPDuplicateSocket")]
    pub fn duplicate(&self, target: u32) -> Result<Duplicate, DuplicateError> {
        let socket = &*self.shared;
        let runtime = &socket.runtime;
        runtime.usable()?;
        let (local, peer, options) = {
            let state = lock(&socket.state);
            match state.phase {
                Phase::Closed => return Err(DuplicateError::NotSocket),
                Phase::Accepted | Phase::Connected => {}
                _ => return Err(DuplicateError::NotConnected),
            }
            let (Some(local), Some(peer)) = (state.local, state.peer) else {
                return Err(DuplicateError::NotConnected);
            };
            (local, peer, state.options)
        };
        let no_process = |pid| DuplicateError::NoProcess { pid };
        let this = std::process::id();
        let source = Process::with_pid(this).ok_or(no_process(this))?;
        let target = Process::with_pid(target).ok_or(no_process(target))?;
        let connection = socket.connection().ok_or(DuplicateError::NotConnected)?;
        let departure = connection.depart(runtime.config.connect_deadline)?;
        socket.left();
        tracing::debug!(
            socket = socket.number,
            target = target.pid,
            messages = departure.messages.len(),
            "handed over"
        );
        Ok(Duplicate::of(Contents {
            source,
            number: socket.number,
            target,
            options,
            local,
            peer,
            resumption: departure.resumption,
            messages: departure.messages,
        }))
    }
}

impl SocketShared {
    /// The connection is another process's: the old one has ended here.
    fn left(&self) {
        self.runtime.counters.sockets_duplicated.raise();
        let mut state = lock(&self.state);
        if self.step(&mut state, Input::PeerEnded).is_err() {
            // Closed, or the peer was fast.
            return;
        }
        self.disconnect(&state);
    }
}
