//! The memory a region is made of, as the engines see it.
//!
//! What it does: names the contract between this crate and whoever owns the
//! bytes. Copies only, by offset: no pointer and no slice of the owner's memory
//! ever enters this crate, so nothing here needs `unsafe`.
//! What it does not do: keys, ranges and access rights; those are the table of
//! regions in `rc`.

use std::sync::Mutex;

/// Bytes that a memory region, or a posted buffer, is made of.
///
/// The peer's RDMA and the owner's own loads and stores may touch the same
/// bytes at the same time: an implementation must make that sound (volatile or
/// atomic copies, or a lock), and may let the data tear.
pub trait Memory: Send + Sync {
    /// Length in bytes. It never changes.
    fn len(&self) -> u64;

    /// Whether there are no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies `out.len()` bytes from `offset` into `out`.
    ///
    /// The caller has checked that the range lies inside; an implementation
    /// that is asked for more must not touch memory outside and may panic.
    fn read(&self, offset: u64, out: &mut [u8]);

    /// Copies `data` to `offset`; the same bounds hold as for [`Memory::read`].
    fn write(&self, offset: u64, data: &[u8]);
}

/// A region of plain heap memory behind a lock, for tests, examples and users
/// that want to write no `unsafe` of their own.
#[derive(Debug)]
pub struct HeapMemory(Mutex<Box<[u8]>>, u64);

impl HeapMemory {
    /// `len` zeroed bytes.
    #[must_use]
    pub fn new(len: usize) -> Self {
        Self::from_vec(vec![0; len])
    }

    /// Takes the bytes of `data`.
    #[must_use]
    pub fn from_vec(data: Vec<u8>) -> Self {
        let len = data.len() as u64;
        Self(Mutex::new(data.into_boxed_slice()), len)
    }

    /// A copy of everything.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        self.bytes().to_vec()
    }

    fn bytes(&self) -> std::sync::MutexGuard<'_, Box<[u8]>> {
        // A panic elsewhere cannot leave plain bytes in a broken state.
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Memory for HeapMemory {
    fn len(&self) -> u64 {
        self.1
    }

    fn read(&self, offset: u64, out: &mut [u8]) {
        let at = usize::try_from(offset).expect("offset inside the region");
        out.copy_from_slice(&self.bytes()[at..at + out.len()]);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let at = usize::try_from(offset).expect("offset inside the region");
        self.bytes()[at..at + data.len()].copy_from_slice(data);
    }
}
