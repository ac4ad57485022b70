//! What the processes of a program that forks tell each other of their connections: who uses one, and
//! who has moved it to the SAN.
//!
//! A connection gets a [`Record`] when its process forks. The records lie in memory that the processes
//! share ([`super::Kernel::records`]). A process that is killed leaves its marks there: then a
//! connection stays on TCP, and its record is not used again.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;

/// Several processes have used it: it stays on TCP.
const MANY: u32 = u32::MAX;
/// Records that are looked at for a free one.
const PROBES: usize = 256;
/// How long a process waits for the one that has moved the connection.
const PATIENCE: Duration = Duration::from_secs(5);

/// This process's number, as far as it is known; 0: not yet.
static ME: AtomicU32 = AtomicU32::new(0);
/// The record that is looked at first.
static NEXT: AtomicUsize = AtomicUsize::new(0);
/// Forks so far.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// One connection, as several processes see it. All zero is a free one.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Record {
    /// Descriptors of processes that may still use it.
    holders: AtomicU32,
    /// The only process that has used it since the fork; 0: none has.
    user: AtomicU32,
    /// The process whose library has it, on TCP or on the SAN; 0: the kernel alone has it.
    owner: AtomicU32,
    /// Another process wants it to be the kernel's.
    is_wanted: AtomicU32,
    /// The last fork that it was prepared for, and whose that was. It is here since a process that writes to memory of
    /// its own after a fork pays for it page by page.
    prepared: AtomicU64,
}

/// This process's number.
pub(super) fn me() -> u32 {
    match ME.load(Ordering::Relaxed) {
        0 => {
            let own = rustix::process::getpid().as_raw_nonzero().get();
            let own = own.cast_unsigned();
            ME.store(own, Ordering::Relaxed);
            own
        }
        own => own,
    }
}

/// One more fork; its number.
pub(super) fn next_fork() -> u32 {
    FORKS.fetch_add(1, Ordering::Relaxed) + 1
}

/// This process is a child that was forked.
pub(super) fn is_new_process() {
    ME.store(0, Ordering::Relaxed);
}

impl Record {
    /// A free one, for two holders: this process, which is its user or owner if it says so, and its child.
    pub(super) fn take(
        records: &'static [Record],
        is_used: bool,
        is_owned: bool,
    ) -> Option<&'static Self> {
        // One fork takes one for each connection: who begins where the last one ended finds it at once. Processes
        // begin at places of their own.
        let own_place = me() as usize * 1021;
        let start = own_place.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let look = records.iter().cycle().skip(start % records.len().max(1));
        let free = look.take(PROBES.min(records.len())).find(|one| {
            let taken = one
                .holders
                .compare_exchange(0, 2, Ordering::AcqRel, Ordering::Relaxed);
            taken.is_ok()
        })?;
        let own = |does: bool| if does { me() } else { 0 };
        free.user.store(own(is_used), Ordering::SeqCst);
        free.owner.store(own(is_owned), Ordering::SeqCst);
        free.is_wanted.store(0, Ordering::SeqCst);
        Some(free)
    }

    /// This process is about to fork, for the time of this number. Whether that was not known yet.
    pub(super) fn prepare(&self, fork: u32) -> bool {
        let fork = u64::from(me()) << 32 | u64::from(fork);
        self.prepared.swap(fork, Ordering::AcqRel) != fork
    }

    /// One more process has it.
    pub(super) fn add_holder(&self) {
        self.holders.fetch_add(1, Ordering::AcqRel);
    }

    /// This process has closed it.
    pub(super) fn close(&self) {
        let _ = self
            .user
            .compare_exchange(me(), 0, Ordering::SeqCst, Ordering::Relaxed);
        self.disown();
        self.holders.fetch_sub(1, Ordering::AcqRel);
    }

    /// This process uses it. Waits until no other process has moved it.
    ///
    /// # Errors
    /// ENOTCONN if that takes too long.
    #[inline]
    pub(super) fn touch(&self) -> io::Result<()> {
        match self.user.load(Ordering::SeqCst) == me() {
            true => Ok(()),
            false => self.claim(),
        }
    }

    fn claim(&self) -> io::Result<()> {
        let own = me();
        let claimed = self
            .user
            .compare_exchange(0, own, Ordering::SeqCst, Ordering::SeqCst);
        if claimed.is_err() {
            // Who becomes an owner looks at this after it has said so.
            self.user.store(MANY, Ordering::SeqCst);
        }
        let until = Instant::now() + PATIENCE;
        loop {
            let owner = self.owner.load(Ordering::SeqCst);
            if owner == 0 || owner == own {
                return Ok(());
            }
            self.user.store(MANY, Ordering::SeqCst);
            self.is_wanted.store(1, Ordering::SeqCst);
            if Instant::now() > until {
                return Err(Errno::NOTCONN.into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The library of this process takes it from the kernel, if no other process uses it.
    pub(super) fn own(&self) -> bool {
        self.owner.store(me(), Ordering::SeqCst);
        let is_mine = self.user.load(Ordering::SeqCst) == me();
        if !is_mine {
            self.owner.store(0, Ordering::SeqCst);
        }
        is_mine
    }

    /// The kernel alone has it again.
    pub(super) fn disown(&self) {
        let done = self
            .owner
            .compare_exchange(me(), 0, Ordering::SeqCst, Ordering::Relaxed);
        if done.is_ok() {
            self.is_wanted.store(0, Ordering::SeqCst);
        }
    }

    /// Whether another process waits for it.
    pub(super) fn is_wanted(&self) -> bool {
        self.is_wanted.load(Ordering::SeqCst) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(count: usize) -> &'static [Record] {
        let records: Vec<_> = (0..count).map(|_| Record::default()).collect();
        Box::leak(records.into_boxed_slice())
    }

    #[test]
    fn records_are_bounded_and_come_back() {
        let records = records(2);
        let one = Record::take(records, true, false).unwrap();
        let other = Record::take(records, true, false).unwrap();
        assert!(!std::ptr::eq(one, other));
        assert!(Record::take(records, true, false).is_none());
        one.close();
        one.close();
        assert!(Record::take(records, true, false).is_some());
        assert!(Record::take(&[], true, false).is_none());
    }

    #[test]
    fn a_fork_with_many_connections_has_a_record_for_each() {
        let records = records(2000);
        let taken = (0..1500).filter_map(|_| Record::take(records, true, false));
        let mut taken: Vec<_> = taken.map(|record| &raw const *record).collect();
        taken.sort_unstable();
        taken.dedup();
        assert_eq!(taken.len(), 1500);
    }

    #[test]
    fn a_fork_counts_once() {
        let record = Record::take(records(1), true, false).unwrap();
        assert!(record.prepare(1));
        assert!(!record.prepare(1), "another number of the same connection");
        assert!(record.prepare(2));
    }

    #[test]
    fn who_alone_uses_it_may_own_it() {
        let record = Record::take(records(1), false, false).unwrap();
        assert!(!record.own(), "nobody has used it");
        record.touch().unwrap();
        assert!(record.own());
        assert!(!record.is_wanted());
        record.disown();
        // Another process uses it.
        record.user.store(me() + 1, Ordering::SeqCst);
        record.touch().unwrap();
        assert!(!record.own());
        record.touch().unwrap();
        assert!(!record.own(), "never again");
    }

    #[test]
    fn who_comes_waits_for_the_owner() {
        let record = Record::take(records(1), true, false).unwrap();
        record.user.store(me() + 1, Ordering::SeqCst);
        record.owner.store(me() + 1, Ordering::SeqCst);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !record.is_wanted() {
                    std::thread::yield_now();
                }
                record.owner.store(0, Ordering::SeqCst);
            });
            record.touch().unwrap();
        });
        assert!(!record.own(), "two processes have used it");
    }
}
