//! What the switch asks of the library: the table of numbers, and descriptors by their numbers.

use std::ffi::c_int;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::epoll::{self, EventData, EventFlags};
use san_switch::program::{Epoll, Held, Kernel};

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
}
