//! The queue pair of a stream while it has one: messages out, and what comes out of turn.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use san_provider::{DataPath, Operation, Readiness, ReadySink, Socket as SpiSocket, TransferError};
use san_stream::{Engine, Payloads, Post};

use crate::carrier::bulk::{Bulk, Rings};
use crate::san::provider::{MOVING_BULK, STREAMS};
use crate::san::socket::ProviderSocket;

/// Control messages that may wait. No peer of this protocol comes near it.
const MOST_CONTROL: usize = 256;

/// Messages of so many bytes go without a buffer, on most devices.
const INLINE: usize = 64;

/// A connected queue pair.
pub(super) struct QueuePair {
    socket: ProviderSocket,
    pub(super) data: DataPath,
    /// The engine has given them out, and there was no place for them yet.
    pending_control: Option<Post>,
    pending: Option<Post>,
    /// Looks of the provider's thread are asked for.
    wants_looks: bool,
}

/// What came of posting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Posted {
    /// One message.
    Yes,
    /// There is nothing to be posted.
    Nothing,
    /// No place; it waits.
    Waits,
    /// The queue pair is over.
    Broken,
}

impl QueuePair {
    /// `None`: it is over already.
    pub(super) fn new(socket: ProviderSocket, feed: &Arc<Feed>) -> Option<Self> {
        let data = socket.data().data_path().ok()?;
        // An edge is a message that came, though others wait.
        data.tell_each(feed.is_watched.load(Ordering::Acquire));
        let pair = Self {
            socket,
            data,
            pending_control: None,
            pending: None,
            wants_looks: false,
        };
        pair.listen(feed);
        Some(pair)
    }

    /// Has the feed hear. Whoever waits for the stream polls the lane: its calls, event loops, and while the
    /// carrier changes the thread `san-stream`. The thread `san-progress` does it only for a watcher that
    /// knows of no lane: it needs the lane's descriptors, which cost the soft fabric two calls of the system
    /// a message from then on.
    pub(super) fn listen(&self, feed: &Arc<Feed>) {
        let sink = Some((Arc::clone(feed) as Arc<dyn ReadySink>, 0));
        let is_watched = feed.is_watched.load(Ordering::Acquire);
        match is_watched && !feed.watcher_polls.load(Ordering::Acquire) {
            true => self.data.set_sink(sink),
            false => self.data.set_polled_sink(sink),
        }
    }

    /// Whether the peer takes offers on a stream that moves.
    pub(super) fn takes_bulk(&self) -> bool {
        let features = self.data.peer();
        let wanted = STREAMS | MOVING_BULK;
        features.reads && features.layer & wanted == wanted
    }

    pub(super) fn spi(&self) -> &SpiSocket {
        self.socket.data()
    }

    pub(super) fn has_pending(&self) -> bool {
        self.pending.is_some() || self.pending_control.is_some()
    }

    /// Posts the next message of the engine's; control goes past what waits. `bulk` has the bytes.
    pub(super) fn post_next<P: Payloads>(&mut self, engine: &mut Engine<P>, bulk: &Bulk) -> Posted {
        let waited = self.pending_control.take();
        let had_waited = waited.is_some();
        if let Some(post) = waited.or_else(|| engine.next_control()) {
            let outcome = self.data.try_send(&post.head, post.kind.number());
            let posted = account(engine, &outcome, had_waited, true);
            if outcome.is_err() {
                self.pending_control = Some(post);
            }
            return posted;
        }
        let waited = self.pending.take();
        let had_waited = waited.is_some();
        let Some(post) = waited.or_else(|| engine.next_message()) else {
            return Posted::Nothing;
        };
        let outcome = self.post(&post, bulk);
        let posted = account(engine, &outcome, had_waited, false);
        if outcome.is_err() {
            self.pending = Some(post);
        }
        posted
    }

    fn post(&self, post: &Post, bulk: &Bulk) -> Result<(), TransferError> {
        let (head, number) = (&post.head, post.kind.number());
        let Some(staged) = post.staged else {
            return self.data.try_send(head, number);
        };
        if head.is_empty() && staged.length <= INLINE {
            // It travels in the work request itself, and asks for no completion.
            let mut bytes = [0; INLINE];
            let bytes = &mut bytes[..staged.length];
            bulk.take(staged.position, bytes);
            return self.data.try_send(bytes, number);
        }
        self.data
            .try_send_filled(head.len() + staged.length, number, |place| {
                let (front, bytes) = place.split_at_mut(head.len());
                front.copy_from_slice(head);
                bulk.take(staged.position, bytes);
            })
    }

    /// Sends a message that the engine does not count.
    pub(super) fn say(&self, kind: u8, bytes: &[u8]) {
        // The peer hears of the end anyway.
        let _ = self.data.try_send(bytes, kind);
    }

    /// How many messages that were posted may not have arrived.
    pub(super) fn unacknowledged(&self) -> u32 {
        self.data.unacknowledged()
    }

    /// Whether the thread `san-progress` is to look now and then, since nobody else may.
    pub(super) fn want_looks(&mut self, wanted: bool) {
        if std::mem::replace(&mut self.wants_looks, wanted) != wanted {
            self.data.want_looks(wanted);
        }
    }

    /// Takes it into its error state: what had come can still be received.
    pub(super) fn disconnect(&self) {
        let _ = self.socket.data().disconnect();
    }
}

/// Tells the engine whether the message was posted that it had given out, now or when it was waited for.
fn account<P: Payloads>(
    engine: &mut Engine<P>,
    outcome: &Result<(), TransferError>,
    had_waited: bool,
    is_control: bool,
) -> Posted {
    match outcome {
        Ok(()) if had_waited => engine.posted_late(is_control),
        Err(_) if !had_waited => engine.not_posted(),
        _ => {}
    }
    match outcome {
        Ok(()) => Posted::Yes,
        Err(TransferError::WouldBlock | TransferError::NoBuffers) => Posted::Waits,
        Err(_) => Posted::Broken,
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        self.data.set_sink(None);
    }
}

impl fmt::Debug for QueuePair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueuePair").finish_non_exhaustive()
    }
}

/// A queue pair that the stream has left, and the memory that was read into. The device lets that go first.
pub(super) struct Left {
    pub(super) pair: QueuePair,
    pub(super) rings: Rings,
}

impl Left {
    /// Closes it. Nobody may be told anything by the queue pair at this moment in this thread.
    pub(super) fn close(self) {
        self.pair.data.set_sink(None);
        self.pair.socket.close();
        self.rings.let_go(Some(self.pair.spi()));
    }
}

/// A message that came past the others, or what became of a READ.
#[derive(Debug)]
pub(super) enum Mail {
    Control(u8, Box<[u8]>),
    Ended(Operation, Result<usize, i32>),
}

/// Who reads the mail.
pub(super) trait Reader: Send + Sync {
    /// There is some, and perhaps nobody comes for it. The caller may hold the reader's lock, and is called
    /// by the queue pair.
    fn has_mail(&self);

    /// The thread `san-stream` is to come.
    fn attend(&self);
}

/// What the provider tells a stream, from whichever thread polls. The stream's lock may be held by this
/// very thread: then it only notes it, and who lets the lock go reads it.
pub(super) struct Feed {
    reader: Weak<dyn Reader>,
    mail: Mutex<Letters>,
    has_mail: AtomicBool,
    /// The queue pair is over, whoever ended it: everything that had come before is here.
    is_over: AtomicBool,
    /// The stream has something to send and no place for it.
    pub(super) wants_room: AtomicBool,
    /// Somebody wants to hear that bytes came.
    pub(super) is_watched: AtomicBool,
    /// He, or the loop that he tells, polls the lane.
    pub(super) watcher_polls: AtomicBool,
    /// Something happened on TCP that nobody has looked at.
    tcp_stirs: AtomicBool,
    /// It became readable or writable.
    is_ready: AtomicBool,
}

#[derive(Default)]
struct Letters {
    letters: VecDeque<Mail>,
    /// More came than may wait.
    is_flooded: bool,
}

impl Feed {
    pub(super) fn new(reader: Weak<dyn Reader>) -> Self {
        Self {
            reader,
            mail: Mutex::default(),
            has_mail: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            wants_room: AtomicBool::new(false),
            is_watched: AtomicBool::new(false),
            watcher_polls: AtomicBool::new(false),
            tcp_stirs: AtomicBool::new(true),
            is_ready: AtomicBool::new(false),
        }
    }

    /// The next letter. An error: more came than a peer of this protocol sends.
    pub(super) fn next(&self) -> Result<Option<Mail>, ()> {
        if !self.has_mail.load(Ordering::Acquire) {
            return Ok(None);
        }
        let mut mail = self.mail.lock();
        if mail.is_flooded {
            return Err(());
        }
        let next = mail.letters.pop_front();
        if next.is_none() {
            self.has_mail.store(false, Ordering::SeqCst);
        }
        Ok(next)
    }

    /// Whether mail came while the caller had the reader's lock: to be asked after it was let go. Who leaves
    /// mail tries that lock after it.
    #[inline]
    pub(super) fn has_mail(&self) -> bool {
        fence(Ordering::SeqCst);
        self.has_mail.load(Ordering::Relaxed)
    }

    /// Polls the lane until there is mail, or this time is over.
    pub(super) fn wait(&self, data: &DataPath, time: Duration) {
        let _ = data.wait_for(&self.has_mail, time);
    }

    /// Whether it became readable or writable since this was last asked.
    pub(super) fn was_ready(&self) -> bool {
        self.is_ready.load(Ordering::Relaxed) && self.is_ready.swap(false, Ordering::AcqRel)
    }

    /// Whether something happened on TCP that nobody has looked at.
    #[inline]
    pub(super) fn tcp_stirs(&self) -> bool {
        self.tcp_stirs.load(Ordering::Acquire)
    }

    /// Somebody is about to look at TCP (`false`), or has to. What comes after the look is an edge of the
    /// epoll set in which the socket is, and then the thread `san-stream` sets this again.
    pub(super) fn set_tcp_stirs(&self, stirs: bool) {
        self.tcp_stirs.store(stirs, Ordering::SeqCst);
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// Forgets what an ended queue pair has said: there may be another one.
    pub(super) fn clear(&self) {
        self.is_over.store(false, Ordering::Release);
        let mut mail = self.mail.lock();
        *mail = Letters::default();
        self.has_mail.store(false, Ordering::SeqCst);
    }

    fn leave(&self, letter: Mail) {
        let mut mail = self.mail.lock();
        if mail.letters.len() < MOST_CONTROL {
            mail.letters.push_back(letter);
        } else {
            mail.is_flooded = true;
        }
        self.has_mail.store(true, Ordering::SeqCst);
        drop(mail);
        if let Some(reader) = self.reader.upgrade() {
            reader.has_mail();
        }
    }
}

impl ReadySink for Feed {
    fn ready(&self, _token: u64, readiness: Readiness) {
        let is_wanted = match readiness {
            Readiness::Readable => self.is_watched.load(Ordering::Acquire),
            Readiness::Writable => {
                self.wants_room.load(Ordering::Acquire) || self.is_watched.load(Ordering::Acquire)
            }
        };
        if !is_wanted {
            return;
        }
        let mail = self.mail.lock();
        self.is_ready.store(true, Ordering::Release);
        self.has_mail.store(true, Ordering::SeqCst);
        drop(mail);
        if let Some(reader) = self.reader.upgrade() {
            reader.has_mail();
        }
    }

    fn over(&self, _token: u64) {
        self.is_over.store(true, Ordering::Release);
        if let Some(reader) = self.reader.upgrade() {
            reader.attend();
        }
    }

    fn control(&self, _token: u64, kind: u8, bytes: &[u8]) {
        self.leave(Mail::Control(kind, Box::from(bytes)));
    }

    fn ended(&self, _token: u64, operation: Operation, result: Result<usize, TransferError>) {
        let result = result.map_err(|error| error.errno());
        self.leave(Mail::Ended(operation, result));
    }
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed").finish_non_exhaustive()
    }
}
