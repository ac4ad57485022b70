//! Overlapped operations: their handles, their records, and how they end (duties 93, 95, 96, 113).
//!
//! A record lives from the call that starts an operation until its result was taken or told by
//! upcall. Records are reused, so that no message allocates; a generation in the handle tells an
//! old handle from a new one. The table posts nothing and wakes nobody itself.

use super::{Arrived, Ending, Payloads};

/// A send or receive that was started. It belongs to the socket that started it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Operation(u32);

/// How the end of an operation is told (duties 43 and 95).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Notification {
    /// Not at all: `get_overlapped_result` asks for it.
    #[default]
    Poll,
    /// By the upcall `complete_overlapped`, and only by it.
    Upcall,
    /// By the connection's `ReadySink`, from whichever thread polls: `san-progress`, if no other does.
    Sink,
    /// By the connection's `ReadySink`, when somebody polls.
    SinkWhenPolled,
}

impl Notification {
    /// Somebody has to see to it though nobody waits.
    fn is_served(self) -> bool {
        matches!(self, Self::Upcall | Self::Sink)
    }
}

/// A send that has not been posted yet.
#[derive(Debug)]
pub(crate) struct SendJob<B> {
    pub(crate) buffer: B,
    pub(crate) kind: u8,
    /// It waits for READs.
    pub(crate) fence: bool,
}

/// What came of an operation, inside.
#[derive(Debug)]
pub(crate) enum Outcome<B> {
    Sent(usize),
    Received(Arrived<B>),
    /// A receive that ends without a message, since its connection goes to another process.
    Emptied,
    Failed(Ending),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Send,
    Receive,
}

enum State<P: Payloads> {
    Free,
    /// A send that waits for a credit or for a place on the send queue.
    Queued(SendJob<P::Buffer>),
    /// An RDMA operation of so many bytes that waits behind sends, or for a place on the send queue.
    QueuedRdma(usize, Box<P::Rdma>),
    /// A send of so many bytes that the device has.
    Posted(usize),
    /// A receive that waits for a message.
    Waiting,
    Done(Outcome<P::Buffer>),
}

struct Record<P: Payloads> {
    generation: u16,
    direction: Direction,
    completion: Notification,
    state: State<P>,
    waiter: Option<P::Waker>,
}

/// What has to be done after an operation ended, with no lock held.
pub(crate) enum Told<P: Payloads> {
    /// Nothing: it will be asked for.
    Nobody,
    /// Wake the thread that waits.
    Waiter(P::Waker),
    /// Tell it by upcall.
    Upcall(Operation, Outcome<P::Buffer>),
    /// Tell the sink.
    Sink(Operation, Outcome<P::Buffer>),
}

/// What a look at an operation finds.
#[derive(Debug)]
pub(crate) enum Look<B> {
    Unknown,
    Pending(Direction),
    Done(Outcome<B>),
}

/// The operations of one connection.
pub(crate) struct OperationTable<P: Payloads> {
    records: Vec<Record<P>>,
    free: Vec<u16>,
    /// Operations in use, by direction.
    used: [u16; 2],
    /// Those of them that end by upcall, or that the sink is told of.
    upcalls: [u16; 2],
    limit: u16,
}

impl Operation {
    fn new(index: u16, generation: u16) -> Self {
        Self(u32::from(generation) << 16 | u32::from(index))
    }

    fn index(self) -> usize {
        (self.0 & 0xffff) as usize
    }

    fn generation(self) -> u16 {
        (self.0 >> 16) as u16
    }

    pub(crate) fn token(self) -> u32 {
        self.0
    }

    pub(crate) fn from_token(token: u32) -> Self {
        Self(token)
    }
}

impl<P: Payloads> OperationTable<P> {
    /// A table for up to `limit` operations in each direction.
    pub(crate) fn new(limit: u16) -> Self {
        Self {
            records: Vec::new(),
            free: Vec::new(),
            used: [0; 2],
            upcalls: [0; 2],
            limit,
        }
    }

    /// Whether one more may be started.
    pub(crate) fn has_room(&self, direction: Direction) -> bool {
        self.used[direction as usize] < self.limit
    }

    /// How many operations are under way that nobody asks for.
    pub(crate) fn upcalls(&self, direction: Direction) -> u16 {
        self.upcalls[direction as usize]
    }

    /// Whether any operation is under way that ends by upcall.
    pub(crate) fn any_upcalls(&self) -> bool {
        self.upcalls != [0; 2]
    }

    /// Starts a send that is queued.
    pub(crate) fn queue_send(
        &mut self,
        job: SendJob<P::Buffer>,
        completion: Notification,
    ) -> Operation {
        self.start(Direction::Send, completion, State::Queued(job))
    }

    /// Starts an RDMA operation that is queued.
    pub(crate) fn queue_rdma(
        &mut self,
        bytes: usize,
        job: Box<P::Rdma>,
        completion: Notification,
    ) -> Operation {
        self.start(Direction::Send, completion, State::QueuedRdma(bytes, job))
    }

    /// Starts a send of `bytes` that is about to be posted.
    pub(crate) fn post_send(&mut self, bytes: usize, completion: Notification) -> Operation {
        self.start(Direction::Send, completion, State::Posted(bytes))
    }

    /// Starts a receive that waits.
    pub(crate) fn wait_receive(&mut self, completion: Notification) -> Operation {
        self.start(Direction::Receive, completion, State::Waiting)
    }

    fn start(
        &mut self,
        direction: Direction,
        completion: Notification,
        state: State<P>,
    ) -> Operation {
        self.used[direction as usize] += 1;
        self.upcalls[direction as usize] += u16::from(completion.is_served());
        let index = self.free.pop().unwrap_or_else(|| {
            self.records.push(Record {
                generation: 0,
                direction,
                completion,
                state: State::Free,
                waiter: None,
            });
            // At most twice the limit, which is checked to be far below.
            u16::try_from(self.records.len() - 1).unwrap_or(u16::MAX)
        });
        let record = &mut self.records[usize::from(index)];
        record.generation = record.generation.wrapping_add(1);
        record.direction = direction;
        record.completion = completion;
        record.state = state;
        record.waiter = None;
        Operation::new(index, record.generation)
    }

    /// A queued send is about to be posted: its message.
    pub(crate) fn unqueue(&mut self, operation: Operation) -> Option<SendJob<P::Buffer>> {
        let record = self.find(operation)?;
        match std::mem::replace(&mut record.state, State::Free) {
            State::Queued(job) => {
                record.state = State::Posted(job.buffer.len());
                Some(job)
            }
            other => {
                record.state = other;
                None
            }
        }
    }

    /// A queued RDMA operation is about to be posted; `None`: it is a message.
    pub(crate) fn unqueue_rdma(&mut self, operation: Operation) -> Option<(usize, Box<P::Rdma>)> {
        let record = self.find(operation)?;
        match std::mem::replace(&mut record.state, State::Free) {
            State::QueuedRdma(bytes, job) => {
                record.state = State::Posted(bytes);
                Some((bytes, job))
            }
            other => {
                record.state = other;
                None
            }
        }
    }

    /// Whether this is an RDMA operation that is queued.
    pub(crate) fn is_queued_rdma(&self, operation: Operation) -> bool {
        self.records.get(operation.index()).is_some_and(|record| {
            record.generation == operation.generation()
                && matches!(record.state, State::QueuedRdma(..))
        })
    }

    /// Lets go of the memory of all operations that are queued; they stay pending.
    pub(crate) fn drop_jobs(&mut self) {
        for record in &mut self.records {
            if let State::QueuedRdma(bytes, _) = record.state {
                record.state = State::Posted(bytes);
            }
        }
    }

    /// The bytes of a send that the device has.
    pub(crate) fn posted_bytes(&mut self, operation: Operation) -> Option<usize> {
        match self.find(operation)?.state {
            State::Posted(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// Ends an operation. Only the first end counts.
    pub(crate) fn end(&mut self, operation: Operation, outcome: Outcome<P::Buffer>) -> Told<P> {
        let Some(record) = self.find(operation) else {
            return Told::Nobody;
        };
        if matches!(record.state, State::Done(_) | State::Free) {
            return Told::Nobody;
        }
        let completion = record.completion;
        if completion != Notification::Poll {
            self.free(operation);
            return match completion {
                Notification::Upcall => Told::Upcall(operation, outcome),
                _ => Told::Sink(operation, outcome),
            };
        }
        record.state = State::Done(outcome);
        record.waiter.take().map_or(Told::Nobody, Told::Waiter)
    }

    /// Forgets an operation that could not be started after all.
    pub(crate) fn cancel(&mut self, operation: Operation) {
        if self.find(operation).is_some() {
            self.free(operation);
        }
    }

    /// Takes the result of an operation that has ended.
    pub(crate) fn take(&mut self, operation: Operation) -> Look<P::Buffer> {
        let Some(record) = self.find(operation) else {
            return Look::Unknown;
        };
        if !matches!(record.state, State::Done(_)) {
            return Look::Pending(record.direction);
        }
        let state = std::mem::replace(&mut record.state, State::Free);
        self.free(operation);
        match state {
            State::Done(outcome) => Look::Done(outcome),
            _ => Look::Unknown,
        }
    }

    /// Whom to wake when the operation ends.
    pub(crate) fn set_waiter(&mut self, operation: Operation, waiter: Option<P::Waker>) {
        if let Some(record) = self.find(operation) {
            record.waiter = waiter;
        }
    }

    /// Every operation that has not ended, and that `which` picks.
    pub(crate) fn pending(&self, which: Unfinished) -> Vec<Operation> {
        let picked = |record: &Record<P>| match record.state {
            State::Queued(_) | State::QueuedRdma(..) | State::Waiting => true,
            State::Posted(_) => which == Unfinished::All,
            State::Free | State::Done(_) => false,
        };
        self.records
            .iter()
            .enumerate()
            .filter(|(_, record)| picked(record))
            .map(|(index, r)| {
                Operation::new(u16::try_from(index).unwrap_or(u16::MAX), r.generation)
            })
            .collect()
    }

    fn find(&mut self, operation: Operation) -> Option<&mut Record<P>> {
        self.records.get_mut(operation.index()).filter(|record| {
            record.generation == operation.generation() && !matches!(record.state, State::Free)
        })
    }

    fn free(&mut self, operation: Operation) {
        if let Some(record) = self.records.get_mut(operation.index()) {
            record.state = State::Free;
            record.waiter = None;
            self.used[record.direction as usize] -= 1;
            self.upcalls[record.direction as usize] -= u16::from(record.completion.is_served());
            self.free.push((operation.0 & 0xffff) as u16);
        }
    }
}

/// Which operations that have not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unfinished {
    /// Those of which the device has nothing.
    NotPosted,
    All,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transfer::engine::sim::Pieces;

    type OperationTable = super::OperationTable<Pieces>;

    #[test]
    fn an_old_handle_is_not_a_new_operation() {
        let mut table = OperationTable::new(4);
        let first = table.wait_receive(Notification::Poll);
        assert!(matches!(
            table.take(first),
            Look::Pending(Direction::Receive)
        ));
        assert!(matches!(
            table.end(first, Outcome::Failed(Ending::Reset)),
            Told::Nobody
        ));
        assert!(matches!(
            table.take(first),
            Look::Done(Outcome::Failed(Ending::Reset))
        ));
        assert!(
            matches!(table.take(first), Look::Unknown),
            "a result is taken once"
        );
        let second = table.wait_receive(Notification::Poll);
        assert_ne!(first, second);
        assert!(matches!(table.take(first), Look::Unknown));
        assert!(matches!(table.take(second), Look::Pending(_)));
    }

    #[test]
    fn each_direction_has_its_bound() {
        let mut table = OperationTable::new(2);
        table.wait_receive(Notification::Poll);
        table.wait_receive(Notification::Poll);
        assert!(!table.has_room(Direction::Receive));
        assert!(table.has_room(Direction::Send));
        let send = table.post_send(5, Notification::Poll);
        assert_eq!(table.posted_bytes(send), Some(5));
        table.end(send, Outcome::Sent(5));
        assert!(table.has_room(Direction::Send), "one of two");
    }

    #[test]
    fn wsd_113_every_operation_ends_once() {
        let mut table = OperationTable::new(4);
        let send = table.post_send(1, Notification::Upcall);
        assert!(matches!(table.end(send, Outcome::Sent(1)), Told::Upcall(op, _) if op == send));
        assert!(matches!(
            table.end(send, Outcome::Failed(Ending::Aborted)),
            Told::Nobody
        ));
        let receive = table.wait_receive(Notification::Poll);
        table.end(receive, Outcome::Failed(Ending::Reset));
        table.end(receive, Outcome::Failed(Ending::Aborted));
        assert!(matches!(
            table.take(receive),
            Look::Done(Outcome::Failed(Ending::Reset))
        ));
    }

    #[test]
    fn what_the_device_has_is_told_apart() {
        let mut table = OperationTable::new(4);
        let posted = table.post_send(1, Notification::Poll);
        let waiting = table.wait_receive(Notification::Poll);
        assert_eq!(table.pending(Unfinished::NotPosted), [waiting]);
        assert_eq!(table.pending(Unfinished::All), [posted, waiting]);
    }

    #[test]
    fn a_waiter_is_told_once() {
        let mut table = OperationTable::new(4);
        let receive = table.wait_receive(Notification::Poll);
        table.set_waiter(receive, Some(7));
        let Told::Waiter(waiter) = table.end(receive, Outcome::Failed(Ending::Reset)) else {
            panic!("the waiter is not told");
        };
        assert_eq!(waiter, 7);
        let again = table.end(receive, Outcome::Failed(Ending::Reset));
        assert!(matches!(again, Told::Nobody));
    }
}
