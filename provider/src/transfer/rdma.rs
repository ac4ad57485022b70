//! RDMA READ and RDMA WRITE between registered memory and what the peer has opened, and the opening
//! of own memory.
//!
//! Both are overlapped operations as sends are, start in the order of the calls among sends and
//! each other, and need no credit and nothing of the peer's. One operation is one work request.

use std::sync::Arc;
use std::time::Duration;

use verbs_shim::{
    Access, Binding, MAX_PIECES, MemoryWindow, Operation as Verb, Payload, Pieces,
    ProtectionDomain, RegionSlice, RemoteMemory, SendRequest,
};

use super::connection::{After, Connection, Data, Link};
use super::operation::{Completion, Direction, Ending, Operation, Outcome};
use crate::cm_thread::Command;
use crate::error::{RegisterError, TransferError};
use crate::memory::Segment;
use crate::sync::lock;
use crate::time::Deadline;
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
    pub(super) bytes: usize,
    fence: Fence,
}

impl Connection {
    /// Starts an RDMA operation.
    pub(crate) fn start_rdma(
        self: &Arc<Self>,
        direction: RdmaDirection,
        segments: &[Segment],
        (descriptor, offset): (&[u8], u64),
        fence: Fence,
        completion: Completion,
    ) -> Result<Operation, TransferError> {
        let job = self.rdma_job(direction, segments, (descriptor, offset), fence)?;
        let mut data = lock(&self.data);
        if !data.operations.has_room(Direction::Send)
            || data.is_send_queue_full(self.lane.send_depth)
        {
            data = self.after_a_look(data);
        }
        data.check_outgoing()?;
        match data.rdma_limit {
            0 => return Err(TransferError::NotConnected),
            limit if job.bytes > limit => {
                let length = job.bytes;
                return Err(TransferError::RdmaTooLong { length, limit });
            }
            _ => {}
        }
        if !data.operations.has_room(Direction::Send) {
            return Err(TransferError::WouldBlock);
        }
        let mut after = After::default();
        let operation = if data.sends.is_empty() && self.may_post_rdma(&data) {
            let operation = data.operations.post_send(job.bytes, completion);
            if let Err(ending) = self.post_rdma(&mut data, operation, job) {
                data.operations.cancel(operation);
                after.break_with(ending);
                self.release(data, after);
                return Err(ending.into());
            }
            operation
        } else {
            let operation = data.operations.queue_rdma(Box::new(job), completion);
            data.sends.push_back(operation);
            self.lane.counters.sends_delayed.raise();
            operation
        };
        self.release(data, after);
        Ok(operation)
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

    /// Whether an RDMA operation could be posted now.
    pub(super) fn may_post_rdma(&self, data: &Data) -> bool {
        matches!(data.link, Link::Up(_)) && !data.is_send_queue_full(self.lane.send_depth)
    }

    /// Posts a queued operation. `false`: the connection is over.
    pub(super) fn post_queued_rdma(
        self: &Arc<Self>,
        data: &mut Data,
        operation: Operation,
        job: RdmaJob,
        after: &mut After,
    ) -> bool {
        match self.post_rdma(data, operation, job) {
            Ok(()) => true,
            Err(ending) => {
                self.end_operation(data, operation, Outcome::Failed(ending), after);
                after.break_with(ending);
                ending == Ending::ForeignBuffer
            }
        }
    }

    fn post_rdma(&self, data: &mut Data, operation: Operation, job: RdmaJob) -> Result<(), Ending> {
        let verb = match job.direction {
            RdmaDirection::Read => Verb::Read(job.remote),
            RdmaDirection::Write => Verb::Write(job.remote),
        };
        let mut request =
            SendRequest::with_payload(operation.token(), verb, Payload::Pieces(job.pieces));
        request.fence = job.fence == Fence::AfterReads;
        self.post(data, request)?;
        let counters = &self.lane.counters;
        match job.direction {
            RdmaDirection::Read => {
                counters.rdma_reads.raise();
                counters.rdma_bytes_read.add(job.bytes as u64);
                data.totals.rdma_reads += 1;
                data.totals.rdma_bytes_read += job.bytes as u64;
            }
            RdmaDirection::Write => {
                counters.rdma_writes.raise();
                counters.rdma_bytes_written.add(job.bytes as u64);
                data.totals.rdma_writes += 1;
                data.totals.rdma_bytes_written += job.bytes as u64;
            }
        }
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
            self.lane.poll_if_free();
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
                self.control_break(Ending::TimedOut);
                Err(RegisterError::NotConfirmed)
            }
        }
    }

    /// Makes the window, and the operation that opens it if it takes one; `None`: not now.
    fn begin_window(
        self: &Arc<Self>,
        slice: &RegionSlice,
        access: Access,
    ) -> Result<Option<(MemoryWindow, Option<Operation>)>, RegisterError> {
        let mut data = lock(&self.data);
        data.check_outgoing().map_err(|error| not_open(&error))?;
        if !self.may_post_rdma(&data) || !data.operations.has_room(Direction::Send) {
            return Ok(None);
        }
        let operation = data.operations.post_send(0, Completion::Poll);
        let Link::Up(qp) = &data.link else {
            return Ok(None);
        };
        let begun = match qp.bind(operation.token(), slice, access) {
            Ok((window, Binding::Posted)) => {
                data.on_wire += 1;
                Ok(Some((window, Some(operation))))
            }
            Ok((window, Binding::Done)) => {
                data.operations.cancel(operation);
                Ok(Some((window, None)))
            }
            Err(error) => {
                data.operations.cancel(operation);
                Err(RegisterError::of(error))
            }
        };
        self.release(data, After::default());
        begun
    }

    /// Whether memory can be registered.
    pub(crate) fn check_open(&self) -> Result<(), RegisterError> {
        lock(&self.data).check().map_err(|error| not_open(&error))
    }

    /// Where memory of this connection is registered.
    pub(crate) fn protection_domain(&self) -> &ProtectionDomain {
        &self.lane.pd
    }

    /// Bytes of an RDMA operation that both sides and the device allow; 0 until the peer has said
    /// so.
    pub(crate) fn rdma_limit(&self) -> usize {
        lock(&self.data).rdma_limit
    }

    /// What this side says of it in the negotiation.
    pub(crate) fn own_rdma_limit(&self) -> u32 {
        self.lane.rdma_limit
    }

    fn control_break(&self, ending: Ending) {
        self.control.send(Command::Break(self.token(), ending));
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
