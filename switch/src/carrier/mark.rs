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
/// many bytes can be read before the mark while the byte does not stay in the stream, and a read ends
/// before one that does.
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
        let mut fds = [PollFd::new(socket, PollFlags::PRI)];
        poll(&mut fds, Some(&timespec(Duration::ZERO)))?;
        let is_told = fds[0].revents().contains(PollFlags::PRI);
        match (is_told, socket.out_of_band_inline()?) {
            (true, false) => Ok(ioctl_fionread(socket)? == 0),
            (true, true) => begins_with_mark(socket),
            (false, false) => Ok(*self.0.lock() == Some(received)),
            // It is read.
            (false, true) => Ok(false),
        }
    }
}

/// Whether the urgent byte, which is here and stays in the stream, is the next one: then a read of all
/// that is here goes on to its end.
fn begins_with_mark(socket: &Socket) -> io::Result<bool> {
    let here = usize::try_from(ioctl_fionread(socket)?).unwrap_or(usize::MAX);
    // Nothing is copied (MSG_TRUNC): the kernel only counts.
    let mut room = vec![0; here];
    let flags = RecvFlags::PEEK | RecvFlags::TRUNC | RecvFlags::DONTWAIT;
    match recv(socket, room.as_mut_slice(), flags) {
        Ok((_, counted)) => Ok(counted == here),
        Err(Errno::AGAIN) => Ok(false),
        Err(errno) => Err(errno.into()),
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
