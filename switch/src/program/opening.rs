//! A connect of the program's: the SAN first.
//!
//! A socket in blocking mode waits for the SAN's answer in the call. For one in nonblocking mode a
//! thread does, `san-connect`, at most [`MOST`] at a time; then the program hears of it as of any
//! connect. Where the SAN gives no connection the kernel's own connect follows, on the same socket.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::io::Errno;
use san_provider::{ConnectError as SpiConnectError, ConnectFailure};
use socket2::Socket;

use super::epolls::Kernel;
use super::stream::{Stream, StreamState};
use super::take_over::take_over;
use super::timeouts::Timeouts;
use super::{Program, is_nonblocking, is_worth_asking};
use crate::error::ConnectError;
use crate::net::connect::{ConnectOptions, PendingConnect};
use crate::route::fallback::FallbackReason;
use crate::tcp;

/// Connects that wait at a time; those beyond go over TCP.
const MOST: usize = 64;

static WAITING: AtomicUsize = AtomicUsize::new(0);

/// What became of a connect.
pub enum Opened {
    /// The kernel's is to be called.
    Kernel,
    /// It is connected.
    Done(Stream),
    /// It is being connected: EINPROGRESS.
    InProgress(Stream),
}

impl Program {
    /// connect(2) of a stream socket.
    ///
    /// # Errors
    /// The SAN's answer, if it is final.
    pub fn connect(
        &'static self,
        fd: BorrowedFd<'_>,
        destination: SocketAddr,
    ) -> io::Result<Opened> {
        if !is_worth_asking(destination) || rustix::net::getpeername(fd).is_ok() {
            return Ok(Opened::Kernel);
        }
        let Some(switch) = self.switch() else {
            return Ok(Opened::Kernel);
        };
        let is_nonblocking = is_nonblocking(fd)?;
        let socket = Socket::from(tcp::aside(rustix::io::fcntl_dupfd_cloexec(fd, 0)?));
        // What the kernel's connect is called on; the other one becomes the companion.
        let again = tcp::aside(rustix::io::fcntl_dupfd_cloexec(fd, 0)?);
        let is_bound = |local: &SocketAddr| local.port() != 0 || !local.ip().is_unspecified();
        let options = ConnectOptions {
            local: tcp::local_addr(&socket).ok().filter(is_bound),
            ..ConnectOptions::default()
        };
        let pending = switch.start_san_connect(destination, &options, socket);
        let pending = match pending {
            Ok(Ok(pending)) => pending,
            Ok(Err(why)) => {
                self.left_to_tcp(destination, &why);
                return Ok(Opened::Kernel);
            }
            Err(error) => {
                let outcome = self.final_answer(destination, &error);
                return outcome.map(|()| Opened::Kernel);
            }
        };
        if !is_nonblocking {
            return match pending.wait(None) {
                Ok(connection) => {
                    self.tally.counters.san_connected.raise();
                    Ok(Opened::Done(Stream::of(
                        connection,
                        false,
                        Timeouts::of(fd),
                    )))
                }
                Err(error) => {
                    let outcome = self.final_answer(destination, &error);
                    outcome.map(|()| Opened::Kernel)
                }
            };
        }
        if WAITING.fetch_add(1, Ordering::AcqRel) >= MOST {
            WAITING.fetch_sub(1, Ordering::AcqRel);
            let why = format!("{MOST} connects wait for the SAN already");
            let remedy = "connect fewer at a time, or with blocking sockets".to_owned();
            self.tally.left_to_tcp(destination, why, remedy);
            return Ok(Opened::Kernel);
        }
        let stream = Stream::connecting(true, Timeouts::of(fd));
        take_over(self.kernel, fd.as_raw_fd(), &stream);
        let state = Arc::clone(stream.state());
        let thread = std::thread::Builder::new().name("san-connect".to_owned());
        let started = thread.spawn(move || {
            self.see_through(pending, &again, destination, &state);
            WAITING.fetch_sub(1, Ordering::AcqRel);
        });
        if started.is_err() {
            WAITING.fetch_sub(1, Ordering::AcqRel);
            give_back(stream.state(), self.kernel);
            return Ok(Opened::Kernel);
        }
        Ok(Opened::InProgress(stream))
    }

    /// Why the connect fails; `Ok`: TCP is to be tried.
    fn final_answer(&self, destination: SocketAddr, error: &ConnectError) -> io::Result<()> {
        // TCP does not refuse where a backlog is full: it lets the client wait, and so does its own
        // queue of the same listener.
        let is_full = |source: &SpiConnectError| {
            matches!(source.failure(), ConnectFailure::BacklogFull { .. })
        };
        if matches!(error, ConnectError::San { source, .. } if !is_full(source)) {
            self.tally.counters.refused.raise();
            return Err(io::Error::from_raw_os_error(error.errno()));
        }
        match (error.fallback(), error) {
            (Some(why), _) => self.left_to_tcp(destination, why),
            (None, ConnectError::San { source, .. }) => {
                self.left_to_tcp(destination, &FallbackReason::Connect(source.clone()));
            }
            (None, other) => {
                let remedy = format!("see what failed: SAN_LOG=debug san connect {destination}");
                let why = other.to_string();
                self.tally.left_to_tcp(destination, why, remedy);
            }
        }
        Ok(())
    }

    fn left_to_tcp(&self, destination: SocketAddr, why: &FallbackReason) {
        let remedy = why.remedy(destination);
        self.tally.left_to_tcp(destination, why.to_string(), remedy);
    }

    /// Waits for the SAN's answer, and starts the kernel's connect if it gives no connection.
    fn see_through(
        &self,
        pending: PendingConnect,
        socket: &OwnedFd,
        destination: SocketAddr,
        state: &Arc<StreamState>,
    ) {
        let error = match pending.wait(None) {
            Ok(connection) => {
                self.tally.counters.san_connected.raise();
                return state.connected(connection);
            }
            Err(error) => error,
        };
        if let Err(error) = self.final_answer(destination, &error) {
            let refused = Errno::CONNREFUSED.raw_os_error();
            return state.fail(error.raw_os_error().unwrap_or(refused));
        }
        match rustix::net::connect(socket, &destination) {
            Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => give_back(state, self.kernel),
            Err(errno) => state.fail(errno.raw_os_error()),
        }
    }
}

/// The number is the kernel's again, in its epoll sets, too.
fn give_back(state: &Arc<StreamState>, kernel: &'static dyn Kernel) {
    state.give_to_kernel(|looped, fd, interest| {
        let (flags, data) = (interest.flags().bits(), interest.data());
        if let Err(error) = kernel.epoll_add(looped.number(), fd, flags, data) {
            tracing::warn!(%error, "an epoll set does not hear of a connect over TCP");
        }
    });
}
