//! The two directions of a stream as positions: bytes counted from its beginning, whatever carried
//! them. Frames have no position.

/// How the end of the outgoing direction stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Fin {
    /// Not told to the peer.
    #[default]
    None,
    /// END was sent on the queue pair.
    End,
    /// FIN was sent on TCP.
    Tcp,
}

/// What the application writes.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    /// All that the application has written.
    pub(crate) accepted: u64,
    /// What of it went to a carrier; falls back when the peer resumes earlier.
    pub(crate) sent: u64,
    /// The application writes no more.
    pub(crate) closed: bool,
    pub(crate) fin: Fin,
    /// The position of the urgent byte, while it waits to be sent.
    pub(crate) urgent: Option<u64>,
}

impl Outgoing {
    /// Bytes that no carrier has had; after a resume also those that go out again.
    #[inline]
    pub(crate) fn unsent(&self) -> u64 {
        self.accepted - self.sent
    }
}

/// What the application reads.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    /// All that was taken from carriers in order: the next byte that is wanted.
    pub(crate) position: u64,
    /// The end of the stream was taken, too.
    pub(crate) eof: bool,
    /// Bytes of an ended queue pair that belong behind bytes which are still on TCP, and whether
    /// the end of the stream follows them.
    pub(crate) aside: u64,
    pub(crate) aside_end: bool,
}
