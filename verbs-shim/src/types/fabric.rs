//! Small answers of a fabric.

/// Which backend a [`crate::Fabric`] runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FabricKind {
    /// The kernel's RDMA subsystem, through librdmacm and libibverbs.
    Rdma,
    /// `RoCEv2` in user space.
    Soft,
}

/// What ended [`crate::Sleeper::sleep`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Woken {
    /// Events that were taken.
    pub events: usize,
    /// The other descriptor may be readable.
    pub other: bool,
}
