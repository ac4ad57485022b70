//! The urgent byte of a TCP socket, and where it stands.

use std::io;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, ioctl_fionread};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use san_base::timespec;
use socket2::Socket;

/// Where the byte that was taken stands, by the bytes that were read before it.
///
/// The kernel has a call that answers this (SIOCATMARK), which no safe interface offers. It also says how
/// many bytes can be read before the mark, which is enough while the byte does not stay in the stream.
#[derive(Debug, Default)]
pub(crate) struct TcpMark(Mutex<Option<u64>>);

impl TcpMark {
    /// Takes the urgent byte. `received`: bytes of the stream that were read.
    pub(crate) fn take(&self, socket: &Socket, received: u64) -> io::Result<u8> {
        let before = ioctl_fionread(socket)?;
        let mut byte = [0];
        let (_, taken) = recv(socket, &mut byte, RecvFlags::OOB | RecvFlags::DONTWAIT)?;
        if taken == 0 {
            return Err(Errno::INVAL.into());
        }
        *self.0.lock() = Some(received + before);
        let [byte] = byte;
        Ok(byte)
    }

    /// Whether the urgent byte is next. `received`: bytes of the stream that were read.
    pub(crate) fn is_at(&self, socket: &Socket, received: u64) -> io::Result<bool> {
        if socket.out_of_band_inline()? {
            return Err(Errno::OPNOTSUPP.into());
        }
        let mut fds = [PollFd::new(socket, PollFlags::PRI)];
        poll(&mut fds, Some(&timespec(Duration::ZERO)))?;
        if fds[0].revents().contains(PollFlags::PRI) {
            return Ok(ioctl_fionread(socket)? == 0);
        }
        Ok(*self.0.lock() == Some(received))
    }
}

/// Sends a byte as urgent, without waiting if it is not to.
pub(crate) fn send_urgent(socket: &Socket, byte: u8, flags: SendFlags) -> rustix::io::Result<()> {
    send(
        socket,
        &[byte],
        flags | SendFlags::OOB | SendFlags::NOSIGNAL,
    )
    .map(drop)
}
