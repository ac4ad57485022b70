//! Mappings of which all is known, and what can become of them.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard};

use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags};
use san_provider::AppMemory;

pub(crate) const PAGE: usize = 4096;
const READ_WRITE: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

/// One test at a time: they count what the process has.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    san_base::lock(&ONE)
}

/// A private anonymous mapping, which nothing refers to but its address.
#[derive(Debug)]
pub(crate) struct Mapping {
    pub(crate) at: usize,
    pub(crate) len: usize,
}

impl Mapping {
    pub(crate) fn new(pages: usize) -> Self {
        Self::map(pages, MapFlags::PRIVATE)
    }

    pub(crate) fn map(pages: usize, flags: MapFlags) -> Self {
        let (len, nowhere) = (pages * PAGE, std::ptr::null_mut());
        // SAFETY: at an address of the kernel's choice, so nothing in use is replaced.
        let at = unsafe { rustix::mm::mmap_anonymous(nowhere, len, READ_WRITE, flags) };
        let at = at.expect("memory") as usize;
        Self { at, len }
    }

    pub(crate) fn range(&self) -> Range<usize> {
        self.at..self.at + self.len
    }

    pub(crate) fn ptr(&self) -> *mut std::ffi::c_void {
        std::ptr::with_exposed_provenance_mut(self.at)
    }

    /// Where the first and the last word lie.
    pub(crate) fn ends(&self) -> [*mut u64; 2] {
        [self.at, self.at + self.len - 8].map(std::ptr::with_exposed_provenance_mut)
    }

    pub(crate) fn write(&self, value: u64) {
        for word in self.ends() {
            // SAFETY: mapped, writable, aligned, and nobody else's.
            unsafe { word.write_volatile(value) };
        }
    }

    /// Other pages at the same place.
    pub(crate) fn replace(&self) {
        let flags = MapFlags::PRIVATE | MapFlags::FIXED;
        // SAFETY: what is replaced is this mapping, to which nothing refers.
        unsafe { rustix::mm::mmap_anonymous(self.ptr(), self.len, READ_WRITE, flags) }
            .expect("memory");
    }

    pub(crate) fn discard(&self) {
        // SAFETY: nobody cares for the contents.
        unsafe { rustix::mm::madvise(self.ptr(), self.len, Advice::LinuxDontNeed) }
            .expect("madvise");
    }

    /// Nothing, and then other pages at the same place.
    pub(crate) fn map_again(&self) {
        // SAFETY: nothing refers to it.
        unsafe { rustix::mm::munmap(self.ptr(), self.len) }.expect("munmap");
        let flags = MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE;
        // SAFETY: only where nothing is mapped; nobody else asks for this address.
        unsafe { rustix::mm::mmap_anonymous(self.ptr(), self.len, READ_WRITE, flags) }
            .expect("its place is free");
    }

    /// Other pages, moved here from elsewhere.
    pub(crate) fn exchange(&self) {
        let other = Self::new(self.len / PAGE);
        other.write(0);
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: nothing refers to either place.
        let moved = unsafe { libc::mremap(other.ptr(), self.len, self.len, flags, self.ptr()) };
        assert_eq!(moved, self.ptr());
    }

    /// Its pages elsewhere, and other pages here.
    pub(crate) fn move_away(&self) {
        // SAFETY: nothing refers to it.
        let away =
            unsafe { rustix::mm::mremap(self.ptr(), self.len, self.len * 2, MremapFlags::MAYMOVE) };
        if away.expect("mremap") != self.ptr() {
            self.replace();
        }
    }

    pub(crate) fn memory(&self) -> AppMemory {
        let at = NonNull::new(self.ptr().cast()).expect("not at 0");
        // SAFETY: it stays mapped while it is registered, and no reference to it exists.
        unsafe { AppMemory::new(at, self.len) }
    }

    pub(crate) fn fill(&self, byte: u8) {
        for n in 0..self.len {
            let at = std::ptr::with_exposed_provenance_mut::<u8>(self.at + n);
            // SAFETY: mapped, writable, and nobody else's.
            unsafe { at.write_volatile(byte) };
        }
    }

    pub(crate) fn holds(&self, byte: u8) -> bool {
        (0..self.len).all(|n| {
            let at = std::ptr::with_exposed_provenance::<u8>(self.at + n);
            // SAFETY: mapped, and nobody writes it now.
            byte == unsafe { at.read_volatile() }
        })
    }

    /// The same pages in more room, perhaps elsewhere.
    pub(crate) fn grow(&mut self) {
        let len = self.len * 2;
        // SAFETY: nothing refers to the old place.
        let at = unsafe { rustix::mm::mremap(self.ptr(), self.len, len, MremapFlags::MAYMOVE) };
        let at = at.expect("mremap") as usize;
        *self = Self { at, len };
    }

    pub(crate) fn unmap(self) {
        // SAFETY: nothing refers to it.
        unsafe { rustix::mm::munmap(self.ptr(), self.len) }.expect("munmap");
    }
}
