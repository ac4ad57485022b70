//! RDMA READ and RDMA WRITE between registered memory and what the peer has opened, and the opening
//! of own memory.
//!
//! Both are overlapped operations as sends are, start in the order of the calls among sends and
//! each other, and need no credit and nothing of the peer's. One operation is one work request.

use std::sync::Arc;
use std::time::Duration;

use verbs_shim::{
    Access, Binding, MAX_PIECES, MemoryWindow, Payload, Pieces, RegionSlice, RemoteMemory,
    SendRequest, Verb,
};

use super::completions::post;
use super::{Connection, Qp, State};
use crate::error::{RegisterError, TransferError};
use crate::memory::Segment;
use crate::time::Deadline;
use crate::transfer::engine::{Ending, Notification, Operation};
use crate::wire::Descriptor;

/// Pieces of registered memory that one RDMA operation can gather from or scatter to.
pub const MAX_SEGMENTS: usize = MAX_PIECES;

/// How often somebody who opens memory looks whether it can be done.
const LOOK: Duration = Duration::from_millis(2);

/// Whether an operation waits for RDMA READs before it.
///
/// The transport carries out what was started in order, with one exception: what comes after an
/// RDMA READ may be under way while the READ is not done. So a write or a message that depends on
/// what a READ brings, or that tells the peer that the READ is over, either waits for the READ's
/// completion or is fenced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Fence {
    /// It does not wait.
    #[default]
    None,
    /// It begins when all READs started before on this socket are done.
    AfterReads,
}

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RdmaDirection {
    Read,
    Write,
}

/// An RDMA operation that has not been posted.
#[derive(Debug)]
pub(crate) struct RdmaJob {
    direction: RdmaDirection,
    pieces: Pieces,
    remote: RemoteMemory,
    bytes: usize,
    fence: Fence,
}

impl Connection {
    /// Starts an RDMA operation.
    pub(crate) fn start_rdma(
        &self,
        direction: RdmaDirection,
        segments: &[Segment],
        (descriptor, offset): (&[u8], u64),
        fence: Fence,
        completion: Notification,
    ) -> Result<Operation, TransferError> {
        let job = self.rdma_job(direction, segments, (descriptor, offset), fence)?;
        let mut state = self.lock_state();
        if !state.engine.has_room_to_start() {
            state = self.after_a_look(state);
        }
        state.engine.check_outgoing()?;
        match state.engine.rdma_limit() {
            0 => return Err(TransferError::NotConnected),
            limit if job.bytes > limit => {
                let length = job.bytes;
                return Err(TransferError::RdmaTooLong { length, limit });
            }
            _ => {}
        }
        if !state.engine.has_operation_left() {
            return Err(TransferError::WouldBlock);
        }
        let bytes = job.bytes;
        let started = if state.engine.can_rdma_now() {
            let operation = state.engine.start_posted(bytes, completion);
            state.engine.post_other();
            let posted = self.post_rdma(&mut state, operation.token(), job);
            posted.map(|()| operation).map_err(|ending| {
                state.engine.take_back_other();
                state.engine.cancel(operation);
                state.engine.break_with(ending);
                ending.into()
            })
        } else {
            self.lane.counted().sends_delayed.raise();
            Ok(state.engine.queue_rdma(bytes, Box::new(job), completion))
        };
        self.settle(state);
        started
    }

    /// Checks all that can be known here, and takes hold of the memory.
    fn rdma_job(
        &self,
        direction: RdmaDirection,
        segments: &[Segment],
        (descriptor, offset): (&[u8], u64),
        fence: Fence,
    ) -> Result<RdmaJob, TransferError> {
        let count = segments.len();
        if count > MAX_SEGMENTS {
            return Err(TransferError::TooManySegments {
                count,
                limit: MAX_SEGMENTS,
            });
        }
        let descriptor =
            Descriptor::parse(descriptor).map_err(|why| TransferError::Descriptor { why })?;
        let (needed, allowed) = match direction {
            RdmaDirection::Read => (Access::LOCAL_WRITE, descriptor.read),
            RdmaDirection::Write => (Access::READ_ONLY, descriptor.write),
        };
        if !allowed {
            return Err(TransferError::NotAllowed);
        }
        let mut pieces = Pieces::new();
        let mut bytes = 0_usize;
        for segment in segments {
            let slice = self.memory.slice(segment, needed)?;
            bytes = bytes.saturating_add(segment.length);
            // A length of 0 means something else to devices.
            if !slice.is_empty() {
                pieces.push(slice.into());
            }
        }
        if bytes == 0 {
            return Err(TransferError::Nothing);
        }
        let end = offset.checked_add(bytes as u64);
        if end.is_none_or(|end| end > descriptor.length) {
            return Err(TransferError::OutOfBounds {
                offset,
                length: bytes as u64,
                limit: descriptor.length,
            });
        }
        Ok(RdmaJob {
            direction,
            pieces,
            remote: RemoteMemory {
                addr: descriptor.address + offset,
                rkey: descriptor.key,
            },
            bytes,
            fence,
        })
    }

    /// Posts an operation; the engine counts it.
    pub(super) fn post_rdma(
        &self,
        state: &mut State,
        token: u32,
        job: RdmaJob,
    ) -> Result<(), Ending> {
        let Qp::Connected(qp) = &state.qp else {
            return Err(Ending::Reset);
        };
        let verb = match job.direction {
            RdmaDirection::Read => Verb::Read(job.remote),
            RdmaDirection::Write => Verb::Write(job.remote),
        };
        let request = SendRequest::with_payload(token, verb, Payload::Pieces(job.pieces));
        post(qp, request, true, job.fence == Fence::AfterReads)?;
        let reads = job.direction == RdmaDirection::Read;
        state.engine.rdma_begun(reads, job.bytes);
        let counters = self.lane.counted();
        let (count, sum) = match reads {
            true => (&counters.rdma_reads, &counters.rdma_bytes_read),
            false => (&counters.rdma_writes, &counters.rdma_bytes_written),
        };
        count.raise();
        sum.add(job.bytes as u64);
        Ok(())
    }

    /// Opens a piece of registered memory to the peer; returns when it is open.
    pub(crate) fn open_window(
        self: &Arc<Self>,
        slice: &RegionSlice,
        access: Access,
    ) -> Result<MemoryWindow, RegisterError> {
        let deadline = Deadline::after(self.open_deadline);
        let (window, operation) = loop {
            if let Some(begun) = self.begin_window(slice, access)? {
                break begun;
            }
            if deadline.is_over() {
                return Err(RegisterError::NotConfirmed);
            }
            // Not confirmed yet, or the send queue is full: rare, and over soon.
            self.lane.poll_once();
            std::thread::sleep(LOOK);
        };
        let Some(operation) = operation else {
            return Ok(window);
        };
        let left = deadline.left().unwrap_or(self.open_deadline);
        match self.overlapped_result(operation, Some(left)) {
            Ok(result) => match result.outcome {
                Ok(_) => Ok(window),
                Err(_) => Err(RegisterError::NotConnected),
            },
            Err(_) => {
                // The transport did not get that far: the peer does not answer. The request cannot
                // be taken back, so the connection goes.
                self.break_now(Ending::TimedOut);
                Err(RegisterError::NotConfirmed)
            }
        }
    }

    /// Makes the window, and the operation that opens it if it takes one; `None`: not now.
    fn begin_window(
        &self,
        slice: &RegionSlice,
        access: Access,
    ) -> Result<Option<(MemoryWindow, Option<Operation>)>, RegisterError> {
        let mut state = self.lock_state();
        state
            .engine
            .check_outgoing()
            .map_err(|error| not_open(&error))?;
        if !state.engine.may_bind() {
            return Ok(None);
        }
        let State { engine, qp, .. } = &mut *state;
        let Qp::Connected(qp) = qp else {
            return Ok(None);
        };
        let operation = engine.start_posted(0, Notification::Poll);
        let begun = match qp.bind(operation.token(), slice, access) {
            Ok((window, Binding::Posted)) => {
                engine.post_other();
                Ok(Some((window, Some(operation))))
            }
            Ok((window, Binding::Done)) => {
                engine.cancel(operation);
                Ok(Some((window, None)))
            }
            Err(error) => {
                engine.cancel(operation);
                Err(RegisterError::of(error))
            }
        };
        self.settle(state);
        begun
    }

    /// Whether memory can be registered.
    pub(crate) fn check_open(&self) -> Result<(), RegisterError> {
        self.state
            .lock()
            .engine
            .check()
            .map_err(|error| not_open(&error))
    }
}

fn not_open(error: &TransferError) -> RegisterError {
    match error {
        TransferError::NotSocket => RegisterError::NotSocket,
        TransferError::NotInitialised => RegisterError::NotInitialised,
        _ => RegisterError::NotConnected,
    }
}

impl From<TransferError> for RegisterError {
    fn from(error: TransferError) -> Self {
        not_open(&error)
    }
}
