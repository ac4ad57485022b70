//! What carries the bytes of a connection: the SAN or TCP, behind one contract.
//!
//! How a connection came about, and which way it took, is `net/`'s business.

use std::io::{self, IoSliceMut};
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use san_base::Deadline;
use san_provider::LaneHandle;
use socket2::SockRef;

use self::info::StreamInfo;
use self::timeout::Waits;
use crate::readiness::{Events, Watcher};

pub(crate) mod bulk;
pub(crate) mod gate;
pub(crate) mod info;
pub(crate) mod mark;
pub(crate) mod san;
pub(crate) mod tcp;
pub(crate) mod timeout;

/// Memory that is let go when it has not been used for a while.
pub(crate) trait IdleMemory: Send + Sync {
    /// A look, one a second: `true`: there is nothing to look after any more.
    fn let_go_if_idle(&self) -> bool;
}

/// Who looks after such memory.
pub(crate) trait MemoryKeeper: Send + Sync {
    /// From now on, and until it is let go.
    fn look_after(&self, memory: Weak<dyn IdleMemory>);
}

/// Bounds of what is staged at a sender and held at a receiver, in bytes (SO_SNDBUF, SO_RCVBUF); `None`:
/// the usual one.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Buffers {
    pub(crate) send: Option<usize>,
    pub(crate) receive: Option<usize>,
}

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

    /// How long sends and receives wait.
    fn waits(&self) -> Waits<'_>;

    /// Ends our stream: everything sent is delivered, and then the end (TCP's FIN).
    fn end(&self) -> io::Result<()>;

    /// Ends our stream and waits until all of it is in the memory of the peer's host. EAGAIN after
    /// the deadline; the wait can go on with another call.
    fn finish(&self, deadline: Deadline) -> io::Result<()>;

    /// Ends one direction or both, and every call that waits for what cannot come any more.
    fn shut(&self, how: Shutdown) -> io::Result<()>;

    /// What it is ready for now.
    fn events(&self) -> Events;

    /// Who hears of changes of that, where no descriptor tells them.
    fn set_watcher(&self, watcher: Option<(Arc<dyn Watcher>, u64)>);

    /// What is polled for it, where no descriptor of its own is.
    fn lane(&self) -> Option<LaneHandle>;

    /// The error that no call has told yet; it is told with this.
    fn take_error(&self) -> io::Result<Option<io::Error>>;

    /// How long a close waits for what is under way; `None`: it does not, and what is under way goes on.
    /// Zero: it is thrown away, and the peer's calls fail (SO_LINGER).
    fn set_linger(&self, linger: Option<Duration>) -> io::Result<()>;

    /// What [`Carrier::set_linger`] has set.
    fn linger(&self) -> io::Result<Option<Duration>>;

    /// Sends a byte that is urgent (MSG_OOB).
    fn send_urgent(&self, byte: u8) -> io::Result<()>;

    /// Takes the urgent byte, whatever stands before it. EINVAL: there is none.
    fn receive_urgent(&self) -> io::Result<u8>;

    /// Whether the urgent byte is next in the stream.
    fn is_at_mark(&self) -> io::Result<bool>;

    /// Whether the urgent byte stays in the stream (SO_OOBINLINE).
    fn set_urgent_inline(&self, on: bool) -> io::Result<()> {
        SockRef::from(&self.tcp_socket()).set_out_of_band_inline(on)
    }

    /// What [`Carrier::set_urgent_inline`] has set.
    fn urgent_inline(&self) -> io::Result<bool> {
        SockRef::from(&self.tcp_socket()).out_of_band_inline()
    }

    /// What is known of it now.
    fn info(&self) -> StreamInfo;

    /// Bounds what it stages and holds. Where the kernel does that, this does nothing: the caller sets the
    /// options of the TCP socket.
    fn bound(&self, _buffers: Buffers) {}

    /// How many bytes it stages, and how many it holds; `None`: the kernel knows.
    fn buffers(&self) -> Option<(usize, usize)> {
        None
    }

    /// The TCP socket of the connection, whether it carries anything or not (duty 10).
    fn tcp_socket(&self) -> BorrowedFd<'_>;
}

/// Fills buffers, one after the other, until the end or an error. What came before an error is given first:
/// the error comes again. `receive` is told how much has come.
pub(crate) fn fill(
    buffers: &mut [IoSliceMut<'_>],
    mut receive: impl FnMut(usize, &mut [u8]) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut all = 0;
    for buffer in buffers {
        let mut filled = 0;
        while filled < buffer.len() {
            match receive(all, &mut buffer[filled..]) {
                Ok(0) => return Ok(all),
                Ok(bytes) => {
                    filled += bytes;
                    all += bytes;
                }
                Err(_) if all > 0 => return Ok(all),
                Err(error) => return Err(error),
            }
        }
    }
    Ok(all)
}
