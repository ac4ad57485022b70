//! The ready list in every order of events, by loom: the code that ships, with loom's primitives.
//! loom takes a thread that sleeps for ever as a failure.

use loom::sync::{Arc, Mutex, Notify};
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

/// A lane that may be cold, which is watched then, and two threads of one loop.
struct WatchedLane {
    looped: Arc<Loop>,
    is_warm: Mutex<bool>,
}

impl WatchedLane {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            looped: Loop::new(),
            is_warm: Mutex::new(false),
        })
    }

    /// As `EventLoop::sleep`, until the caller sleeps with the lane armed.
    fn sleep_until_armed(&self) {
        while self.looped.wakes.fall_asleep() {
            if *self.is_warm.lock().unwrap() {
                self.looped.wakes.awake();
                return;
            }
            self.looped.doorbell.wait();
            self.looped.wakes.awake();
        }
    }

    /// As `EventLoop::warm_up`, after which the caller goes to work for long.
    fn warm_up(&self) {
        *self.is_warm.lock().unwrap() = true;
        if self.looped.wakes.has_sleepers() {
            self.looped.doorbell.notify();
        }
    }
}

#[test]
fn who_sleeps_arms_a_lane_that_another_thread_has_warmed_up() {
    model(3, || {
        let lane = WatchedLane::new();
        let other = Arc::clone(&lane);
        let works = thread::spawn(move || other.warm_up());
        lane.sleep_until_armed();
        works.join().unwrap();
    });
}

/// The mutation that its order stands against: who looks for sleepers before the lane is warm.
#[test]
#[should_panic(expected = "deadlock")]
fn who_looks_for_sleepers_before_the_lane_is_warm_leaves_one_asleep() {
    model(3, || {
        let lane = WatchedLane::new();
        let other = Arc::clone(&lane);
        let works = thread::spawn(move || {
            let has_sleepers = other.looped.wakes.has_sleepers();
            *other.is_warm.lock().unwrap() = true;
            if has_sleepers {
                other.looped.doorbell.notify();
            }
        });
        lane.sleep_until_armed();
        works.join().unwrap();
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
