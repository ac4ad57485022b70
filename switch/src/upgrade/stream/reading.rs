//! Reading: past the stream's lock where nothing but messages is to be expected, else with a look at the
//! stream, and a wait at whichever carrier has the next bytes.

use std::io::{self, IoSliceMut};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::PollFlags;
use rustix::io::Errno;
use san_base::Deadline;
use san_provider::{DataPath, TransferError};
use san_stream::Kind;

use super::{DRAIN, MovingStream};
use crate::carrier::timeout::left;
use crate::upgrade::mover::{Mover, Reading};

/// What the one who reads has.
#[derive(Debug, Default)]
pub(super) struct ReadSide {
    /// The stream's next bytes come here and in messages, as far as is known; else the stream has to be
    /// looked at.
    plain: Option<DataPath>,
}

impl ReadSide {
    /// The next read looks at the stream.
    pub(super) fn forget(&mut self) {
        self.plain = None;
    }
}

impl MovingStream {
    pub(super) fn receive_by(&self, bytes: &mut [u8], deadline: Deadline) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let mut reading = self.reading.lock();
        if !self.receives_over.load(Ordering::SeqCst) {
            match self.receive_or_wait(&mut reading, bytes, deadline, &self.receives_over) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => return outcome,
            }
            if !self.receives_over.load(Ordering::SeqCst) {
                return Err(Errno::AGAIN.into());
            }
        }
        // What had come before is read still; nothing is waited for.
        let never = AtomicBool::new(false);
        match self.receive_or_wait(&mut reading, bytes, Deadline::passed(), &never) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            outcome => outcome,
        }
    }

    /// EAGAIN: nothing came in time, or the wait was called off.
    fn receive_or_wait(
        &self,
        reading: &mut ReadSide,
        bytes: &mut [u8],
        deadline: Deadline,
        called_off: &AtomicBool,
    ) -> io::Result<usize> {
        reading.plain = None;
        loop {
            // What changes from here on sets it again.
            self.look.store(false, Ordering::SeqCst);
            if called_off.load(Ordering::SeqCst) {
                return Err(Errno::AGAIN.into());
            }
            match self.with(|mover, around| {
                mover.progress(around);
                mover.read(around, bytes)
            }) {
                Reading::Read(n) => {
                    self.count_read(n);
                    return Ok(n);
                }
                Reading::Failed(error) => return Err(error),
                Reading::Drain => {
                    if !self.with(Mover::drain) {
                        std::thread::sleep(DRAIN);
                    }
                }
                Reading::Receive {
                    data,
                    limit,
                    is_plain,
                } => {
                    let most = bytes.len().min(limit);
                    let into = &mut bytes[..most];
                    let wait = left(deadline);
                    match data.receive_into_unless(&mut [IoSliceMut::new(into)], wait, &self.look) {
                        Ok(came) => {
                            let taken = self.took(came.kind, &bytes[..came.bytes]);
                            if taken > 0 {
                                // Behind the end nothing comes, and the next read says so at once.
                                reading.plain = is_plain.then_some(data);
                                return Ok(taken);
                            }
                        }
                        Err(TransferError::WouldBlock) => self.has_time(deadline)?,
                        Err(_) => self.with(Mover::broken),
                    }
                }
                Reading::AwaitBulk(data) => {
                    if !data.wait_for(&self.look, left(deadline)) {
                        self.has_time(deadline)?;
                    }
                }
                Reading::AwaitTcp => {
                    self.wait(
                        &self.read_wake,
                        Some(PollFlags::IN | PollFlags::RDHUP),
                        deadline,
                    )?;
                }
                Reading::Await => self.wait(&self.read_wake, None, deadline)?,
            }
        }
    }

    /// EAGAIN: nothing came, and the time is over.
    fn has_time(&self, deadline: Deadline) -> io::Result<()> {
        match deadline.is_over() && !self.look.load(Ordering::SeqCst) {
            true => Err(Errno::AGAIN.into()),
            false => Ok(()),
        }
    }

    /// A message was taken straight into the application's buffer: how many of its bytes are the
    /// application's now.
    fn took(&self, kind: u8, bytes: &[u8]) -> usize {
        let taken = self.with(|mover, around| mover.received(around, kind, bytes));
        if taken > 0 {
            self.count_read(taken);
        }
        taken
    }

    fn count_read(&self, n: usize) {
        self.counters.messages_received.raise();
        self.counters.bytes_received.add(n as u64);
    }

    /// Takes the stream's next bytes, where they come in messages and nothing else is to be done: all that
    /// mostly happens on the queue pair. `None`: the stream has to be looked at.
    #[inline]
    pub(super) fn receive_plain(&self, bytes: &mut [u8]) -> Option<io::Result<usize>> {
        let mut reading = self.reading.try_lock()?;
        let data = reading.plain.as_ref().filter(|_| !bytes.is_empty())?;
        let wait = self.timeouts.receive.simple()?;
        match data.receive_into_unless(&mut [IoSliceMut::new(bytes)], wait, &self.look) {
            Ok(came) if came.kind == Kind::Data.number() && came.bytes > 0 => {
                let read = self.read.load(Ordering::Relaxed) + came.bytes as u64;
                self.read.store(read, Ordering::Release);
                self.count_read(came.bytes);
                Some(Ok(came.bytes))
            }
            Ok(came) => {
                reading.plain = None;
                let taken = self.took(came.kind, &bytes[..came.bytes]);
                (taken > 0).then_some(Ok(taken))
            }
            Err(TransferError::WouldBlock) if !self.look.load(Ordering::SeqCst) => {
                Some(Err(Errno::AGAIN.into()))
            }
            Err(_) => {
                reading.plain = None;
                None
            }
        }
    }
}
