//! Notice of what becomes of mapped memory: unmapped, moved, or its contents thrown away.
//!
//! A registration pins pages, not addresses. Once a range is unmapped and mapped again, the NIC
//! still has the old pages, and whoever keeps registrations beyond their use has to know. The
//! kernel tells by a userfaultfd: a thread that calls `munmap`, `mremap`, `brk`, `mmap` with
//! `MAP_FIXED`, or `madvise` with `MADV_DONTNEED`, `MADV_FREE` or `MADV_REMOVE` on watched memory
//! waits in the kernel until the event was read here. Ranges are registered in write-protect mode
//! and never protected, so no page fault is taken over, and the rights of an ordinary user are
//! enough (`UFFD_USER_MODE_ONLY`).
//!
//! Only private anonymous memory can be watched: heap, stacks, `mmap` with
//! `MAP_PRIVATE | MAP_ANONYMOUS`. What backs a shared or a file mapping can be truncated or punched
//! through a descriptor, in another process too, and no event tells of it. Nothing tells of
//! `MADV_GUARD_INSTALL` (Linux 6.13) either: it must not be used on memory that is registered or
//! that was, which is no use for data.
//!
//! Not done here: threads, and any reaction to what is told. No function of a [`MappingWatch`]
//! allocates or frees memory, since a thread that waits for its event to be read may hold the
//! allocator's lock.

#![allow(unsafe_code)]

mod kernel;
mod maps;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

/// Why memory cannot be watched. It must then not be kept registered beyond its use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// The kernel cannot do it at all.
    #[error(
        "this kernel does not tell what becomes of mappings ({source}); it takes Linux 5.18 or later with CONFIG_USERFAULTFD, on a processor for which it can write-protect (x86-64, arm64 from 6.10)"
    )]
    Unsupported {
        /// What the system said.
        source: io::Error,
    },
    /// The kernel could, but not for this process.
    #[error(
        "this process may not use userfaultfd ({source}); allow the system call (a container's seccomp profile), or give it /dev/userfaultfd"
    )]
    Denied {
        /// What the system said.
        source: io::Error,
    },
    /// The memory is not of a kind that can be watched, or another userfaultfd watches it.
    #[error("only mapped, private, anonymous memory can be watched, and by one userfaultfd")]
    Kind,
    /// Nothing is mapped before the memory, or behind it.
    #[error("the memory lies at the rim of what is mapped")]
    Rim,
    /// The system had no means left.
    #[error("{call}: {source}")]
    System {
        /// The system call.
        call: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// What became of watched memory. Ranges are of addresses, in whole pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MappingChange {
    /// It is unmapped; something else may be there by now.
    Unmapped(Range<usize>),
    /// It is elsewhere now, and is watched there.
    Moved {
        /// Where it was.
        from: Range<usize>,
        /// Where it begins now.
        to: usize,
    },
    /// Its contents are about to be thrown away; it stays mapped and watched.
    Discarded(Range<usize>),
    /// Something happened that is not known here: every range may be concerned.
    Unknown,
}

/// On which sides of memory nothing was mapped when its watch began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AtRim {
    /// Before its first page.
    pub before: bool,
    /// Behind its last page.
    pub behind: bool,
}

/// A watch over mappings of this process, and of no other: a child made by `fork` must not use it.
#[derive(Debug)]
pub struct MappingWatch {
    userfaultfd: OwnedFd,
    maps: File,
    page_size: usize,
}

impl MappingWatch {
    /// A watch that watches nothing yet.
    ///
    /// # Errors
    /// [`WatchError::Unsupported`], [`WatchError::Denied`], [`WatchError::System`].
    pub fn new() -> Result<Self, WatchError> {
        let userfaultfd = kernel::open()?;
        let maps = File::open("/proc/self/maps").map_err(|source| WatchError::System {
            call: "open /proc/self/maps",
            source,
        })?;
        Ok(Self {
            userfaultfd,
            maps,
            page_size: rustix::param::page_size(),
        })
    }

    /// Watches the pages in which the range lies. What is watched already stays so. The result is
    /// on which sides of them nothing was mapped.
    ///
    /// The kernel keeps watched pages as mappings of their own: `mremap` of a mapping of which
    /// only a part is watched fails with `EFAULT` (before Linux 6.17). It joins them with their
    /// neighbours again when they are no longer watched, but for a neighbour that was mapped *and*
    /// written meanwhile. That can come only where nothing was mapped beside them.
    ///
    /// # Errors
    /// [`WatchError::Kind`], [`WatchError::System`]: nothing more is watched than before.
    pub fn watch(&self, range: &Range<usize>) -> Result<AtRim, WatchError> {
        self.watch_where(range, true)
    }

    /// The same for memory that has neighbours on both sides.
    ///
    /// # Errors
    /// As [`MappingWatch::watch`], and [`WatchError::Rim`].
    pub fn watch_inside(&self, range: &Range<usize>) -> Result<(), WatchError> {
        self.watch_where(range, false).map(|_| ())
    }

    fn watch_where(&self, range: &Range<usize>, at_rims: bool) -> Result<AtRim, WatchError> {
        let pages = self.pages(range).ok_or(WatchError::Kind)?;
        let before = self.survey(&pages)?;
        if !at_rims && (before.at_rim.before || before.at_rim.behind) {
            return Err(WatchError::Rim);
        }
        self.prepare_to_join(&pages);
        // First watched, then looked at: what changes after the look is told.
        kernel::register(&self.userfaultfd, &pages).map_err(|errno| match errno {
            Errno::INVAL | Errno::BUSY | Errno::PERM => WatchError::Kind,
            errno => system("UFFDIO_REGISTER", errno),
        })?;
        match self.survey(&pages) {
            Ok(_) => Ok(before.at_rim),
            Err(error) => {
                self.unwatch(&pages);
                Err(error)
            }
        }
    }

    fn survey(&self, pages: &Range<usize>) -> Result<maps::Survey, WatchError> {
        match maps::survey(&self.maps, pages) {
            Ok(survey) if survey.private_anonymous => Ok(survey),
            Ok(_) => Err(WatchError::Kind),
            Err(errno) => Err(system("read /proc/self/maps", errno)),
        }
    }

    /// Pages of one mapping belong together for the kernel if the mapping had a page that was
    /// written before it was cut; parts that got their first page apart are never joined. So the
    /// mappings at both ends, which are about to be cut, get one. Their contents stay.
    fn prepare_to_join(&self, pages: &Range<usize>) {
        for page in [pages.start, pages.end - self.page_size] {
            let at = std::ptr::with_exposed_provenance_mut(page);
            // SAFETY: it fills a page as writing a byte of it would, and changes no byte. Where
            // nothing is mapped or may be written it fails, and such memory gets no page at all.
            let _ = unsafe {
                rustix::mm::madvise(at, self.page_size, rustix::mm::Advice::LinuxPopulateWrite)
            };
        }
    }

    /// Whether two mappings meet at this address that the kernel could have joined, but did not.
    #[must_use]
    pub fn is_seam(&self, at: usize) -> bool {
        maps::is_seam(&self.maps, at).unwrap_or(true)
    }

    /// Watches the pages in which the range lies no longer. Where nothing is mapped or watched any
    /// more nothing happens.
    pub fn unwatch(&self, range: &Range<usize>) {
        if let Some(pages) = self.pages(range) {
            // Refused for a range part of which cannot be watched: that is watched by nobody, and
            // the rest stays watched, which costs time and is not wrong.
            let _ = kernel::unregister(&self.userfaultfd, &pages);
        }
    }

    /// Whether every change that is complete has been read: between a change and the event that
    /// tells of it there is a moment, and another thread may map the same addresses in it. While
    /// this is false something may be on its way.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        kernel::is_settled(&self.userfaultfd)
    }

    /// Reads what was not read yet, without waiting; the threads that wait for it go on. Whether
    /// there was anything.
    ///
    /// # Errors
    /// [`WatchError::System`]: nothing can be relied on any more.
    pub fn read(&self, mut each: impl FnMut(MappingChange)) -> Result<bool, WatchError> {
        let mut any = false;
        loop {
            let mut buffer = [0; 16 * kernel::MESSAGE];
            match rustix::io::read(&self.userfaultfd, &mut buffer) {
                Ok(len) if len >= kernel::MESSAGE => {
                    let (messages, _) = buffer[..len].as_chunks();
                    messages.iter().for_each(|m| each(kernel::parse(m)));
                    any = true;
                }
                Ok(_) | Err(Errno::AGAIN) => return Ok(any),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(system("read of a userfaultfd", errno)),
            }
        }
    }

    fn pages(&self, range: &Range<usize>) -> Option<Range<usize>> {
        let start = range.start & !(self.page_size - 1);
        let end = range.end.checked_next_multiple_of(self.page_size)?;
        (start < end).then_some(start..end)
    }
}

/// Readable when there is something to read.
impl AsFd for MappingWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.userfaultfd.as_fd()
    }
}

fn system(call: &'static str, errno: Errno) -> WatchError {
    let source = errno.into();
    WatchError::System { call, source }
}
