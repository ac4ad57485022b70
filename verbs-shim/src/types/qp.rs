//! What queue pairs are asked for: sizes, and what a send request does.

/// The most pieces of memory that one send request can name.
pub const MAX_PIECES: usize = 4;

/// The size of a queue pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QpCaps {
    /// Send requests that can be outstanding; at most 65,536.
    pub send_wr: u32,
    /// Receives that can be outstanding; at most 65,536. 0 with a shared receive queue.
    pub recv_wr: u32,
    /// Pieces of one send request, 1 to [`MAX_PIECES`].
    pub sge: u32,
    /// Bytes that a send request can carry inline. As the answer, what was granted: it may be more
    /// or less than was asked for.
    pub inline: u32,
}

impl Default for QpCaps {
    fn default() -> Self {
        Self {
            send_wr: 16,
            recv_wr: 16,
            sge: 1,
            inline: 64,
        }
    }
}

/// Memory of the peer's, as the peer described it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RemoteMemory {
    /// Its address there.
    pub addr: u64,
    /// The peer's key for it.
    pub rkey: u32,
}

/// What a send request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// A message into a receive of the peer's.
    Send,
    /// The same, with four bytes besides (host byte order).
    SendWithImm(u32),
    /// The same, and the peer's NIC withdraws this key of its memory.
    SendWithInvalidate(u32),
    /// Bytes into the peer's memory; it sees nothing of it.
    Write(RemoteMemory),
    /// The same, and a receive of the peer's completes with these four bytes.
    WriteWithImm(RemoteMemory, u32),
    /// Bytes from the peer's memory.
    Read(RemoteMemory),
}

impl Verb {
    #[inline]
    pub(crate) fn is_read(self) -> bool {
        matches!(self, Self::Read(_))
    }
}

/// How a request is posted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SendFlags(u32);

impl SendFlags {
    /// Without a completion if it succeeds; see [`crate::SendRequest::signaled`].
    pub const NONE: Self = Self(0);
    /// Waits for earlier RDMA READs.
    pub const FENCED: Self = Self(1);
    /// Success makes a completion, too.
    pub const SIGNALED: Self = Self(2);
    /// Wakes a peer that asked for solicited completions only.
    pub const SOLICITED: Self = Self(4);

    /// Whether all flags of `other` are among these.
    #[inline]
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// By verbs' numbers.
    #[inline]
    pub(crate) const fn bits(self) -> u32 {
        self.0
    }

    #[inline]
    pub(crate) fn only_if(self, condition: bool) -> Self {
        match condition {
            true => self,
            false => Self::NONE,
        }
    }
}

impl std::ops::BitOr for SendFlags {
    type Output = Self;
    #[inline]
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}
