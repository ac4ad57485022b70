//! Calls that write.

use std::io::{self, ErrorKind};
use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;
use rustix::io::Errno;
use san_base::Deadline;
use san_stream::Kind;

use super::SanCarrier;
use super::state::State;
use crate::carrier::bulk::open_to_peer;
use crate::carrier::timeout::left;

/// The number of the kind that carries bytes of the stream.
const DATA: u8 = Kind::Data.number();

impl SanCarrier {
    /// Writes bytes: at once if they are few and nothing is staged.
    #[inline]
    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.state.lock();
        if state.plain
            && bytes.len() <= self.message_limit
            && !bytes.is_empty()
            && let Some(data) = &self.data
            && data.try_send(bytes, DATA).is_ok()
        {
            state.plain_sent += bytes.len();
            drop(state);
            self.serve_mail();
            return Ok(bytes.len());
        }
        self.write_slowly(state, bytes)
    }

    #[cold]
    #[inline(never)]
    fn write_slowly<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        bytes: &[u8],
    ) -> io::Result<usize> {
        state.catch_up(self.read.load(Ordering::Relaxed));
        let data = self.data()?;
        let deadline = self.timeouts.send.deadline();
        let mut written = 0;
        loop {
            let rest = bytes.get(written..).unwrap_or_default();
            let taken = if rest.is_empty() && written > 0 {
                Ok(Some(0))
            } else if rest.is_empty() {
                state.check_open().map(|()| Some(0))
            } else {
                state.write(data, rest)
            };
            let memory = state.ring_to_open();
            self.unlock(state);
            if let Some(memory) = memory {
                self.open_ring(&memory);
            }
            match taken {
                Ok(Some(taken)) => {
                    written += taken;
                    if written == bytes.len() {
                        return Ok(written);
                    }
                }
                Ok(None) => {
                    if let Err(error) = self.wait_for_room(deadline) {
                        return if written > 0 { Ok(written) } else { Err(error) };
                    }
                }
                // What was taken is taken: the error comes with the next call.
                Err(error) if written > 0 => {
                    self.keep_error(&error);
                    return Ok(written);
                }
                Err(error) => return Err(error),
            }
            (state, _) = self.lock();
        }
    }

    fn keep_error(&self, error: &io::Error) {
        let (mut state, _) = self.lock();
        if (state.is_broken() || state.is_over())
            && error.raw_os_error() != Some(Errno::PIPE.raw_os_error())
        {
            state.error = error.raw_os_error();
        }
        self.unlock(state);
    }

    /// Opens the ring to the peer. It waits for the transport, so nobody has the lock meanwhile.
    fn open_ring(&self, memory: &san_provider::SharedMemory) {
        let opened = open_to_peer(self.spi(), memory);
        let (mut state, data) = self.lock();
        match (opened, data) {
            (Ok((ring, handle)), Some(data)) => state.ring_opened(data, ring, handle),
            (Err(error), _) => {
                state.ring_not_opened();
                // Everything goes by messages.
                tracing::debug!(%error, peer = %self.peer, "bulk cannot be opened to the peer");
            }
            (Ok(_), None) => {}
        }
        self.unlock(state);
    }

    /// Waits until a write takes a byte, or fails.
    pub(super) fn wait_for_room(&self, deadline: Deadline) -> io::Result<()> {
        let turn = match deadline.instant() {
            None => Some(self.waiting_to_write.lock()),
            Some(instant) => self.waiting_to_write.try_lock_until(instant),
        };
        let Some(_turn) = turn else {
            return Err(Errno::AGAIN.into());
        };
        let data = self.data()?;
        loop {
            self.room.store(false, Ordering::SeqCst);
            let (state, _) = self.lock();
            let has_room = state.has_room() || state.opens_ring;
            self.release(state);
            if has_room {
                return Ok(());
            }
            if !data.wait_for(&self.room, left(deadline)) && deadline.is_over() {
                let (state, _) = self.lock();
                let has_room = state.has_room();
                self.release(state);
                return if has_room {
                    Ok(())
                } else {
                    Err(Errno::AGAIN.into())
                };
            }
        }
    }

    /// Ends our stream: END follows what is staged.
    pub(super) fn shut_writing(&self) -> io::Result<()> {
        let data = self.data()?;
        let mut state = self.lock_unfrozen();
        let result = if state.is_closed {
            Ok(())
        } else {
            // As TCP: a peer that has ended both streams and gone is no error here, only for a write.
            let open = match state.check_open() {
                Err(error) if error.kind() == ErrorKind::BrokenPipe && !state.is_broken() => Ok(()),
                open => open,
            };
            state.close(data);
            open
        };
        self.unlock(state);
        result
    }
}
