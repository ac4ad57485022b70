//! The TCP socket of a stream that may move: single steps that never wait.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use san_base::timespec;
use san_stream::FRAME;
use socket2::Socket;

use crate::carrier::mark::send_urgent;

/// What a step gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// So many bytes.
    Moved(usize),
    /// Nothing now.
    WouldBlock,
    /// The peer's stream has ended.
    End,
    /// The connection is reset.
    Reset(Errno),
}

/// The bytes at a place.
#[derive(Debug)]
pub(super) struct Seen {
    bytes: [u8; FRAME],
    length: usize,
    /// Nothing can follow them.
    pub(super) is_end: bool,
}

impl Seen {
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

/// The socket.
#[derive(Debug)]
pub(super) struct TcpSide {
    socket: Socket,
}

impl TcpSide {
    pub(super) fn new(socket: Socket) -> Self {
        Self { socket }
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Takes at most as many bytes as the buffer has.
    pub(super) fn read(&self, bytes: &mut [u8]) -> Step {
        step(
            rustix::net::recv(&self.socket, bytes, RecvFlags::DONTWAIT).map(|(_, n)| n),
            true,
        )
    }

    /// As [`TcpSide::read`], and the bytes stay.
    pub(super) fn peek(&self, bytes: &mut [u8]) -> Step {
        let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK;
        step(
            rustix::net::recv(&self.socket, bytes, flags).map(|(_, n)| n),
            true,
        )
    }

    pub(super) fn write(&self, bytes: &[u8]) -> Step {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        step(rustix::net::send(&self.socket, bytes, flags), false)
    }

    /// Writes a byte that is urgent.
    pub(super) fn write_urgent(&self, byte: u8) -> Step {
        let sent = send_urgent(&self.socket, byte, SendFlags::DONTWAIT);
        step(sent.map(|()| 1), false)
    }

    /// Looks at the bytes that come next, as many as a frame has.
    pub(super) fn look(&self) -> Result<Seen, Step> {
        // Asked first: what is not here yet when FIN is, never comes.
        let flags = self.ready(PollFlags::RDHUP);
        let has_end = flags.contains(PollFlags::RDHUP);
        let mut bytes = [0; FRAME];
        match self.peek(&mut bytes) {
            // The kernel keeps what had come before a reset, and it looks like the end of the stream.
            Step::Moved(length) if length < FRAME && flags.contains(PollFlags::ERR) => {
                Err(Step::Reset(Errno::CONNRESET))
            }
            Step::Moved(length) => Ok(Seen {
                bytes,
                length,
                is_end: has_end && length < FRAME,
            }),
            Step::End => Ok(Seen {
                bytes,
                length: 0,
                is_end: true,
            }),
            other => Err(other),
        }
    }

    /// Takes bytes that were looked at, and forgets them.
    pub(super) fn skip(&self, mut n: usize) {
        let mut bytes = [0; FRAME];
        while n > 0 {
            let most = n.min(FRAME);
            match self.read(&mut bytes[..most]) {
                Step::Moved(taken) => n -= taken,
                _ => return,
            }
        }
    }

    /// Takes whatever is there, and forgets it. Whether the end has come.
    pub(super) fn discard(&self) -> bool {
        let mut bytes = [0; 4096];
        loop {
            match self.read(&mut bytes) {
                Step::Moved(_) => {}
                Step::WouldBlock => return false,
                Step::End | Step::Reset(_) => return true,
            }
        }
    }

    /// Sends FIN.
    pub(super) fn end(&self) {
        // A peer that is gone already needs none.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Write);
    }

    /// Sends RST, now.
    pub(super) fn reset(&self) {
        // A socket that takes on no address any more resets what it had.
        let _ = self.socket.set_linger(Some(std::time::Duration::ZERO));
        let _ = rustix::net::connect_unspec(&self.socket);
    }

    /// What holds now.
    pub(super) fn ready(&self, flags: PollFlags) -> PollFlags {
        let mut fds = [PollFd::new(&self.socket, flags)];
        let now = timespec(std::time::Duration::ZERO);
        match poll(&mut fds, Some(&now)) {
            Ok(n) if n > 0 => fds[0].revents(),
            _ => PollFlags::empty(),
        }
    }
}

impl AsFd for TcpSide {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn step(outcome: rustix::io::Result<usize>, is_read: bool) -> Step {
    match outcome {
        Ok(0) if is_read => Step::End,
        Ok(n) => Step::Moved(n),
        // A signal came: the caller looks again soon enough.
        Err(Errno::AGAIN | Errno::INTR) => Step::WouldBlock,
        Err(errno) => Step::Reset(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    fn pair() -> (TcpSide, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (here, _) = listener.accept().unwrap();
        (TcpSide::new(here.into()), there)
    }

    fn until(mut what: impl FnMut() -> bool) {
        for _ in 0..2000 {
            if what() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("not within ten seconds");
    }

    #[test]
    fn a_look_takes_nothing_and_knows_the_end() {
        let (here, mut there) = pair();
        assert!(matches!(here.look(), Err(Step::WouldBlock)));
        there.write_all(&[7; 40]).unwrap();
        until(|| {
            here.look()
                .is_ok_and(|seen| seen.bytes() == [7; 32] && !seen.is_end)
        });
        here.skip(32);
        until(|| {
            here.look()
                .is_ok_and(|seen| seen.bytes() == [7; 8] && !seen.is_end)
        });
        drop(there);
        until(|| {
            here.look()
                .is_ok_and(|seen| seen.bytes() == [7; 8] && seen.is_end)
        });
        here.skip(8);
        assert!(
            here.look()
                .is_ok_and(|seen| seen.bytes().is_empty() && seen.is_end)
        );
    }

    #[test]
    fn a_reset_is_seen_at_once() {
        let (here, there) = pair();
        here.reset();
        let there = TcpSide::new(there.into());
        until(|| matches!(there.read(&mut [0; 4]), Step::Reset(Errno::CONNRESET)));
    }
}
