//! What carries the bytes of a connection: the SAN or TCP, behind one contract.
//!
//! How a connection came about, and which way it took, is `net/`'s business.

use std::io::{self, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use san_base::Deadline;

pub(crate) mod san;
pub(crate) mod tcp;

/// What carries a connection. One thread may send while another receives.
pub(crate) trait Carrier: Send + Sync {
    /// Sends bytes and says how many were taken.
    fn send(&self, bytes: &[u8]) -> io::Result<usize>;

    /// Receives bytes; 0 means that the peer ended its stream.
    fn receive(&self, bytes: &mut [u8]) -> io::Result<usize>;

    /// Receives into several buffers, one after the other.
    fn receive_vectored(&self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize>;

    /// Receives bytes that the next receive gets again.
    fn peek(&self, bytes: &mut [u8]) -> io::Result<usize>;

    /// Whether sends and receives give EAGAIN where they would wait. The timeouts stay as they are,
    /// for later.
    fn set_nonblocking(&self, on: bool) -> io::Result<()>;

    /// Ends our stream: everything sent is delivered, and then the end (TCP's FIN).
    fn end(&self) -> io::Result<()>;

    /// Ends our stream and waits until all of it is in the memory of the peer's host. EAGAIN after
    /// the deadline; the wait can go on with another call.
    fn finish(&self, deadline: Deadline) -> io::Result<()>;

    /// How long `send` waits; `None` = until something happens. Never zero.
    fn set_send_timeout(&self, timeout: Option<Duration>) -> io::Result<()>;

    /// How long `receive` waits; `None` = until something happens. Never zero.
    fn set_receive_timeout(&self, timeout: Option<Duration>) -> io::Result<()>;

    /// What [`Carrier::set_send_timeout`] has set, or the settings have.
    fn send_timeout(&self) -> io::Result<Option<Duration>>;

    /// What [`Carrier::set_receive_timeout`] has set, or the settings have.
    fn receive_timeout(&self) -> io::Result<Option<Duration>>;

    /// The TCP socket of the connection, whether it carries anything or not (duty 10).
    fn tcp_socket(&self) -> BorrowedFd<'_>;
}
