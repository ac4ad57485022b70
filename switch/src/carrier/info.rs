//! What a stream says of itself, as TCP_INFO does of a TCP socket.

/// How far the two directions of a stream are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StreamState {
    /// Both are open.
    Open,
    /// Ours has ended; the peer's is open (FIN-WAIT).
    Ended,
    /// The peer's has ended; ours is open (CLOSE-WAIT).
    PeerEnded,
    /// Both have ended, or the connection is over.
    Over,
}

/// What is known of a stream now. What a carrier does not know is `None`, and nothing is made up: over the
/// SAN there is no congestion window, no segment and no measured round trip, over TCP the kernel tells the
/// rest by TCP_INFO of [`Connection::companion_fd`](crate::Connection::companion_fd).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamInfo {
    /// How far its directions are.
    pub state: StreamState,
    /// Whether the SAN carries it.
    pub is_san: bool,
    /// How often it changed to the SAN, and back to TCP, since it was connected.
    pub changes: (u64, u64),
    /// Bytes of the application's writes that were taken.
    pub bytes_sent: u64,
    /// Bytes that the application's reads were given.
    pub bytes_received: u64,
    /// Bytes that were taken and have not left, or were offered to the peer and not read by it. Over the SAN
    /// alone.
    pub bytes_unsent: Option<u64>,
    /// Messages that have left and that the peer's network card has not acknowledged, as far as somebody
    /// has polled; at most 7 may be counted too many. Over the SAN alone.
    pub messages_unacknowledged: Option<u32>,
}

impl StreamInfo {
    pub(crate) fn new(is_san: bool) -> Self {
        Self {
            state: StreamState::Open,
            is_san,
            changes: (0, 0),
            bytes_sent: 0,
            bytes_received: 0,
            bytes_unsent: None,
            messages_unacknowledged: None,
        }
    }
}

impl StreamState {
    /// By what each direction is.
    pub(crate) fn of(has_ended: bool, peer_has_ended: bool) -> Self {
        match (has_ended, peer_has_ended) {
            (false, false) => Self::Open,
            (true, false) => Self::Ended,
            (false, true) => Self::PeerEnded,
            (true, true) => Self::Over,
        }
    }
}
