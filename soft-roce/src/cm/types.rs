//! What goes into the CM engine and comes out of it.
//!
//! What it does: plain values.
//! What it does not do: anything.

use std::net::SocketAddr;
use std::time::Duration;

use crate::wire::cm::RejReason;
use crate::wire::mad::MadBytes;

/// A connection or an attempt at one: its local communication id. Never 0, and
/// random, so that nobody outside can name it by chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnKey(pub u32);

/// A listener. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenKey(pub u64);

/// The two ends of a UDP flow, seen from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Path {
    /// The socket of ours.
    pub local: SocketAddr,
    /// Where to send.
    pub remote: SocketAddr,
}

/// Times and bounds of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// GUID of this endpoint: random, one a process and never used again, for a
    /// peer takes the same GUID and queue pair for a stale connection.
    pub guid: u64,
    /// First wait before a message is repeated; each further one is half as
    /// long again.
    pub retry_first: Duration,
    /// Longest wait between repetitions.
    pub retry_longest: Duration,
    /// How often a REQ or REP is repeated before the peer counts as unreachable.
    pub retries: u8,
    /// How often a DREQ is repeated before the connection counts as gone.
    pub disconnect_retries: u8,
    /// How long a connection that ended is remembered.
    pub timewait: Duration,
    /// Connections and attempts at a time.
    pub max_connections: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            guid: 1,
            // Loss is noticed within a breath on a LAN, and a server that is
            // slow to accept answers the repetition with an MRA.
            retry_first: Duration::from_millis(200),
            retry_longest: Duration::from_secs(2),
            retries: 12,
            disconnect_retries: 4,
            timewait: Duration::from_secs(1),
            max_connections: 65_536,
        }
    }
}

/// What endpoints of this crate tell each other in the REQ and REP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Extension {
    /// Packets of the path MTU that the sender has room for unread.
    pub window: u16,
    /// Bits of features that both must set to use.
    pub features: u16,
}

impl Extension {
    pub(super) fn to_bits(self) -> u32 {
        u32::from(self.window) << 16 | u32::from(self.features)
    }

    pub(super) fn from_bits(bits: u32) -> Self {
        let [a, b, c, d] = bits.to_be_bytes();
        Self {
            window: u16::from_be_bytes([a, b]),
            features: u16::from_be_bytes([c, d]),
        }
    }
}

/// What to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connect {
    /// The socket to send from and where to.
    pub path: Path,
    /// The address and port that the peer is told as ours.
    pub src: SocketAddr,
    /// The address and port of the service.
    pub dst: SocketAddr,
    /// Our queue pair.
    pub qpn: u32,
    /// The PSN that our queue pair expects first.
    pub psn: u32,
    /// Path MTU, 1 to 5.
    pub mtu: u8,
    /// READs we serve at a time.
    pub responder_resources: u8,
    /// READs we want under way at a time.
    pub initiator_depth: u8,
    /// How often the peer's queue pair is to send again, 0 to 7.
    pub retry_count: u8,
    /// The same after RNR.
    pub rnr_retry_count: u8,
    /// Code of the peer's acknowledgement timeout.
    pub ack_timeout: u8,
    /// Whether our queue pair uses a shared receive queue.
    pub srq: bool,
    /// For a peer of this crate.
    pub extension: Extension,
    /// The user's private data.
    pub private_data: [u8; 56],
}

/// What to accept a request with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accept {
    /// Our queue pair.
    pub qpn: u32,
    /// The PSN that our queue pair expects first.
    pub psn: u32,
    /// READs we serve at a time.
    pub responder_resources: u8,
    /// READs we want under way at a time.
    pub initiator_depth: u8,
    /// How often the peer's queue pair is to send again after RNR.
    pub rnr_retry_count: u8,
    /// Whether our queue pair uses a shared receive queue.
    pub srq: bool,
    /// For a peer of this crate.
    pub extension: Extension,
    /// The user's private data.
    pub private_data: [u8; 196],
}

/// What the peer says of its queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Where its packets come from and ours go to.
    pub path: Path,
    /// Its queue pair.
    pub qpn: u32,
    /// The PSN that it expects first.
    pub psn: u32,
    /// READs it serves at a time.
    pub responder_resources: u8,
    /// READs it wants under way at a time.
    pub initiator_depth: u8,
    /// How often we are to send again after RNR; 7 is always.
    pub rnr_retry_count: u8,
    /// Its extension, if it is of this crate.
    pub extension: Option<Extension>,
}

/// What a REQ asks for besides the peer's queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Address and port of the requester as it names them.
    pub src: SocketAddr,
    /// Address and port of ours that it came to.
    pub dst: SocketAddr,
    /// Path MTU, 1 to 5: both sides obey it.
    pub mtu: u8,
    /// How often our queue pair is to send again.
    pub retry_count: u8,
    /// Code of our acknowledgement timeout.
    pub ack_timeout: u8,
    /// The user's private data, zero-padded.
    pub private_data: [u8; 56],
}

/// What the user of the engine is told. The names are those of `rdma_cm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    clippy::large_enum_variant,
    reason = "copied once, kept nowhere for long"
)]
pub enum Event {
    /// A request came to a listener. Answer with accept, reject or destroy.
    ConnectRequest {
        /// The listener.
        listener: ListenKey,
        /// The attempt.
        conn: ConnKey,
        /// The peer's queue pair.
        peer: Peer,
        /// The rest of the request.
        request: Request,
    },
    /// The peer accepted. Move the queue pair, then call
    /// [`Engine::ready`](super::Engine::ready).
    ConnectResponse {
        /// The attempt.
        conn: ConnKey,
        /// The peer's queue pair.
        peer: Peer,
        /// Its user's private data, zero-padded.
        private_data: [u8; 196],
    },
    /// Passive side: the peer is ready.
    Established {
        /// The connection.
        conn: ConnKey,
    },
    /// The attempt is over. The key is free.
    Rejected {
        /// The attempt.
        conn: ConnKey,
        /// Why.
        reason: RejReason,
        /// The peer's user's private data, zero-padded.
        private_data: [u8; 148],
    },
    /// The peer did not answer. The key is free.
    Unreachable {
        /// The attempt.
        conn: ConnKey,
    },
    /// The connection has ended. [`Event::TimewaitExit`] follows.
    Disconnected {
        /// The connection.
        conn: ConnKey,
    },
    /// Nothing of the connection is on its way any more. The key is free.
    TimewaitExit {
        /// The connection.
        conn: ConnKey,
    },
}

/// A message to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// From where to where.
    pub path: Path,
    /// What.
    pub mad: MadBytes,
}

/// Why a call was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CmError {
    /// No such connection: it never was, or has ended.
    #[error("no such connection")]
    Unknown,
    /// The connection's state does not allow the call.
    #[error("not allowed in the connection's state")]
    State,
    /// As many connections as there may be.
    #[error("too many connections")]
    Full,
    /// Another listener has the address and port.
    #[error("address and port in use")]
    InUse,
}

/// What happened, in numbers since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages taken in.
    pub received: u64,
    /// Messages put out, repetitions among them.
    pub sent: u64,
    /// Bytes that were no message.
    pub malformed: u64,
    /// Messages that named a connection from a wrong address.
    pub forged: u64,
    /// Messages of which the answer had been given already.
    pub duplicates: u64,
    /// Messages about connections that do not exist.
    pub unknown: u64,
    /// Requests for services that nobody listens on.
    pub no_listener: u64,
    /// Own requests for addresses of this host where nobody has the socket.
    pub nobody: u64,
    /// Requests refused because a backlog was full.
    pub backlog_full: u64,
    /// Requests refused because of [`Config::max_connections`].
    pub table_full: u64,
    /// Requests refused because of packets larger than the way to the peer takes.
    pub mtu_too_large: u64,
    /// Connections ended because the peer reused its queue pair.
    pub stale: u64,
    /// Messages repeated because no answer came.
    pub retries: u64,
    /// Attempts and disconnections given up because no answer came.
    pub timeouts: u64,
}
