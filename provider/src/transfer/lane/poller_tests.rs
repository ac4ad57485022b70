//! The polling role in every order of events, by loom: the code that ships, with loom's primitives,
//! on a source of its own. loom takes a thread that sleeps for ever as a failure.

use std::collections::VecDeque;
use std::time::Duration;

use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::sync::{Arc, Mutex, Notify};
use loom::thread;

use self::poller::{Poller, Queues, See, Source, Wanted};
use super::spin;

#[path = "poller.rs"]
#[allow(
    dead_code,
    clippy::duplicate_mod,
    reason = "the file that ships, of which the models need a part"
)]
mod poller;

#[path = "followers.rs"]
#[allow(clippy::duplicate_mod, reason = "the file that ships")]
mod followers;

#[path = "outside_tests.rs"]
mod outside_tests;

/// What `primitives.rs` has, by loom.
mod primitives {
    use std::ops::{Deref, DerefMut};
    use std::time::Duration;

    pub(super) use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
    use loom::sync::{Arc, MutexGuard as LoomGuard, Notify};

    /// loom's own mutex has a `try_lock` that waits.
    pub(super) struct Mutex<T> {
        taken: AtomicBool,
        value: loom::sync::Mutex<T>,
    }

    impl<T> Mutex<T> {
        pub(super) fn new(value: T) -> Self {
            Self {
                taken: AtomicBool::new(false),
                value: loom::sync::Mutex::new(value),
            }
        }

        fn take(&self) -> bool {
            self.taken
                .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
        }

        fn guard(&self) -> MutexGuard<'_, T> {
            MutexGuard {
                guard: Some(self.value.lock().unwrap()),
                taken: &self.taken,
            }
        }
    }

    pub(super) struct MutexGuard<'a, T> {
        guard: Option<LoomGuard<'a, T>>,
        taken: &'a AtomicBool,
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;
        fn deref(&self) -> &T {
            self.guard.as_ref().unwrap()
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.guard.as_mut().unwrap()
        }
    }

    impl<T> Drop for MutexGuard<'_, T> {
        fn drop(&mut self) {
            self.guard = None;
            self.taken.store(false, Ordering::Release);
        }
    }

    pub(super) fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
        mutex.take().then(|| mutex.guard())
    }

    pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        while !mutex.take() {
            loom::thread::yield_now();
        }
        mutex.guard()
    }

    #[derive(Clone)]
    pub(super) struct Unparker(Arc<Notify>);

    impl Unparker {
        pub(super) fn unpark(&self) {
            self.0.notify();
        }
    }

    pub(super) struct Parker(Unparker);

    impl Parker {
        pub(super) fn unparker(&self) -> &Unparker {
            &self.0
        }

        pub(super) fn park(&self) {
            self.0.0.wait();
        }

        /// No deadline in these models ever comes.
        pub(super) fn park_timeout(&self, _: Duration) {
            self.park();
        }
    }

    pub(super) fn with_parker<R>(f: impl FnOnce(&Parker) -> R) -> R {
        f(&Parker(Unparker(Arc::new(Notify::new()))))
    }
}

/// A lane without queues: what is left as mail is all that comes.
struct Lane {
    poller: Poller<()>,
    mail: Mutex<VecDeque<u32>>,
    mail_count: AtomicUsize,
    /// Mail that was read.
    read: AtomicUsize,
    /// The event object; one sleeps on it at a time.
    wake: Notify,
    progress_woken: AtomicBool,
}

impl Lane {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            poller: Poller::new((), Duration::ZERO),
            mail: Mutex::new(VecDeque::new()),
            mail_count: AtomicUsize::new(0),
            read: AtomicUsize::new(0),
            wake: Notify::new(),
            progress_woken: AtomicBool::new(false),
        })
    }

    fn leave_mail(&self, letter: u32) {
        self.mail_count.fetch_add(1, Ordering::SeqCst);
        self.mail.lock().unwrap().push_back(letter);
        self.poller.mail_left(self);
    }
}

impl Source for Lane {
    type Role = ();
    type Member = ();
    type State = ();

    fn poll(&self, (): &mut (), _: Queues, _: &mut impl See<(), ()>) -> usize {
        if self.mail_count.load(Ordering::Acquire) == 0 {
            return 0;
        }
        while self.mail.lock().unwrap().pop_front().is_some() {
            self.mail_count.fetch_sub(1, Ordering::SeqCst);
            self.read.fetch_add(1, Ordering::Relaxed);
            // The connection's end fails its operations, and that kicks.
            self.poller.kick(self);
        }
        // A letter is counted before it lies there: its writer has to get on.
        thread::yield_now();
        0
    }

    fn has_mail(&self) -> bool {
        self.mail_count.load(Ordering::SeqCst) > 0
    }

    fn arm(&self, _: Queues) -> bool {
        true
    }

    fn sleep(&self, _: Option<Duration>) {
        self.wake.wait();
    }

    fn wake(&self) {
        self.wake.notify();
    }

    fn wake_outside(&self) {
        self.wake.notify();
    }

    fn wake_progress(&self) {
        self.progress_woken.store(true, Ordering::SeqCst);
    }
}

/// Something that is true at some time, and whom to wake then.
struct Flag {
    raised: AtomicBool,
    waker: Mutex<Option<primitives::Unparker>>,
}

impl Flag {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            raised: AtomicBool::new(false),
            waker: Mutex::new(None),
        })
    }

    /// As the end of an operation: under its lock, then the waker, then a kick.
    fn raise(&self, lane: &Lane) {
        let waker = {
            let mut waker = self.waker.lock().unwrap();
            self.raised.store(true, Ordering::Release);
            waker.take()
        };
        if let Some(waker) = waker {
            waker.unpark();
        }
        lane.poller.kick(lane);
    }
}

struct Until<'a>(&'a Flag);

impl See<(), ()> for Until<'_> {
    fn see(&mut self, (): &(), (): &mut ()) {}
}

impl Wanted<Lane> for Until<'_> {
    type Found = ();

    fn seen(&mut self) -> Option<()> {
        None
    }

    fn check(&mut self, waker: Option<&primitives::Unparker>) -> Option<()> {
        let mut place = self.0.waker.lock().unwrap();
        if self.0.raised.load(Ordering::Acquire) {
            return Some(());
        }
        *place = waker.cloned();
        None
    }
}

/// Until so much mail was read.
struct Read<'a>(&'a Lane, usize);

impl See<(), ()> for Read<'_> {
    fn see(&mut self, (): &(), (): &mut ()) {}
}

impl Wanted<Lane> for Read<'_> {
    type Found = ();

    fn seen(&mut self) -> Option<()> {
        None
    }

    fn check(&mut self, _: Option<&primitives::Unparker>) -> Option<()> {
        (self.0.read.load(Ordering::Relaxed) >= self.1).then_some(())
    }
}

/// In every order in which threads are interrupted at most so many times.
fn model(preemptions: usize, events: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(events);
}

#[test]
fn mail_is_read_whoever_has_the_role() {
    model(2, || {
        let lane = Lane::new();
        let other = Arc::clone(&lane);
        let writer = thread::spawn(move || other.leave_mail(1));
        lane.poller.poll_if_free(&*lane);
        lane.leave_mail(2);
        writer.join().unwrap();
        assert_eq!(lane.read.load(Ordering::Relaxed), 2);
    });
}

#[test]
fn a_sleeper_hears_of_every_end() {
    model(3, || {
        let (lane, flag) = (Lane::new(), Flag::new());
        let (other, ends) = (Arc::clone(&lane), Arc::clone(&flag));
        // Ends the operation behind the back of the thread that polls.
        let ending = thread::spawn(move || ends.raise(&other));
        let found = lane.poller.wait(&*lane, Duration::MAX, &mut Until(&flag));
        assert!(found.is_some());
        ending.join().unwrap();
    });
}

#[test]
fn a_sleeper_hears_of_mail() {
    model(2, || {
        let lane = Lane::new();
        let other = Arc::clone(&lane);
        let writer = thread::spawn(move || other.leave_mail(1));
        let found = lane.poller.wait(&*lane, Duration::MAX, &mut Read(&lane, 1));
        assert!(found.is_some());
        writer.join().unwrap();
    });
}

#[test]
fn the_role_goes_on_to_who_waits_for_it() {
    model(2, || {
        let lane = Lane::new();
        let flags = [Flag::new(), Flag::new()];
        let waiting = {
            let (lane, flag) = (Arc::clone(&lane), Arc::clone(&flags[0]));
            thread::spawn(move || lane.poller.wait(&*lane, Duration::MAX, &mut Until(&flag)))
        };
        // One ends, leaves the role, and the other is told of its own end.
        flags[1].raise(&lane);
        let found = lane
            .poller
            .wait(&*lane, Duration::MAX, &mut Until(&flags[1]));
        assert!(found.is_some());
        flags[0].raise(&lane);
        assert!(waiting.join().unwrap().is_some());
    });
}

#[test]
fn who_sleeps_outside_finds_the_mail_or_is_told() {
    model(2, || {
        let lane = Lane::new();
        let other = Arc::clone(&lane);
        let writer = thread::spawn(move || other.leave_mail(1));
        lane.poller.arm_outside(&*lane);
        lane.poller.disarm_outside();
        writer.join().unwrap();
        assert_eq!(lane.read.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn the_progress_thread_serves_or_is_woken() {
    model(3, || {
        let lane = Lane::new();
        let other = Arc::clone(&lane);
        let leader = thread::spawn(move || other.poller.poll_if_free(&*other));
        let served = lane.poller.serve(&*lane, || {});
        leader.join().unwrap();
        assert!(served || lane.progress_woken.load(Ordering::SeqCst));
    });
}
