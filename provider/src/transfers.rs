//! The calls that transfer messages (duties 42, 43, 93 to 97, 113).

use std::sync::Arc;
use std::time::Duration;

use verbs_shim::RegisteredBuffer;

use crate::error::{ResultError, TransferError};
use crate::event::EventObject;
use crate::socket::state::Phase;
use crate::socket::{Socket, SocketShared};
use crate::sync::lock;
use crate::transfer::{
    Connection, Direction, Fence, Message, Notification, Operation, OverlappedResult, Payload,
    Readiness,
};

impl Socket {
    /// Starts to send `bytes` as one message, and returns. The bytes are copied first. `kind` is a
    /// number for the layer above, carried along; 0 is plain.
    ///
    /// # Errors
    /// `WSAEWOULDBLOCK`: as many sends are under way as are allowed. `WSAEMSGSIZE`: more than the
    /// peer takes. `WSAENOBUFS`, `WSAENOTCONN`, `WSAECONNRESET`, `WSAENOTSOCK`,
    /// `WSANOTINITIALISED`.
    #[doc(alias = "WSPSend")]
    pub fn send(
        &self,
        bytes: &[u8],
        kind: u8,
        completion: Notification,
    ) -> Result<Operation, TransferError> {
        self.shared
            .connected()?
            .start_send(Payload::Bytes(bytes), kind, Fence::None, completion)
    }

    /// A registered buffer, to be filled and sent with [`Socket::send_registered`].
    ///
    /// # Errors
    /// `WSAENOBUFS`: none is left now. `WSAENOTCONN`, `WSAENOTSOCK`, `WSANOTINITIALISED`.
    pub fn buffer(&self) -> Result<RegisteredBuffer, TransferError> {
        self.shared.connected()?.buffer()
    }

    /// As [`Socket::send`], without copying: the buffer's content is sent from where it is. The
    /// buffer may come from any connection on the same device.
    ///
    /// # Errors
    /// As [`Socket::send`]; `WSAEFAULT`: a buffer of another device.
    #[doc(alias = "WSPSend")]
    pub fn send_registered(
        &self,
        buffer: RegisteredBuffer,
        kind: u8,
        completion: Notification,
    ) -> Result<Operation, TransferError> {
        self.shared
            .connected()?
            .start_send(Payload::Buffer(buffer), kind, Fence::None, completion)
    }

    /// As [`Socket::send`], but the message leaves only when every RDMA READ that was started
    /// before it on this socket is done: it may tell the peer so.
    ///
    /// # Errors
    /// As [`Socket::send`].
    pub fn send_after_reads(
        &self,
        bytes: &[u8],
        kind: u8,
        completion: Notification,
    ) -> Result<Operation, TransferError> {
        let payload = Payload::Bytes(bytes);
        self.shared
            .connected()?
            .start_send(payload, kind, Fence::AfterReads, completion)
    }

    /// Starts to receive one message, and returns. Receives get messages in the order in which
    /// both came; a message that came before is kept until then (duty 92).
    ///
    /// # Errors
    /// `WSAEWOULDBLOCK`: as many receives are under way as are allowed. `WSAECONNRESET`: the peer
    /// ended the connection, and everything it had sent is received. `WSAENOTCONN`,
    /// `WSAENOTSOCK`, `WSANOTINITIALISED`.
    #[doc(alias = "WSPRecv")]
    pub fn receive(&self, completion: Notification) -> Result<Operation, TransferError> {
        self.shared.connected()?.start_receive(completion)
    }

    /// A message that is here now. For callers that follow a ready event: it starts no operation.
    ///
    /// # Errors
    /// `WSAEWOULDBLOCK`: none is here, or receives that were started come first. Else as
    /// [`Socket::receive`].
    pub fn try_receive(&self) -> Result<Message, TransferError> {
        self.shared.connected()?.try_receive()
    }

    /// Sends `bytes` as one message if it can go out at once. They are copied, and no operation
    /// stands for them: the cheapest way to send. Whether the message arrives is told by nothing
    /// but what comes after it: a later send that was waited for has ended well, or the connection
    /// has ended.
    ///
    /// # Errors
    /// `WSAEWOULDBLOCK`: it would have to wait, for messages that wait already or for the peer to
    /// take some in; [`Socket::send`] does. Else as [`Socket::send`].
    pub fn try_send(&self, bytes: &[u8], kind: u8) -> Result<(), TransferError> {
        self.shared.connected()?.try_send(bytes, kind)
    }

    /// A message that is here, or comes within `wait`. As cheap as [`Socket::receive`] and
    /// [`Socket::get_overlapped_result`] in one: the waiting thread polls the device itself, if no
    /// other does.
    ///
    /// # Errors
    /// `WSAEWOULDBLOCK`: none came. Else as [`Socket::receive`].
    pub fn receive_within(&self, wait: Duration) -> Result<Message, TransferError> {
        self.shared.connected()?.receive_within(wait)
    }

    /// The result of an operation that was started with [`Notification::Poll`]; waits for it at most
    /// `wait`, if given (duty 96). A result is given once.
    ///
    /// The waiting thread polls the device itself: for the configured time without sleeping, then
    /// asleep until something completes.
    ///
    /// # Errors
    /// `WSA_IO_INCOMPLETE`: it has not ended yet. `WSAEINVAL`: no such operation. `WSAENOTCONN`,
    /// `WSAENOTSOCK`. How the operation itself ended is in the result.
    #[doc(alias = "WSPGetOverlappedResult")]
    pub fn get_overlapped_result(
        &self,
        operation: Operation,
        wait: Option<Duration>,
    ) -> Result<OverlappedResult, ResultError> {
        if self.shared.runtime.is_inherited() {
            return Err(ResultError::NotSocket);
        }
        let connection = match self.shared.connection() {
            Some(connection) => connection,
            None if self.shared.is_closed() => return Err(ResultError::NotSocket),
            None => return Err(ResultError::NotConnected),
        };
        connection.overlapped_result(operation, wait)
    }

    /// Has `event` set while the socket is readable or writable, and reset while it is not;
    /// `None` ends that. The thread `san-progress` sees to it while nobody else polls.
    ///
    /// # Errors
    /// `WSAENOTCONN`, `WSAENOTSOCK`, `WSANOTINITIALISED`.
    pub fn select_ready(
        &self,
        readiness: Readiness,
        event: Option<&EventObject>,
    ) -> Result<(), TransferError> {
        let direction = match readiness {
            Readiness::Readable => Direction::Receive,
            Readiness::Writable => Direction::Send,
        };
        self.shared.connected()?.select_ready(direction, event);
        Ok(())
    }
}

impl SocketShared {
    pub(crate) fn connected(&self) -> Result<Arc<Connection>, TransferError> {
        self.runtime.usable()?;
        match self.connection() {
            Some(connection) => Ok(connection),
            None if self.is_closed() => Err(TransferError::NotSocket),
            None => Err(TransferError::NotConnected),
        }
    }

    fn is_closed(&self) -> bool {
        lock(&self.state).phase == Phase::Closed
    }
}
