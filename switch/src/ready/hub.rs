//! Who hears that a source may have become ready: loops, and threads in poll or select.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustix::event::epoll::EventFlags;
use san_provider::LaneHandle;

/// Something that becomes ready without a descriptor that says so.
pub(crate) trait Source: Send + Sync {
    /// What is the case now, as epoll names it.
    fn events(&self) -> EventFlags;

    /// Who is told. The source calls [`Hub::tell`] after each change, from any thread.
    fn hub(&self) -> &Hub;

    /// Whether the kernel's descriptor tells from now on, and this source nothing any more.
    fn is_kernels(&self) -> bool {
        false
    }

    /// The lane that has to be polled for it, if there is one.
    fn lane(&self) -> Option<LaneHandle>;
}

/// Somebody who is told. It must not wait.
pub(crate) trait Told: Send + Sync {
    fn ready(self: Arc<Self>);
}

/// Those who are told of one source.
#[derive(Default)]
pub(crate) struct Hub {
    told: Mutex<Vec<Weak<dyn Told>>>,
}

impl Hub {
    /// The source may be ready.
    pub(crate) fn tell(&self) {
        for told in self.told.lock().iter() {
            if let Some(told) = told.upgrade() {
                told.ready();
            }
        }
    }

    /// Tells this one, too, from now on. What is the case already it has to look for afterwards.
    pub(super) fn add(&self, told: Weak<dyn Told>) {
        let mut all = self.told.lock();
        all.retain(|one| one.strong_count() > 0);
        all.push(told);
    }

    /// Does not tell this one any more.
    pub(super) fn remove(&self, told: &Weak<dyn Told>) {
        self.told.lock().retain(|one| !one.ptr_eq(told));
    }
}
