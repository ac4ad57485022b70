//! Calls that move bytes on a program's stream, as far as the SAN serves them.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::blocking::Waiting;
use super::stream::Stream;
use super::timeouts::Wanted;
use crate::carrier::fill;
use crate::net::connection::Connection;
use crate::readiness::Events;

/// Bytes of parts that are gathered into one message.
const GATHERED: usize = 4096;
/// Bytes that FIONREAD counts at most.
const COUNTED: usize = 64 * 1024;
/// Bytes that a send takes at a time which must not wait, though the socket is in blocking mode.
const PIECE: usize = 4096;
/// How a receive differs from read(2).
#[derive(Debug, Clone, Copy, Default)]
pub struct Receiving {
    /// It must not wait.
    pub at_once: bool,
    /// The bytes stay.
    pub peek: bool,
    /// It waits until the buffers are full.
    pub all: bool,
    /// It wants urgent data.
    pub urgent: bool,
}

/// How a send differs from write(2).
#[derive(Debug, Clone, Copy, Default)]
pub struct Sending {
    /// It must not wait.
    pub at_once: bool,
    /// It sends urgent data.
    pub urgent: bool,
}
impl Stream {
    /// Receives bytes; 0 is the end. `None`: ask the kernel.
    ///
    /// # Errors
    /// As recv(2).
    pub fn receive(
        &self,
        buffers: &mut [IoSliceMut<'_>],
        how: Receiving,
    ) -> io::Result<Option<usize>> {
        let Some(connection) = self.connection()? else {
            return Ok(None);
        };
        if how.urgent {
            return Self::receive_urgent(&connection, buffers).map(Some);
        }
        let is_nonblocking = self.is_nonblocking();
        if how.at_once && !is_nonblocking && !holds(&connection, Events::READABLE) {
            return Err(Errno::AGAIN.into());
        }
        let mut waiting = Waiting::new(self, Wanted::Bytes, !how.at_once);
        if how.peek {
            return match buffers.iter_mut().find(|buffer| !buffer.is_empty()) {
                Some(buffer) => waiting
                    .until(&connection, || connection.peek(buffer))
                    .map(Some),
                None => Ok(Some(0)),
            };
        }
        if how.all && !how.at_once && !is_nonblocking {
            let all = fill(buffers, |_, bytes| {
                waiting.until(&connection, || connection.receive(bytes))
            });
            return all.map(Some);
        }
        let received = match buffers {
            [buffer] => waiting.until(&connection, || connection.receive(buffer)),
            buffers => waiting.until(&connection, || connection.receive_vectored(buffers)),
        };
        received.map(Some)
    }

    /// Sends bytes. `None`: ask the kernel.
    ///
    /// # Errors
    /// As send(2).
    pub fn send(&self, parts: &[IoSlice<'_>], how: Sending) -> io::Result<Option<usize>> {
        let Some(connection) = self.connection()? else {
            return Ok(None);
        };
        if let Some(errno) = self.take_failure() {
            return Err(io::Error::from_raw_os_error(errno));
        }
        if how.urgent {
            return self.send_urgent(&connection, parts).map(Some);
        }
        if how.at_once && !self.is_nonblocking() {
            return send_at_once(&connection, parts).map(Some);
        }
        match parts {
            [part] => self.send_part(&connection, part).map(Some),
            parts => self.send_gathered(&connection, parts).map(Some),
        }
    }

    /// Sends bytes, all of them in blocking mode.
    #[inline]
    pub(super) fn send_part(&self, connection: &Connection, part: &[u8]) -> io::Result<usize> {
        let sent = connection.send(part);
        match sent {
            Ok(sent) if sent == part.len() => Ok(sent),
            sent if self.is_nonblocking() => sent,
            sent => self.send_rest(connection, part, sent),
        }
    }

    #[cold]
    fn send_rest(
        &self,
        connection: &Connection,
        part: &[u8],
        before: io::Result<usize>,
    ) -> io::Result<usize> {
        let mut waiting = Waiting::new(self, Wanted::Room, true);
        let mut outcome = Some(before);
        let mut sent = 0;
        loop {
            // The first attempt was made already.
            let took = waiting.until(connection, || match outcome.take() {
                Some(outcome) => outcome,
                None => connection.send(&part[sent..]),
            });
            match took {
                Ok(took) => sent += took,
                Err(error) if sent > 0 => {
                    self.keep(&error);
                    return Ok(sent);
                }
                Err(error) => return Err(error),
            }
            if sent == part.len() {
                return Ok(sent);
            }
        }
    }

    /// A write has taken bytes and then failed: the next one says why.
    fn keep(&self, error: &io::Error) {
        let comes_again = matches!(
            error.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::BrokenPipe
        );
        if !comes_again && let Some(errno) = error.raw_os_error() {
            self.state().error.store(errno, Ordering::Release);
        }
    }

    /// Sends several parts; small ones together go as one message.
    fn send_gathered(&self, connection: &Connection, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        if total <= GATHERED {
            let mut gathered = [0; GATHERED];
            let mut end = 0;
            for part in parts {
                gathered[end..end + part.len()].copy_from_slice(part);
                end += part.len();
            }
            return self.send_part(connection, &gathered[..end]);
        }
        let mut sent = 0;
        for part in parts.iter().filter(|part| !part.is_empty()) {
            match self.send_part(connection, part) {
                Ok(taken) => {
                    sent += taken;
                    if taken < part.len() {
                        break;
                    }
                }
                Err(error) if sent > 0 => {
                    self.keep(&error);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(sent)
    }

    /// Sends from a file, as sendfile(2). `None`: ask the kernel.
    ///
    /// # Errors
    /// As sendfile(2).
    pub fn send_file(
        &self,
        from: BorrowedFd<'_>,
        offset: Option<&mut i64>,
        count: usize,
    ) -> io::Result<Option<usize>> {
        let Some(connection) = self.connection()? else {
            return Ok(None);
        };
        let start = match &offset {
            Some(offset) => u64::try_from(**offset).map_err(|_| Errno::INVAL)?,
            None => rustix::fs::tell(from)?,
        };
        let sent = self.send_from(&connection, from, start, count)?;
        let end = start + sent as u64;
        match offset {
            Some(offset) => *offset = i64::try_from(end).map_err(|_| Errno::OVERFLOW)?,
            None => {
                rustix::fs::seek(from, rustix::fs::SeekFrom::Start(end))?;
            }
        }
        Ok(Some(sent))
    }

    fn send_from(
        &self,
        connection: &Connection,
        from: BorrowedFd<'_>,
        start: u64,
        count: usize,
    ) -> io::Result<usize> {
        let mut waiting = Waiting::new(self, Wanted::Room, true);
        let mut sent = 0;
        while sent < count {
            let at = start.saturating_add(sent as u64);
            match waiting.until(connection, || connection.send_file(from, at, count - sent)) {
                // The end of the file.
                Ok(0) => break,
                Ok(took) => sent += took,
                Err(error) if sent > 0 => {
                    self.keep(&error);
                    break;
                }
                Err(error) => return Err(error),
            }
            if self.is_nonblocking() {
                break;
            }
        }
        Ok(sent)
    }

    /// Bytes that a receive would give at once, as far as they are counted (FIONREAD). `None`: ask the
    /// kernel.
    ///
    /// # Errors
    /// As recv(2).
    pub fn waiting_bytes(&self) -> io::Result<Option<usize>> {
        let Some(connection) = self.connection()?.filter(|_| !self.is_on_tcp()) else {
            return Ok(None);
        };
        if !holds(&connection, Events::READABLE) {
            return Ok(Some(0));
        }
        connection.peek(&mut vec![0; COUNTED]).map(Some)
    }

    /// The kernel moves nothing between a pipe and the SAN.
    ///
    /// # Errors
    /// EINVAL, with which splice(2) has programs copy.
    pub fn splice(&self) -> io::Result<Option<usize>> {
        match self.connection()? {
            None => Ok(None),
            Some(_) => Err(Errno::INVAL.into()),
        }
    }
}

/// Whether this is the case, after a look at the lane.
fn holds(connection: &Connection, events: Events) -> bool {
    if connection.events().contains(events) {
        return true;
    }
    if let Some(lane) = connection.lane() {
        lane.poll();
    }
    connection.events().contains(events)
}

/// Sends as much as goes without waiting.
fn send_at_once(connection: &Connection, parts: &[IoSlice<'_>]) -> io::Result<usize> {
    let mut sent = 0;
    for piece in parts.iter().flat_map(|part| part.chunks(PIECE)) {
        if !holds(connection, Events::WRITABLE) {
            break;
        }
        match connection.send(piece) {
            Ok(taken) => sent += taken,
            Err(_) if sent > 0 => break,
            Err(error) => return Err(error),
        }
    }
    match sent {
        0 if parts.iter().any(|part| !part.is_empty()) => Err(Errno::AGAIN.into()),
        sent => Ok(sent),
    }
}
