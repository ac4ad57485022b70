//! What providers call: the switch's side of the SPI's upcalls (duties 5, 8, 67).
//!
//! They run in the providers' threads, so they only count and signal: the accept thread does the
//! work.

use san_provider::{OverlappedResult, SwitchHandle, SwitchUpcalls};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::signals::Signals;

/// The switch as one provider sees it.
#[derive(Debug)]
pub(crate) struct Upcalls {
    signals: Arc<Signals>,
    next_handle: AtomicU64,
}

impl Upcalls {
    pub(crate) fn new(signals: Arc<Signals>) -> Self {
        Upcalls {
            signals,
            next_handle: AtomicU64::new(1),
        }
    }
}

impl SwitchUpcalls for Upcalls {
    fn create_socket_handle(&self, _number: u64) -> io::Result<SwitchHandle> {
        Ok(SwitchHandle(
            self.next_handle.fetch_add(1, Ordering::Relaxed),
        ))
    }

    /// Never asked for: every transfer of the switch is polled by the thread that waits for it.
    fn complete_overlapped(&self, handle: SwitchHandle, result: OverlappedResult) {
        tracing::warn!(?handle, ?result, "a completion that nobody asked for");
    }

    fn close_socket_handle(&self, handle: SwitchHandle) {
        tracing::trace!(?handle, "provider's socket closed");
    }

    fn address_list_changed(&self) {
        self.signals
            .addresses_changed
            .store(true, Ordering::Release);
        self.signals.wake.set();
    }
}
