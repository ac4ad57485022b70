//! Memory that is not this crate's: the application's own, to be registered where it lies.
//!
//! [`AppMemory`] names a piece of it. It comes from an `unsafe` promise about foreign memory, or
//! safely from [`SharedMemory`], which is mapped here and reached by copying only, so that a peer
//! may write it at any time.
//!
//! It registers nothing; that is [`super::ProtectionDomain::register`].

#![allow(unsafe_code)]

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::{copy_in, copy_out};
use crate::error::{Result, VerbsError};

/// A piece of the application's memory.
pub struct AppMemory {
    addr: NonNull<u8>,
    len: usize,
    /// Kept as long as the memory is registered.
    owner: Option<SharedMemory>,
}

// SAFETY: it is an address and a length; who reaches the bytes has promised to do so soundly.
unsafe impl Send for AppMemory {}
// SAFETY: as above.
unsafe impl Sync for AppMemory {}

impl AppMemory {
    /// Names `len` bytes at `addr`.
    ///
    /// # Safety
    /// The fabric reaches a byte of it *in an operation's time*, from the start of an operation
    /// that has the byte as its source or target to the end of it; and *in a peer's time*, as long
    /// as a window over the byte is open, or a region lives that gives the peer rights of its own.
    /// It may write the byte in the time of an operation whose target it is and of a peer that may
    /// write, and it may read it in every such time. The caller promises:
    ///
    /// - The memory stays mapped in all these times, and until the last slice of the regions made
    ///   of it is gone; for ever if the fabric does not let go of a region or window (which is
    ///   logged, and seen in [`crate::live_objects`]).
    /// - While the fabric may *write* a byte, nobody holds a Rust reference to it, and nobody reads
    ///   or writes it other than by atomic operations on single bytes (`AtomicU8`; wider ones race
    ///   with them) or by giving it to the fabric, too.
    /// - While the fabric may *read* a byte, nobody holds an exclusive reference to it, and nobody
    ///   writes it other than in these ways. Others may read it as they like.
    ///
    /// The soft fabric is a thread of this process that copies bytes by atomic operations at such
    /// a time, so that a plain access beside it would be a data race and undefined behaviour.
    /// [`SharedMemory`] keeps the promise by itself.
    #[must_use]
    pub unsafe fn new(addr: NonNull<u8>, len: usize) -> Self {
        Self {
            addr,
            len,
            owner: None,
        }
    }

    /// Its first byte.
    #[must_use]
    pub fn addr(&self) -> NonNull<u8> {
        self.addr
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn owner(&self) -> Option<SharedMemory> {
        self.owner.clone()
    }

    /// Whether all of it is mapped, and may be written if `writable`. Brings it in, too: what a
    /// NIC would pin has to be there.
    ///
    /// # Errors
    /// `EFAULT`.
    pub(super) fn check(&self, writable: bool) -> Result<()> {
        let fault = || VerbsError::from_errno("ibv_reg_mr", libc::EFAULT);
        let page = rustix::param::page_size();
        let start = self.addr.as_ptr() as usize;
        let end = start.checked_add(self.len).ok_or_else(fault)?;
        let first = start - start % page;
        let advice = match writable {
            true => Advice::LinuxPopulateWrite,
            false => Advice::LinuxPopulateRead,
        };
        // SAFETY: it changes no byte, and fails where nothing is mapped.
        let populated = unsafe { rustix::mm::madvise(first as *mut _, end - first, advice) };
        match populated {
            Ok(()) => Ok(()),
            // Kernels before 5.14 do not know it, and EINVAL is also what wrong rights get.
            Err(Errno::INVAL | Errno::FAULT | Errno::NOMEM) => {
                match is_mapped(start, end, writable) {
                    true => Ok(()),
                    false => Err(fault()),
                }
            }
            Err(_) => Ok(()),
        }
    }
}

impl fmt::Debug for AppMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppMemory")
            .field("addr", &self.addr)
            .field("len", &self.len)
            .finish()
    }
}

impl From<&SharedMemory> for AppMemory {
    fn from(memory: &SharedMemory) -> Self {
        Self {
            addr: memory.mapping.addr,
            len: memory.mapping.len,
            owner: Some(memory.clone()),
        }
    }
}

/// Whether the list of mappings covers the range.
fn is_mapped(start: usize, end: usize, writable: bool) -> bool {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else {
        return true;
    };
    let mut reached = start;
    for line in maps.lines() {
        let mut words = line.split_ascii_whitespace();
        let range = words.next().and_then(|range| range.split_once('-'));
        let rights = words.next().unwrap_or_default().as_bytes();
        let bounds =
            range.map(|(a, b)| (usize::from_str_radix(a, 16), usize::from_str_radix(b, 16)));
        let Some((Ok(from), Ok(to))) = bounds else {
            continue;
        };
        let allowed = rights.first() == Some(&b'r') && (!writable || rights.get(1) == Some(&b'w'));
        if from <= reached && reached < to {
            if !allowed {
                return false;
            }
            reached = to;
        }
        if reached >= end {
            return true;
        }
    }
    reached >= end
}

/// Zeroed memory of this process, for a fabric and any number of threads to read and write at the
/// same time. Cheap to clone; all clones are the same memory. A child that is forked finds zeros there:
/// `fork` need not copy what is its parent's alone.
#[derive(Clone)]
pub struct SharedMemory {
    mapping: Arc<Mapping>,
}

struct Mapping {
    addr: NonNull<u8>,
    len: usize,
    mapped: usize,
}

// SAFETY: the bytes are reached by `copy_in` and `copy_out` only, which threads and the fabric may
// do at the same time.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl SharedMemory {
    /// Maps `len` bytes.
    ///
    /// # Errors
    /// `EINVAL` for a length of 0, `ENOMEM`.
    pub fn new(len: usize) -> Result<Self> {
        let page = rustix::param::page_size();
        let mapped = len
            .checked_next_multiple_of(page)
            .filter(|&n| n > 0 && n <= isize::MAX as usize)
            .ok_or_else(|| VerbsError::invalid("mmap", format!("{len} bytes")))?;
        // SAFETY: an anonymous private mapping at an address of the kernel's choice touches no
        // memory that is in use.
        let ptr = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                mapped,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }
        .map_err(|e| VerbsError::from_errno("mmap", e.raw_os_error()))?;
        let addr =
            NonNull::new(ptr.cast()).ok_or_else(|| VerbsError::from_errno("mmap", libc::ENOMEM))?;
        // SAFETY: the mapping is the one that was just made, and the advice changes nothing in this process.
        let advised = unsafe { rustix::mm::madvise(ptr, mapped, Advice::LinuxWipeOnFork) };
        if let Err(error) = advised {
            tracing::debug!(%error, "memory of the fabric is copied by fork");
        }
        Ok(Self {
            mapping: Arc::new(Mapping { addr, len, mapped }),
        })
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.mapping.len
    }

    /// Never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.mapping.len == 0
    }

    /// A part of it, to register.
    ///
    /// # Errors
    /// `EINVAL`: it does not lie inside.
    pub fn part(&self, offset: usize, len: usize) -> Result<AppMemory> {
        Ok(AppMemory {
            addr: self.place("part", offset, len)?,
            len,
            owner: Some(self.clone()),
        })
    }

    /// Copies bytes out. While somebody writes them, a mixture of old and new comes out.
    ///
    /// # Errors
    /// `EINVAL`: not inside.
    pub fn read_at(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        let from = self.place("read_at", offset, out.len())?;
        // SAFETY: inside the mapping, of which nobody has a pointer but this module and the fabric:
        // a device, or threads that copy in the same way.
        unsafe { copy_out(from.as_ptr(), out) };
        Ok(())
    }

    /// Copies bytes in. Whoever reads them meanwhile gets a mixture of old and new.
    ///
    /// # Errors
    /// `EINVAL`: not inside.
    pub fn write_at(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        let to = self.place("write_at", offset, bytes.len())?;
        // SAFETY: as in `read_at`.
        unsafe { copy_in(to.as_ptr(), bytes) };
        Ok(())
    }

    fn place(&self, call: &'static str, offset: usize, len: usize) -> Result<NonNull<u8>> {
        match offset.checked_add(len) {
            // SAFETY: inside the mapping, or at its end.
            Some(end) if end <= self.mapping.len => Ok(unsafe { self.mapping.addr.add(offset) }),
            _ => Err(VerbsError::invalid(
                call,
                format!("{len} bytes at {offset} of {}", self.mapping.len),
            )),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and regions made of it hold it, so none is left.
        let unmapped = unsafe { rustix::mm::munmap(self.addr.as_ptr().cast(), self.mapped) };
        if let Err(error) = unmapped {
            tracing::error!(%error, len = self.mapped, "munmap");
        }
    }
}

impl fmt::Debug for SharedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedMemory")
            .field("len", &self.mapping.len)
            .finish_non_exhaustive()
    }
}
