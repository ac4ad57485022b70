//! The ready list in every order of events, by loom: the code that ships, with loom's primitives.
//! loom takes a thread that sleeps for ever as a failure.

use loom::sync::{Arc, Notify};
use loom::thread;

use self::wakes::Wakes;

#[path = "wakes.rs"]
#[allow(
    dead_code,
    clippy::duplicate_mod,
    reason = "the file that ships, of which the models need a part"
)]
mod wakes;

/// What `primitives.rs` has, by loom.
mod primitives {
    pub(super) use loom::sync::Mutex;
    pub(super) use loom::sync::atomic::{AtomicUsize, Ordering};

    pub(super) fn lock<T>(mutex: &Mutex<T>) -> loom::sync::MutexGuard<'_, T> {
        mutex.lock().unwrap()
    }
}

struct Loop {
    wakes: Wakes<u32>,
    doorbell: Notify,
}

impl Loop {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            wakes: Wakes::new(),
            doorbell: Notify::new(),
        })
    }

    fn tell(&self, entry: u32) {
        if self.wakes.push(entry) {
            self.doorbell.notify();
        }
    }

    /// As `EventLoop::wait`: one entry, if it has to be slept for.
    fn wait(&self) -> u32 {
        let mut found = Vec::new();
        loop {
            if self.wakes.take(1, &mut found).more {
                self.doorbell.notify();
            }
            if let Some(entry) = found.pop() {
                return entry;
            }
            if self.wakes.fall_asleep() {
                self.doorbell.wait();
                self.wakes.awake();
            }
        }
    }
}

/// In every order in which threads are interrupted at most so many times.
fn model(preemptions: usize, events: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(events);
}

#[test]
fn who_waits_hears_of_all_that_is_pushed() {
    model(3, || {
        let looped = Loop::new();
        let tellers: Vec<_> = [1, 2]
            .map(|entry| {
                let looped = Arc::clone(&looped);
                thread::spawn(move || looped.tell(entry))
            })
            .into();
        assert_eq!(looped.wait() + looped.wait(), 3);
        for teller in tellers {
            teller.join().unwrap();
        }
        assert!(looped.wakes.is_empty());
    });
}

/// The mutation that the order of the two steps stands against: who looks at the list before he
/// counts himself among the sleepers can sleep for ever.
#[test]
#[should_panic(expected = "deadlock")]
fn who_looks_before_he_says_that_he_sleeps_is_lost() {
    model(3, || {
        let looped = Loop::new();
        let teller = {
            let looped = Arc::clone(&looped);
            thread::spawn(move || looped.tell(1))
        };
        let mut found = Vec::new();
        if looped.wakes.is_empty() {
            // What `fall_asleep` does after this, without its look.
            let _ = looped.wakes.take(0, &mut found);
            looped.doorbell.wait();
        }
        teller.join().unwrap();
    });
}
