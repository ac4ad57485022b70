//! A thread that sleeps outside, in every order of events, by loom: the polling role that ships, on a queue that
//! announces one completion for each time that it was asked. loom takes a thread that sleeps for ever as a failure.

use std::time::Duration;

use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use super::model;
use super::poller::{Poller, Queues, See, Source};

struct Lane {
    poller: Poller<()>,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    /// Completions that nobody has polled.
    left: usize,
    handed_out: usize,
    is_armed: bool,
    /// The channel's descriptor is readable.
    is_announced: bool,
    /// The bell of the thread outside has been rung.
    is_rung: bool,
}

impl Lane {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            poller: Poller::new((), Duration::ZERO),
            queue: Mutex::new(Queue::default()),
            changed: Condvar::new(),
        })
    }

    /// Something comes.
    fn complete(&self) {
        let mut queue = self.queue.lock().unwrap();
        queue.left += 1;
        if std::mem::take(&mut queue.is_armed) {
            queue.is_announced = true;
            self.changed.notify_all();
        }
    }

    /// As an event loop does: it sleeps until a descriptor of the lane is readable, or the completion was handed
    /// out, of which the sink would tell it. Then it takes what was announced, and polls.
    fn sleep_outside_until_handed_out(&self) {
        loop {
            if self.poller.arm_outside(self) == 0 {
                let mut queue = self.queue.lock().unwrap();
                while queue.handed_out == 0 && !queue.is_announced && !queue.is_rung {
                    queue = self.changed.wait(queue).unwrap();
                }
                queue.is_announced = false;
                queue.is_rung = false;
            }
            self.poller.disarm_outside();
            self.poller.poll_all_if_free(self);
            if self.queue.lock().unwrap().handed_out > 0 {
                return;
            }
            thread::yield_now();
        }
    }
}

impl Source for Lane {
    type Role = ();
    type Member = ();
    type State = ();

    fn poll(&self, (): &mut (), _: Queues, _: &mut impl See<(), ()>) -> usize {
        let mut queue = self.queue.lock().unwrap();
        let came = std::mem::take(&mut queue.left);
        if came > 0 {
            queue.handed_out += came;
            self.changed.notify_all();
        }
        came
    }

    fn has_mail(&self) -> bool {
        false
    }

    fn arm(&self, _: Queues) -> bool {
        self.queue.lock().unwrap().is_armed = true;
        true
    }

    fn sleep(&self, _: Option<Duration>) {
        unreachable!("nobody leads");
    }

    fn wake(&self) {}

    fn wake_outside(&self) {
        self.queue.lock().unwrap().is_rung = true;
        self.changed.notify_all();
    }

    fn wake_progress(&self) {}
}

/// The other thread may find nothing, and let the role go after the one outside has found it taken.
#[test]
fn who_comes_to_sleep_outside_while_another_polls_hears_of_what_comes() {
    model(3, || {
        let lane = Lane::new();
        let (polling, completing) = (Arc::clone(&lane), Arc::clone(&lane));
        let polls = thread::spawn(move || polling.poller.poll_if_free(&*polling));
        let completes = thread::spawn(move || completing.complete());
        lane.sleep_outside_until_handed_out();
        polls.join().unwrap();
        completes.join().unwrap();
    });
}
