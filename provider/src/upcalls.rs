//! What a provider asks of, and tells to, the switch above it.
//!
//! No lock of the provider is held during an upcall. `create_socket_handle` comes in the thread
//! that makes or accepts the socket, all others in the provider's thread `san-progress`, one after
//! another: an upcall that blocks holds up those behind it.

use std::io;

use crate::transfer::message::OverlappedResult;

pub(crate) use crate::handles::SwitchHandle;

/// The upcall table that startup takes (duties 60, 67).
pub trait SwitchUpcalls: Send + Sync {
    /// A socket was made, by `Provider::socket` or by accept after the condition function said yes
    /// (duties 67, 87). `number` is [`crate::Socket::number`]. The answer goes with all later
    /// upcalls about it.
    ///
    /// # Errors
    /// The socket is not made then.
    #[doc(alias = "WPUCreateSocketHandle")]
    fn create_socket_handle(&self, number: u64) -> io::Result<SwitchHandle>;

    /// An operation ended that was started with `Notification::Upcall` (duty 95).
    #[doc(alias = "WPUCompleteOverlappedRequest")]
    fn complete_overlapped(&self, handle: SwitchHandle, result: OverlappedResult);

    /// The socket is closed. The last upcall about it (duty 114).
    #[doc(alias = "WPUCloseSocketHandle")]
    fn close_socket_handle(&self, handle: SwitchHandle);

    /// The list of local addresses changed (duties 8, 66).
    #[doc(alias = "SIO_ADDRESS_LIST_CHANGE")]
    fn address_list_changed(&self) {}
}

/// For callers that are no switch: handles are the sockets' numbers, nothing is told.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoUpcalls;

impl SwitchUpcalls for NoUpcalls {
    fn create_socket_handle(&self, number: u64) -> io::Result<SwitchHandle> {
        Ok(SwitchHandle(number))
    }

    fn complete_overlapped(&self, _: SwitchHandle, _: OverlappedResult) {}

    fn close_socket_handle(&self, _: SwitchHandle) {}
}
