//! What the switch asks of the library: the table of numbers, and descriptors by their numbers.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
use san_switch::program::{Counts, Epoll, Held, Kernel, Record, Sleep};

use crate::next;
use crate::signals;
use crate::table::TABLE;

pub(crate) struct Library;

pub(crate) static LIBRARY: Library = Library;

/// Epoll sets that are remembered; of more, the oldest is forgotten. A program that puts a socket into
/// one before it connects it has few.
const SETS: usize = 64;
static NUMBERS: [AtomicI32; SETS] = [const { AtomicI32::new(-1) }; SETS];
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// The program has made an epoll set.
pub(crate) fn remember_epoll(number: c_int) {
    let is_known = |one: &AtomicI32| one.load(Ordering::Relaxed) == number;
    if number >= 0 && !NUMBERS.iter().any(is_known) {
        let place = NEXT.fetch_add(1, Ordering::Relaxed) % SETS;
        NUMBERS[place].store(number, Ordering::Relaxed);
    }
}

/// A number that the program has given, for the time of its call.
pub(crate) fn borrowed(number: c_int) -> Option<BorrowedFd<'static>> {
    if number < 0 {
        return None;
    }
    // SAFETY: it is not -1. The program must not close it while it calls with it; if it does, the
    // kernel finds the number bad or another file's, as it does without this library.
    Some(unsafe { BorrowedFd::borrow_raw(number) })
}

fn there(number: c_int) -> io::Result<BorrowedFd<'static>> {
    borrowed(number).ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
}

impl Kernel for Library {
    fn epoll_add(&self, epoll: c_int, fd: c_int, flags: u32, data: u64) -> io::Result<()> {
        let flags = EventFlags::from_bits_retain(flags);
        Ok(epoll::add(
            there(epoll)?,
            there(fd)?,
            EventData::new_u64(data),
            flags,
        )?)
    }

    fn epoll_modify(&self, epoll: c_int, fd: c_int, flags: u32, data: u64) -> io::Result<()> {
        let flags = EventFlags::from_bits_retain(flags);
        Ok(epoll::modify(
            there(epoll)?,
            there(fd)?,
            EventData::new_u64(data),
            flags,
        )?)
    }

    fn epoll_delete(&self, epoll: c_int, fd: c_int) -> io::Result<()> {
        Ok(epoll::delete(there(epoll)?, there(fd)?)?)
    }

    fn epoll(&self, number: c_int) -> io::Result<Arc<Held>> {
        // Two threads that add the first sockets at once share one loop.
        static MAKING: Mutex<()> = Mutex::new(());
        let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = TABLE.find(number)
            && matches!(&*held, Held::Epoll(_))
            && !held.is_inherited()
        {
            return Ok(held);
        }
        let held = Arc::new(Held::Epoll(Epoll::new(there(number)?)?));
        match TABLE.put(number, Arc::clone(&held)) {
            Ok(_) => Ok(held),
            Err(_) => Err(io::Error::from_raw_os_error(libc::EMFILE)),
        }
    }

    fn epoll_numbers(&self) -> Vec<c_int> {
        let all = NUMBERS.iter().map(|one| one.load(Ordering::Relaxed));
        all.filter(|number| *number >= 0).collect()
    }

    fn each(&self, tell: &mut dyn FnMut(c_int, &Held)) {
        TABLE.each(|number, held| tell(number, held));
    }

    fn borrow(&self, number: c_int) -> Option<BorrowedFd<'static>> {
        borrowed(number)
    }

    fn close(&self, number: c_int) {
        // SAFETY: closing asks nothing of memory. The number is this process's copy of one that its
        // parent's library has made, and nobody here knows it.
        unsafe { next::close(number) };
    }

    fn hear_signals(&self, wait: &mut dyn FnMut(Sleep<'_>) -> io::Result<()>) -> io::Result<()> {
        signals::held_back(wait)
    }

    fn restarts(&self) -> bool {
        signals::all_restart()
    }

    fn tcp_counts(&self, fd: BorrowedFd<'_>) -> Option<Counts> {
        counts(fd.as_raw_fd())
    }

    fn records(&self) -> &'static [Record] {
        static RECORDS: OnceLock<&'static [Record]> = OnceLock::new();
        RECORDS.get_or_init(shared_records)
    }
}

/// Records for so many connections at a time.
const MOST_RECORDS: usize = 65_536;

/// Memory that children of this process share. It is given to the process page by page, as it is used.
fn shared_records() -> &'static [Record] {
    let length = MOST_RECORDS * size_of::<Record>();
    let (access, kind) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
    // SAFETY: the kernel chooses the place, so nothing that is there is replaced.
    let memory = unsafe { mmap_anonymous(std::ptr::null_mut(), length, access, kind) };
    match memory {
        // SAFETY: so many bytes are there for good, zeroed, aligned to a page, and a zeroed record is a
        // free one. All its fields are atomic, whichever process writes them.
        Ok(memory) => unsafe { std::slice::from_raw_parts(memory.cast(), MOST_RECORDS) },
        Err(_) => &[],
    }
}

/// Where TCP_INFO has tcpi_bytes_acked and tcpi_bytes_received (linux/tcp.h).
pub(crate) const ACKED: usize = 120;
pub(crate) const RECEIVED: usize = 128;

/// What the kernel has moved on a TCP socket for its program.
fn counts(fd: c_int) -> Option<Counts> {
    let mut info = [0_u8; RECEIVED + 8];
    let mut length = info.len() as libc::socklen_t;
    let place = info.as_mut_ptr().cast();
    // SAFETY: the kernel writes at most `length` bytes, which are there.
    let told = unsafe {
        next::getsockopt(
            fd,
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            place,
            &raw mut length,
        )
    };
    if told != 0 || (length as usize) < info.len() {
        return None;
    }
    let number = |at: usize| Some(u64::from_ne_bytes(info.get(at..at + 8)?.try_into().ok()?));
    let waiting = |request: libc::c_ulong| {
        let mut bytes: c_int = 0;
        // SAFETY: the kernel writes one int, which is there.
        let told = unsafe { next::ioctl(fd, request, (&raw mut bytes) as usize) };
        u64::try_from(bytes).ok().filter(|_| told == 0)
    };
    Some(Counts {
        written: number(ACKED)? + waiting(libc::TIOCOUTQ)?,
        read: number(RECEIVED)?.checked_sub(waiting(libc::FIONREAD)?)?,
    })
}
