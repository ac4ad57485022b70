//! Refusals given lately, to be given again when the request comes again.
//!
//! What it does: remembers the last few thousand, so that a refusal that got
//! lost is repeated without the user being asked twice.
//! What it does not do: remember long or without bound; a request past that
//! counts as new.

use std::collections::{HashMap, VecDeque};

use crate::time::Time;
use crate::wire::mad::MadBytes;

/// The requester's GUID and its communication id.
pub(super) type RemoteKey = (u64, u32);

/// Refusals remembered; about 300 bytes each.
const CAPACITY: usize = 2048;
/// How long one is remembered. The kernel repeats a REQ about every 6 s.
const NANOS: u64 = 20_000_000_000;

#[derive(Debug, Default)]
pub(super) struct Recent {
    by_key: HashMap<RemoteKey, (Time, MadBytes)>,
    /// The keys, oldest first, each once.
    order: VecDeque<RemoteKey>,
}

impl Recent {
    pub(super) fn put(&mut self, now: Time, key: RemoteKey, mad: MadBytes) {
        if self.by_key.insert(key, (now, mad)).is_some() {
            return;
        }
        self.order.push_back(key);
        if self.order.len() > CAPACITY
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_key.remove(&oldest);
        }
    }

    pub(super) fn get(&self, now: Time, key: RemoteKey) -> Option<&MadBytes> {
        let (at, mad) = self.by_key.get(&key)?;
        (now.nanos_since(*at) < NANOS).then_some(mad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::mad::MAD_LEN;

    #[test]
    fn the_oldest_are_forgotten() {
        let mut recent = Recent::default();
        let start = Time::ZERO;
        for id in 0..CAPACITY as u32 + 10 {
            recent.put(start, (1, id), [id as u8; MAD_LEN]);
        }
        assert_eq!(
            (recent.order.len(), recent.by_key.len()),
            (CAPACITY, CAPACITY)
        );
        assert_eq!(recent.get(start, (1, 9)), None);
        assert_eq!(recent.get(start, (1, 10)), Some(&[10; MAD_LEN]));
        assert_eq!(recent.get(start, (2, 10)), None);
        assert_eq!(recent.get(start.plus_nanos(NANOS), (1, 10)), None);
    }
}
