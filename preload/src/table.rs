//! What the program has under its descriptor numbers, as far as the switch has to do with it.
//!
//! A lookup takes no lock and allocates nothing. The table has room for [`CHUNKS`] times [`WIDTH`]
//! numbers, a chunk of which is made when the first of its numbers is needed; higher numbers stay
//! with the kernel. A program without SAN sockets pays one atomic load for a lookup.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use san_switch::program::Held;
use std::ffi::c_int;

/// What the program has under its numbers.
pub(crate) static TABLE: Table<Held> = Table::new();

/// Chunks, and numbers in each: 1,048,576 descriptors, the kernel's own limit unless it was raised.
const CHUNKS: usize = 1024;
const WIDTH: usize = 1024;

type Chunk<T> = Box<[ArcSwapOption<T>]>;

/// The table.
pub(crate) struct Table<T> {
    /// Numbers in use.
    used: AtomicUsize,
    /// No number as high as this has ever been in use.
    end: AtomicUsize,
    chunks: [OnceLock<Chunk<T>>; CHUNKS],
}

impl<T> Table<T> {
    pub(crate) const fn new() -> Self {
        Self {
            used: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            chunks: [const { OnceLock::new() }; CHUNKS],
        }
    }

    /// What is under this number.
    #[inline]
    pub(crate) fn find(&self, fd: c_int) -> Option<Arc<T>> {
        if self.is_empty() {
            return None;
        }
        self.slot(fd)?.load_full()
    }

    /// Whether no number is in use.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        // A thread that got the descriptor from the one that put it in has seen that, too.
        self.used.load(Ordering::Acquire) == 0
    }

    /// Puts something under a number, and gives what was there. `Err`: the number is too high.
    pub(crate) fn put(&self, fd: c_int, what: Arc<T>) -> Result<Option<Arc<T>>, Arc<T>> {
        let Some(number) = usize::try_from(fd).ok().filter(|n| n / WIDTH < CHUNKS) else {
            return Err(what);
        };
        let chunk = self.chunks[number / WIDTH]
            .get_or_init(|| (0..WIDTH).map(|_| ArcSwapOption::empty()).collect());
        self.used.fetch_add(1, Ordering::AcqRel);
        self.end.fetch_max(number + 1, Ordering::AcqRel);
        let before = chunk[number % WIDTH].swap(Some(what));
        if before.is_some() {
            self.used.fetch_sub(1, Ordering::AcqRel);
        }
        Ok(before)
    }

    /// Takes what is under a number.
    pub(crate) fn take(&self, fd: c_int) -> Option<Arc<T>> {
        if self.is_empty() {
            return None;
        }
        let taken = self.slot(fd)?.swap(None)?;
        self.used.fetch_sub(1, Ordering::AcqRel);
        Some(taken)
    }

    /// Shows each of them.
    pub(crate) fn each(&self, mut what: impl FnMut(c_int, &T)) {
        if self.is_empty() {
            return;
        }
        for (number, slot) in self.slots() {
            if let (Some(held), Ok(fd)) = (&*slot.load(), c_int::try_from(number)) {
                what(fd, held);
            }
        }
    }

    /// The numbers in use from `first` to `last`.
    pub(crate) fn numbers(&self, first: u32, last: u32) -> Vec<c_int> {
        let mut found = Vec::new();
        if self.is_empty() {
            return found;
        }
        let (first, last) = (first as usize, last as usize);
        for (number, slot) in self.slots() {
            if (first..=last).contains(&number) && slot.load().is_some() {
                found.extend(c_int::try_from(number));
            }
        }
        found
    }

    /// Every slot whose number may be in use, with the number.
    fn slots(&self) -> impl Iterator<Item = (usize, &ArcSwapOption<T>)> {
        let end = self.end.load(Ordering::Acquire);
        let chunks = self.chunks[..end.div_ceil(WIDTH)].iter().enumerate();
        let slots = chunks.filter_map(|(index, chunk)| Some((index, chunk.get()?)));
        slots.flat_map(move |(index, chunk)| {
            let numbers = index * WIDTH..end;
            numbers.zip(chunk.iter())
        })
    }

    #[inline]
    fn slot(&self, fd: c_int) -> Option<&ArcSwapOption<T>> {
        let number = usize::try_from(fd).ok()?;
        let chunk = self.chunks.get(number / WIDTH)?.get()?;
        chunk.get(number % WIDTH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_cannot_be_are_not_found() {
        let table = Table::new();
        for fd in [-1, c_int::MIN, c_int::MAX, 1024 * 1024] {
            assert!(table.find(fd).is_none());
            assert!(table.put(fd, Arc::new(1)).is_err());
            assert!(table.take(fd).is_none());
        }
        assert!(table.is_empty());
    }

    #[test]
    fn what_is_put_is_found_until_it_is_taken() {
        let table = Table::new();
        assert!(table.put(7, Arc::new('a')).unwrap().is_none());
        assert_eq!(table.put(7, Arc::new('b')).unwrap().as_deref(), Some(&'a'));
        assert!(table.put(1024 * 1024 - 1, Arc::new('c')).unwrap().is_none());
        assert_eq!(table.find(7).as_deref(), Some(&'b'));
        assert_eq!(table.numbers(0, u32::MAX), [7, 1024 * 1024 - 1]);
        assert!(table.numbers(8, 9).is_empty());
        assert_eq!(table.take(7).as_deref(), Some(&'b'));
        assert!(table.take(7).is_none() && table.find(7).is_none());
        assert!(!table.is_empty());
        assert!(table.take(1024 * 1024 - 1).is_some());
        assert!(table.is_empty());
    }
}
