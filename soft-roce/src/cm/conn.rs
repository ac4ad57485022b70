//! One connection, or an attempt at one.
//!
//! What it does: holds its state and what is to be repeated until answered.
//! What it does not do: decide; that is in `engine`, `receive` and `timer`.

use std::time::Duration;

use super::types::{Config, ListenKey, Path};
use crate::time::Time;
use crate::wire::mad::MadBytes;

/// Where a connection stands (IBTA 12.9.5 to 12.9.8, without what concerns
/// alternate paths).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Active: REQ is out.
    ReqSent,
    /// Active: the peer has the REQ and asked for patience.
    ReqWaiting,
    /// Active: the user is to move its queue pair.
    RepReceived,
    /// Passive: the user is to accept or reject. The place in the listener's
    /// backlog is still held if there is one.
    ReqReceived(Option<ListenKey>),
    /// Passive: REP is out.
    RepSent,
    /// Both are ready.
    Established,
    /// DREQ is out.
    DreqSent,
    /// Over; late messages may still come.
    Timewait,
}

#[derive(Debug)]
pub(super) struct Conn {
    pub(super) state: State,
    pub(super) path: Path,
    /// Transaction of the exchange under way.
    pub(super) tid: u64,
    /// The peer's communication id; 0 until known.
    pub(super) remote_id: u32,
    /// The peer's GUID; 0 until known.
    pub(super) remote_guid: u64,
    /// Our queue pair; 0 until accepted.
    pub(super) qpn: u32,
    /// The peer's queue pair; 0 until known.
    pub(super) remote_qpn: u32,
    /// The last message: what the timer repeats and duplicates are answered with.
    pub(super) sent: MadBytes,
    pub(super) retry: Retry,
    /// When the timer fires; the engine's table of timers has the same.
    pub(super) deadline: Option<Time>,
    /// Whether the user has let go: no more events, the rest is courtesy.
    pub(super) orphan: bool,
}

/// Repetitions left and the wait before the next.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retry {
    left: u8,
    wait: Duration,
}

impl Retry {
    pub(super) fn new(config: &Config, times: u8) -> Self {
        Self {
            left: times,
            wait: config.retry_first,
        }
    }

    /// The wait that begins now.
    pub(super) fn wait(&self) -> Duration {
        self.wait
    }

    /// Whether to repeat once more; the next wait is longer.
    pub(super) fn again(&mut self, config: &Config) -> bool {
        let Some(left) = self.left.checked_sub(1) else {
            return false;
        };
        self.left = left;
        self.wait = (self.wait * 3 / 2).min(config.retry_longest);
        true
    }
}
