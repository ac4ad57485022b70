//! Calls that read.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut, Read};
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::MutexGuard;
use rustix::io::Errno;
use san_base::Deadline;
use san_provider::{Receipt, Received, TransferError};
use san_stream::{Kind, Source};

use super::SanCarrier;
use crate::carrier::timeout::left;

const DATA: u8 = Kind::Data.number();

/// What the one who reads has.
#[derive(Debug, Default)]
pub(super) struct Reading {
    /// Bytes that a peek has taken, or that were urgent: the next read gets them.
    pub(super) peeked: VecDeque<u8>,
    /// The stream's next bytes come in a message, as far as is known; else the stream has to be looked at.
    pub(super) plain: bool,
}

/// What a look at the stream has found.
enum Found {
    /// So many bytes; 0: the end.
    Bytes(usize),
    /// The next messages, of so many bytes at most: what was offered comes then, whatever else is here.
    Message(usize),
    /// Something that is under way.
    UnderWay,
}

impl SanCarrier {
    /// Reads what comes in messages: all that mostly happens.
    #[inline]
    pub(super) fn read_one(&self, bytes: &mut [u8]) -> io::Result<usize> {
        if let Some(wait) = self.timeouts.receive.simple()
            && let Some(mut reading) = self.reading.try_lock_for(wait)
            && reading.plain
            && !bytes.is_empty()
            && let Some(data) = &self.data
        {
            let buffers = &mut [IoSliceMut::new(bytes)];
            let came = data.receive_unless(buffers, wait, &self.look);
            if let Receipt::Of(received) = came
                && received.kind == DATA
                && received.bytes > 0
            {
                let read = self.read.load(Ordering::Relaxed) + received.bytes as u64;
                self.read.store(read, Ordering::Relaxed);
                return Ok(received.bytes);
            }
            self.other_came(&mut reading, buffers, data.explain(came))?;
        }
        self.read(&mut [IoSliceMut::new(bytes)])
    }

    #[cold]
    #[inline(never)]
    fn other_came(
        &self,
        reading: &mut Reading,
        buffers: &[IoSliceMut<'_>],
        came: Result<Received, TransferError>,
    ) -> io::Result<()> {
        reading.plain = false;
        match came {
            Ok(received) => {
                if let Some(byte) = self.take_in(received, buffers) {
                    reading.peeked.push_back(byte);
                    self.peeked.store(reading.peeked.len(), Ordering::Release);
                }
                Ok(())
            }
            Err(error) => self.nothing_came(&error),
        }
    }

    #[cold]
    #[inline(never)]
    pub(super) fn read(&self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        if buffers.iter().all(|buffer| buffer.is_empty()) {
            return Ok(0);
        }
        let deadline = self.timeouts.receive.deadline();
        let mut reading = self.reading(deadline)?;
        if !reading.plain {
            return self.read_slowly(&mut reading, buffers, deadline);
        }
        self.read_more(&mut reading, buffers, deadline)
    }

    fn read_slowly(
        &self,
        reading: &mut Reading,
        buffers: &mut [IoSliceMut<'_>],
        deadline: Deadline,
    ) -> io::Result<usize> {
        if !reading.peeked.is_empty() {
            return self.take_peeked(reading, buffers);
        }
        self.read_more(reading, buffers, deadline)
    }

    fn take_peeked(
        &self,
        reading: &mut Reading,
        buffers: &mut [IoSliceMut<'_>],
    ) -> io::Result<usize> {
        let read = reading.peeked.read_vectored(buffers)?;
        self.peeked.store(reading.peeked.len(), Ordering::Release);
        Ok(read)
    }

    /// Reads bytes that the next read gets again.
    pub(super) fn look_at(&self, bytes: &mut [u8]) -> io::Result<usize> {
        let deadline = self.timeouts.receive.deadline();
        let mut reading = self.reading(deadline)?;
        if reading.peeked.is_empty() && !bytes.is_empty() {
            let mut buffers = [IoSliceMut::new(bytes)];
            let came = self.read_more(&mut reading, &mut buffers, deadline)?;
            reading.peeked.extend(&bytes[..came]);
            reading.plain = false;
            self.peeked.store(came, Ordering::Release);
        }
        for (place, byte) in bytes.iter_mut().zip(&reading.peeked) {
            *place = *byte;
        }
        Ok(bytes.len().min(reading.peeked.len()))
    }

    /// The right to read. Where another thread has it and waits, there is nothing to read now.
    #[inline]
    fn reading(&self, deadline: Deadline) -> io::Result<MutexGuard<'_, Reading>> {
        match self.reading.try_lock() {
            Some(reading) => Ok(reading),
            None => self.wait_for_turn(deadline),
        }
    }

    #[cold]
    #[inline(never)]
    fn wait_for_turn(&self, deadline: Deadline) -> io::Result<MutexGuard<'_, Reading>> {
        let reading = match deadline.instant() {
            None => Some(self.reading.lock()),
            Some(instant) => self.reading.try_lock_until(instant),
        };
        reading.ok_or_else(|| Errno::AGAIN.into())
    }

    /// Has the thread that waits to read look at the stream.
    pub(super) fn call_reader_off(&self) {
        self.look.store(true, Ordering::SeqCst);
        if let Some(data) = &self.data {
            data.wake();
        }
    }

    fn read_more(
        &self,
        reading: &mut Reading,
        buffers: &mut [IoSliceMut<'_>],
        deadline: Deadline,
    ) -> io::Result<usize> {
        loop {
            if (!reading.plain || self.look.load(Ordering::Acquire))
                && let Some(read) = self.look_and_wait(reading, buffers, deadline)?
            {
                return Ok(read);
            }
            if let Some(read) = self.take_message(reading, buffers, left(deadline))? {
                return Ok(read);
            }
        }
    }

    /// Takes messages. `None`: the stream has to be looked at.
    fn take_message(
        &self,
        reading: &mut Reading,
        buffers: &mut [IoSliceMut<'_>],
        wait: Duration,
    ) -> io::Result<Option<usize>> {
        match self.data()?.receive_into_unless(buffers, wait, &self.look) {
            Ok(received) if received.kind == DATA && received.bytes > 0 => {
                let read = self.read.load(Ordering::Relaxed) + received.bytes as u64;
                self.read.store(read, Ordering::Relaxed);
                return Ok(Some(received.bytes));
            }
            other => self.other_came(reading, buffers, other)?,
        }
        Ok(None)
    }

    /// Looks at the stream, and waits for what is under way. `None`: the next message is wanted, of
    /// whatever length.
    #[cold]
    #[inline(never)]
    fn look_and_wait(
        &self,
        reading: &mut Reading,
        buffers: &mut [IoSliceMut<'_>],
        deadline: Deadline,
    ) -> io::Result<Option<usize>> {
        loop {
            match self.find(reading, buffers)? {
                Found::Bytes(read) => return Ok(Some(read)),
                Found::Message(_) if reading.plain => return Ok(None),
                Found::Message(most) => {
                    let is_shut = self.reading_shut.load(Ordering::Acquire);
                    let wait = if is_shut {
                        Duration::ZERO
                    } else {
                        left(deadline)
                    };
                    let mut limited = limited(buffers, most);
                    match self.take_message(reading, &mut limited, wait) {
                        Ok(None) => {}
                        Err(error) if is_shut && error.kind() == io::ErrorKind::WouldBlock => {
                            return Ok(Some(0));
                        }
                        taken => return taken,
                    }
                }
                Found::UnderWay => {
                    let came = self.data()?.wait_for(&self.look, left(deadline));
                    if !came && deadline.is_over() && !self.look.load(Ordering::SeqCst) {
                        return Err(Errno::AGAIN.into());
                    }
                }
            }
        }
    }

    fn find(&self, reading: &mut Reading, buffers: &mut [IoSliceMut<'_>]) -> io::Result<Found> {
        // What changes from here on sets it again.
        self.look.store(false, Ordering::SeqCst);
        if !reading.peeked.is_empty() {
            return self.take_peeked(reading, buffers).map(Found::Bytes);
        }
        let data = self.data()?;
        let (mut state, _) = self.lock();
        state.post_reads(self.spi(), data);
        let found = match state.source() {
            _ if state.has_moved => state.say(Ok(Found::UnderWay)),
            _ if state.is_at_end() => Ok(Found::Bytes(0)),
            _ if state.is_broken() => state.say(Ok(Found::Bytes(0))),
            Source::Landed { position, length } => {
                let read = state.deliver(self.spi(), data, (position, length), buffers);
                Ok(Found::Bytes(read))
            }
            Source::Message => Ok(Found::Message(state.message_limit())),
            // What it waits for does not come any more.
            _ if state.is_over() => {
                state.drained();
                state.say(Ok(Found::Bytes(0)))
            }
            _ if self.reading_shut.load(Ordering::Acquire) => Ok(Found::Bytes(0)),
            _ => Ok(Found::UnderWay),
        };
        let is_shut = self.reading_shut.load(Ordering::Acquire);
        reading.plain = matches!(found, Ok(Found::Message(_)))
            && !state.has_bulk()
            && !is_shut
            && reading.peeked.is_empty();
        self.unlock(state);
        found
    }

    /// A message that is none of the stream's plain bytes; it lies in the buffers. Returns a byte that was
    /// urgent and is none any more.
    #[cold]
    #[inline(never)]
    fn take_in(&self, received: Received, buffers: &[IoSliceMut<'_>]) -> Option<u8> {
        let all = buffers.iter().flat_map(|buffer| buffer.iter().copied());
        let bytes: Vec<u8> = all.take(received.bytes).collect();
        let (mut state, _) = self.lock();
        state.message(received.kind, &bytes);
        let byte = state.urgent.take_in_stream();
        self.unlock(state);
        byte
    }

    /// Nothing was read: called off, not in time, or the connection is over.
    #[cold]
    #[inline(never)]
    fn nothing_came(&self, error: &TransferError) -> io::Result<()> {
        if matches!(error, TransferError::WouldBlock) {
            return if self.look.load(Ordering::SeqCst) {
                Ok(())
            } else {
                Err(Errno::AGAIN.into())
            };
        }
        let (mut state, data) = self.lock();
        if let Some(data) = data {
            state.note_over(data, error.errno());
        }
        // No message comes any more, so nothing stands before what was offered and is not here.
        if state.source() == Source::Message {
            state.drained();
        }
        self.unlock(state);
        Ok(())
    }
}

/// The first `most` bytes of the buffers.
fn limited<'a>(buffers: &'a mut [IoSliceMut<'_>], mut most: usize) -> Vec<IoSliceMut<'a>> {
    let mut limited = Vec::with_capacity(buffers.len());
    for buffer in buffers {
        let length = buffer.len().min(most);
        most -= length;
        limited.push(IoSliceMut::new(&mut buffer[..length]));
    }
    limited
}
