//! poll(2) and select(2) with streams of ours among the descriptors.

use std::io;
use std::time::Duration;

use rustix::event::epoll::EventFlags;

use super::stream::Stream;
use crate::ready::sleeper::{KernelPoll, Waited, wait_for};

/// One stream that is waited for.
pub struct Poll {
    waited: Waited,
}

impl Poll {
    /// Waits for these events, as poll(2) numbers them.
    pub fn new(stream: &Stream, wanted: i16) -> Self {
        Self {
            waited: Waited {
                source: stream.source(),
                wanted: EventFlags::from_bits_retain(u32::from(wanted.cast_unsigned())),
                found: EventFlags::empty(),
            },
        }
    }

    /// What was found.
    pub fn found(&self) -> i16 {
        i16::try_from(self.waited.found.bits()).unwrap_or(0)
    }
}

/// Waits until a stream or one of the kernel's descriptors is ready, or the time is over; how many are.
/// `None`: a connect has gone to TCP meanwhile, and the caller begins anew. `kernel` waits for the caller's other descriptors, and for those that it is given, so long.
///
/// # Errors
/// What `kernel` says; EMFILE.
pub fn poll(
    streams: &mut [Poll],
    timeout: Option<Duration>,
    kernel: KernelPoll<'_>,
) -> io::Result<Option<usize>> {
    let mut waited: Vec<_> = streams.iter_mut().map(|one| &mut one.waited).collect();
    wait_for(&mut waited, timeout, kernel)
}
