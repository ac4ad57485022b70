//! Why a connection that could have moved to the SAN has not.

use std::sync::atomic::{AtomicU8, Ordering};

/// Why a connection has stayed on TCP, or stays there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Why {
    /// It ended before it had carried enough.
    Short = 1,
    /// Several processes have it.
    Shared,
    /// The kernel has not moved what the library has counted: bytes went past the library, or the peer had
    /// ended.
    Uncounted,
    /// There is no SAN, or it has no way to the peer.
    NoWay,
    /// The peer's library has not taken part: there is none, it has another key, or no answer came in time.
    Unanswered,
    /// A call needed the kernel's socket.
    KernelCall,
    /// The peer's library has taken part, and no move was finished in its time.
    Unfinished,
}

/// All of them, with the words for them.
pub(super) const ALL: [(Why, &str); 7] = [
    (Why::Short, "carried too little"),
    (Why::Shared, "used by several processes"),
    (Why::Uncounted, "bytes past the library, or an end"),
    (Why::NoWay, "no way over the SAN"),
    (Why::Unanswered, "no answer from the peer's library"),
    (Why::KernelCall, "a call that needs TCP"),
    (Why::Unfinished, "a move that took too long"),
];

/// Whether a connection stays on TCP for good, and why.
#[derive(Debug, Default)]
pub(super) struct Stays(AtomicU8);

impl Stays {
    /// It does. The first reason counts.
    pub(super) fn set(&self, why: Why) {
        let _ = self
            .0
            .compare_exchange(0, why as u8, Ordering::Relaxed, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }

    pub(super) fn why(&self) -> Option<Why> {
        let number = self.0.load(Ordering::Relaxed);
        let all = ALL.iter().map(|(why, _)| *why);
        all.into_iter().find(|why| *why as u8 == number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_counts() {
        let stays = Stays::default();
        assert!(!stays.is_set() && stays.why().is_none());
        stays.set(Why::Shared);
        stays.set(Why::KernelCall);
        assert!(stays.is_set());
        assert_eq!(stays.why(), Some(Why::Shared));
    }

    #[test]
    fn each_reason_has_its_place() {
        for (place, (why, _)) in ALL.into_iter().enumerate() {
            assert_eq!(why as usize, place + 1);
        }
    }
}
