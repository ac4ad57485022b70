//! The queue pair's side: it comes, messages go out and in, and it is emptied when it stops.

use std::sync::atomic::Ordering;
use std::time::Instant;

use san_provider::TransferError;
use san_stream::{Event, Keep, Kind, Refusal, State};

use super::{Around, Mover};
use crate::san::socket::ProviderSocket;
use crate::upgrade::key::ExcursionKey;
use crate::upgrade::queue_pair::{Posted, QueuePair};

impl Mover {
    /// The peer speaks of bulk, which was not agreed on.
    pub(super) fn refuse_bulk(&mut self) {
        self.engine
            .handle(Event::WantDown { for_good: true }, Instant::now());
    }

    /// The queue pair that was dialled or accepted.
    pub(in crate::upgrade) fn connected(
        &mut self,
        around: &Around,
        socket: ProviderSocket,
        key: ExcursionKey,
        generation: u16,
    ) {
        if self.pair.is_some() || self.drains {
            return;
        }
        around.feed.clear();
        let Some(pair) = QueuePair::new(socket, &around.feed) else {
            return self.tell(around, Event::Refused(Refusal::NotNow));
        };
        self.pair = Some(pair);
        self.tell(
            around,
            Event::QpUp {
                key,
                generation,
                counts: None,
            },
        );
        if !matches!(self.engine.state(), State::Proving | State::Cutting) {
            self.pair = None;
            return;
        }
        around.service.counters.moves_begun.raise();
        self.is_held = true;
    }

    /// The queue pair is used from now on.
    pub(in crate::upgrade) fn begin(&mut self, around: &Around) {
        if !std::mem::take(&mut self.is_held) {
            return;
        }
        let Some(data) = self.pair.as_ref().map(|pair| pair.data.clone()) else {
            return;
        };
        // What came before the sink was there comes first.
        while let Ok(message) = data.try_receive() {
            let kind = message.kind();
            self.message(around, kind, &message);
        }
        self.progress(around);
    }

    pub(super) fn forget_pair(&mut self, around: &Around) {
        self.pair = None;
        self.drains = false;
        self.is_stalled = false;
        around.feed.clear();
    }

    /// A message that is not taken straight into the application's buffer.
    pub(super) fn message(&mut self, around: &Around, kind: u8, bytes: &[u8]) {
        if kind != Kind::Data.number() {
            return self.tell(around, Event::QpMessage { kind, bytes });
        }
        match self.engine.data(bytes.len()) {
            Keep::Deliver => self.kept.extend(bytes),
            Keep::Aside => self.aside.extend(bytes),
            Keep::Drop => {}
        }
        self.act(around);
    }

    /// Posts what the engine has for the queue pair.
    pub(super) fn post(&mut self, around: &Around) {
        if self.drains {
            return;
        }
        let Some(pair) = &self.pair else {
            return;
        };
        let unacknowledged = pair.unacknowledged();
        self.tell(around, Event::QpUnacknowledged(unacknowledged));
        loop {
            let Some(pair) = &mut self.pair else {
                return;
            };
            let Some(post) = pair.take_pending().or_else(|| self.engine.next_message()) else {
                break;
            };
            match pair.post(post, &self.ring) {
                Posted::Yes => {}
                Posted::Waits => break,
                Posted::Broken => return self.tell(around, Event::QpBroken),
            }
        }
        self.act(around);
        let is_stalled = self.has_unsent();
        let was_stalled = std::mem::replace(&mut self.is_stalled, is_stalled);
        if self.is_stalled != was_stalled {
            around
                .feed
                .wants_room
                .store(self.is_stalled, Ordering::Release);
        }
        if self.is_stalled && !was_stalled {
            // The application may not come again before there is room.
            around.service.attend(around.token);
        }
    }

    /// Whether the queue pair is to bring bytes that it has no room for.
    pub(super) fn has_unsent(&self) -> bool {
        let Some(pair) = &self.pair else {
            return false;
        };
        !self.drains && (pair.has_pending() || self.engine.has_unsent())
    }

    /// The queue pair gives no more.
    pub(in crate::upgrade) fn broken(&mut self, around: &Around) {
        if !self.drains && self.pair.is_some() {
            self.tell(around, Event::QpBroken);
        }
    }

    /// Takes in everything that the stopped queue pair had brought. The caller keeps others from
    /// reading. It waits a moment for the thread that polls. `false`: not all of it is here yet.
    pub(in crate::upgrade) fn drain(&mut self, around: &Around) -> bool {
        loop {
            match around.feed.next() {
                Ok(Some((kind, bytes))) => self.message(around, kind, &bytes),
                Ok(None) => {}
                Err(()) => around.feed.clear(),
            }
            let Some(pair) = &self.pair else {
                break;
            };
            match pair.data.try_receive() {
                Ok(received) => {
                    let kind = received.kind();
                    self.message(around, kind, &received);
                }
                Err(TransferError::WouldBlock) => return false,
                Err(_) => break,
            }
        }
        while let Ok(Some((kind, bytes))) = around.feed.next() {
            self.message(around, kind, &bytes);
        }
        if let Some(pair) = &self.pair {
            let unacknowledged = pair.unacknowledged();
            self.engine
                .handle(Event::QpUnacknowledged(unacknowledged), Instant::now());
        }
        self.forget_pair(around);
        self.tell(around, Event::QpDrained);
        self.progress(around);
        true
    }
}
