//! What an engine is told and what it asks for, and the names of its states and failures.

use std::fmt;
use std::time::Duration;

use crate::frame::{FrameError, Role};
use crate::message::{Decline, Kind, MessageError, Ring};
use crate::pull::{PullError, RING};
use crate::timers::Thresholds;

/// How a stream begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// On TCP, and may move to a queue pair and back.
    Upgrade,
    /// On a queue pair, without a TCP connection; a break is its end.
    Direct,
}

/// The smallest bound of what is staged or held, in bytes.
pub const LEAST_BUFFER: u64 = 4096;

/// What a stream begins with.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Which end of the connection this is.
    pub role: Role,
    /// Where it begins.
    pub route: Route,
    /// Whether only the holder of a configured key could have made the queue pair. Then PROOFs are
    /// left out.
    pub is_keyed: bool,
    /// Whether the peer reads by RDMA, so that bulk may be offered to it.
    pub may_offer: bool,
    /// Whether the peer knows MARK.
    pub may_mark: bool,
    /// Bytes of one message of the queue pair, its head included: at least 64.
    pub max_message: usize,
    /// Bytes of bulk that may be held for the application (`SO_RCVBUF`): [`LEAST_BUFFER`] to
    /// [`RING`](crate::RING).
    pub receive_buffer: u64,
    /// Bytes that may be staged, those that were offered and not read among them (`SO_SNDBUF`):
    /// [`LEAST_BUFFER`] to [`RING`](crate::RING).
    pub send_buffer: u64,
    /// When a connecting end listens for a queue pair. The accepting end dials at twice that, and
    /// while that leads nowhere, at 8 and 64 times the bytes, and then no more.
    pub thresholds: Thresholds,
}

impl Config {
    /// The usual values.
    pub fn new(role: Role, route: Route) -> Self {
        Self {
            role,
            route,
            is_keyed: false,
            may_offer: true,
            may_mark: true,
            max_message: 4096,
            receive_buffer: 128 * 1024,
            send_buffer: RING,
            thresholds: Thresholds::default(),
        }
    }
}

/// Where a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// On TCP.
    Tcp,
    /// On TCP; the connecting end listens for the queue pair.
    Inviting,
    /// On TCP; the accepting end dials the queue pair.
    Dialling,
    /// The queue pair is there; both ends prove that they hold the TCP connection.
    Proving,
    /// The places are agreed on where the streams leave TCP.
    Cutting,
    /// On the queue pair, TCP underneath.
    San,
    /// On the way back to TCP.
    Leaving,
    /// On the queue pair, and nothing underneath.
    SanOnly,
    /// On TCP, and will not move any more.
    TcpForGood,
    /// Both directions ended in order.
    Ended,
    /// The stream is over before its end.
    Broken(Failure),
}

/// Why a stream broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The application gave it up.
    Aborted,
    /// The peer gave it up, or the only carrier broke: `ECONNRESET`.
    Reset,
    /// The peer's process is gone. What it had sent is read, then the end of the stream; writes fail
    /// with `EPIPE`.
    PeerGone,
    /// The peer did not come back to TCP in time: `ETIMEDOUT`.
    TimedOut,
    /// The peer has lost bytes that its network card had acknowledged: `ECONNRESET`.
    BytesLost,
    /// The peer broke the protocol: `ECONNRESET`.
    Protocol(Violation),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aborted => write!(f, "the stream was given up here"),
            Self::Reset => write!(f, "the peer reset the stream"),
            Self::PeerGone => write!(f, "the peer's process is gone"),
            Self::TimedOut => write!(f, "the peer did not come back to TCP"),
            Self::BytesLost => write!(f, "the peer lost bytes that were acknowledged"),
            Self::Protocol(violation) => write!(f, "the peer broke the protocol: {violation}"),
        }
    }
}

impl std::error::Error for Failure {}

/// What a peer did that the protocol forbids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// Bytes that are no message.
    Message(MessageError),
    /// A message that may not come now.
    Unexpected(Kind),
    /// A place for the cut before the proofs.
    CutUnproven,
    /// A place whose position cannot be: no stream gets there.
    ImpossiblePlace,
    /// READY counts more bytes than were written.
    ReadTooMuch,
    /// DATA from an end that cannot know that it may send.
    DataBeforeGo,
    /// Bytes after the end of the stream.
    AfterEnd,
    /// An urgent byte on a queue pair with TCP underneath.
    UrgentBesideTcp,
    /// Something else where a RESUME must stand on TCP.
    Frame(FrameError),
    /// RESUME for bytes that were never sent.
    ResumeBeyond,
    /// An offer or a ring.
    Pull(PullError),
    /// DONE for bytes that were not offered.
    DoneForNothing,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message(why) => write!(f, "{why}"),
            Self::Unexpected(kind) => write!(f, "{kind:?} may not come now"),
            Self::CutUnproven => write!(f, "a cut before the proofs"),
            Self::ImpossiblePlace => write!(f, "a place that no stream reaches"),
            Self::ReadTooMuch => write!(f, "more bytes read than were written"),
            Self::DataBeforeGo => write!(f, "data before it may be sent"),
            Self::AfterEnd => write!(f, "data after the end of the stream"),
            Self::UrgentBesideTcp => write!(f, "urgent data belongs on TCP"),
            Self::Frame(why) => write!(f, "{why}"),
            Self::ResumeBeyond => write!(f, "resumes at bytes that were not sent"),
            Self::Pull(why) => write!(f, "bulk: {why:?}"),
            Self::DoneForNothing => write!(f, "done with bytes that were not offered"),
        }
    }
}

impl std::error::Error for Violation {}

/// Why a dial has brought no queue pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Not now; later perhaps.
    NotNow,
    /// Nobody has dialled, and nobody will before this time is over. It does not count as a dial.
    After(Duration),
    /// Nobody there speaks this.
    Never,
}

/// The kernel's own count of a TCP connection, frames included: bytes that were written to it and
/// bytes that were read from it. `docs/protocol.md` says how it is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Bytes written.
    pub written: u64,
    /// Bytes read.
    pub read: u64,
}

/// What happened.
#[derive(Debug)]
pub enum Event<'a, K> {
    /// So many bytes were read from TCP for the application, within the limit of
    /// [`TcpIn::Raw`](crate::TcpIn::Raw).
    TcpBytes(usize),
    /// These bytes come next on TCP, up to 32; nothing was taken. `is_end`: FIN follows them.
    TcpPeeked {
        /// The bytes.
        bytes: &'a [u8],
        /// Nothing can follow them.
        is_end: bool,
    },
    /// So many bytes of what [`Engine::tcp_out`](crate::Engine::tcp_out) named were written.
    TcpWritten(usize),
    /// FIN was sent, as asked for.
    TcpShutDown,
    /// FIN came, and everything before it was taken.
    TcpFin,
    /// RST came.
    TcpReset,
    /// The queue pair is connected.
    QpUp {
        /// The key of this excursion.
        key: K,
        /// Which excursion of this stream it is, as the dialling end counts; it was in the request.
        generation: u16,
        /// What the kernel counts, if it was asked.
        counts: Option<Counts>,
    },
    /// The dial that was asked for begins now: it had to wait for its turn. From the first on, so much time is
    /// waited for the queue pair as a dial may take.
    Dialled,
    /// The dial failed.
    Refused(Refusal),
    /// A message. Kinds from 16 on are told as they come, the others in their order, when
    /// [`Engine::source`](crate::Engine::source) asks for a message. DATA goes by
    /// [`Engine::data`](crate::Engine::data).
    QpMessage {
        /// The kind's number.
        kind: u8,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// So many messages that were posted are not acknowledged.
    QpUnacknowledged(u32),
    /// The queue pair broke, or the peer ended it.
    QpBroken,
    /// After [`Action::QpDisconnect`]: the queue pair is in its error state, and every message that
    /// had come, every READ that was complete, and the last count of acknowledged messages was told.
    QpDrained,
    /// The READ that began at this position is complete.
    ReadDone {
        /// Its first byte's position.
        position: u64,
        /// Its length in bytes.
        length: u32,
    },
    /// The staging ring can be read by the peer.
    RingOpened(Ring),
    /// The application writes no more (`shutdown(SHUT_WR)`, `close`).
    Close,
    /// The application gives the stream up (RST).
    Abort,
    /// The byte that was staged last is urgent (`MSG_OOB`): this one. One that was urgent before and is
    /// not sent yet is a byte like others from now on.
    Urgent(u8),
    /// The stream must be on TCP; `for_good`: and stay there.
    WantDown {
        /// Never again on a queue pair.
        for_good: bool,
    },
    /// A deadline may be over.
    Timer,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Listen for the queue pair at the own address and port of the TCP connection.
    Listen,
    /// Dial the queue pair at the peer's address and port of the TCP connection.
    Dial,
    /// Stop listening or dialling; a queue pair that comes meanwhile is not wanted.
    StopConnecting,
    /// Take the queue pair into its error state, tell what had come, then [`Event::QpDrained`].
    QpDisconnect,
    /// End the queue pair; nobody wants what had come.
    QpClose,
    /// End the queue pair that has just come; the stream has another one, or wants none.
    QpUnwanted,
    /// Take so many bytes off TCP and forget them: a frame that was seen.
    TcpSkip(usize),
    /// Bytes that were put aside ([`Keep::Aside`](crate::Keep::Aside)) are next for the application.
    TakeAside,
    /// An urgent byte is next for the application, where it stands in the stream. Whether that gets it is
    /// the shell's business: it knows of it by [`Action::Mark`], and which byte is urgent now.
    Urgent(u8),
    /// An urgent byte comes, or is here; bytes before it may not have been read, or be on their way.
    Mark {
        /// Its position in the peer's stream.
        position: u64,
        /// The byte.
        byte: u8,
    },
    /// Open the staging ring for the peer, then [`Event::RingOpened`].
    OpenRing,
    /// OFFERs are about this memory of the peer.
    PeerRing(Ring),
    /// Take the staging ring away from the peer; a message with an OFFER that was given out and not posted
    /// is void. The bytes in the ring stay.
    CloseRing,
    /// Both ends rest, and this one may move: after [`Engine::suspend`](crate::Engine::suspend).
    MayMove,
    /// The peer moves, too, so this end stays.
    MayNotMove,
    /// Send ABORT if there is a queue pair with a place for it, end it, and reset TCP.
    Reset,
    /// The state changed.
    Changed(State),
    /// Send NO with this reason, if the queue pair has a place for it.
    Decline(Decline),
    /// The peer declined the queue pair.
    Declined(Decline),
}
