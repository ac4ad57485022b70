//! Refusals given lately, to be given again when the request comes again.
//!
//! What it does: a small ring, so that a refusal that got lost is repeated
//! without the user being asked twice.
//! What it does not do: remember long or much; a request past that counts as new.

use std::collections::VecDeque;

use crate::time::Time;
use crate::wire::mad::MadBytes;

/// The requester's GUID and its communication id.
pub(super) type RemoteKey = (u64, u32);

/// Refusals remembered; 256 bytes each.
const CAPACITY: usize = 256;
/// How long one is remembered. The kernel repeats a REQ about every 6 s.
const NANOS: u64 = 20_000_000_000;

#[derive(Debug, Default)]
pub(super) struct Recent {
    ring: VecDeque<(RemoteKey, Time, MadBytes)>,
}

impl Recent {
    pub(super) fn put(&mut self, now: Time, key: RemoteKey, mad: MadBytes) {
        if self.ring.len() == CAPACITY {
            self.ring.pop_front();
        }
        self.ring.push_back((key, now, mad));
    }

    pub(super) fn get(&self, now: Time, key: RemoteKey) -> Option<&MadBytes> {
        let mut newest_first = self.ring.iter().rev();
        newest_first
            .find(|(k, at, _)| *k == key && now.nanos_since(*at) < NANOS)
            .map(|(_, _, mad)| mad)
    }
}
