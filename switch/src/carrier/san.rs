//! A byte stream over one SAN connection, for now by messages alone.
//!
//! Bytes are cut into messages of at most the peer's size; what a caller's buffer does not hold
//! stays for its next call, so that nobody sees where messages begin. The kinds of message and
//! the stream's states are in `session.rs`; credits, buffers and the wire are the provider's.
//! Urgent data and RDMA transfers are not here yet.
//!
//! One lock for each direction: a connection's sender and receiver do not meet.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use san_base::{Deadline, lock};
use san_provider::{Completion, Message, Operation, ResultError, TransferError, WsaCode};
use socket2::Socket;

use super::Carrier;
use crate::san::socket::ProviderSocket;
use crate::session::{MessageKind, ReceiveState};

/// Sends under way at a time that had to wait for the peer; one more waits for the first to end.
/// Below what the provider allows.
const WINDOW: usize = 60;
/// How long closing waits for the next send under way to end: never long for a dead peer.
const LINGER: Duration = Duration::from_secs(2);

/// The stream.
#[derive(Debug)]
pub(crate) struct SanCarrier {
    socket: ProviderSocket,
    /// The application's descriptor (duty 10). It is not connected.
    companion: Socket,
    sending: Mutex<Sending>,
    receiving: Mutex<Receiving>,
    send_timeout: Timeout,
    receive_timeout: Timeout,
    /// Bytes of the largest message, by the negotiation.
    message_limit: usize,
}

#[derive(Debug)]
struct Sending {
    under_way: VecDeque<Operation>,
    state: SendState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SendState {
    Open,
    /// We ended our stream.
    Ended,
    /// A send failed; nothing sent after it can count.
    Broken(WsaCode),
}

#[derive(Debug)]
struct Receiving {
    state: ReceiveState,
    /// A message whose bytes were not all taken, and how many were.
    rest: Option<(Message, usize)>,
}

impl SanCarrier {
    pub(crate) fn new(
        socket: ProviderSocket,
        companion: Socket,
        timeout: Option<Duration>,
    ) -> Self {
        SanCarrier {
            message_limit: socket.max_message_size(),
            socket,
            companion,
            sending: Mutex::new(Sending {
                under_way: VecDeque::with_capacity(WINDOW),
                state: SendState::Open,
            }),
            receiving: Mutex::new(Receiving {
                state: ReceiveState::Open,
                rest: None,
            }),
            send_timeout: Timeout::new(timeout),
            receive_timeout: Timeout::new(timeout),
        }
    }

    /// Sends bytes without waiting for them to arrive: the end of the stream, which comes after
    /// all of them, is waited for.
    fn send_data(&self, sending: &mut Sending, bytes: &[u8], deadline: Deadline) -> io::Result<()> {
        let kind = MessageKind::Data;
        match self.socket.data().try_send(bytes, kind.number()) {
            Ok(()) => Ok(()),
            Err(TransferError::WouldBlock) => self.send_message(sending, bytes, kind, deadline),
            Err(error) => Err(sending.failed(&error)),
        }
    }

    fn send_message(
        &self,
        sending: &mut Sending,
        bytes: &[u8],
        kind: MessageKind,
        deadline: Deadline,
    ) -> io::Result<()> {
        if sending.under_way.len() >= WINDOW {
            self.collect_oldest(sending, deadline)?;
        }
        loop {
            match self
                .socket
                .data()
                .send(bytes, kind.number(), Completion::Poll)
            {
                Ok(operation) => {
                    sending.under_way.push_back(operation);
                    return Ok(());
                }
                Err(TransferError::WouldBlock) if !sending.under_way.is_empty() => {
                    self.collect_oldest(sending, deadline)?;
                }
                Err(error) => return Err(sending.failed(&error)),
            }
        }
    }

    /// Waits for the oldest send under way.
    fn collect_oldest(&self, sending: &mut Sending, deadline: Deadline) -> io::Result<()> {
        let Some(operation) = sending.under_way.front().copied() else {
            return Ok(());
        };
        match self.result(operation, deadline) {
            Collected::Done => {
                sending.under_way.pop_front();
                Ok(())
            }
            Collected::Failed(error) => {
                sending.under_way.pop_front();
                Err(sending.failed(&error))
            }
            Collected::NotYet => Err(Errno::AGAIN.into()),
        }
    }

    fn result(&self, operation: Operation, deadline: Deadline) -> Collected {
        match self
            .socket
            .data()
            .get_overlapped_result(operation, Some(left(deadline)))
        {
            Ok(result) => match result.outcome {
                Ok(_) => Collected::Done,
                Err(error) => Collected::Failed(error),
            },
            Err(ResultError::Incomplete) => Collected::NotYet,
            Err(_) => Collected::Failed(TransferError::NotSocket),
        }
    }
}

impl Carrier for SanCarrier {
    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut sending = lock(&self.sending);
        sending.may_send()?;
        if bytes.is_empty() {
            return Ok(0);
        }
        let deadline = self.send_timeout.deadline();
        let mut sent = 0;
        for chunk in bytes.chunks(self.message_limit) {
            match self.send_data(&mut sending, chunk, deadline) {
                Ok(()) => sent += chunk.len(),
                // What was taken is taken: the error comes with the next call.
                Err(_) if sent > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(sent)
    }

    fn receive(&self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut receiving = lock(&self.receiving);
        let deadline = self.receive_timeout.deadline();
        if bytes.is_empty() {
            return Ok(0);
        }
        loop {
            if let Some(taken) = receiving.take_rest(bytes) {
                return Ok(taken);
            }
            match receiving.state {
                ReceiveState::Open => {}
                ReceiveState::Ended => return Ok(0),
                ReceiveState::Broken => return Err(Errno::CONNRESET.into()),
            }
            match self.socket.data().receive_within(left(deadline)) {
                Ok(message) => receiving.take_in(message),
                Err(TransferError::WouldBlock) => return Err(Errno::AGAIN.into()),
                Err(error) => {
                    let error = receiving.failed(&error);
                    if receiving.state == ReceiveState::Broken {
                        return Err(error);
                    }
                }
            }
        }
    }

    fn end(&self) -> io::Result<()> {
        let mut sending = lock(&self.sending);
        match sending.state {
            SendState::Open => {}
            SendState::Ended => return Ok(()),
            SendState::Broken(code) => return Err(io::Error::from_raw_os_error(code.errno())),
        }
        let deadline = self.send_timeout.deadline();
        self.send_message(&mut sending, &[], MessageKind::EndOfStream, deadline)?;
        sending.state = SendState::Ended;
        Ok(())
    }

    fn set_send_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.send_timeout.set(timeout);
        Ok(())
    }

    fn set_receive_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.receive_timeout.set(timeout);
        Ok(())
    }

    fn tcp_socket(&self) -> BorrowedFd<'_> {
        self.companion.as_fd()
    }
}

impl Drop for SanCarrier {
    /// As TCP's close: what was sent still arrives, and then the end of the stream. A peer that
    /// takes nothing in for [`LINGER`] is not waited for.
    fn drop(&mut self) {
        let linger = || Deadline::after(LINGER);
        let mut sending = lock(&self.sending);
        if sending.state == SendState::Open {
            let end = MessageKind::EndOfStream;
            if self.send_message(&mut sending, &[], end, linger()).is_err() {
                return;
            }
        }
        while !sending.under_way.is_empty() {
            if self.collect_oldest(&mut sending, linger()).is_err() {
                return;
            }
        }
    }
}

enum Collected {
    Done,
    Failed(TransferError),
    NotYet,
}

fn left(deadline: Deadline) -> Duration {
    deadline.left().unwrap_or(Duration::MAX)
}

impl Sending {
    fn may_send(&self) -> io::Result<()> {
        match self.state {
            SendState::Open => Ok(()),
            SendState::Ended => Err(Errno::PIPE.into()),
            SendState::Broken(code) => Err(io::Error::from_raw_os_error(code.errno())),
        }
    }

    fn failed(&mut self, error: &TransferError) -> io::Error {
        if !matches!(error, TransferError::WouldBlock | TransferError::NoBuffers) {
            self.state = SendState::Broken(error.code());
        }
        io::Error::from_raw_os_error(error.errno())
    }
}

impl Receiving {
    /// Copies from the message at hand, and lets it go when it is used up.
    fn take_rest(&mut self, bytes: &mut [u8]) -> Option<usize> {
        let (message, at) = self.rest.as_mut()?;
        let left = &message[*at..];
        let taken = left.len().min(bytes.len());
        bytes[..taken].copy_from_slice(&left[..taken]);
        *at += taken;
        if *at == message.len() {
            self.rest = None;
        }
        (taken > 0).then_some(taken)
    }

    fn take_in(&mut self, message: Message) {
        let kind = MessageKind::from(message.kind());
        let (state, keep) = self.state.on_message(kind, message.len());
        if state == ReceiveState::Broken {
            tracing::warn!(%kind, length = message.len(), "the peer broke the session protocol");
        }
        self.state = state;
        if keep && !message.is_empty() {
            self.rest = Some((message, 0));
        }
    }

    fn failed(&mut self, error: &TransferError) -> io::Error {
        if !matches!(error, TransferError::WouldBlock) {
            self.state = self.state.on_disconnect();
        }
        io::Error::from_raw_os_error(error.errno())
    }
}

/// A timeout that can be changed at any time; 0 = none.
#[derive(Debug)]
struct Timeout(AtomicU64);

impl Timeout {
    fn new(timeout: Option<Duration>) -> Self {
        let this = Timeout(AtomicU64::new(0));
        this.set(timeout);
        this
    }

    fn set(&self, timeout: Option<Duration>) {
        let nanoseconds = timeout.map_or(0, |time| {
            u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1)
        });
        self.0.store(nanoseconds, Ordering::Relaxed);
    }

    fn deadline(&self) -> Deadline {
        match self.0.load(Ordering::Relaxed) {
            0 => Deadline::NEVER,
            nanoseconds => Deadline::after(Duration::from_nanos(nanoseconds)),
        }
    }
}
