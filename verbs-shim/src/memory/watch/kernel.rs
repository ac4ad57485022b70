//! The part of `linux/userfaultfd.h` that is used, and the calls.
//!
//! It knows no policy, and nothing of files and kinds of memory.

use std::ops::Range;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Setter, Updater, ioctl, opcode};
use rustix::mm::{UserfaultfdFlags, userfaultfd};

use super::{MappingChange, WatchError};

/// Bytes of a message (`struct uffd_msg`).
pub(super) const MESSAGE: usize = 32;

const EVENT_REMAP: u8 = 0x14;
const EVENT_REMOVE: u8 = 0x15;
const EVENT_UNMAP: u8 = 0x16;

/// `UFFD_USER_MODE_ONLY` (Linux 5.11): faults of the kernel's own are not for us, which is what
/// makes it free for all.
const USER_MODE_ONLY: u32 = 1;

/// `UFFD_API`.
const API: u64 = 0xAA;
const FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;
const FEATURE_EVENT_REMAP: u64 = 1 << 2;
const FEATURE_EVENT_REMOVE: u64 = 1 << 3;
const FEATURE_EVENT_UNMAP: u64 = 1 << 6;
/// Of no use here, but it came with Linux 5.18: since 5.15 the kernel counts the changes on their
/// way one by one, and [`is_settled`] needs that.
const FEATURE_EXACT_ADDRESS: u64 = 1 << 11;

const REGISTER_MODE_WP: u64 = 1 << 1;

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioRange {
    start: u64,
    len: u64,
}

#[repr(C)]
struct UffdioRegister {
    range: UffdioRange,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioZeropage {
    range: UffdioRange,
    mode: u64,
    zeropage: i64,
}

const _: () = assert!(size_of::<UffdioApi>() == 24);
const _: () = assert!(size_of::<UffdioRange>() == 16);
const _: () = assert!(size_of::<UffdioRegister>() == 32);
const _: () = assert!(size_of::<UffdioZeropage>() == 32);

const UFFDIO_API: Opcode = opcode::read_write::<UffdioApi>(0xAA, 0x3F);
const UFFDIO_REGISTER: Opcode = opcode::read_write::<UffdioRegister>(0xAA, 0x00);
const UFFDIO_UNREGISTER: Opcode = opcode::read::<UffdioRange>(0xAA, 0x01);
const UFFDIO_ZEROPAGE: Opcode = opcode::read_write::<UffdioZeropage>(0xAA, 0x04);
const USERFAULTFD_IOC_NEW: Opcode = opcode::none(0xAA, 0x00);

/// A userfaultfd that tells of changes, from the system call or else from `/dev/userfaultfd`.
pub(super) fn open() -> Result<OwnedFd, WatchError> {
    let flags = OFlags::CLOEXEC.bits() | OFlags::NONBLOCK.bits() | USER_MODE_ONLY;
    let called = UserfaultfdFlags::from_bits_retain(flags);
    // SAFETY: the descriptor by itself changes no memory; what is registered with it below is
    // never write-protected, so no fault is ever stopped.
    let fd = match unsafe { userfaultfd(called) } {
        Ok(fd) => fd,
        Err(errno) => open_device(flags).map_err(|_| refused(errno))?,
    };
    let mut api = UffdioApi {
        api: API,
        features: FEATURE_PAGEFAULT_FLAG_WP
            | FEATURE_EVENT_REMAP
            | FEATURE_EVENT_REMOVE
            | FEATURE_EVENT_UNMAP
            | FEATURE_EXACT_ADDRESS,
        ioctls: 0,
    };
    // SAFETY: the kernel reads and writes a uffdio_api for this number, whose size was checked.
    let request = unsafe { Updater::<UFFDIO_API, _>::new(&mut api) };
    // SAFETY: as above; `api` lives through the call.
    unsafe { ioctl(&fd, request) }.map_err(refused)?;
    Ok(fd)
}

fn open_device(flags: u32) -> Result<OwnedFd, Errno> {
    let device = rustix::fs::open(
        "/dev/userfaultfd",
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    // SAFETY: the number makes a new userfaultfd; its argument is an integer, no pointer.
    unsafe { ioctl(&device, NewUserfaultfd(flags)) }
}

fn refused(errno: Errno) -> WatchError {
    let source = errno.into();
    match errno {
        Errno::PERM | Errno::ACCESS => WatchError::Denied { source },
        Errno::NOSYS | Errno::INVAL => WatchError::Unsupported { source },
        _ => WatchError::System {
            call: "userfaultfd",
            source,
        },
    }
}

pub(super) fn register(fd: impl AsFd, pages: &Range<usize>) -> Result<(), Errno> {
    let mut register = UffdioRegister {
        range: range(pages),
        mode: REGISTER_MODE_WP,
        ioctls: 0,
    };
    // SAFETY: the kernel reads and writes a uffdio_register for this number, of the size checked.
    let request = unsafe { Updater::<UFFDIO_REGISTER, _>::new(&mut register) };
    // SAFETY: as above; and memory in write-protect mode of which nothing is protected behaves
    // as before, but for the events.
    unsafe { ioctl(fd, request) }
}

pub(super) fn unregister(fd: impl AsFd, pages: &Range<usize>) -> Result<(), Errno> {
    // SAFETY: the kernel reads a uffdio_range for this number, whose size was checked.
    let request = unsafe { Setter::<UFFDIO_UNREGISTER, _>::new(range(pages)) };
    // SAFETY: as above; no thread waits for a fault that could be woken too early.
    unsafe { ioctl(fd, request) }
}

/// Every change to watched memory raises a count in the kernel before it takes place, and lowers
/// it when its event was read. Requests that fill pages fail with `EAGAIN` while it is not 0, and
/// look at it before anything else: one that asks for no bytes does nothing else.
pub(super) fn is_settled(fd: impl AsFd) -> bool {
    let mut nothing = UffdioZeropage {
        range: UffdioRange { start: 0, len: 0 },
        mode: 0,
        zeropage: 0,
    };
    // SAFETY: the kernel reads and writes a uffdio_zeropage for this number, of the size checked.
    let request = unsafe { Updater::<UFFDIO_ZEROPAGE, _>::new(&mut nothing) };
    // SAFETY: as above; a range of length 0 is refused with EINVAL, so no page is filled.
    let asked = unsafe { ioctl(fd, request) };
    asked == Err(Errno::INVAL)
}

pub(super) fn parse(message: &[u8; MESSAGE]) -> MappingChange {
    // An event in the first byte, three words from the eighth on.
    let (words, _) = message[8..].as_chunks::<8>();
    let word = |n: usize| usize::try_from(u64::from_ne_bytes(words[n])).unwrap_or(usize::MAX);
    match message[0] {
        EVENT_UNMAP => MappingChange::Unmapped(word(0)..word(1)),
        EVENT_REMOVE => MappingChange::Discarded(word(0)..word(1)),
        EVENT_REMAP => MappingChange::Moved {
            from: word(0)..word(0).saturating_add(word(2)),
            to: word(1),
        },
        _ => MappingChange::Unknown,
    }
}

fn range(pages: &Range<usize>) -> UffdioRange {
    UffdioRange {
        start: pages.start as u64,
        len: (pages.end - pages.start) as u64,
    }
}

/// `USERFAULTFD_IOC_NEW`: flags in, a descriptor out.
struct NewUserfaultfd(u32);

// SAFETY: the argument is an integer, so the kernel reads and writes nothing through it; what it
// returns is a new descriptor.
unsafe impl Ioctl for NewUserfaultfd {
    type Output = OwnedFd;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        USERFAULTFD_IOC_NEW
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::without_provenance_mut(self.0 as usize)
    }

    unsafe fn output_from_ptr(
        new: IoctlOutput,
        _: *mut std::ffi::c_void,
    ) -> rustix::io::Result<OwnedFd> {
        // SAFETY: the call succeeded, so this is a descriptor that nobody else has.
        Ok(unsafe { OwnedFd::from_raw_fd(new) })
    }
}
