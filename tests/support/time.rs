//! Bounds in time: no test waits for ever, and none sleeps where it can ask. One test of a process runs
//! at a time: they share its fabric, and count what it holds.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// How long a test may take that does not need to wait for a time-out of its own. An emulated machine
/// with other work beside it is slow.
pub const USUAL: Duration = Duration::from_secs(60);
/// How long one step of a test may take.
pub const STEP: Duration = Duration::from_secs(15);

/// Runs a test's body in a thread of its own and fails when it is not done in [`USUAL`].
pub fn bounded(body: impl FnOnce() + Send + 'static) {
    within(USUAL, body);
}

/// How often something is done over and over: so many times, or as many as fit into a third of [`USUAL`], and a few at
/// least. So a slow machine with other work does it less often, and the test is done in time.
pub struct Rounds {
    begun: Instant,
    most: usize,
    least: usize,
}

impl Rounds {
    /// They begin now. `least`: fewer would show nothing.
    #[must_use]
    pub fn new(most: usize, least: usize) -> Self {
        let begun = Instant::now();
        Self { begun, most, least }
    }

    /// Whether there is another one after so many.
    #[must_use]
    pub fn goes_on(&self, done: usize) -> bool {
        done < self.least || done < self.most && self.begun.elapsed() < USUAL / 3
    }
}

/// Whose turn it is among the tests of this process.
static TURN: Mutex<()> = Mutex::new(());

/// The names of the harness's threads, one for each test, that have come here: one has its turn, the
/// others wait or are about to end.
static TESTS: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Runs a test's body in a thread of its own, when it is its turn, and fails when it is not done in
/// `limit`.
///
/// # Panics
/// With what the body panicked with, or because it is not done.
pub fn within(limit: Duration, body: impl FnOnce() + Send + 'static) {
    if let Some(name) = thread::current().name() {
        // As much of it as the kernel keeps.
        let name = name.chars().take(15).collect();
        lock(&TESTS).insert(name);
    }
    let _turn = lock(&TURN);
    let (done, finished) = mpsc::channel();
    let runner = thread::Builder::new()
        .name("test".into())
        .spawn(move || {
            let _at_the_end = AtTheEnd(done);
            body();
        })
        .expect("a thread for the test");
    if finished.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
        panic!("the test is not done after {limit:?}");
    }
    if let Err(panic) = runner.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Whether a thread of this name is the harness's own for a test.
pub(crate) fn is_harness(name: &str) -> bool {
    lock(&TESTS).contains(name)
}

/// A test that failed with it is over, too.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks until it holds.
///
/// # Panics
/// When it does not hold after `limit`; `what` says what should.
pub fn eventually(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    assert!(
        holds_within(limit, &mut holds),
        "not within {limit:?}: {what}"
    );
}

/// Asks until it holds or the time is over; says which.
pub fn holds_within(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !holds() {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Says that the thread is over, also when it panics.
struct AtTheEnd(mpsc::Sender<()>);

impl Drop for AtTheEnd {
    fn drop(&mut self) {
        // Nobody listens any more when the time was over before.
        let _ = self.0.send(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "not done after")]
    fn a_body_that_hangs_fails_the_test() {
        within(Duration::from_millis(50), || {
            thread::sleep(Duration::from_secs(5));
        });
    }

    #[test]
    #[should_panic(expected = "as the body says")]
    fn a_body_that_panics_fails_the_test() {
        bounded(|| panic!("as the body says"));
    }

    #[test]
    #[should_panic(expected = "the sun is green")]
    fn what_never_holds_fails_the_test() {
        eventually("the sun is green", Duration::from_millis(20), || false);
    }
}
