//! The stream's part in a move to another process: this end's, or the peer's.

use std::io;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use san_provider::{DataPath, MemoryHandle};
use san_stream::{Config, Engine, Kind, Rested};
use serde::{Deserialize, Serialize};

use super::State;
use crate::carrier::Buffers;
use crate::carrier::san::urgent::Urgent;

/// An end that has gone to another process is waited for so long.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the lock protects, on its way to another process.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kept {
    received: u64,
    eof: bool,
    /// Pieces that have landed: first and end.
    landed: Vec<(u64, u64)>,
    sent: u64,
    accepted: u64,
    closed: bool,
    has_sent_end: bool,
    /// Our urgent byte, and one that the peer was not told of.
    urgent: Option<u64>,
    mark: Option<(u64, u8)>,
    /// The peer's.
    peers_urgent: Urgent,
    has_peer_ended_last: bool,
    /// The error that no call has said.
    error: Option<i32>,
    /// Bounds of what is staged and held, in bytes.
    buffers: (usize, usize),
}

/// The bytes beside it.
#[derive(Debug, Clone, Default)]
pub(crate) struct KeptBytes {
    /// Of the pieces that have landed, one after the other.
    pub(crate) landed: Vec<u8>,
    /// Staged, and not sent.
    pub(crate) staged: Vec<u8>,
}

impl State {
    /// Has both ends rest, so that this one may move; `may_move` tells how it went. `false`: it cannot
    /// begin.
    pub(in crate::carrier::san) fn suspend(&mut self, data: &DataPath) -> bool {
        self.may_move = None;
        let has_begun = self.engine.suspend(self.epoch);
        self.act();
        self.pump(data);
        has_begun
    }

    /// This end stays.
    pub(in crate::carrier::san) fn stay(&mut self, data: &DataPath) {
        self.is_frozen = false;
        self.engine.resume(self.epoch);
        self.act();
        self.news.writer = true;
        self.news.watcher = true;
        self.pump(data);
    }

    /// What goes to the other process; from now on nothing changes. `None`: the stream is over.
    pub(in crate::carrier::san) fn freeze(&mut self) -> Option<(Kept, KeptBytes)> {
        let mut rested = self.engine.rested().filter(|_| self.over.is_none())?;
        self.is_frozen = true;
        // What was given out and not sent.
        match (
            self.waiting.as_ref(),
            self.waiting.as_ref().map(|post| post.kind),
        ) {
            (_, Some(Kind::End)) => rested.has_sent_end = false,
            (Some(post), Some(kind)) => {
                if let Some(staged) = post.staged {
                    rested.sent = staged.position;
                    rested.urgent = match kind {
                        Kind::Urgent => Some(staged.position),
                        _ => rested.urgent,
                    };
                }
            }
            _ => {}
        }
        let length = |from: u64, to: u64| usize::try_from(to - from).unwrap_or(0);
        let mut staged = vec![0; length(rested.sent, rested.accepted)];
        self.bulk.take_all(rested.sent, &mut staged);
        let mut landed = Vec::new();
        for (from, to) in &rested.landed {
            let mut piece = vec![0; length(*from, *to)];
            self.bulk.copy_landed((*from, to - from), &mut piece);
            landed.append(&mut piece);
        }
        let kept = Kept {
            received: rested.received,
            eof: rested.eof,
            landed: rested.landed,
            sent: rested.sent,
            accepted: rested.accepted,
            closed: rested.closed,
            has_sent_end: rested.has_sent_end,
            urgent: rested.urgent,
            mark: rested.mark,
            peers_urgent: self.urgent.clone(),
            has_peer_ended_last: self.has_peer_ended_last,
            error: self.error,
            buffers: self.buffers(),
        };
        Some((kept, KeptBytes { landed, staged }))
    }

    /// Another process has it.
    pub(in crate::carrier::san) fn moved(&mut self, data: &DataPath) {
        self.has_moved = true;
        self.is_frozen = false;
        self.note_over(data, Errno::NOTCONN.raw_os_error());
        self.error = None;
    }

    /// The stream of another process. What it says of itself is not trusted.
    pub(in crate::carrier::san) fn taken_up(
        config: Config,
        kept: Kept,
        bytes: &KeptBytes,
    ) -> io::Result<Self> {
        let bad = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        let rested = Rested {
            received: kept.received,
            eof: kept.eof,
            landed: kept.landed,
            sent: kept.sent,
            accepted: kept.accepted,
            closed: kept.closed,
            has_sent_end: kept.has_sent_end,
            urgent: kept.urgent,
            mark: kept.mark,
        };
        let epoch = Instant::now();
        let engine =
            Engine::taken_up(config, &rested, epoch).map_err(|why| bad(why.to_string()))?;
        let pieces = rested.landed.iter().map(|(from, to)| to - from);
        if pieces.sum::<u64>() != bytes.landed.len() as u64
            || rested.accepted - rested.sent != bytes.staged.len() as u64
        {
            return Err(bad("bytes are missing, or too many".to_owned()));
        }
        let mut state = Self::with(engine, epoch);
        if !bytes.staged.is_empty() {
            state.bulk.put(rested.sent, &bytes.staged)?;
            state.note_use();
        }
        let mut rest = &*bytes.landed;
        for (position, to) in &rested.landed {
            let length = usize::try_from(to - position).unwrap_or(usize::MAX);
            let Some((piece, behind)) = rest.split_at_checked(length) else {
                return Err(bad("bytes are missing".to_owned()));
            };
            rest = behind;
            state.bulk.landed_elsewhere(*position, piece);
        }
        state.urgent = kept.peers_urgent;
        state.error = kept.error;
        state.is_closed = rested.closed;
        state.has_end_arrived = rested.has_sent_end;
        state.has_peer_ended_last = kept.has_peer_ended_last;
        let (send, receive) = kept.buffers;
        state.bound(Buffers {
            send: Some(send),
            receive: Some(receive),
        });
        Ok(state)
    }

    /// The ring that is to be taken away from the peer.
    pub(in crate::carrier::san) fn take_ring_to_close(&mut self) -> Option<MemoryHandle> {
        self.ring_to_close.take()
    }

    pub(super) fn close_ring(&mut self) {
        self.opens_ring = false;
        if let Some(handle) = self.bulk.take_opened() {
            self.ring_to_close = Some(handle);
            self.news.ring = true;
        }
        // Taken back before it was out.
        if self
            .waiting
            .as_ref()
            .is_some_and(|post| post.kind == Kind::Offer)
        {
            self.waiting = None;
        }
    }

    pub(super) fn answered(&mut self, may_move: bool) {
        self.may_move = Some(may_move);
        self.news.writer = true;
    }

    /// The peer moves, or does so no more.
    pub(super) fn note_peer_moves(&mut self) {
        if !self.engine.peer_moves() {
            self.peer_moves_since = None;
        } else if self.peer_moves_since.is_none() {
            self.peer_moves_since = Some(Instant::now());
            self.note_use();
        }
    }

    /// Whether the peer moves; one that does so for too long is given up.
    pub(super) fn has_peer_gone_for_long(&mut self) -> bool {
        if self.over.is_some() {
            return false;
        }
        let since = self.peer_moves_since;
        if since.is_some_and(|since| since.elapsed() >= PATIENCE) {
            tracing::debug!("the peer moves to another process for too long");
            self.peer_moves_since = None;
            self.error = Some(Errno::CONNRESET.raw_os_error());
            self.news.over = true;
            self.news.reader = true;
            self.news.writer = true;
            self.news.watcher = true;
        }
        since.is_some()
    }
}
