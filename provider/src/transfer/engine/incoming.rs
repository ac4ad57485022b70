//! What comes in: messages, and who gets them.

use std::io::IoSliceMut;

use super::{
    Arrived, Body, Direction, Ending, Engine, Link, Notification, Operation, Outcome, Payloads,
};
use crate::error::TransferError;
use crate::wire::{Immediate, MessageType, Violation};

/// The first kind of message that does not wait behind others, if the layer above wants it so.
pub(crate) const FIRST_CONTROL_KIND: u8 = 16;

/// A kind of the provider's own past the inbox: no bytes, and for nobody. It brings credits.
pub(super) const CARRIER: u8 = 255;

/// Threads that may be noted as waiting for a message.
const MOST_WAKERS: usize = 64;

/// What is to be done about a message that came and is none of the stream's.
#[derive(Debug)]
pub(crate) enum Came<B> {
    /// It said what it had to say: its buffer is to be posted again at once.
    Credits(B),
    /// About moving. Its receive is back in the count, and its buffer is free.
    Handover(B),
    /// It breaks the protocol.
    Wrong(Violation, B),
    /// For the layer above, past what nobody has read: kind and bytes. Give the buffer to
    /// [`Engine::recycle`] afterwards.
    Control(u8, B),
}

/// What was read from messages that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Bytes, of one message or several of the same kind.
    pub bytes: usize,
    /// The number that the sender gave them; 0 is plain.
    pub kind: u8,
    /// Whether the last message was read to its end.
    pub whole: bool,
}

/// What a call for bytes has ended with. It travels in two registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Receipt {
    /// Bytes were read.
    Of(Received),
    /// The connection is over: nothing comes any more.
    Over,
    /// Nothing came in time, or the wait was called off.
    Nothing,
}

/// What waits to be received: the kinds of the first and of the last message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inbox {
    /// The kind of the message that is next; `None`: none waits.
    pub first: Option<u8>,
    /// The kind of the message that came last.
    pub last: Option<u8>,
    /// The connection is over: nothing comes any more.
    pub is_over: bool,
}

impl<P: Payloads> Engine<P> {
    /// Of a message that came while the engine [is plain](Engine::is_plain), by its immediate data: its
    /// credits and its kind. Its bytes may be given to whoever waits, and then
    /// [`Engine::data_was_read`] has to follow. `None`: it is not that simple, and
    /// [`Engine::message_came`] knows what to do.
    #[inline(always)]
    pub(crate) fn plain_data(&self, immediate: Option<u32>) -> Option<(u16, u8)> {
        let (credits, kind) = immediate.and_then(Immediate::parse_data)?;
        // A sink is told of all others.
        let is_nobody_elses = kind == 0 || !self.control_aside;
        (is_nobody_elses && self.credits.admits(credits)).then_some((credits, kind))
    }

    /// Such a message of `bytes` was read, and its receive is free. `true`: nothing follows from that. Else
    /// [`Engine::look_ahead`] is to be asked.
    #[inline]
    pub(crate) fn data_was_read(&mut self, credits: u16, bytes: usize) -> bool {
        self.totals.bytes_received += bytes as u64;
        self.credits.passed(credits)
    }

    /// Finds out how many messages may come before anything follows from one that was read. `false`: none;
    /// [`Engine::wanted_growth`] and [`Engine::must_return_credits`] are to be asked about the last one.
    #[inline]
    pub(crate) fn look_ahead(&mut self) -> bool {
        self.credits.look_ahead()
    }

    /// A message came, with its immediate data in host order. `None`: its bytes are kept, or were given
    /// to a receive.
    #[inline]
    pub(crate) fn message_came(
        &mut self,
        immediate: Option<u32>,
        buffer: P::Buffer,
    ) -> Option<Came<P::Buffer>> {
        let Some((credits, kind)) = immediate.and_then(Immediate::parse_data) else {
            return Some(self.other_came(immediate, buffer));
        };
        if let Err(violation) = self.credits.data_came_with(credits) {
            return Some(Came::Wrong(violation, buffer));
        }
        if kind == CARRIER && buffer.is_empty() {
            // The peer gets the credit for the next one back, whatever waits here.
            self.recycle_control(buffer);
            return None;
        }
        self.totals.bytes_received += buffer.len() as u64;
        if self.control_aside && kind >= FIRST_CONTROL_KIND {
            return Some(Came::Control(kind, buffer));
        }
        let arrived = Arrived {
            body: Body::Received(buffer),
            kind,
            read: 0,
        };
        if self.receives.is_empty() {
            self.inbox.push_back(arrived);
            if self.control_aside && (self.tell_each || kind > 0) {
                self.effects.any = true;
                self.effects.arrived = true;
            }
            self.wake_arrival();
        } else {
            self.give_to_receive(arrived);
        }
        None
    }

    /// A message that carries nothing for the layer above, or breaks the protocol.
    #[inline(never)]
    fn other_came(&mut self, immediate: Option<u32>, buffer: P::Buffer) -> Came<P::Buffer> {
        match self.account(immediate, &buffer) {
            Ok(true) => Came::Credits(buffer),
            Ok(false) => Came::Handover(buffer),
            Err(violation) => Came::Wrong(violation, buffer),
        }
    }

    #[inline(never)]
    fn give_to_receive(&mut self, arrived: Arrived<P::Buffer>) {
        if let Some(operation) = self.receives.pop_front() {
            let arrived = self.hand_out(arrived);
            self.end_operation(operation, Outcome::Received(arrived));
        }
    }

    /// Reads the immediate data of a message that is no data, and does what it says; whether it is about
    /// credits.
    fn account(&mut self, immediate: Option<u32>, buffer: &[u8]) -> Result<bool, Violation> {
        let immediate = Immediate::parse(immediate.ok_or(Violation::NoImmediate)?)?;
        match immediate.message {
            // All of these were told apart before.
            MessageType::Data => Err(Violation::Type(1)),
            MessageType::Move => {
                self.about_moving_came(immediate.kind, buffer)?;
                Ok(false)
            }
            MessageType::Credit if !buffer.is_empty() => Err(Violation::CreditMessage),
            MessageType::Credit => {
                self.credits.credit_message_came(immediate.credits)?;
                self.totals.credit_messages_received += 1;
                Ok(true)
            }
        }
    }

    /// By how many receives the window should grow: the peer is busy.
    #[inline]
    pub(crate) fn wanted_growth(&self) -> u32 {
        self.credits.wanted_growth()
    }

    /// So many more receives are set aside.
    pub(crate) fn grown(&mut self, n: u32) {
        self.credits.grown(n);
    }

    /// Wakes `waker` when the next message comes that no operation takes, or the connection ends.
    pub(crate) fn tell_of_arrival(&mut self, waker: P::Waker) {
        if self.arrival.len() >= MOST_WAKERS {
            // Some of them wait no more; the others come back.
            self.wake_arrival();
        }
        self.arrival.push(waker);
    }

    #[inline]
    pub(crate) fn wake_arrival(&mut self) {
        if !self.arrival.is_empty() {
            self.wake_all_that_wait();
        }
    }

    #[cold]
    #[inline(never)]
    fn wake_all_that_wait(&mut self) {
        while let Some(waker) = self.arrival.pop() {
            self.effects.wake(waker);
        }
    }

    /// Starts to receive a message. One that is here already is taken at once.
    pub(crate) fn start_receive(
        &mut self,
        completion: Notification,
    ) -> Result<Operation, TransferError> {
        if self.inbox.is_empty() {
            self.check()?;
        } else if self.link == Link::Down {
            return Err(TransferError::NotSocket);
        }
        if !self.operations.has_room(Direction::Receive) {
            return Err(TransferError::WouldBlock);
        }
        let operation = self.operations.wait_receive(completion);
        match self.inbox.pop_front() {
            Some(arrived) => {
                let arrived = self.hand_out(arrived);
                self.end_operation(operation, Outcome::Received(arrived));
            }
            None => self.receives.push_back(operation),
        }
        Ok(operation)
    }

    /// A message that is here, unless receives wait, which come first; or why none will come.
    pub(crate) fn take_message(&mut self) -> Option<Result<Arrived<P::Buffer>, TransferError>> {
        if !self.receives.is_empty() {
            return None;
        }
        match self.inbox.pop_front() {
            Some(arrived) => Some(Ok(self.hand_out(arrived))),
            None => self.check().err().map(Err),
        }
    }

    /// Copies what is here into `buffers`, one after the other: bytes of any number of messages, as
    /// long as they are of one kind. What does not fit stays for the next call. `None`: nothing is
    /// here, or receives wait, which come first.
    #[inline]
    pub(crate) fn read_into(
        &mut self,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Option<Result<Received, TransferError>> {
        if self.receives.is_empty()
            && self.inbox.len() == 1
            && let [buffer] = buffers
            && let Some(first) = self.inbox.front()
            && let Some(place) = buffer.get_mut(..first.len())
        {
            place.copy_from_slice(first);
            let (bytes, kind) = (place.len(), first.kind);
            self.drop_first();
            return Some(Ok(Received {
                bytes,
                kind,
                whole: true,
            }));
        }
        self.read_otherwise(buffers)
    }

    #[inline(never)]
    fn read_otherwise(
        &mut self,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Option<Result<Received, TransferError>> {
        if !self.receives.is_empty() {
            return None;
        }
        match self.inbox.front() {
            Some(first) => Some(Ok(self.read_several(first.kind, buffers))),
            None => self.check().err().map(Err),
        }
    }

    #[inline]
    fn drop_first(&mut self) {
        if let Some(arrived) = self.inbox.pop_front()
            && let Body::Received(buffer) = arrived.body
        {
            self.recycle(buffer);
        }
    }

    fn read_several(&mut self, kind: u8, buffers: &mut [IoSliceMut<'_>]) -> Received {
        let mut received = Received {
            bytes: 0,
            kind,
            whole: true,
        };
        let (mut at, mut filled) = (0, 0);
        while let Some(arrived) = self.inbox.front_mut() {
            if arrived.kind != received.kind || (at == buffers.len() && !arrived.is_empty()) {
                break;
            }
            while at < buffers.len() {
                let from: &[u8] = arrived;
                let into = &mut buffers[at][filled..];
                let n = from.len().min(into.len());
                into[..n].copy_from_slice(&from[..n]);
                arrived.read += n;
                received.bytes += n;
                filled += n;
                if filled < buffers[at].len() {
                    break;
                }
                (at, filled) = (at + 1, 0);
            }
            if !arrived.is_empty() {
                received.whole = false;
                break;
            }
            self.drop_first();
        }
        received
    }

    /// A message as it is given to the application: in its buffer, or, where half of the window is
    /// in the application's hands already, as a copy whose receive is free again.
    fn hand_out(&mut self, arrived: Arrived<P::Buffer>) -> Arrived<P::Buffer> {
        let waiting = u32::try_from(self.inbox.len()).unwrap_or(u32::MAX);
        let held = self.credits.held().saturating_sub(waiting);
        if held * 2 <= self.credits.window().max(2) {
            return arrived;
        }
        let Body::Received(buffer) = arrived.body else {
            return arrived;
        };
        let body = Body::Copied(Box::from(&*buffer));
        self.recycle(buffer);
        self.totals.messages_copied += 1;
        self.effects.any = true;
        self.effects.copied += 1;
        Arrived { body, ..arrived }
    }

    /// A message was read: its receive is free, and its buffer is kept to be posted again.
    #[inline]
    pub(crate) fn recycle(&mut self, buffer: P::Buffer) {
        self.credits.freed();
        self.keep_spent(buffer);
    }

    /// The buffer of a receive that counts as free is kept to be posted again.
    #[inline]
    pub(crate) fn keep_spent(&mut self, buffer: P::Buffer) {
        // With too many of them it goes back to where it came from.
        let _ = self.spent.try_push(buffer);
    }

    /// Messages for a sink that came before there was one, in their order: they go past the inbox now.
    pub(crate) fn control_that_waits(&mut self) -> Vec<(u8, P::Buffer)> {
        let mut control = Vec::new();
        for arrived in std::mem::take(&mut self.inbox) {
            match arrived {
                Arrived {
                    kind,
                    body: Body::Received(buffer),
                    ..
                } if kind >= FIRST_CONTROL_KIND => control.push((kind, buffer)),
                arrived => self.inbox.push_back(arrived),
            }
        }
        control
    }

    /// As [`Engine::recycle`], of a message that went past the inbox.
    pub(crate) fn recycle_control(&mut self, buffer: P::Buffer) {
        self.recycle(buffer);
        self.credits.control_freed();
    }

    /// A message is dropped, its buffer is free elsewhere: its receive is free.
    pub(crate) fn let_go(&mut self) {
        self.credits.freed();
    }

    /// Whether credits have to go out by themselves, where nothing is here to be read.
    #[inline]
    pub(crate) fn must_return_credits(&self) -> bool {
        self.credits.must_return(true) || self.needs_carrier()
    }

    /// How many receives to post again now.
    #[inline]
    pub(crate) fn receives_due(&self) -> u32 {
        self.credits.receives_due(self.inbox.is_empty())
    }

    /// Whether [`Engine::spent`] has a buffer.
    #[inline]
    pub(crate) fn has_spent(&self) -> bool {
        !self.spent.is_empty()
    }

    /// A buffer to post for one of them, if the engine has one.
    #[inline]
    pub(crate) fn spent(&mut self) -> Option<P::Buffer> {
        self.spent.pop()
    }

    /// `n` of those that were due are posted.
    #[inline]
    pub(crate) fn receives_posted(&mut self, n: u32) {
        self.credits.posted(n);
    }

    /// A receive completed with a failure.
    pub(crate) fn receive_failed(&mut self, ending: Ending) {
        if self.ending.is_none() {
            self.break_with(ending);
        }
    }
}
