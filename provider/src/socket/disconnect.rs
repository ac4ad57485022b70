//! Disconnect: the connection ends, and what had arrived can still be received.

use super::shared::Socket;
use super::state::Phase;
use crate::error::TransferError;
use crate::sync::lock;
use crate::transfer::Ending;

impl Socket {
    /// Ends the connection without closing the socket. The queue pair goes to the error state: nothing
    /// leaves or arrives from now on. When this returns, everything that had arrived before can be
    /// received, and how much the peer has acknowledged does not change any more
    /// ([`crate::DataPath::unacknowledged`]). After that come `WSAECONNRESET`, as if the peer had ended
    /// it; operations under way end so too. The peer receives what had arrived there, and then the same.
    ///
    /// It returns before that if another thread polls for this connection: then that thread does the
    /// rest, and whoever receives sees `WSAECONNRESET` last all the same.
    ///
    /// # Errors
    /// `WSAENOTCONN`: it was never connected, or its connect is under way. `WSAENOTSOCK`,
    /// `WSANOTINITIALISED`. A connection that has ended already is no error.
    #[doc(alias = "WSPSendDisconnect")]
    pub fn disconnect(&self) -> Result<(), TransferError> {
        let socket = &self.shared;
        socket.runtime.usable()?;
        let phase = lock(&socket.state).phase;
        match phase {
            Phase::Accepted | Phase::Connected => {
                socket.ended(Ending::Reset);
                Ok(())
            }
            Phase::Ended => Ok(()),
            Phase::Closed => Err(TransferError::NotSocket),
            _ => Err(TransferError::NotConnected),
        }
    }
}
