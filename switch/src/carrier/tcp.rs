//! TCP as the carrier: the kernel's socket, with what it moves counted.

use std::io::{self, IoSliceMut, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvFlags, SendFlags};
use san_base::{Deadline, timespec};
use san_provider::LaneHandle;
use socket2::Socket;

use super::Carrier;
use super::info::{StreamInfo, StreamState};
use super::mark::{TcpMark, send_urgent};
use super::timeout::Waits;
use crate::counters::TcpCounters;
use crate::readiness::{Events, Watcher};

/// A connected socket of the kernel's.
#[derive(Debug)]
pub(crate) struct TcpCarrier {
    socket: Socket,
    counters: Arc<TcpCounters>,
    /// Our stream is ended. The kernel may refuse to end one twice, depending on what the peer did.
    is_ended: AtomicBool,
    mark: TcpMark,
}

impl TcpCarrier {
    pub(crate) fn new(socket: Socket, timeout: Option<Duration>) -> Self {
        // These cannot fail on a socket of ours with a time in the checked range.
        let _ = socket.set_read_timeout(timeout);
        let _ = socket.set_write_timeout(timeout);
        Self {
            socket,
            counters: Arc::default(),
            is_ended: AtomicBool::new(false),
            mark: TcpMark::default(),
        }
    }

    /// One that another process had. Its options came with it.
    pub(crate) fn taken_up(socket: Socket, has_ended: bool) -> Self {
        Self {
            socket,
            counters: Arc::default(),
            is_ended: AtomicBool::new(has_ended),
            mark: TcpMark::default(),
        }
    }

    /// Whether our stream is ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.is_ended.load(Ordering::Acquire)
    }

    /// What it counts.
    pub(crate) fn counters(&self) -> &Arc<TcpCounters> {
        &self.counters
    }
}

impl Carrier for TcpCarrier {
    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.socket.send(bytes)?;
        self.counters.messages_sent.raise();
        self.counters.bytes_sent.add(sent as u64);
        Ok(sent)
    }

    fn receive(&self, bytes: &mut [u8]) -> io::Result<usize> {
        let received = (&self.socket).read(bytes)?;
        self.counters.messages_received.raise();
        self.counters.bytes_received.add(received as u64);
        Ok(received)
    }

    fn receive_vectored(&self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let received = (&self.socket).read_vectored(buffers)?;
        self.counters.messages_received.raise();
        self.counters.bytes_received.add(received as u64);
        Ok(received)
    }

    fn peek(&self, bytes: &mut [u8]) -> io::Result<usize> {
        let (_, seen) = rustix::net::recv(&self.socket, bytes, RecvFlags::PEEK)?;
        Ok(seen)
    }

    fn waits(&self) -> Waits<'_> {
        Waits::Kernels(&self.socket)
    }

    fn end(&self) -> io::Result<()> {
        if self.is_ended.load(Ordering::Acquire) {
            return Ok(());
        }
        self.socket.shutdown(Shutdown::Write)?;
        self.is_ended.store(true, Ordering::Release);
        Ok(())
    }

    /// The kernel sees to the bytes, whether this process lives or not: there is nothing to wait for.
    fn finish(&self, _deadline: Deadline) -> io::Result<()> {
        self.end()
    }

    fn shut(&self, how: Shutdown) -> io::Result<()> {
        if how == Shutdown::Write {
            return self.end();
        }
        self.socket.shutdown(how)?;
        self.is_ended
            .fetch_or(how == Shutdown::Both, Ordering::AcqRel);
        Ok(())
    }

    fn events(&self) -> Events {
        let pairs = [
            (PollFlags::IN, Events::READABLE),
            (PollFlags::OUT, Events::WRITABLE),
            (PollFlags::RDHUP, Events::READ_CLOSED),
            (PollFlags::HUP, Events::HANG_UP),
            (PollFlags::ERR, Events::ERROR),
            (PollFlags::PRI, Events::PRIORITY),
        ];
        let asked = pairs.iter().map(|(flag, _)| *flag).collect();
        let mut fds = [PollFd::new(&self.socket, asked)];
        // It does not wait, and so it is not interrupted.
        let _ = poll(&mut fds, Some(&timespec(Duration::ZERO)));
        let [fd] = fds;
        let holds = |(flag, _): &&(PollFlags, Events)| fd.revents().contains(*flag);
        pairs
            .iter()
            .filter(holds)
            .map(|(_, event)| *event)
            .collect()
    }

    /// The descriptor tells.
    fn set_watcher(&self, _watcher: Option<(Arc<dyn Watcher>, u64)>) {}

    fn lane(&self) -> Option<LaneHandle> {
        None
    }

    fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.socket.take_error()
    }

    fn set_linger(&self, linger: Option<Duration>) -> io::Result<()> {
        self.socket.set_linger(linger)
    }

    fn linger(&self) -> io::Result<Option<Duration>> {
        self.socket.linger()
    }

    fn info(&self) -> StreamInfo {
        let events = self.events();
        StreamInfo {
            state: if events.contains(Events::HANG_UP) {
                StreamState::Over
            } else {
                let has_ended = self.is_ended.load(Ordering::Acquire);
                StreamState::of(has_ended, events.contains(Events::READ_CLOSED))
            },
            bytes_sent: self.counters.bytes_sent.value(),
            bytes_received: self.counters.bytes_received.value(),
            ..StreamInfo::new(false)
        }
    }

    fn send_urgent(&self, byte: u8) -> io::Result<()> {
        send_urgent(&self.socket, byte, SendFlags::empty())?;
        self.counters.messages_sent.raise();
        self.counters.bytes_sent.add(1);
        Ok(())
    }

    fn receive_urgent(&self) -> io::Result<u8> {
        self.mark
            .take(&self.socket, self.counters.bytes_received.value())
    }

    fn is_at_mark(&self) -> io::Result<bool> {
        self.mark
            .is_at(&self.socket, self.counters.bytes_received.value())
    }

    fn tcp_socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
