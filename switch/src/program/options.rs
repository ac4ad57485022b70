//! Options of a program's socket that the SAN's side of it has to know, and urgent data.
//!
//! The kernel keeps each option, and tells its value: the number is a socket of the kernel's. A stream of the
//! direct route gets what was set before it was connected, too. A connection that may move has TCP's urgent
//! data: it comes back before ([`Stream::to_kernel`]).

use std::io::{self, IoSlice};
use std::time::Duration;

use super::blocking::Waiting;
use super::stream::Stream;
use super::timeouts::Wanted;
use crate::carrier::info::StreamState;
use crate::net::connection::Connection;

/// An option that was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetOption {
    /// SO_LINGER: how long; none: off.
    Linger(Option<Duration>),
    /// SO_OOBINLINE.
    UrgentInline(bool),
    /// SO_SNDBUF, in bytes.
    SendBuffer(usize),
    /// SO_RCVBUF, in bytes.
    ReceiveBuffer(usize),
}

/// What TCP_INFO tells of a stream over the SAN: the fields of its structure that mean something there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpInfo {
    /// `tcpi_state`.
    pub state: u8,
    /// `tcpi_snd_mss` and `tcpi_rcv_mss`: bytes of a message.
    pub message: u32,
    /// `tcpi_unacked`: messages.
    pub unacknowledged: u32,
    /// `tcpi_bytes_acked`: bytes that have left.
    pub sent: u64,
    /// `tcpi_bytes_received`.
    pub received: u64,
    /// `tcpi_notsent_bytes`.
    pub unsent: u32,
}

/// Bytes of the largest message that any peer takes.
const MESSAGE: u32 = 4096;

impl Stream {
    /// The kernel has set this option. `None`: that is all there is to do.
    ///
    /// # Errors
    /// None so far.
    pub fn set_option(&self, option: SetOption) -> io::Result<Option<()>> {
        if self.is_upgrading() {
            return Ok(None);
        }
        let Ok(Some(connection)) = self.connection() else {
            return Ok(None);
        };
        match option {
            SetOption::Linger(linger) => connection.set_linger(linger)?,
            SetOption::UrgentInline(on) => connection.set_urgent_inline(on)?,
            SetOption::SendBuffer(bytes) => connection.set_send_buffer_size(bytes)?,
            SetOption::ReceiveBuffer(bytes) => connection.set_receive_buffer_size(bytes)?,
        }
        Ok(Some(()))
    }

    /// What TCP_INFO is to tell. `None`: ask the kernel.
    ///
    /// # Errors
    /// None so far.
    pub fn tcp_info(&self) -> io::Result<Option<TcpInfo>> {
        if self.is_on_tcp() {
            return Ok(None);
        }
        let Ok(Some(connection)) = self.connection() else {
            return Ok(None);
        };
        let info = connection.info();
        let unsent = info.bytes_unsent.unwrap_or(0);
        Ok(Some(TcpInfo {
            // The numbers of the kernel: ESTABLISHED, FIN_WAIT2, CLOSE_WAIT, CLOSE.
            state: match info.state {
                StreamState::Open => 1,
                StreamState::Ended => 5,
                StreamState::PeerEnded => 8,
                StreamState::Over => 7,
            },
            message: MESSAGE,
            unacknowledged: info.messages_unacknowledged.unwrap_or(0),
            sent: info.bytes_sent.saturating_sub(unsent),
            received: info.bytes_received,
            unsent: u32::try_from(unsent).unwrap_or(u32::MAX),
        }))
    }

    /// Whether the urgent byte is next (SIOCATMARK). `None`: ask the kernel.
    ///
    /// # Errors
    /// As ioctl(2).
    pub fn is_at_mark(&self) -> io::Result<Option<bool>> {
        match self.connection()? {
            Some(connection) => connection.is_at_mark().map(Some),
            None => Ok(None),
        }
    }

    /// Takes the urgent byte.
    pub(super) fn receive_urgent(
        connection: &Connection,
        buffers: &mut [io::IoSliceMut<'_>],
    ) -> io::Result<usize> {
        let byte = connection.receive_urgent()?;
        // One that does not fit is thrown away, as the kernel does.
        let place = buffers.iter_mut().find(|buffer| !buffer.is_empty());
        Ok(place.map_or(0, |buffer| {
            buffer[0] = byte;
            1
        }))
    }

    /// Sends bytes of which the last one is urgent.
    pub(super) fn send_urgent(
        &self,
        connection: &Connection,
        parts: &[IoSlice<'_>],
    ) -> io::Result<usize> {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let Some(before) = total.checked_sub(1) else {
            return Ok(0);
        };
        let mut sent = 0;
        let mut urgent = None;
        for part in parts.iter().filter(|part| !part.is_empty()) {
            let plain = part.len().min(before - sent);
            urgent = part.get(plain).copied();
            if plain > 0 {
                let took = self.send_part(connection, &part[..plain])?;
                sent += took;
                if took < plain {
                    return Ok(sent);
                }
            }
        }
        let Some(byte) = urgent else { return Ok(sent) };
        let mut waiting = Waiting::new(self, Wanted::Room, true);
        match waiting.until(connection, || connection.send_urgent(byte)) {
            Ok(()) => Ok(total),
            Err(_) if sent > 0 => Ok(sent),
            Err(error) => Err(error),
        }
    }
}
