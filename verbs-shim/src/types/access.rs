//! Rights of registered memory.

/// Who may do what with registered memory. The NIC may always read it for the local side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Access(u32);

impl Access {
    /// Local reading only: a source of sends and writes.
    pub const READ_ONLY: Self = Self(0);
    /// The NIC may write it for the local side: receives, and the target of an RDMA READ.
    pub const LOCAL_WRITE: Self = Self(1);
    /// The peer may write it by RDMA WRITE. Includes `LOCAL_WRITE`, which IBTA demands with it.
    pub const REMOTE_WRITE: Self = Self(1 | 2);
    /// The peer may read it by RDMA READ.
    pub const REMOTE_READ: Self = Self(4);
    /// Parts of it may be opened to a peer by [`crate::QueuePair::bind`]. The region's own key
    /// opens nothing by that. The kernel pins such memory for writing.
    pub const WINDOWS: Self = Self(8);

    /// Whether all rights of `other` are among these.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl std::ops::BitOr for Access {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}
