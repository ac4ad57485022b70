//! A listening socket of the program's, and its companions.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use rustix::net::sockopt::{Timeout, socket_timeout};
use san_base::Deadline;
use socket2::Socket;
use verbs_shim::fork::{ForkGuard, Generation};

use super::blocking::goes_on_after_signal;
use super::epolls::EpollOp;
use super::inherited::inherit;
use super::stream::Stream;
use super::timeouts::Timeouts;
use super::{Program, is_nonblocking};
use crate::error::AcceptError;
use crate::net::listener::{Listener, Taken};
use crate::tcp;
use crate::wait::is_readable;

/// A listening socket.
pub struct Listening {
    program: &'static Program,
    backlog: u32,
    made: Generation,
    /// Made by the process that accepts. `None` inside: there is no SAN for it.
    listener: OnceLock<Option<ForkGuard<Listener>>>,
    /// Of a socket in blocking mode one thread at a time looks and accepts, so that it does not wait in
    /// the kernel's accept for a client that another one has taken, while the SAN has clients.
    turn: Mutex<()>,
}

/// What an accept gives.
pub enum Accepted {
    /// A connection of TCP's: a socket as the kernel gives it, and the peer.
    Kernel(OwnedFd, SocketAddr),
    /// A connection of the SAN's: the descriptor is the number for it.
    San(OwnedFd, Stream),
}

impl Program {
    /// A socket listens from now on. Nothing is started yet.
    pub fn listen(&'static self, backlog: i32) -> Listening {
        let backlog = u32::try_from(backlog).unwrap_or(crate::config::SOMAXCONN);
        Listening {
            program: self,
            backlog: backlog.clamp(1, crate::config::SOMAXCONN),
            made: Generation::now(),
            listener: OnceLock::new(),
            turn: Mutex::new(()),
        }
    }
}

impl Listening {
    /// Whether another process, of which this one is a child, has made the companions.
    pub(super) fn is_inherited(&self) -> bool {
        self.made.is_past() && self.listener.get().is_some_and(is_past)
    }

    /// The listener; made when the program first shows that it accepts.
    fn listener(&self, fd: BorrowedFd<'_>) -> Option<&Listener> {
        let listener = self.listener.get_or_init(|| {
            let switch = self.program.switch()?;
            let socket = Socket::from(tcp::aside(rustix::io::fcntl_dupfd_cloexec(fd, 0).ok()?));
            match switch.adopt_listener(socket, self.backlog) {
                Ok(listener) => Some(ForkGuard::new(listener)),
                Err(error) => {
                    tracing::warn!(%error, "a listener stays with TCP");
                    None
                }
            }
        });
        listener.as_deref()
    }

    /// accept4(2). `None`: ask the kernel.
    ///
    /// # Errors
    /// As accept4(2).
    pub fn accept(&self, fd: BorrowedFd<'_>, flags: SocketFlags) -> io::Result<Option<Accepted>> {
        let Some(listener) = self.listener(fd) else {
            return Ok(None);
        };
        let waits = !is_nonblocking(fd)?;
        let timeout = match waits {
            true => socket_timeout(fd, Timeout::Recv)?,
            false => Some(Duration::ZERO),
        };
        let deadline = Deadline::after(timeout);
        loop {
            let taken = {
                let _turn = waits.then(|| self.turn.lock());
                listener.take(|| kernel_accept(fd, flags, waits))
            };
            match taken {
                Ok(Some(Taken::Tcp((socket, peer)))) => {
                    self.program.tally.counters.tcp_accepted.raise();
                    return Ok(Some(Accepted::Kernel(socket, peer)));
                }
                Ok(Some(Taken::San(connection))) => {
                    self.program.tally.counters.san_accepted.raise();
                    // What it cannot have it does without.
                    let _ = inherit(fd, connection.companion_fd());
                    let number = match flags.contains(SocketFlags::CLOEXEC) {
                        true => rustix::io::fcntl_dupfd_cloexec(connection.companion_fd(), 0)?,
                        false => rustix::io::dup(connection.companion_fd())?,
                    };
                    let is_nonblocking = flags.contains(SocketFlags::NONBLOCK);
                    if is_nonblocking {
                        rustix::io::ioctl_fionbio(&number, true)?;
                    }
                    return Ok(Some(Accepted::San(
                        number,
                        Stream::of(connection, is_nonblocking, Timeouts::of(fd)),
                    )));
                }
                Ok(None) => {}
                Err(AcceptError::System(error)) => return Err(error),
                Err(error) => return Err(io::Error::from_raw_os_error(error.errno())),
            }
            if deadline.is_over() {
                return Err(Errno::AGAIN.into());
            }
            let mut fds = [PollFd::from_borrowed_fd(
                listener.readiness(),
                PollFlags::IN,
            )];
            match rustix::event::poll(&mut fds, deadline.timespec().as_ref()) {
                Err(Errno::INTR) if goes_on_after_signal(timeout) => {}
                outcome => drop(outcome?),
            }
        }
    }

    /// A descriptor that is readable when an accept would not wait. `None`: the socket's own is.
    pub fn readiness(&self, fd: BorrowedFd<'_>) -> Option<BorrowedFd<'_>> {
        self.listener(fd).map(Listener::readiness)
    }

    /// The kernel has done epoll_ctl(2) on the socket: the same for the clients on the SAN, of whom
    /// another descriptor tells, with the same data.
    pub fn control(
        &self,
        fd: BorrowedFd<'_>,
        epoll: BorrowedFd<'_>,
        operation: EpollOp,
        (flags, data): (EventFlags, u64),
    ) {
        let Some(listener) = self.listener(fd) else {
            return;
        };
        let ready = listener.san_ready();
        let data = EventData::new_u64(data);
        let done = match operation {
            EpollOp::Add => epoll::add(epoll, ready, data, flags),
            EpollOp::Modify => epoll::modify(epoll, ready, data, flags),
            EpollOp::Delete => epoll::delete(epoll, ready),
        };
        if let Err(errno) = done {
            tracing::warn!(%errno, "an epoll set does not hear of clients on the SAN");
        }
    }
}

fn is_past(listener: &Option<ForkGuard<Listener>>) -> bool {
    listener.as_ref().is_some_and(ForkGuard::is_inherited)
}

/// TCP's accept, which does not wait.
fn kernel_accept(
    fd: BorrowedFd<'_>,
    flags: SocketFlags,
    looks: bool,
) -> io::Result<Option<(OwnedFd, SocketAddr)>> {
    if looks && !is_readable(fd.as_fd()) {
        return Ok(None);
    }
    match rustix::net::acceptfrom_with(fd, flags) {
        Ok((socket, peer)) => {
            let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
            let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
            Ok(Some((socket, peer.unwrap_or(unknown))))
        }
        Err(Errno::AGAIN) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}
