//! What the switch does for applications in one call (duties 31, 50): an accept that waits for the first
//! bytes, and the sending of a file.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::io::{Errno, pread};
use san_base::Deadline;

use super::connection::Connection;
use super::listener::Listener;
use crate::error::AcceptError;

/// Bytes of a file that are read at a time.
const PIECE: usize = 64 * 1024;
/// The shortest wait that a socket can be told.
const SHORTEST: Duration = Duration::from_millis(1);

impl Listener {
    /// Waits for a connection and for its first bytes, as AcceptEx with a buffer: how many came; 0: the peer
    /// ended its stream. Connections that come later wait meanwhile. A peer that goes before it has said
    /// anything is forgotten, and the next one waited for. `timeout` is for both waits together.
    ///
    /// # Errors
    /// [`AcceptError::TimedOut`], and a connection whose peer has said nothing by then is closed. The
    /// others of [`Listener::accept`].
    pub fn accept_with_data(
        &self,
        bytes: &mut [u8],
        timeout: Option<Duration>,
    ) -> Result<(Connection, usize), AcceptError> {
        let deadline = Deadline::after(timeout);
        loop {
            let connection = self.accept_by(deadline)?;
            match first_bytes(&connection, bytes, deadline) {
                Ok(came) => return Ok((connection, came)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(AcceptError::TimedOut);
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                Err(error) => return Err(AcceptError::System(error)),
            }
        }
    }
}

fn first_bytes(connection: &Connection, bytes: &mut [u8], deadline: Deadline) -> io::Result<usize> {
    let usual = connection.receive_timeout()?;
    let wait = deadline.left().map(|left| left.max(SHORTEST));
    connection.set_receive_timeout(wait)?;
    let came = connection.receive(bytes)?;
    connection.set_receive_timeout(usual)?;
    Ok(came)
}

impl Connection {
    /// Sends bytes of a file from a place on, up to the file's end, as sendfile(2): how many were sent. It
    /// takes as many as [`Connection::send`] would.
    ///
    /// # Errors
    /// As [`Connection::send`] and pread(2), if nothing was sent.
    pub fn send_file(&self, file: impl AsFd, from: u64, count: usize) -> io::Result<usize> {
        let mut buffer = vec![0; count.clamp(1, PIECE)];
        let mut sent = 0;
        while sent < count {
            let wanted = buffer.len().min(count - sent);
            let place = from.checked_add(sent as u64).ok_or(Errno::OVERFLOW)?;
            let bytes = match pread(&file, &mut buffer[..wanted], place) {
                Ok(0) => break,
                Ok(bytes) => bytes,
                Err(_) if sent > 0 => break,
                Err(errno) => return Err(errno.into()),
            };
            match self.send(&buffer[..bytes]) {
                Ok(taken) => {
                    sent += taken;
                    if taken < bytes {
                        break;
                    }
                }
                Err(_) if sent > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(sent)
    }
}
