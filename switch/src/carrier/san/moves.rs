//! A stream that goes to another process (duties 53 to 59), in the process that has it and in the one that
//! takes it up. How the one tells the other is in `net/handover/`.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::MutexGuard;
use rustix::io::Errno;
use san_base::Deadline;
use san_provider::{Duplicate, WsaCode};
use serde::{Deserialize, Serialize};

use super::read::Reading;
use super::state::State;
use super::state::moves::Kept;
pub(crate) use super::state::moves::KeptBytes;
use super::{Parts, SanCarrier};
use crate::carrier::timeout::{Timeouts, left};

/// Between two looks at whether the peer has answered.
const LOOK: Duration = Duration::from_millis(20);

/// A stream on its way, without the bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    kept: Kept,
    is_reading_shut: bool,
    linger: Option<Duration>,
    is_nonblocking: bool,
    receive_timeout: Option<Duration>,
    send_timeout: Option<Duration>,
}

/// The bytes beside it.
#[derive(Debug, Clone, Default)]
pub(crate) struct RecordBytes {
    pub(crate) kept: KeptBytes,
    /// Those that a peek has kept.
    pub(crate) peeked: Vec<u8>,
    /// The provider's.
    pub(crate) duplicate: Vec<u8>,
}

/// A stream that begins, or goes on.
pub(super) struct Arrival {
    pub(super) state: State,
    pub(super) reading: Reading,
    pub(super) is_reading_shut: bool,
    pub(super) linger: Option<Duration>,
}

impl Arrival {
    /// One that begins.
    pub(super) fn nothing(state: State) -> Self {
        Self {
            state,
            reading: Reading::default(),
            is_reading_shut: false,
            linger: None,
        }
    }
}

impl SanCarrier {
    /// Whether it could be handed over.
    ///
    /// # Errors
    /// EOPNOTSUPP: the peer cannot wait; ENOTCONN: it is over, or gone already.
    pub(crate) fn check_depart(&self) -> io::Result<()> {
        if !self.peer_rests {
            return Err(Errno::OPNOTSUPP.into());
        }
        let (state, _) = self.lock();
        let is_over = state.is_over() || state.is_broken();
        self.release(state);
        match is_over {
            true => Err(Errno::NOTCONN.into()),
            false => Ok(()),
        }
    }

    /// Hands the stream to the process `target`. Calls that are under way are waited for; others that would
    /// change something wait. After success every call says ENOTCONN, and the stream is of no use but to be
    /// dropped.
    ///
    /// # Errors
    /// ETIMEDOUT: a call of another thread goes on, or the peer does not answer; EBUSY: the peer moves;
    /// EOPNOTSUPP: the peer cannot wait; ENOTCONN: it is over, or gone already. The stream goes on then.
    /// ECONNRESET: it does not.
    pub(crate) fn depart(
        &self,
        target: u32,
        deadline: Deadline,
    ) -> io::Result<(Record, RecordBytes)> {
        self.check_depart()?;
        let timed_out = || io::Error::from(Errno::TIMEDOUT);
        let until = deadline.instant().ok_or_else(timed_out)?;
        let reading = self.reading.try_lock_until(until).ok_or_else(timed_out)?;
        let turn = self.waiting_to_write.try_lock_until(until);
        let _turn = turn.ok_or_else(timed_out)?;
        self.suspend(deadline)?;
        let (mut state, data) = self.lock();
        let frozen = state.freeze();
        self.release(state);
        let Some(((kept, kept_bytes), data)) = frozen.zip(data) else {
            self.stay();
            return Err(Errno::NOTCONN.into());
        };
        let duplicate = match self.spi().duplicate(target) {
            Ok(duplicate) => duplicate,
            Err(error) => {
                tracing::debug!(%error, peer = %self.peer, "the stream does not move");
                self.stay();
                return Err(match error.code() {
                    WsaCode::NoBuffers => Errno::BUSY.into(),
                    _ => io::Error::from_raw_os_error(error.errno()),
                });
            }
        };
        let mut state = self.state.lock();
        state.moved(data);
        self.unlock(state);
        let peeked = reading.peeked.iter().copied().collect();
        let record = Record {
            kept,
            is_reading_shut: self.reading_shut.load(Ordering::Acquire),
            linger: *self.linger.lock(),
            is_nonblocking: self.timeouts.receive.is_nonblocking(),
            receive_timeout: self.timeouts.receive.wanted(),
            send_timeout: self.timeouts.send.wanted(),
        };
        let bytes = RecordBytes {
            kept: kept_bytes,
            peeked,
            duplicate: duplicate.as_bytes().to_vec(),
        };
        Ok((record, bytes))
    }

    /// Both ends rest when this returns.
    fn suspend(&self, deadline: Deadline) -> io::Result<()> {
        let data = self.data()?;
        let (mut state, _) = self.lock();
        let has_begun = state.suspend(data);
        self.unlock(state);
        if !has_begun {
            return Err(Errno::BUSY.into());
        }
        loop {
            self.room.store(false, Ordering::SeqCst);
            let (mut state, _) = self.lock();
            state.look_for_end(data);
            let is_over = state.is_over() || state.is_broken();
            let may_move = state.may_move;
            self.unlock(state);
            let why = match may_move {
                Some(true) => return Ok(()),
                // It is under way already that this end stays.
                Some(false) => return Err(Errno::BUSY.into()),
                None if is_over => Errno::CONNRESET,
                None if deadline.is_over() => Errno::TIMEDOUT,
                None => {
                    let _ = data.wait_for(&self.room, left(deadline).min(LOOK));
                    continue;
                }
            };
            self.stay();
            return Err(why.into());
        }
    }

    fn stay(&self) {
        let (mut state, data) = self.lock();
        if let Some(data) = data {
            state.stay(data);
        }
        self.unlock(state);
    }

    /// Whether another process has it.
    pub(crate) fn has_moved(&self) -> bool {
        self.state.lock().has_moved
    }

    /// The lock, once the stream is not on its way to another process, or there.
    pub(super) fn lock_unfrozen(&self) -> MutexGuard<'_, State> {
        loop {
            let (state, _) = self.lock();
            if !state.is_frozen {
                return state;
            }
            self.release(state);
            // Whoever moves it has this, and not for long.
            drop(self.waiting_to_write.lock());
        }
    }

    /// Takes the ring away from the peer. It may take time, so nobody has the lock.
    pub(super) fn close_ring(&self) {
        let handle = self.state.lock().take_ring_to_close();
        if let Some(handle) = handle
            && let Err(error) = self.spi().deregister_rdma_memory(handle)
        {
            tracing::debug!(%error, "a ring was closed before");
        }
    }

    /// Takes up a stream of another process, whose connection is `parts.socket`.
    ///
    /// # Errors
    /// EINVAL of a kind of its own (`InvalidData`): what came is of no stream.
    pub(crate) fn take_up(
        parts: Parts,
        record: Record,
        bytes: &RecordBytes,
    ) -> io::Result<Arc<Self>> {
        let timeouts = Timeouts::new(None);
        timeouts.receive.set(record.receive_timeout);
        timeouts.send.set(record.send_timeout);
        timeouts.receive.set_nonblocking(record.is_nonblocking);
        timeouts.send.set_nonblocking(record.is_nonblocking);
        let carrier = Self::with(parts, timeouts, |config| {
            Ok::<_, io::Error>(Arrival {
                state: State::taken_up(config, record.kept, &bytes.kept)?,
                reading: Reading {
                    peeked: bytes.peeked.iter().copied().collect(),
                    ..Reading::default()
                },
                is_reading_shut: record.is_reading_shut,
                linger: record.linger,
            })
        })?;
        let (mut state, data) = carrier.lock();
        if let Some(data) = data {
            state.pump(data);
        }
        carrier.unlock(state);
        Ok(carrier)
    }

    /// The connection that `duplicate` is about, checked.
    ///
    /// # Errors
    /// `InvalidData`.
    pub(crate) fn duplicate_of(bytes: &[u8]) -> io::Result<Duplicate> {
        Duplicate::from_bytes(bytes)
            .map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why.to_string()))
    }
}
