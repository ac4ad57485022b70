//! What the provider tells of a stream, and the letting go of the stream's lock.

use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Weak};

use parking_lot::MutexGuard;
use rustix::io::Errno;
use san_provider::{DataPath, Operation, Readiness, ReadySink, TransferError};
use san_stream::{Failure, Kind};

use super::state::{News, State};
use super::{IdleMemory, SanCarrier};

/// What the provider has told.
#[derive(Debug)]
pub(super) enum Mail {
    /// A message of a kind from 16 on.
    Control(u8, Box<[u8]>),
    Ended(Operation, Result<usize, i32>),
    /// Messages came, or the end did.
    Readable,
    /// A message would go out.
    Writable,
}

/// What the provider tells to. It keeps nothing open: the carrier has the provider's connection.
struct Ears(Weak<SanCarrier>);

impl Ears {
    fn leave(&self, mail: Mail) {
        if let Some(carrier) = self.0.upgrade() {
            carrier.leave_mail(mail);
        }
    }
}

impl ReadySink for Ears {
    fn ready(&self, _token: u64, readiness: Readiness) {
        self.leave(match readiness {
            Readiness::Readable => Mail::Readable,
            Readiness::Writable => Mail::Writable,
        });
    }

    fn control(&self, _token: u64, kind: u8, bytes: &[u8]) {
        self.leave(Mail::Control(kind, Box::from(bytes)));
    }

    fn ended(&self, _token: u64, operation: Operation, result: Result<usize, TransferError>) {
        let result = result.map_err(|error| error.errno());
        self.leave(Mail::Ended(operation, result));
    }
}

impl SanCarrier {
    /// Has the provider tell from now on.
    pub(super) fn listen(self: &Arc<Self>) {
        if let Some(data) = &self.data {
            data.set_polled_sink(Some((Arc::new(Ears(Arc::downgrade(self))), 0)));
        }
    }

    fn leave_mail(&self, mail: Mail) {
        self.mail.lock().push(mail);
        self.has_mail.store(true, Ordering::SeqCst);
        self.read_mail();
    }

    /// The stream's lock, with what went the short way told to the engine.
    pub(super) fn lock(&self) -> (MutexGuard<'_, State>, Option<&DataPath>) {
        let mut state = self.state.lock();
        state.catch_up(self.read.load(Ordering::Relaxed));
        (state, self.data.as_ref())
    }

    /// Lets the lock go after something was done with the engine.
    pub(super) fn unlock(&self, mut state: MutexGuard<'_, State>) {
        let news = self.settle(&mut state);
        drop(state);
        self.tell(news);
        self.serve_mail();
    }

    /// Lets the lock go after a look at the engine that changed nothing.
    pub(super) fn release(&self, state: MutexGuard<'_, State>) {
        if state.news != News::default() {
            return self.unlock(state);
        }
        drop(state);
        self.serve_mail();
    }

    /// Reads the mail that came while somebody had the lock: who lets it go looks for mail after that, and
    /// who leaves mail looks for the lock after that.
    #[inline]
    pub(super) fn serve_mail(&self) {
        fence(Ordering::SeqCst);
        if self.has_mail.load(Ordering::Relaxed) {
            self.read_mail();
        }
    }

    #[cold]
    #[inline(never)]
    fn read_mail(&self) {
        let Some(data) = &self.data else {
            return;
        };
        while self.has_mail.load(Ordering::SeqCst) {
            let Some(mut state) = self.state.try_lock() else {
                return;
            };
            state.catch_up(self.read.load(Ordering::Relaxed));
            self.has_mail.store(false, Ordering::SeqCst);
            let mail = std::mem::take(&mut *self.mail.lock());
            for one in mail {
                match one {
                    Mail::Control(kind, bytes) => {
                        if kind == Kind::Done.number()
                            && let Some(length) = bytes.first_chunk()
                        {
                            let length = u32::from_be_bytes(*length);
                            self.counters.bulk_sent.add(length.into());
                        }
                        state.control(self.spi(), data, kind, bytes);
                    }
                    Mail::Ended(operation, result) => {
                        if result == Err(Errno::FAULT.raw_os_error()) {
                            // It has offered what it has not opened.
                            self.counters.violations_bulk.raise();
                        }
                        state.ended(self.spi(), data, operation, result);
                    }
                    Mail::Readable => {
                        state.news.watcher = true;
                        state.look_for_end(data);
                    }
                    Mail::Writable => state.go_on(self.spi(), data),
                }
                // The reader must not take a message that the peer sends once it knows that what was
                // offered before it is read: so it hears of the offer before the peer hears of that.
                if state.news.reader {
                    self.look.store(true, Ordering::SeqCst);
                }
            }
            let news = self.settle(&mut state);
            drop(state);
            self.tell(news);
            fence(Ordering::SeqCst);
        }
    }

    /// What is to be done before the lock is let go: what has to be told then.
    pub(super) fn settle(&self, state: &mut State) -> News {
        state.refresh();
        let wanted = state.is_busy();
        if std::mem::replace(&mut state.wants_looks, wanted) != wanted
            && let Some(data) = &self.data
        {
            data.want_looks(wanted);
        }
        let news = std::mem::take(&mut state.news);
        if news.over
            && let Some(Failure::Protocol(violation)) = state.failure()
        {
            // Whoever sees the stream broken finds it counted.
            self.counters.count_violation(violation);
        }
        news
    }

    /// Tells whom it concerns. No lock is held.
    pub(super) fn tell(&self, news: News) {
        let Some(data) = &self.data else {
            return;
        };
        if news.reader {
            self.look.store(true, Ordering::SeqCst);
        }
        if news.writer {
            self.room.store(true, Ordering::SeqCst);
        }
        if news.reader || news.writer {
            data.wake();
        }
        if news.ring {
            self.close_ring();
        }
        if news.memory {
            let this = Weak::clone(&self.this) as Weak<dyn IdleMemory>;
            self.keeper.look_after(this);
        }
        if news.over {
            self.end_connection();
        }
        if news.watcher {
            self.tell_watcher();
        }
    }

    /// The stream is over before its end: the connection goes, too.
    fn end_connection(&self) {
        let failure = self.state.lock().failure();
        if let Some(Failure::Protocol(violation)) = failure {
            tracing::warn!(peer = %self.peer, %violation, "the peer broke the protocol");
        }
        let _ = self.spi().disconnect();
    }
}
