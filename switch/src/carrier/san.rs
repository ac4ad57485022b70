//! A byte stream over one SAN connection, for now by messages alone.
//!
//! Bytes are cut into messages of at most the peer's size; what a caller's buffer does not hold
//! stays for its next call, so that nobody sees where messages begin. The kinds of message and
//! the stream's states are in `session.rs`; credits, buffers and the wire are the provider's.
//! Urgent data and RDMA transfers are not here yet.
//!
//! One lock for each direction: a connection's sender and receiver do not meet.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSliceMut, Read};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

// Without poison: to look for it costs as much as the lock.
use parking_lot::{Mutex, MutexGuard};
use rustix::io::Errno;
use san_base::Deadline;
use san_provider::{
    Completion, DataPath, LaneHandle, Operation, Readiness, ReadySink, Received, ResultError,
    TransferError, WsaCode,
};
use socket2::Socket;

use super::Carrier;
use super::timeout::Timeout;
use crate::readiness::{Events, Watcher};
use crate::san::socket::ProviderSocket;
use crate::session::{MessageKind, ReceiveState};

/// Sends under way at a time that had to wait for the peer; one more waits for the first to end.
/// Below what the provider allows.
const WINDOW: usize = 60;

/// The number of the kind that carries bytes of the stream.
const DATA: u8 = MessageKind::Data.number();

/// The stream.
pub(crate) struct SanCarrier {
    socket: ProviderSocket,
    /// Its data path; none if it was closed before it got here.
    data: Option<DataPath>,
    /// The application's descriptor (duty 10). It is not connected.
    companion: Socket,
    peer: SocketAddr,
    sending: Mutex<Sending>,
    /// Held by the one who receives, also while it waits: others would find nothing meanwhile.
    receiving: Mutex<Receiving>,
    seen: Seen,
    watcher: Mutex<Option<(Arc<dyn Watcher>, u64)>>,
    /// We had ended our stream when the peer's end came: the peer ended last, and waits for the
    /// acknowledgement of that.
    peer_ended_last: AtomicBool,
    /// Our end of the stream is sent.
    is_ended: AtomicBool,
    send_timeout: Timeout,
    receive_timeout: Timeout,
    /// Bytes of the largest message, by the negotiation.
    message_limit: usize,
}

/// What is to be seen of the stream without a lock that a call holds while it waits.
#[derive(Debug, Default)]
struct Seen {
    /// Bytes that a peek has kept.
    peeked: AtomicUsize,
    /// The peer's end was taken; or the connection, or the protocol, is broken.
    peer_ended: AtomicBool,
    /// Our reading half is shut: who waits to receive is called off.
    reading_shut: AtomicBool,
    /// Sends under way.
    under_way: AtomicUsize,
    /// The connection broke: the error that no call has said, or 0 once one has.
    broken: AtomicBool,
    error: AtomicI32,
}

/// What the provider tells. It keeps nothing open: the carrier has the provider's connection.
struct Ears(Weak<SanCarrier>);

impl ReadySink for Ears {
    fn ready(&self, _token: u64, _readiness: Readiness) {
        if let Some(carrier) = self.0.upgrade() {
            carrier.tell_watcher();
        }
    }

    fn control(&self, _token: u64, kind: u8, bytes: &[u8]) {
        if let Some(carrier) = self.0.upgrade() {
            let kind = MessageKind::from(kind);
            tracing::warn!(%kind, length = bytes.len(), "the peer broke the session protocol");
            carrier.break_off(Errno::CONNRESET.raw_os_error());
            carrier.seen.reading_shut.store(true, Ordering::Release);
            if let Some(data) = &carrier.data {
                data.wake();
            }
        }
    }
}

#[derive(Debug)]
struct Receiving {
    state: ReceiveState,
    /// Bytes that a peek has taken from the provider: the next receive gets them.
    peeked: VecDeque<u8>,
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

impl fmt::Debug for SanCarrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SanCarrier")
            .field("socket", &self.socket)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

impl SanCarrier {
    pub(crate) fn new(
        socket: ProviderSocket,
        companion: Socket,
        peer: SocketAddr,
        timeout: Option<Duration>,
    ) -> Arc<Self> {
        let carrier = Arc::new(SanCarrier {
            message_limit: socket.max_message_size(),
            data: socket.data().data_path().ok(),
            socket,
            companion,
            peer,
            sending: Mutex::new(Sending {
                under_way: VecDeque::with_capacity(WINDOW),
                state: SendState::Open,
            }),
            receiving: Mutex::new(Receiving {
                state: ReceiveState::Open,
                peeked: VecDeque::new(),
            }),
            peer_ended_last: AtomicBool::new(false),
            is_ended: AtomicBool::new(false),
            send_timeout: Timeout::new(timeout),
            receive_timeout: Timeout::new(timeout),
            seen: Seen::default(),
            watcher: Mutex::new(None),
        });
        if let Some(data) = &carrier.data {
            data.set_polled_sink(Some((Arc::new(Ears(Arc::downgrade(&carrier))), 0)));
        }
        carrier
    }

    /// The connection is over before its end: the next call says this.
    fn break_off(&self, errno: i32) {
        if !self.seen.broken.swap(true, Ordering::AcqRel) {
            self.seen.error.store(errno, Ordering::Release);
        }
    }

    fn tell_watcher(&self) {
        let watcher = self.watcher.lock().clone();
        if let Some((watcher, token)) = watcher {
            watcher.changed(token, self.events());
        }
    }

    /// The right to receive. Where another thread has it and waits, there is nothing to receive now.
    fn receiving(&self, deadline: Deadline) -> io::Result<MutexGuard<'_, Receiving>> {
        if let Some(receiving) = self.receiving.try_lock() {
            return Ok(receiving);
        }
        let receiving = match deadline.instant() {
            None => Some(self.receiving.lock()),
            Some(instant) => self.receiving.try_lock_until(instant),
        };
        receiving.ok_or_else(|| Errno::AGAIN.into())
    }

    /// Sends bytes without waiting for them to arrive: the end of the stream, which comes after
    /// all of them, is waited for.
    #[inline(never)]
    fn send_chunks(&self, sending: &mut Sending, bytes: &[u8]) -> io::Result<usize> {
        let deadline = self.send_timeout.deadline();
        let mut sent = 0;
        for chunk in bytes.chunks(self.message_limit) {
            let taken = match self.data()?.try_send(chunk, DATA) {
                Ok(()) => Ok(()),
                Err(error) => self.send_refused(sending, chunk, deadline, &error),
            };
            match taken {
                Ok(()) => sent += chunk.len(),
                // What was taken is taken: the error comes with the next call.
                Err(_) if sent > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(sent)
    }

    /// What did not go out at once waits, if that is all that was wrong.
    #[cold]
    #[inline(never)]
    fn send_refused(
        &self,
        sending: &mut Sending,
        bytes: &[u8],
        deadline: Deadline,
        error: &TransferError,
    ) -> io::Result<()> {
        match error {
            TransferError::WouldBlock => {
                self.send_message(sending, bytes, MessageKind::Data, deadline)
            }
            error => Err(sending.failed(error)),
        }
    }

    /// Receives what the provider has, or what comes until the deadline.
    #[inline]
    fn receive_more(
        &self,
        state: &mut ReceiveState,
        buffers: &mut [IoSliceMut<'_>],
        deadline: Deadline,
    ) -> io::Result<usize> {
        loop {
            match *state {
                ReceiveState::Open => {}
                ReceiveState::Ended => return Ok(0),
                ReceiveState::Broken => return self.said_broken().map_or(Ok(0), Err),
            }
            let off = &self.seen.reading_shut;
            match self
                .data()?
                .receive_into_unless(buffers, left(deadline), off)
            {
                Ok(received) if received.kind == DATA && received.bytes > 0 => {
                    return Ok(received.bytes);
                }
                Ok(received) => self.take_in(state, received),
                Err(TransferError::WouldBlock) => {
                    if self.seen.broken.load(Ordering::Acquire) {
                        *state = ReceiveState::Broken;
                    } else if off.load(Ordering::Acquire) {
                        return Ok(0);
                    } else {
                        return Err(Errno::AGAIN.into());
                    }
                }
                Err(error) => self.receive_failed(state, &error),
            }
        }
    }

    /// What was read is none of the stream's bytes.
    #[cold]
    #[inline(never)]
    fn take_in(&self, state: &mut ReceiveState, received: Received) {
        let kind = MessageKind::from(received.kind);
        (*state, _) = state.on_message(kind, received.bytes);
        match *state {
            ReceiveState::Open => {}
            ReceiveState::Ended => {
                let ended = self.is_ended.load(Ordering::Relaxed);
                self.peer_ended_last.store(ended, Ordering::Relaxed);
                self.seen.peer_ended.store(true, Ordering::Release);
            }
            ReceiveState::Broken => {
                tracing::warn!(%kind, length = received.bytes, "the peer broke the session protocol");
                self.break_off(Errno::CONNRESET.raw_os_error());
            }
        }
    }

    /// Nothing was read, and nothing will be.
    #[cold]
    #[inline(never)]
    fn receive_failed(&self, state: &mut ReceiveState, error: &TransferError) {
        *state = state.on_disconnect();
        if *state == ReceiveState::Broken {
            self.break_off(error.errno());
        }
    }

    /// The error of a broken connection, once, as SO_ERROR.
    fn said_broken(&self) -> Option<io::Error> {
        let errno = self.seen.error.swap(0, Ordering::AcqRel);
        (errno != 0).then(|| io::Error::from_raw_os_error(errno))
    }

    fn read_peeked(
        &self,
        receiving: &mut Receiving,
        buffers: &mut [IoSliceMut<'_>],
    ) -> io::Result<usize> {
        let read = receiving.peeked.read_vectored(buffers)?;
        self.seen
            .peeked
            .store(receiving.peeked.len(), Ordering::Release);
        Ok(read)
    }

    #[inline]
    fn data(&self) -> io::Result<&DataPath> {
        self.data
            .as_ref()
            .ok_or_else(|| io::Error::from_raw_os_error(TransferError::NotSocket.errno()))
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
                    self.note_under_way(sending);
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
                self.note_under_way(sending);
                Ok(())
            }
            Collected::Failed(error) => {
                sending.under_way.pop_front();
                Err(sending.failed(&error))
            }
            Collected::NotYet => Err(Errno::AGAIN.into()),
        }
    }

    fn note_under_way(&self, sending: &Sending) {
        let count = sending.under_way.len();
        self.seen.under_way.store(count, Ordering::Release);
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
        let mut sending = self.sending.lock();
        sending.may_send()?;
        if bytes.is_empty() {
            return Ok(0);
        }
        if bytes.len() > self.message_limit {
            return self.send_chunks(&mut sending, bytes);
        }
        // What fits into one message mostly goes out at once.
        match self.data()?.try_send(bytes, DATA) {
            Ok(()) => Ok(bytes.len()),
            Err(error) => {
                let deadline = self.send_timeout.deadline();
                self.send_refused(&mut sending, bytes, deadline, &error)?;
                Ok(bytes.len())
            }
        }
    }

    fn receive(&self, bytes: &mut [u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let deadline = self.receive_timeout.deadline();
        let mut receiving = self.receiving(deadline)?;
        let mut buffers = [IoSliceMut::new(bytes)];
        if !receiving.peeked.is_empty() {
            return self.read_peeked(&mut receiving, &mut buffers);
        }
        self.receive_more(&mut receiving.state, &mut buffers, deadline)
    }

    fn receive_vectored(&self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        if buffers.iter().all(|buffer| buffer.is_empty()) {
            return Ok(0);
        }
        let deadline = self.receive_timeout.deadline();
        let mut receiving = self.receiving(deadline)?;
        if !receiving.peeked.is_empty() {
            return self.read_peeked(&mut receiving, buffers);
        }
        self.receive_more(&mut receiving.state, buffers, deadline)
    }

    fn peek(&self, bytes: &mut [u8]) -> io::Result<usize> {
        let deadline = self.receive_timeout.deadline();
        let mut receiving = self.receiving(deadline)?;
        if receiving.peeked.is_empty() && !bytes.is_empty() {
            let mut buffers = [IoSliceMut::new(bytes)];
            let came = self.receive_more(&mut receiving.state, &mut buffers, deadline)?;
            receiving.peeked.extend(&bytes[..came]);
            self.seen.peeked.store(came, Ordering::Release);
        }
        for (place, byte) in bytes.iter_mut().zip(&receiving.peeked) {
            *place = *byte;
        }
        Ok(bytes.len().min(receiving.peeked.len()))
    }

    fn set_nonblocking(&self, on: bool) -> io::Result<()> {
        self.send_timeout.set_nonblocking(on);
        self.receive_timeout.set_nonblocking(on);
        Ok(())
    }

    fn shut(&self, how: Shutdown) -> io::Result<()> {
        if how != Shutdown::Write {
            self.seen.reading_shut.store(true, Ordering::Release);
            if let Some(data) = &self.data {
                data.wake();
            }
        }
        let ended = match how {
            Shutdown::Read => Ok(()),
            Shutdown::Write | Shutdown::Both => self.end(),
        };
        self.tell_watcher();
        ended
    }

    fn events(&self) -> Events {
        let Some(data) = &self.data else {
            return Events::READABLE | Events::WRITABLE | Events::READ_CLOSED | Events::HANG_UP;
        };
        let seen = &self.seen;
        let (inbox, last, is_over) = {
            let inbox = data.inbox();
            (inbox, inbox.last, inbox.is_over)
        };
        let _ = inbox;
        let end = MessageKind::EndOfStream.number();
        let peer_ended = seen.peer_ended.load(Ordering::Acquire) || last == Some(end);
        if is_over && !peer_ended {
            self.break_off(Errno::CONNRESET.raw_os_error());
        }
        let is_broken = seen.broken.load(Ordering::Acquire);
        let is_over = is_over || is_broken;
        let read_closed = is_over || peer_ended || seen.reading_shut.load(Ordering::Acquire);
        let write_closed = is_over || self.is_ended.load(Ordering::Acquire);
        let has_bytes = last.is_some() || seen.peeked.load(Ordering::Acquire) > 0;
        let has_room = seen.under_way.load(Ordering::Acquire) < WINDOW;
        let mut events = Events::empty();
        events.set(Events::READABLE, has_bytes || read_closed);
        events.set(Events::READ_CLOSED, read_closed);
        events.set(Events::HANG_UP, read_closed && write_closed);
        let writable = write_closed || has_room || data.is_writable();
        events.set(Events::WRITABLE, writable);
        events.set(Events::ERROR, seen.error.load(Ordering::Acquire) != 0);
        events
    }

    fn set_watcher(&self, watcher: Option<(Arc<dyn Watcher>, u64)>) {
        if let Some(data) = &self.data {
            data.tell_each(watcher.is_some());
        }
        *self.watcher.lock() = watcher;
    }

    fn lane(&self) -> Option<LaneHandle> {
        self.data.as_ref().map(DataPath::lane)
    }

    fn take_error(&self) -> io::Result<Option<io::Error>> {
        Ok(self.said_broken())
    }

    fn end(&self) -> io::Result<()> {
        let deadline = self.send_timeout.deadline();
        self.end_by(&mut self.sending.lock(), deadline)
    }

    fn finish(&self, deadline: Deadline) -> io::Result<()> {
        self.flush(&mut self.sending.lock(), deadline)
    }

    fn set_send_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.send_timeout.set(timeout);
        Ok(())
    }

    fn set_receive_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.receive_timeout.set(timeout);
        Ok(())
    }

    fn send_timeout(&self) -> io::Result<Option<Duration>> {
        Ok(self.send_timeout.wanted())
    }

    fn receive_timeout(&self) -> io::Result<Option<Duration>> {
        Ok(self.receive_timeout.wanted())
    }

    fn tcp_socket(&self) -> BorrowedFd<'_> {
        self.companion.as_fd()
    }
}

/// How far a close has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CloseStep {
    /// All that was sent has arrived, and the end of the stream after it; or the connection was
    /// broken, and its application knows.
    Done,
    /// Not yet, but something arrived since the last look.
    Advanced,
    /// Nothing moved.
    Waiting,
    /// The peer is gone, and had not taken everything in.
    Lost,
}

impl SanCarrier {
    /// The next step of a close: sends the end of the stream, and sees whether everything has
    /// arrived. Nobody else uses the connection any more. It waits until the deadline at most.
    pub(crate) fn close_step(&self, deadline: Deadline) -> CloseStep {
        let mut sending = self.sending.lock();
        let before = (sending.under_way.len(), sending.state);
        let owed = self.owed(&sending);
        match self.flush(&mut sending, deadline) {
            Ok(()) => CloseStep::Done,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if before == (sending.under_way.len(), sending.state) {
                    CloseStep::Waiting
                } else {
                    CloseStep::Advanced
                }
            }
            Err(_) if matches!(before.1, SendState::Broken(_)) || !owed => CloseStep::Done,
            Err(_) => CloseStep::Lost,
        }
    }

    /// Ends the stream and waits until all of it has arrived.
    fn flush(&self, sending: &mut Sending, deadline: Deadline) -> io::Result<()> {
        self.end_by(sending, deadline)?;
        while !sending.under_way.is_empty() {
            self.collect_oldest(sending, deadline)?;
        }
        Ok(())
    }

    /// Whether there are bytes that may not have arrived. The end of the stream is none.
    fn owed(&self, sending: &Sending) -> bool {
        let end = usize::from(sending.state == SendState::Ended);
        let unacknowledged = self.data.as_ref().map_or(0, DataPath::unacknowledged);
        sending.under_way.len() > end || unacknowledged as usize > end
    }

    fn end_by(&self, sending: &mut Sending, deadline: Deadline) -> io::Result<()> {
        match sending.state {
            SendState::Open => {}
            SendState::Ended => return Ok(()),
            SendState::Broken(code) => return Err(io::Error::from_raw_os_error(code.errno())),
        }
        self.send_message(sending, &[], MessageKind::EndOfStream, deadline)?;
        sending.state = SendState::Ended;
        self.is_ended.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Waits for the peer to disconnect, if it ended its stream last. Its end has arrived here, but
    /// the acknowledgement of it may not have arrived there: to disconnect now might undo it, and the
    /// peer would take bytes for lost that are not. TCP has LAST-ACK and TIME-WAIT for it.
    pub(crate) fn wait_for_peer(&self, deadline: Deadline) -> bool {
        if !self.peer_ended_last.load(Ordering::Relaxed) {
            return true;
        }
        let Ok(data) = self.data() else {
            return true;
        };
        let came = data.receive_into(&mut [IoSliceMut::new(&mut [0])], left(deadline));
        !matches!(came, Err(TransferError::WouldBlock))
    }

    /// The peer's address, for the log.
    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer
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
