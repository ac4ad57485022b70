//! Handles of registered memory, and what calls say about it.

use verbs_shim::Access;

/// A registration of memory. It is good for the socket that made it, as long as it is registered;
/// everywhere else, and afterwards, it is an unknown handle (duty 100).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MemoryHandle {
    /// Of the connection: no two have the same in one process.
    pub(super) owner: u64,
    pub(super) slot: u32,
    /// Tells the registrations apart that had a slot one after another.
    pub(super) generation: u32,
}

/// What memory is registered for: by the local side with [`crate::Socket::register_memory`], by the
/// peer with [`crate::Socket::register_rdma_memory`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MemoryAccess {
    /// To be read: the source of an RDMA WRITE; open to the peer's RDMA READ.
    #[doc(alias = "MEM_READ")]
    Read,
    /// To be written: the target of an RDMA READ; open to the peer's RDMA WRITE.
    #[doc(alias = "MEM_WRITE")]
    Write,
    /// Both.
    #[doc(alias = "MEM_READWRITE")]
    ReadWrite,
}

/// A piece of registered memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Segment {
    /// The registration.
    pub handle: MemoryHandle,
    /// Where in it the piece begins, in bytes.
    pub offset: usize,
    /// How many bytes it has.
    pub length: usize,
}

impl MemoryAccess {
    pub(super) fn reads(self) -> bool {
        matches!(self, Self::Read | Self::ReadWrite)
    }

    pub(super) fn writes(self) -> bool {
        matches!(self, Self::Write | Self::ReadWrite)
    }

    /// The rights of a region for the local side.
    pub(super) fn local(self) -> Access {
        match self.writes() {
            true => Access::LOCAL_WRITE,
            false => Access::READ_ONLY,
        }
    }

    /// The rights of a region of which the peer shall get these.
    pub(super) fn opened(self) -> Access {
        self.local() | Access::WINDOWS
    }

    /// The rights of the peer.
    pub(super) fn remote(self) -> Access {
        let read = match self.reads() {
            true => Access::REMOTE_READ,
            false => Access::READ_ONLY,
        };
        match self.writes() {
            true => read | Access::REMOTE_WRITE,
            false => read,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_as_verbs_want_them() {
        assert_eq!(MemoryAccess::Read.local(), Access::READ_ONLY);
        assert_eq!(MemoryAccess::Write.local(), Access::LOCAL_WRITE);
        assert_eq!(MemoryAccess::Read.opened(), Access::WINDOWS);
        assert_eq!(MemoryAccess::Read.remote(), Access::REMOTE_READ);
        assert_eq!(MemoryAccess::Write.remote(), Access::REMOTE_WRITE);
        assert_eq!(
            MemoryAccess::ReadWrite.remote(),
            Access::REMOTE_READ | Access::REMOTE_WRITE
        );
    }
}
