//! The protocol of the polling role in every order of events, by loom. What is modelled is the
//! order of steps in `dispatch.rs`, one function here for one there; what is left out is what the
//! queues hold. loom takes a thread that sleeps for ever as a failure.

use std::collections::VecDeque;

use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use loom::sync::{Arc, Mutex, Notify};
use loom::thread;

/// The mutex of the role. loom's own has a `try_lock` that waits.
struct Role(AtomicBool);

impl Role {
    fn try_lock(&self) -> Option<Held<'_>> {
        let taken = self
            .0
            .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        taken.is_ok().then_some(Held(self))
    }
}

struct Held<'a>(&'a Role);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::Release);
    }
}

/// The threads that wait for the role: tickets, and what to wake them with.
type Waiters = VecDeque<(usize, Arc<Notify>)>;

/// What of a lane the protocol needs.
struct Lane {
    role: Role,
    /// Left for whoever has the role (`changes` and `endings`).
    mail: Mutex<VecDeque<u32>>,
    mail_count: AtomicUsize,
    /// Mail that was read.
    read: AtomicUsize,
    asleep: AtomicBool,
    kicks: AtomicUsize,
    /// The event object; one sleeps on it at a time.
    wake: Notify,
    waiters: Mutex<Waiters>,
    waiting: AtomicUsize,
    progress_waits: AtomicBool,
    progress_woken: AtomicBool,
}

impl Lane {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            role: Role(AtomicBool::new(false)),
            mail: Mutex::new(VecDeque::new()),
            mail_count: AtomicUsize::new(0),
            read: AtomicUsize::new(0),
            asleep: AtomicBool::new(false),
            kicks: AtomicUsize::new(0),
            wake: Notify::new(),
            waiters: Mutex::new(VecDeque::new()),
            waiting: AtomicUsize::new(0),
            progress_waits: AtomicBool::new(false),
            progress_woken: AtomicBool::new(false),
        })
    }

    fn leave_mail(&self, letter: u32) {
        self.mail_count.fetch_add(1, Ordering::SeqCst);
        self.mail.lock().unwrap().push_back(letter);
        self.serve_mail();
        self.kick();
    }

    fn serve_mail(&self) {
        while self.mail_count.load(Ordering::SeqCst) > 0 {
            let Some(role) = self.role.try_lock() else {
                return;
            };
            self.read_mail(&role);
            drop(role);
            fence(Ordering::SeqCst);
            // A letter is counted before it lies there: its writer has to get on.
            thread::yield_now();
        }
    }

    fn read_mail(&self, _role: &Held<'_>) {
        if self.mail_count.load(Ordering::Acquire) == 0 {
            return;
        }
        while self.mail.lock().unwrap().pop_front().is_some() {
            self.mail_count.fetch_sub(1, Ordering::SeqCst);
            self.read.fetch_add(1, Ordering::Relaxed);
            // The connection's end fails its operations, and that kicks.
            self.kick();
        }
    }

    fn kick(&self) {
        self.kicks.fetch_add(1, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) {
            self.wake.notify();
        }
    }

    /// Holds the role until `done`, asleep while nothing changes.
    fn lead(&self, role: Held<'_>, done: impl Fn() -> bool) {
        let mut checked_at = None;
        self.read_mail(&role);
        loop {
            let kicks = self.kicks.load(Ordering::Acquire);
            if checked_at != Some(kicks) {
                if done() {
                    break;
                }
                checked_at = Some(kicks);
            }
            self.sleep(&role, kicks);
        }
        self.let_go(role);
    }

    fn sleep(&self, role: &Held<'_>, kicks: usize) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.read_mail(role);
        if self.kicks.load(Ordering::Acquire) == kicks {
            self.wake.wait();
        }
        self.asleep.store(false, Ordering::Relaxed);
        self.read_mail(role);
    }

    fn let_go(&self, role: Held<'_>) {
        drop(role);
        fence(Ordering::SeqCst);
        self.serve_mail();
        self.hand_over();
    }

    fn hand_over(&self) {
        if !self.wake_one() && self.progress_waits.swap(false, Ordering::SeqCst) {
            self.progress_woken.store(true, Ordering::SeqCst);
        }
    }

    fn wake_one(&self) -> bool {
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return false;
        }
        let woken = {
            let mut waiters = self.waiters.lock().unwrap();
            let woken = waiters.pop_front();
            self.waiting.store(waiters.len(), Ordering::SeqCst);
            woken
        };
        woken.is_some_and(|(_, notify)| {
            notify.notify();
            true
        })
    }

    /// Sleeps until the role may be free; then the caller tries to take it again.
    fn follow(&self, ticket: usize) {
        let parker = Arc::new(Notify::new());
        let change = |change: &dyn Fn(&mut Waiters)| {
            let mut waiters = self.waiters.lock().unwrap();
            change(&mut waiters);
            self.waiting.store(waiters.len(), Ordering::SeqCst);
        };
        change(&|waiters| waiters.push_back((ticket, Arc::clone(&parker))));
        fence(Ordering::SeqCst);
        let free = match self.role.try_lock() {
            Some(role) => {
                drop(role);
                fence(Ordering::SeqCst);
                self.serve_mail();
                true
            }
            None => false,
        };
        if !free {
            parker.wait();
        }
        change(&|waiters| waiters.retain(|(other, _)| *other != ticket));
    }
}

/// In every order in which threads are interrupted at most three times.
fn model(events: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(events);
}

#[test]
fn mail_is_read_whoever_has_the_role() {
    model(|| {
        let lane = Lane::new();
        let other = Arc::clone(&lane);
        let writer = thread::spawn(move || other.leave_mail(1));
        if let Some(role) = lane.role.try_lock() {
            lane.read_mail(&role);
            lane.let_go(role);
        }
        lane.leave_mail(2);
        writer.join().unwrap();
        assert_eq!(lane.read.load(Ordering::Relaxed), 2);
    });
}

#[test]
fn a_sleeper_hears_of_every_end_and_of_mail() {
    model(|| {
        let lane = Lane::new();
        let ended = Arc::new(AtomicBool::new(false));
        let (other, end) = (Arc::clone(&lane), Arc::clone(&ended));
        // Ends the operation behind the back of the thread that polls.
        let ending = thread::spawn(move || {
            end.store(true, Ordering::Release);
            other.kick();
        });
        lane.lead(lane.role.try_lock().unwrap(), || {
            ended.load(Ordering::Acquire)
        });
        ending.join().unwrap();
    });
    model(|| {
        let lane = Lane::new();
        let other = Arc::clone(&lane);
        let writer = thread::spawn(move || other.leave_mail(1));
        // The writer may have the role for a moment; then it reads the mail itself.
        if let Some(role) = lane.role.try_lock() {
            lane.lead(role, || lane.read.load(Ordering::Relaxed) == 1);
        }
        writer.join().unwrap();
    });
}

#[test]
fn the_role_goes_on_to_who_waits_for_it() {
    model(|| {
        let lane = Lane::new();
        let threads = [0, 1].map(|ticket| {
            let lane = Arc::clone(&lane);
            thread::spawn(move || {
                loop {
                    match lane.role.try_lock() {
                        Some(role) => return lane.let_go(role),
                        None => lane.follow(ticket),
                    }
                }
            })
        });
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(lane.waiting.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn the_progress_thread_serves_or_is_woken() {
    model(|| {
        let lane = Lane::new();
        let other = Arc::clone(&lane);
        let leader = thread::spawn(move || {
            if let Some(role) = other.role.try_lock() {
                other.let_go(role);
            }
        });
        // `serve`
        let mut served = false;
        for attempt in 0..2 {
            if let Some(role) = lane.role.try_lock() {
                lane.progress_waits.store(false, Ordering::SeqCst);
                lane.let_go(role);
                served = true;
                break;
            }
            if attempt == 0 {
                lane.progress_waits.store(true, Ordering::SeqCst);
                fence(Ordering::SeqCst);
            }
        }
        leader.join().unwrap();
        assert!(served || lane.progress_woken.load(Ordering::SeqCst));
    });
}
