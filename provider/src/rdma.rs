//! The calls for RDMA operations (duties 36, 37, 93, 105).

use crate::error::TransferError;
use crate::memory::Segment;
use crate::socket::Socket;
use crate::transfer::{Fence, Notification, Operation, RdmaDirection};

impl Socket {
    /// Starts to read from memory that the peer has opened, into registered memory, and returns.
    /// `descriptor` is what the peer's [`Socket::register_rdma_memory`] wrote, `offset` the first
    /// byte to read there; the segments are filled one after another.
    ///
    /// The operation ends as any other: by [`Socket::get_overlapped_result`] or by upcall. Until
    /// then the memory is the device's. It starts in the order of the calls, after sends that wait
    /// for credits too; what is started after it may overtake it unless it is fenced, see
    /// [`Fence`].
    ///
    /// If the peer's memory is not open, or not so far or not to be read, the operation ends with
    /// `WSAEFAULT`, and the connection with it.
    ///
    /// # Errors
    /// `WSAEINVAL`: no bytes, more than [`crate::MAX_SEGMENTS`] segments, no such registration, no
    /// descriptor, or rights that do not allow it. `WSAEFAULT`: outside of what is registered here
    /// or there. `WSAEMSGSIZE`: more than `SO_MAX_RDMA_SIZE`. `WSAEWOULDBLOCK`: as many operations
    /// as are allowed are under way. `WSAENOTCONN`, `WSAECONNRESET`, `WSAENOTSOCK`,
    /// `WSANOTINITIALISED`.
    #[doc(alias = "WSPRdmaRead")]
    pub fn rdma_read(
        &self,
        segments: &[Segment],
        descriptor: &[u8],
        offset: u64,
        fence: Fence,
        completion: Notification,
    ) -> Result<Operation, TransferError> {
        self.shared.connected()?.start_rdma(
            RdmaDirection::Read,
            segments,
            (descriptor, offset),
            fence,
            completion,
        )
    }

    /// Starts to write registered memory into memory that the peer has opened, and returns. The
    /// segments are written one after another. When it ends well the bytes are there; a message
    /// that is sent after it arrives after them.
    ///
    /// # Errors
    /// As [`Socket::rdma_read`].
    #[doc(alias = "WSPRdmaWrite")]
    pub fn rdma_write(
        &self,
        segments: &[Segment],
        descriptor: &[u8],
        offset: u64,
        fence: Fence,
        completion: Notification,
    ) -> Result<Operation, TransferError> {
        self.shared.connected()?.start_rdma(
            RdmaDirection::Write,
            segments,
            (descriptor, offset),
            fence,
            completion,
        )
    }
}
