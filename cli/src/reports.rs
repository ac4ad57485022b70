//! The reports of all processes that may be asked: asked side by side, since one that is stopped
//! answers only after seconds, and must not hold up the others.

use san_base::lock;
use san_switch::{Report, StatError};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Processes that are asked at once.
const AT_ONCE: usize = 16;

/// What the processes tell.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    /// By process, and in it in the order of its switches.
    pub(crate) reports: Vec<Report>,
    /// Processes that seemed to have a switch, and gave no report.
    pub(crate) unanswered: usize,
}

/// Asks every process.
pub(crate) fn of_all() -> Reports {
    of(&Report::processes())
}

fn of(pids: &[u32]) -> Reports {
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::new());
    let unanswered = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..pids.len().min(AT_ONCE) {
            scope.spawn(|| {
                while let Some(pid) = pids.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match Report::of_process(*pid) {
                        Ok(reports) => lock(&found).push((*pid, reports)),
                        Err(StatError::NoAnswer { .. }) => {
                            unanswered.fetch_add(1, Ordering::Relaxed);
                        }
                        // It ended just now.
                        Err(_) => {}
                    }
                }
            });
        }
    });
    let mut found = found
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    found.sort_by_key(|(pid, _)| *pid);
    Reports {
        reports: found.into_iter().flat_map(|(_, reports)| reports).collect(),
        unanswered: unanswered.into_inner(),
    }
}
